from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.denoiser import DenoiserConfig
from model.training import __main__ as main_module
from model.training import trainer as trainer_module
from model.training.__main__ import main, parse_args, training_dtype
from model.training.data import BatchShape
from model.training.trainer import TrainingConfig

TINY = ["--windows", "1", "--hidden-size", "64", "--layers", "1", "--vocab-size", "300"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "HELD_OUT_BATCHES", 1)


def minutes(value: float) -> list[str]:
    return ["--minutes", str(value), "--device", "cpu"]


def test_a_folder_of_code_becomes_a_checkpoint_and_the_run_can_be_prolonged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([str(folder), "--out", str(run), "--json", *TINY, *minutes(0.005)]) == 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    figures = json.loads(last_line)
    assert set(figures) == {"held_out_accuracy", "steps", "minutes"}
    assert figures["steps"] >= 1
    model, tokenizer = load_checkpoint(run / "checkpoint")
    assert (model.config.hidden_size, model.config.num_layers) == (64, 1)
    assert model.config.vocab_size == tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode("def é():\n    pass")) == "def é():\n    pass"

    # Without the sizes: a run goes on with the model it has. On a busy machine the one step took
    # longer than it should have, so the new length is counted from what was really used.
    used = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["seconds"] / 60
    longer = [str(folder), "--out", str(run), "--windows", "1", *minutes(used + 0.005)]
    assert main(longer) == 0
    out = capsys.readouterr().out
    assert f"the best checkpoint is {run / 'checkpoint'}" in out
    steps = [json.loads(row)["step"] for row in (run / "log.jsonl").read_text().splitlines()]
    assert steps[0] == figures["steps"] < steps[-1]
    assert load_checkpoint(run / "checkpoint")[0].config == model.config


def test_training_can_start_from_another_runs_checkpoint_and_a_packed_corpus(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--out", str(tmp_path / "one"), *TINY, *minutes(0.001)]) == 0
    start, corpus = tmp_path / "one" / "checkpoint", tmp_path / "one" / "corpus"
    arguments = [str(corpus), "--out", str(tmp_path / "two"), "--windows", "1"]
    for length in (0.001, 0.002):  # the second time it is a run of its own
        assert main([*arguments, "--from", str(start), *minutes(length)]) == 0
    assert not (tmp_path / "two" / "corpus").exists()
    rows = [json.loads(row) for row in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0  # the start's own score is the one to beat
    assert "held_out_accuracy" in rows[0]
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("two", "one"))
    assert ours[0].config == theirs[0].config
    assert ours[1].digest == theirs[1].digest


def test_a_cooldown_ends_a_run_from_where_it_stands(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0.0)
    run = tmp_path / "run"
    assert main([str(folder), "--out", str(run), *TINY, *minutes(0.002)]) == 0
    before = rows(run)
    cooldown = ["--cooldown", "0.01", "--minutes", "60", "--device", "cpu", "--windows", "1"]
    assert main([str(folder), "--out", str(run), *cooldown]) == 0
    after = rows(run)[len(before) :]
    assert after[0]["step"] == before[-1]["step"] + 1
    factors = [row["rate_factor"] for row in after if "rate_factor" in row]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == 0.0
    assert after[-1]["seconds"] >= before[-1]["seconds"] + 0.6


def test_a_model_remembers_the_longest_context_it_was_trained_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    sampler = main_module.WindowSampler

    def recording(documents: object, tokenizer: object, shape: BatchShape, seed: int) -> object:
        lengths.append(shape.stream_tokens)
        return sampler(documents, tokenizer, shape, seed)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(main_module, "WindowSampler", recording)
    start: list[str] = []
    for name, options in (
        ("new", ["--context-tokens", "48"]),
        ("longer", ["--context-tokens", "96"]),
        ("as it was", []),
        ("shorter", ["--context-tokens", "64"]),
    ):
        run = tmp_path / name
        arguments = [str(folder), "--out", str(run), *TINY, *options, *start]
        assert main([*arguments, *minutes(0.001)]) == 0
        start = ["--from", str(run / "checkpoint")]
    assert lengths[::2] == [48, 96, 96, 64]
    found = [
        load_checkpoint(tmp_path / name / "checkpoint")[0] for name in ("as it was", "shorter")
    ]
    assert [model.config.max_context for model in found] == [96, 96]


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]


class TestTrainingDtype:
    CPU, CUDA = torch.device("cpu"), torch.device("cuda")

    def test_is_what_was_asked_for(self) -> None:
        assert training_dtype("float32", self.CUDA) is torch.float32
        assert training_dtype("bfloat16", self.CPU) is torch.bfloat16

    @pytest.mark.parametrize("faster", [torch.float32, torch.bfloat16])
    def test_is_what_this_cpu_multiplies_faster(
        self, monkeypatch: pytest.MonkeyPatch, faster: torch.dtype
    ) -> None:
        monkeypatch.setattr(
            main_module, "_seconds_to_multiply", lambda dtype: 1.0 if dtype is faster else 2.0
        )
        assert training_dtype("auto", self.CPU) is faster

    def test_is_bf16_on_a_gpu_without_asking_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(main_module, "_seconds_to_multiply")
        assert training_dtype("auto", self.CUDA) is torch.bfloat16

    def test_is_decided_by_timing_both(self) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            assert 0 < main_module._seconds_to_multiply(dtype) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "not a folder: nowhere"),
        (["code", "nowhere"], "not a folder: nowhere"),
        (["empty"], "no permissive licence found in empty (unknown)"),
        (["empty", "--any-licence"], "no code files to train on in empty"),
        (["code", "--minutes", "0"], "minutes (0.0) and learning_rate (0.003) must be above 0"),
        (["code", "--from", "nowhere"], "there is no checkpoint directory nowhere"),
        (["code", "--decontaminate", "code/stack.py"], "stack.py is no benchmark"),
        (["code", "--hidden-size", "200"], "hidden_size 200 must divide by num_heads 3"),
        (["code", "--windows", "0"], "windows is 0; it must be at least 1"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_code_1(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    sizes = [] if "--hidden-size" in arguments else TINY[2:]
    assert main([*arguments, "--out", "run", "--device", "cpu", *sizes]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.splitlines()[-1]
    assert last.startswith("mezzotint train: ")
    assert message in last


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--out", str(tmp_path / "run"), "--device", "cuda"]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_defaults_are_those_of_the_configs() -> None:
    args = parse_args(["code", "--out", "run"])
    training, denoiser = TrainingConfig(), DenoiserConfig(vocab_size=1)
    assert (args.minutes, args.learning_rate) == (training.minutes, training.learning_rate)
    assert (args.hidden_size, args.layers) == (denoiser.hidden_size, denoiser.num_layers)
    assert args.windows == BatchShape().windows


def test_the_tokenizer_is_trained_on_a_bounded_amount_of_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_module, "TOKENIZER_CHARS", 10)
    args = parse_args([str(folder), "--out", str(tmp_path / "run"), *TINY])
    _, tokenizer = main_module.prepare_model(args, ["a" * 20, "zyxw " * 100])
    assert len(tokenizer.encode(" zyxw")) == 5  # never seen
    assert len(tokenizer.encode("aaaa")) < 4
