from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from model import checkpoint as checkpoint_module
from model.api import CheckpointError
from model.checkpoint import load_checkpoint
from model.denoiser import Denoiser, DenoiserConfig
from model.tokenizer import CodeTokenizer
from model.training import trainer as trainer_module
from model.training.corpus import Document
from model.training.data import Batch, BatchShape, WindowSampler
from model.training.progress import HeldOutScores
from model.training.trainer import StepFigures, Trainer, TrainingConfig

SHAPE = BatchShape(windows=2, stream_tokens=64, canvases=4, canvas_sizes=(8,))


@pytest.fixture
def make_trainer(
    tmp_path: Path, tokenizer: CodeTokenizer, code: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Trainer]:
    """`make_trainer(directory_name, minutes=…)`: a new trainer of a new, always the same model."""
    monkeypatch.setattr(trainer_module, "HELD_OUT_BATCHES", 1)
    config = DenoiserConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, ffn_size=48
    )

    def make(name: str = "run", minutes: float = 60.0) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Denoiser(config)
        documents = [Document(code, "python", "test")]
        return Trainer(
            model,
            tokenizer,
            WindowSampler(documents, tokenizer, SHAPE, seed=0),
            WindowSampler(documents, tokenizer, SHAPE, seed=1),
            TrainingConfig(minutes=minutes, learning_rate=0.01),
            tmp_path / name,
            torch.device("cpu"),
        )

    return make


def take_steps(trainer: Trainer, num: int) -> list[StepFigures]:
    """Steps without `run`, whose rate follows the clock: here the progress stands still."""
    trainer.seconds = 0.5 * 60 * trainer.config.minutes
    return [trainer._train_step(trainer.train.batch(trainer.step)) for _ in range(num)]


def log_of(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (trainer.directory / "log.jsonl").read_text().splitlines()]


def interrupt_after(trainer: Trainer, steps: int, number: int = signal.SIGINT) -> None:
    """Send this process the signal during step number `steps`, as Ctrl-C would."""
    train_step = trainer._train_step

    def step_and_interrupt(batch: Batch) -> StepFigures:
        result = train_step(batch)
        if trainer.step == steps:
            os.kill(os.getpid(), number)
        return result

    trainer._train_step = step_and_interrupt


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: master.clone() for name, master in trainer.optimizer.masters.items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert all(a[name].equal(b[name]) for name in a)


def test_training_lowers_both_losses(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    before = trainer.score()
    steps = take_steps(trainer, 40)
    after = trainer.score()
    assert after.diffusion < 0.8 * before.diffusion
    assert after.context < 0.8 * before.context
    assert sum(s.diffusion for s in steps[-5:]) < sum(s.diffusion for s in steps[:5])


def test_an_interrupted_and_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    make_trainer: Callable[..., Trainer],
) -> None:
    whole = make_trainer("whole")
    take_steps(whole, 6)
    first = make_trainer("halves")
    take_steps(first, 3)
    first.save()
    torch.manual_seed(1234)  # a new process has another state of the global generator
    second = make_trainer("halves")
    assert second.resume()
    assert_same_weights(weights(second), weights(first))
    take_steps(second, 3)
    assert second.step == whole.step == 6
    assert_same_weights(weights(second), weights(whole))


def test_held_out_scores_are_the_same_each_time_and_train_nothing(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    take_steps(trainer, 2)
    before = weights(trainer)
    assert trainer.score() == trainer.score()
    assert_same_weights(weights(trainer), before)
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_loses_nothing(
    make_trainer: Callable[..., Trainer], number: int
) -> None:
    trainer = make_trainer()
    before = signal.getsignal(number)
    interrupt_after(trainer, 3, number)
    trainer.run()
    assert signal.getsignal(number) is before
    assert trainer.step == 3
    resumed = make_trainer()
    assert resumed.resume()
    assert resumed.step == 3
    assert resumed.seconds == trainer.seconds > 0
    assert resumed.best == trainer.best
    assert_same_weights(weights(resumed), weights(trainer))


def test_a_signal_that_comes_while_the_processes_agree_is_heard_after_the_next_step(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost, the run would never end; acted on at once by one process of two, both would hang."""
    trainer = make_trainer(minutes=5.0)
    largest = trainer_module.distributed.largest

    def agree(*values: float, device: torch.device) -> list[float]:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return largest(*values, device=device)

    monkeypatch.setattr(trainer_module.distributed, "largest", agree)
    trainer.run()
    assert trainer.step == 3


def test_a_resumed_run_counts_on_and_draws_the_next_batches(
    make_trainer: Callable[..., Trainer],
) -> None:
    first = make_trainer()
    interrupt_after(first, 2)
    first.run()
    second = make_trainer()
    second.resume()
    drawn: list[int] = []
    batch = second.train.batch
    second.train.batch = lambda step: (drawn.append(step), batch(step))[1]
    interrupt_after(second, 5)
    second.run()
    assert second.step == 5
    assert drawn[:3] == [2, 3, 4]
    assert [row["step"] for row in log_of(second)] == [2, 5]


def test_a_run_ends_when_its_time_is_up_and_its_best_model_can_be_loaded(
    make_trainer: Callable[..., Trainer], tokenizer: CodeTokenizer
) -> None:
    trainer = make_trainer(minutes=0.005)
    best = trainer.run()
    assert trainer.is_done
    model, loaded_tokenizer = load_checkpoint(
        trainer.directory / "checkpoint", dtype=torch.bfloat16
    )
    assert loaded_tokenizer.digest == tokenizer.digest
    trainer.model = model
    assert trainer.score().accuracy == best


def test_a_finished_run_takes_no_further_step(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(minutes=0.002)
    trainer.run()
    again = make_trainer(minutes=0.002)
    again.resume()
    again.run()
    assert again.step == trainer.step


def test_the_checkpoint_stays_the_best_one(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    for step, accuracy in ((10, 0.5), (11, 0.25), (12, 0.75), (13, 0.75)):
        trainer.step = step
        scores = HeldOutScores(1.0, 1.0, accuracy, exact=1 - accuracy)
        monkeypatch.setattr(trainer, "score", lambda s=scores: s)
        trainer.save()
    assert trainer.best == 0.75
    config = json.loads((trainer.directory / "checkpoint" / "config.json").read_text())
    assert config["training"]["steps"] == 12
    assert config["training"]["held_out_accuracy"] == 0.75
    assert [row["step"] for row in log_of(trainer)] == [10, 11, 12, 13]


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    take_steps(trainer, 2)
    trainer.save()
    saved = weights(trainer)
    with torch.no_grad():
        trainer.model.final_norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 2: .* go on from it with a lower"):
        take_steps(trainer, 1)
    assert_same_weights(weights(trainer), saved)
    again = make_trainer()
    again.resume()
    assert_same_weights(weights(again), saved)


def test_a_full_disk_leaves_the_state_saved_before(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    trainer.save()
    before = (trainer.directory / "state.pt").read_bytes()

    def fill_disk(_state: object, file: Path) -> None:
        file.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer_module.torch, "save", fill_disk)
    with pytest.raises(OSError, match=r"No space left.*what was saved before is intact"):
        trainer.save()
    assert (trainer.directory / "state.pt").read_bytes() == before
    assert not (trainer.directory / "state.pt.draft").exists()


def test_a_disk_that_fills_up_under_the_weights_leaves_the_checkpoint_saved_before(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    trainer.save()
    checkpoint = trainer.directory / "checkpoint"
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    drafts: list[Path] = []

    def fill_disk(_weights: object, file: Path) -> None:
        drafts.append(file)
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_module, "save_file", fill_disk)
    trainer.best = -1.0
    with pytest.raises(OSError, match=r"No space left.*what was saved before is intact"):
        trainer.save()
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before
    assert not drafts[0].parent.exists()


def test_trying_out_runs_every_canvas_size_and_leaves_nothing_behind(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    sizes = (4, 8, 12)
    trainer.train.shape = replace(SHAPE, canvas_sizes=sizes)
    before = weights(trainer)
    tried: list[int] = []
    backward = trainer._backward
    monkeypatch.setattr(
        trainer,
        "_backward",
        lambda batch: (tried.append(batch.canvas_targets.shape[-1]), backward(batch))[1],
    )
    trainer._try_out()
    assert sorted(tried) == [4, 8, 12]
    assert all(p.grad is None for p in trainer.model.parameters())
    assert trainer.step == 0
    assert_same_weights(weights(trainer), before)


def test_a_run_can_be_cooled_down_from_where_it_stands(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    trainer.seconds = 600.0
    assert trainer.rate_factor == 1.0
    trainer.cool_down(2.0)
    assert trainer.rate_factor == 1.0
    trainer.seconds = 660.0
    assert trainer.rate_factor == pytest.approx(0.5)
    assert not trainer.is_done
    trainer.seconds = 720.0
    assert trainer.rate_factor == 0.0
    assert trainer.is_done


def test_progress_is_reported_with_its_rate(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0.0)
    trainer = make_trainer()
    interrupt_after(trainer, 2)
    trainer.run()
    reports = [row for row in log_of(trainer) if "tokens_per_second" in row]
    assert [row["step"] for row in reports] == [1, 2]
    assert all(row["tokens_per_second"] > 0 and row["diffusion"] > 0 for row in reports)


def test_a_run_saves_on_the_way(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0.0)
    trainer = make_trainer()
    interrupt_after(trainer, 3)
    trainer.run()
    # One for each step, and the one at the end.
    assert [row["step"] for row in log_of(trainer)] == [1, 2, 3, 3]


def test_a_new_directory_has_nothing_to_resume(make_trainer: Callable[..., Trainer]) -> None:
    assert not make_trainer().resume()


def test_a_damaged_state_is_named(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    trainer.save()
    state = trainer.directory / "state.pt"
    whole = state.read_bytes()
    for content in (b"", b"not a state", whole[: len(whole) // 2]):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.pt is damaged; delete it"):
            trainer.resume()


def test_the_certainty_loss_makes_a_trained_model_surer(
    make_trainer: Callable[..., Trainer],
) -> None:
    pretrained = make_trainer()
    take_steps(pretrained, 30)
    pretrained.save()
    certainties = {}
    for weight in (0.0, 2.0):
        trainer = make_trainer()
        trainer.resume()
        trainer.config = replace(trainer.config, certainty_weight=weight)
        take_steps(trainer, 20)
        trainer.config = replace(trainer.config, certainty_weight=1e-9)  # measured, not trained
        certainties[weight] = sum(s.certainty for s in take_steps(trainer, 4)) / 4
    assert certainties[2.0] < 0.8 * certainties[0.0]


@pytest.mark.parametrize(
    "figures", [{"minutes": 0.0}, {"learning_rate": -1e-3}, {"cooldown_minutes": 0.0}]
)
def test_a_run_without_time_or_rate_is_refused(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        TrainingConfig(**figures)


def test_a_negative_certainty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"certainty is -0\.5; it must be 0 or more"):
        TrainingConfig(certainty_weight=-0.5)
