from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_backbone import write_tiny_backbone

from model.backbone.checkpoint import Backbone, load_backbone
from model.denoiser import load_denoiser
from model.training import __main__ as main_module
from model.training import trainer as trainer_module
from model.training.__main__ import main, training_device, training_dtype
from model.training.windows import WindowShape

QUICK = ["--minutes", "0.004", "--device", "cpu", "--dtype", "float32", "--layers", "1",
         "--canvases", "4", "--draft-vocabulary", "60"]  # fmt: skip


@pytest.fixture(autouse=True)
def few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "HELD_OUT_WINDOWS", 1)
    monkeypatch.setattr(main_module, "HELD_OUT_SHAPE", WindowShape(canvases=4))


def train(*arguments: str | Path) -> int:
    return main([str(a) for a in (*arguments, *QUICK)])


def test_a_folder_of_code_becomes_a_denoiser_and_the_run_goes_on(
    folder: Path, tiny_backbone_folder: Path, backbone: Backbone, tmp_path: Path, capsys
):
    run = tmp_path / "run"
    assert train(folder, "--backbone", tiny_backbone_folder, "--out", run, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["steps"] > 0
    assert figures["held_out_tokens_per_forward"] >= 1
    loaded = load_denoiser(run / "checkpoint", backbone.digest, backbone.model)
    assert len(loaded.draft_ids) <= 60
    arguments = ("--backbone", tiny_backbone_folder, "--out", run, "--cooldown", "0.003")
    assert train(folder, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] > figures["steps"]
    rows = [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] > figures["steps"]


def test_a_run_that_starts_from_a_checkpoint_keeps_it_if_nothing_is_better(
    folder: Path, tiny_backbone_folder: Path, backbone: Backbone, tmp_path: Path, capsys
):
    arguments = (folder, "--backbone", tiny_backbone_folder, "--out")
    assert train(*arguments, tmp_path / "first") == 0
    assert "held-out tokens a verify forward" in capsys.readouterr().out
    start = tmp_path / "first" / "checkpoint"
    assert train(*arguments, tmp_path / "second", "--from", start, "--learning-rate", "1e-9") == 0
    first, second = (
        load_denoiser(tmp_path / n / "checkpoint", backbone.digest, backbone.model)
        for n in ("first", "second")
    )
    torch.testing.assert_close(first.skip.weight, second.skip.weight, atol=1e-3, rtol=0.02)


def test_a_checkpoint_of_another_backbone_is_no_start(
    folder: Path, tiny_backbone_folder: Path, tmp_path: Path, capsys
):
    assert train(folder, "--backbone", tiny_backbone_folder, "--out", tmp_path / "run") == 0
    other = write_tiny_backbone(tmp_path / "other", seed=9)
    start = tmp_path / "run" / "checkpoint"
    arguments = (folder, "--backbone", other, "--out")
    assert train(*arguments, tmp_path / "new", "--from", start) == 1
    assert "was trained on the backbone tiny" in capsys.readouterr().err
    assert train(*arguments, tmp_path / "run") == 1
    assert "over another backbone" in capsys.readouterr().err


def test_nothing_to_train_on_is_one_sentence(
    tiny_backbone_folder: Path, folder: Path, tmp_path: Path, capsys
):
    arguments = ("--backbone", tiny_backbone_folder, "--out", tmp_path / "run")
    assert train(tmp_path / "nowhere", *arguments) == 1
    assert "not a folder" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "SOURCE.json").write_text('{"licence": "MIT"}')
    assert train(empty, *arguments) == 1
    assert "no code files to train on" in capsys.readouterr().err
    assert train(folder, "--backbone", tmp_path / "none.gguf", "--out", tmp_path / "run") == 1
    assert "there is no model at" in capsys.readouterr().err


def test_a_shard_cut_short_is_named(
    folder: Path, tiny_backbone_folder: Path, tmp_path: Path, capsys
):
    run = tmp_path / "run"
    arguments = ("--backbone", tiny_backbone_folder, "--out", run)
    assert train(folder, *arguments) == 0
    before = (run / "checkpoint" / "denoiser.safetensors").read_bytes()
    shard = run / "corpus" / "train-000.jsonl.gz"
    shard.write_bytes(shard.read_bytes()[:-20])
    assert train(run / "corpus", *arguments) == 1
    assert "is no readable shard" in capsys.readouterr().err
    assert (run / "checkpoint" / "denoiser.safetensors").read_bytes() == before


def test_devices_and_types_are_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="no CUDA device"):
        training_device("cuda")
    assert training_dtype("float32", torch.device("cpu")) == torch.float32
    assert training_dtype("auto", torch.device("cuda")) == torch.bfloat16


def test_the_backbone_is_read_in_the_type_to_compute_in(tiny_backbone_folder: Path):
    read = load_backbone(tiny_backbone_folder, dtype=torch.bfloat16)
    assert read.model.embedding.weight.dtype == torch.bfloat16
