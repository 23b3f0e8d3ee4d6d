from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from model.api import CheckpointError
from model.backbone.checkpoint import Backbone
from model.denoiser import Denoiser, DenoiserConfig, load_denoiser
from model.denoiser import checkpoint as checkpoint_module
from model.engine.run.forward import Rows
from model.training import trainer as trainer_module
from model.training import windows as windows_module
from model.training.corpus import Document
from model.training.progress import held_out_scores
from model.training.trainer import StepFigures, Trainer, TrainingConfig, draft_vocabulary
from model.training.windows import Window, WindowSampler, WindowShape

SHAPE = WindowShape(
    far_tokens=32, suffix_tokens=16, plain_tokens=48, branches=2, canvases=8, slots=4,
    wide_slots=4, passes=2,
)  # fmt: skip


@pytest.fixture
def make_trainer(
    tmp_path: Path, backbone: Backbone, document: Document, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Trainer]:
    """`make_trainer(directory_name, minutes=…)`: a new trainer of a new, always the same model."""
    monkeypatch.setattr(trainer_module, "HELD_OUT_WINDOWS", 2)

    def make(name: str = "run", minutes: float = 60.0, layers: int = 1) -> Trainer:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = DenoiserConfig.of(backbone.model.config, num_layers=layers)
            vocabulary = torch.arange(backbone.model.config.vocab_size)
            model = Denoiser.of(config, backbone.model, vocabulary)
            model.start_from(backbone.model)
        return Trainer(
            model,
            backbone,
            WindowSampler([document], backbone.tokenizer, SHAPE, 0),
            WindowSampler([document], backbone.tokenizer, SHAPE, 1, draft_only=True),
            TrainingConfig(minutes=minutes, learning_rate=3e-3),
            tmp_path / name,
            torch.device("cpu"),
        )

    return make


def take_steps(trainer: Trainer, num: int) -> list[StepFigures]:
    """Steps without `run`, whose rate follows the clock: here the progress stands still."""
    trainer.seconds = 0.5 * 60 * trainer.config.minutes

    def windows() -> Iterator[Window]:
        yield from map(trainer.train.window, count(trainer._window_number))

    numbered = windows()
    return [trainer._train_step(numbered) for _ in range(num)]


def log_of(trainer: Trainer) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (trainer.directory / "log.jsonl").read_text().splitlines()]


def interrupt_after(trainer: Trainer, steps: int, number: int = signal.SIGINT) -> None:
    """Send this process the signal during step number `steps`, as Ctrl-C would."""
    train_step = trainer._train_step

    def step_and_interrupt(windows: Iterator[Window]) -> StepFigures:
        result = train_step(windows)
        if trainer.step == steps:
            os.kill(os.getpid(), number)
        return result

    trainer._train_step = step_and_interrupt


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: master.clone() for name, master in trainer.optimizer.masters.items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert all(a[name].equal(b[name]) for name in a)


def test_training_lowers_the_loss_and_finds_ends(make_trainer: Callable[..., Trainer]):
    trainer = make_trainer()
    before = trainer.score()
    steps = take_steps(trainer, 60)
    after = trainer.score()
    assert sum(s.draft for s in steps[-10:]) < 0.9 * sum(s.draft for s in steps[:10])
    assert after.end.f1 > before.end.f1


def test_an_interrupted_and_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    make_trainer: Callable[..., Trainer],
):
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


def test_what_is_kept_of_a_text_is_what_the_backbone_says_of_it(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    """A text comes again with other canvases; the backbone is asked once."""
    for module in (windows_module, trainer_module):
        monkeypatch.setattr(module, "TEXTS_AT_ONCE", 8)
    trainer = make_trainer()
    asked: list[int] = []
    rows = trainer.forward.rows

    def rows_and_count(*inputs: Any) -> Rows:
        asked.append(inputs[0].shape[1])
        return rows(*inputs)

    monkeypatch.setattr(trainer.forward, "rows", rows_and_count)
    take_steps(trainer, 8)
    first, again = trainer.train.window(0), trainer.train.window(8)
    assert trainer.config.windows * 8 == 16
    assert len(asked) == 8
    assert first.ids.equal(again.ids)
    assert first.text == again.text
    assert not first.anchors.equal(again.anchors)
    assert len(trainer._kept) <= trainer_module.TEXTS_AT_ONCE


def test_held_out_scores_are_the_same_each_time_and_train_nothing(
    make_trainer: Callable[..., Trainer],
):
    trainer = make_trainer()
    take_steps(trainer, 2)
    before = weights(trainer)
    assert trainer.score() == trainer.score()
    assert_same_weights(weights(trainer), before)
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_loses_nothing(
    make_trainer: Callable[..., Trainer], number: int
):
    trainer = make_trainer()
    before = signal.getsignal(number)
    interrupt_after(trainer, 3, number)
    trainer.run()
    assert signal.getsignal(number) is before
    assert trainer.step == 3
    resumed = make_trainer()
    assert resumed.resume()
    assert (resumed.step, resumed.best) == (3, trainer.best)
    assert resumed.seconds == trainer.seconds > 0
    assert_same_weights(weights(resumed), weights(trainer))


def test_a_signal_that_comes_while_the_processes_agree_is_heard_after_the_next_step(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
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


def test_a_run_ends_when_its_time_is_up_and_its_best_model_can_be_loaded(
    make_trainer: Callable[..., Trainer], backbone: Backbone
):
    trainer = make_trainer(minutes=0.01)
    best = trainer.run()
    assert trainer.is_done
    loaded = load_denoiser(trainer.directory / "checkpoint", backbone.digest, backbone.model)
    # Stored in 8 bits it may draft a token otherwise, not more.
    found = held_out_scores(loaded, trainer.held_out).tokens_per_forward
    assert found == pytest.approx(best, abs=0.2)


def test_a_finished_run_takes_no_further_step(make_trainer: Callable[..., Trainer]):
    trainer = make_trainer(minutes=0.002)
    trainer.run()
    again = make_trainer(minutes=0.002)
    again.resume()
    again.run()
    assert again.step == trainer.step


def test_a_run_can_be_cooled_down_at_any_time(make_trainer: Callable[..., Trainer]):
    trainer = make_trainer(minutes=600.0)
    trainer.seconds, trainer.step = 3600.0, 100
    assert trainer.rate_factor == 1.0
    trainer.cool_down(2.0)
    assert trainer.rate_factor == 1.0
    trainer.seconds += 60.0
    assert trainer.rate_factor == pytest.approx(0.5)
    trainer.seconds += 60.0
    assert trainer.rate_factor == 0.0
    assert trainer.is_done


def test_reports_and_scores_are_logged(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 0.0)
    trainer = make_trainer()
    interrupt_after(trainer, 2)
    trainer.run()
    rows = log_of(trainer)
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert rows[0]["draft"] > 0
    assert rows[0]["windows_per_second"] > 0
    held_out = rows[-1]["held_out"]
    assert held_out["tokens_per_forward"] == round(trainer.best, 4)
    assert {"threshold", "precision", "recall"} <= held_out["end"].keys()


def test_a_worse_model_does_not_replace_the_best(
    make_trainer: Callable[..., Trainer], backbone: Backbone
):
    trainer = make_trainer()
    take_steps(trainer, 2)
    trainer.best = 100.0
    trainer.save()
    assert not (trainer.directory / "checkpoint").exists()
    assert (trainer.directory / "state.pt").is_file()


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_state(
    make_trainer: Callable[..., Trainer],
):
    trainer = make_trainer()
    take_steps(trainer, 2)
    trainer.save()
    before = (trainer.directory / "state.pt").read_bytes()
    trainer.model.mask.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 2: .* nan.* lower --learning-rate"):
        take_steps(trainer, 1)
    assert (trainer.directory / "state.pt").read_bytes() == before
    again = make_trainer()
    again.resume()
    take_steps(again, 1)
    assert all(torch.isfinite(master).all() for master in again.optimizer.masters.values())


@pytest.mark.parametrize("what", ["state", "checkpoint"])
def test_a_full_disk_is_said_and_leaves_what_was_saved(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, what: str
):
    trainer = make_trainer()
    take_steps(trainer, 1)
    trainer.save()
    before = {path: path.read_bytes() for path in trainer.directory.rglob("*") if path.is_file()}
    take_steps(trainer, 1)
    trainer.best = -1.0

    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail] . unexpected pos 64 vs 0: no space left")

    if what == "state":
        monkeypatch.setattr(trainer_module.torch, "save", fail)
    else:
        monkeypatch.setattr(checkpoint_module, "save_file", lambda *_: fail_os())
    with pytest.raises(OSError, match=r"what was (saved before|there) is intact"):
        trainer.save()
    assert not list(trainer.directory.glob("*.draft"))
    state = trainer.directory / "state.pt"
    assert state.read_bytes() == before[state]


def fail_os() -> None:
    raise OSError(28, "No space left on device")


def test_a_damaged_state_is_named(make_trainer: Callable[..., Trainer]):
    trainer = make_trainer()
    trainer.save()
    file = trainer.directory / "state.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged; delete it"):
        make_trainer().resume()


def test_a_run_over_another_backbone_is_not_resumed(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer()
    trainer.save()
    state = torch.load(trainer.directory / "state.pt", weights_only=True)
    torch.save({**state, "backbone": "f" * 64}, trainer.directory / "state.pt")
    with pytest.raises(CheckpointError, match="over another backbone"):
        make_trainer().resume()


def test_a_run_of_other_sizes_is_not_resumed(make_trainer: Callable[..., Trainer]):
    make_trainer(layers=2).save()
    with pytest.raises(CheckpointError, match="of other sizes"):
        make_trainer(layers=1).resume()


def test_the_draft_vocabulary_is_what_code_uses_and_the_end(backbone: Backbone, code: str):
    ids = draft_vocabulary([Document(code, "python", "")], backbone.tokenizer, 30).tolist()
    assert len(ids) == 30
    assert ids == sorted(ids)
    assert backbone.tokenizer.eos_id in ids
    used = backbone.tokenizer.encode(code)
    assert max(used, key=used.count) in ids


@pytest.mark.parametrize(
    "wrong",
    [{"minutes": 0}, {"learning_rate": 0}, {"windows": 0}, {"cooldown_minutes": 0},
     {"teacher_share": 1.5}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)
