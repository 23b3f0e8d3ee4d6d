from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.api import CheckpointError
from model.checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    load_checkpoint,
    n_gram_strengths,
    save_checkpoint,
    save_n_gram_strengths,
)
from model.denoiser import Denoiser, Role
from model.tokenizer import CodeTokenizer


@pytest.fixture
def saved(tmp_path: Path, tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]) -> Path:
    directory = tmp_path / "checkpoint"
    model = make_denoiser(tokenizer.vocab_size, dtype=torch.bfloat16)
    save_checkpoint(directory, model, tokenizer, training={"steps": 3})
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **changes}))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(directory / WEIGHTS)
    edit(weights)
    save_file(weights, directory / WEIGHTS)


def test_a_loaded_model_computes_what_the_saved_one_did(
    saved: Path, tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]
) -> None:
    original = make_denoiser(tokenizer.vocab_size, dtype=torch.bfloat16)
    model, loaded_tokenizer = load_checkpoint(saved, dtype=torch.bfloat16)
    assert model.config == original.config
    assert not model.training
    assert loaded_tokenizer.digest == tokenizer.digest
    ids = torch.arange(9)[None]
    assert model.encode(ids, Role.PREFIX)[0].equal(original.encode(ids, Role.PREFIX)[0])


def test_strengths_of_n_grams_are_kept_beside_the_weights(saved: Path) -> None:
    assert n_gram_strengths(saved) == []
    save_n_gram_strengths(saved, [(1, 9.6549), (4, 1.7)])
    assert n_gram_strengths(saved) == [(1, 9.655), (4, 1.7)]
    load_checkpoint(saved)


@pytest.mark.parametrize("broken", [[1, 2], {"one": 2.0}, {"1": "strong"}, {"1": None}])
def test_strengths_that_are_none_are_refused(saved: Path, broken: object) -> None:
    edit_config(saved, n_gram_strengths=broken)
    with pytest.raises(CheckpointError, match=r"no usable n_gram_strengths: .*evaluate n-grams"):
        n_gram_strengths(saved)


def test_weights_load_into_the_dtype_asked_for(saved: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = load_checkpoint(saved, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_the_config_keeps_what_people_want_to_know(saved: Path) -> None:
    assert json.loads((saved / CONFIG).read_text())["training"] == {"steps": 3}


def test_saving_again_replaces_the_checkpoint_and_leaves_other_files(
    saved: Path, tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]
) -> None:
    (saved / "README.md").write_text("a model card")
    save_checkpoint(saved, make_denoiser(tokenizer.vocab_size, num_layers=1), tokenizer)
    assert load_checkpoint(saved)[0].config.num_layers == 1
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", CONFIG, WEIGHTS, TOKENIZER]
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_save_that_died_half_way_is_no_obstacle(
    saved: Path, tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]
) -> None:
    draft = saved.with_name(f".{saved.name}.draft")
    draft.mkdir()
    (draft / WEIGHTS).write_bytes(b"half")
    load_checkpoint(saved)
    save_checkpoint(saved, make_denoiser(tokenizer.vocab_size, num_layers=1), tokenizer)
    assert load_checkpoint(saved)[0].config.num_layers == 1


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint directory .*/nowhere"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_checkpoint(saved)


def test_truncated_weights_are_refused(saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        (saved / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is damaged"):
            load_checkpoint(saved)


def test_a_tensor_of_the_wrong_shape_is_named(saved: Path) -> None:
    edit_weights(saved, lambda w: w.update({"final_norm.weight": torch.ones(5)}))
    with pytest.raises(CheckpointError, match=r"final_norm.weight .* \(16,\), found \(5,\)"):
        load_checkpoint(saved)


def test_a_missing_tensor_is_named(saved: Path) -> None:
    edit_weights(saved, lambda w: w.pop("blocks.1.ffn_norm.weight"))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"blocks.1.ffn_norm.weight .* found nothing"):
        load_checkpoint(saved)


def test_a_tensor_too_many_is_named(saved: Path) -> None:
    edit_weights(saved, lambda w: w.update({"lm_head.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight should have shape none at all"):
        load_checkpoint(saved)


def test_weights_are_not_read_with_a_tokenizer_they_were_not_trained_with(
    saved: Path, code: str
) -> None:
    CodeTokenizer.train([code, "other words"], 400).save(saved / TOKENIZER)
    with pytest.raises(CheckpointError, match="is not the tokenizer these weights"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable JSON"),
        ("[]", "model_type 'list'"),
        ('{"model_type": "llama"}', "model_type 'llama'; here it must be 'mezzotint'"),
        ('{"model_type": "mezzotint", "format_version": 2}', "format version 2"),
        ('{"model_type": "mezzotint", "format_version": 1}', "lacks the key 'tokenizer_sha256'"),
    ],
)
def test_a_config_we_cannot_read_is_refused(saved: Path, text: str, message: str) -> None:
    (saved / CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "denoiser",
    [
        [],
        {},
        {"vocab_size": 400, "depth": 3},
        {"vocab_size": -1},
        {"vocab_size": 400, "num_heads": 0},
        {"vocab_size": 400, "num_layers": "2"},
    ],
)
def test_a_config_that_describes_no_denoiser_is_refused(saved: Path, denoiser: Any) -> None:
    edit_config(saved, denoiser=denoiser)
    with pytest.raises(CheckpointError, match="describes no denoiser"):
        load_checkpoint(saved)
