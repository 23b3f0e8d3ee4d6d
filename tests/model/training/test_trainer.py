from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.api import CheckpointError
from model.checkpoint import load_checkpoint
from model.denoiser import Denoiser, DenoiserConfig
from model.tokenizer import CodeTokenizer
from model.training import trainer as trainer_module
from model.training.corpus import Document
from model.training.data import Batch, BatchShape, WindowSampler
from model.training.trainer import Trainer, TrainingConfig

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
            TrainingConfig(minutes=minutes, learning_rate=0.01, shape=SHAPE),
            tmp_path / name,
            torch.device("cpu"),
        )

    return make


def take_steps(trainer: Trainer, num: int) -> list[tuple[float, float, int]]:
    """Steps without `run`, whose rate follows the clock: here the progress stands still."""
    trainer.seconds = 0.5 * 60 * trainer.config.minutes
    return [trainer._train_step(trainer.train.batch(trainer.step)) for _ in range(num)]


def log_of(trainer: Trainer) -> list[dict[str, float]]:
    return [json.loads(row) for row in (trainer.directory / "log.jsonl").read_text().splitlines()]


def interrupt_after(trainer: Trainer, steps: int, number: int = signal.SIGINT) -> None:
    """Send this process the signal during step number `steps`, as Ctrl-C would."""
    train_step = trainer._train_step

    def step_and_interrupt(batch: Batch) -> tuple[float, float, int]:
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
    before = trainer.held_out_losses()
    losses = take_steps(trainer, 40)
    after = trainer.held_out_losses()
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.8 * before[1]
    assert sum(diffusion for diffusion, _, _ in losses[-5:]) < sum(d for d, _, _ in losses[:5])


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


def test_held_out_losses_are_the_same_each_time_and_train_nothing(
    make_trainer: Callable[..., Trainer],
) -> None:
    trainer = make_trainer()
    take_steps(trainer, 2)
    before = weights(trainer)
    assert trainer.held_out_losses() == trainer.held_out_losses()
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
    assert trainer.progress == 1.0
    model, loaded_tokenizer = load_checkpoint(
        trainer.directory / "checkpoint", dtype=torch.bfloat16
    )
    assert loaded_tokenizer.digest == tokenizer.digest
    trainer.model = model
    assert trainer.held_out_losses()[0] == pytest.approx(best)


def test_a_finished_run_takes_no_further_step(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(minutes=0.002)
    trainer.run()
    again = make_trainer(minutes=0.002)
    again.resume()
    again.run()
    assert again.step == trainer.step


def test_the_checkpoint_stays_the_best_one(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    take_steps(trainer, 10)
    trainer.save()
    config = trainer.directory / "checkpoint" / "config.json"
    best = config.read_text()
    assert json.loads(best)["training"]["steps"] == 10
    with torch.no_grad():
        for master in trainer.optimizer.masters.values():
            master.normal_()
        trainer.optimizer.write_to_model()
    trainer.step = 11
    trainer.save()
    assert config.read_text() == best
    assert log_of(trainer)[-1]["step"] == 11
    assert log_of(trainer)[-1]["held_out_diffusion"] > trainer.best


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


@pytest.mark.parametrize("figures", [{"minutes": 0.0}, {"learning_rate": -1e-3}])
def test_a_run_without_time_or_rate_is_refused(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        TrainingConfig(**figures)
