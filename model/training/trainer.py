"""The training loop: windows -> loss -> optimizer, with held-out scores, logs and resume.

A run lives in one directory:
    state.pt      everything needed to go on: masters, moments, draft vocabulary, step, seconds
    checkpoint/   the best denoiser so far by held-out tokens a verify forward, ready to be served
    log.jsonl     one line a report
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.api import CheckpointError
from model.backbone.checkpoint import Backbone
from model.backbone.tokenizer import BackboneTokenizer
from model.denoiser import Denoiser, save_denoiser
from model.engine.run.torch_forward import TorchForward
from model.training import distributed, feed
from model.training.corpus import Document
from model.training.loss import TEACHER_SHARE, Encoded, LossTerms, encode, window_loss
from model.training.optimizer import MasterOptimizer, rate_factor
from model.training.progress import HeldOutScores, held_out_scores, prepare, rounded, thresholds
from model.training.windows import TEXTS_AT_ONCE, Window, WindowSampler

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30.0
SAVE_SECONDS = 300.0
SCORE_SECONDS = 900.0
"""Scoring costs as much as a few steps."""
HELD_OUT_WINDOWS = 12
DRAFT_SAMPLE_CHARS = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how fast to train."""

    minutes: float = 60.0
    """Wall-clock length of the whole run, all its resumptions together."""
    cooldown_minutes: float | None = None
    """How long the rate falls to zero at the end; None: the last 30 % of the run."""
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    windows: int = 2
    """A step's, of each process."""
    teacher_share: float = TEACHER_SHARE
    """Of the target: the backbone's own distribution; the rest is the true token."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.learning_rate <= 0 or self.windows < 1:
            raise ValueError(
                f"minutes ({self.minutes}), learning_rate ({self.learning_rate}) and windows "
                f"({self.windows}) must be above 0"
            )
        if self.cooldown_minutes is not None and self.cooldown_minutes <= 0:
            raise ValueError(f"cooldown_minutes is {self.cooldown_minutes}; it must be above 0")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share is {self.teacher_share}; it must be from 0 to 1")


class Trainer:
    """Trains one denoiser in one run directory; `run` may be called again after any
    interruption."""

    def __init__(
        self,
        model: Denoiser,
        backbone: Backbone,
        train: WindowSampler,
        held_out: WindowSampler,
        config: TrainingConfig,
        directory: Path,
        device: torch.device,
    ) -> None:
        """The model trains in the dtype that it has; `held_out` is made with `draft_only`."""
        self.model, self.backbone, self.train, self.config = model, backbone, train, config
        self.directory, self.device = directory, device
        directory.mkdir(parents=True, exist_ok=True)
        self.forward = TorchForward(backbone.model, tapped_layers=model.config.taps)
        self.optimizer = MasterOptimizer(
            model, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        index = torch.full((backbone.model.config.vocab_size,), -1, device=device)
        index[model.draft_ids] = torch.arange(len(model.draft_ids), device=device)
        self.draft_index = index
        mine = range(distributed.rank(), HELD_OUT_WINDOWS, distributed.world_size())
        windows = (held_out.window(i).to(device) for i in mine)
        self.held_out = [prepare(self.forward, window) for window in windows]
        self.step, self.seconds, self.best = 0, 0.0, -1.0
        self._kept: dict[int, Encoded] = {}
        self.asked_to_stop = False  # a signal has come to this process
        self.stopping = False  # all processes have agreed to stop

    @property
    def is_done(self) -> bool:
        """Whether the run's time is up."""
        return self.seconds >= 60 * self.config.minutes

    @property
    def rate_factor(self) -> float:
        """The learning rate's present share of its full value."""
        minutes, cooldown = self.config.minutes, self.config.cooldown_minutes
        return rate_factor(self.step, self.seconds / 60, minutes, cooldown)

    def run(self) -> float:
        """Train until the time is up or a signal asks to stop; returns the best held-out score.

        Saves on the way and at the end, so that nothing is lost but the steps since the last save.
        Raises `FloatingPointError` when the loss is no longer finite.
        """
        self.asked_to_stop = self.stopping = False
        reported_at = saved_at = scored_at = self.seconds
        losses: list[StepFigures] = []
        bar = tqdm(
            total=60 * self.config.minutes,
            initial=min(self.seconds, 60 * self.config.minutes),
            desc="training",
            bar_format="{l_bar}{bar}| {elapsed}, ETA {remaining}{postfix}",
            mininterval=5.0,
            disable=distributed.rank() > 0,
        )
        with _stop_on_signal(self), self._windows() as windows, bar:
            while not self.is_done and not self.stopping:
                started = time.perf_counter()
                losses.append(self._train_step(windows))
                took = time.perf_counter() - started
                self._agree(self.seconds + took)
                bar.update(min(took, bar.total - bar.n))
                if self.seconds - reported_at >= REPORT_SECONDS:
                    self._report(losses, self.seconds - reported_at, bar)
                    reported_at, losses = self.seconds, []
                if self.seconds - saved_at >= SAVE_SECONDS:
                    is_due = self.seconds - scored_at >= SCORE_SECONDS
                    self.save(scoring=is_due)
                    saved_at = self.seconds
                    scored_at = self.seconds if is_due else scored_at
        self.save()
        return self.best

    def cool_down(self, minutes: float) -> None:
        """Have `run` end the run in `minutes` from where it stands, the rate falling to zero."""
        self.config = replace(
            self.config, minutes=self.seconds / 60 + minutes, cooldown_minutes=minutes
        )

    def _agree(self, seconds: float) -> None:
        """All processes go by one clock, and stop together when one is asked to."""
        # A signal may come at any instant; only what has been agreed on may end the loop, or one
        # process would leave while the others wait for its gradients.
        asked = self.asked_to_stop
        self.seconds, stopping = distributed.largest(seconds, asked, device=self.device)
        self.stopping = bool(stopping)

    @property
    def _window_number(self) -> int:
        """Of this process's next window; the processes deal them out in turn."""
        return self.step * self.config.windows * distributed.world_size() + distributed.rank()

    def _windows(self) -> AbstractContextManager[Iterator[Window]]:
        workers = feed.num_workers(self.device)
        stride = distributed.world_size()
        return feed.numbered_windows(self.train, self._window_number, stride, workers)

    def _train_step(self, windows: Iterator[Window]) -> StepFigures:
        # Noise of the step's own, as its windows are: a resumed run goes on as if never stopped.
        noise = torch.Generator().manual_seed(self.config.seed + self._window_number)
        steps: list[StepFigures] = []
        for _ in range(self.config.windows):
            window = next(windows).to(self.device)
            terms = window_loss(
                self.model, self._encoded(window), window, self.draft_index, noise,
                teacher_share=self.config.teacher_share,
            )  # fmt: skip
            (terms.total / self.config.windows).backward()
            steps.append(StepFigures.of(terms, window))
        try:
            self.optimizer.step(self.rate_factor)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"step {self.step}: {error}. The last good state is kept in {self.directory}; "
                "go on from it with a lower --learning-rate"
            ) from error
        self.step += 1
        return StepFigures.mean(steps)

    def _encoded(self, window: Window) -> Encoded:
        """What the backbone says of the window's text; kept as long as it may come again."""
        if window.text not in self._kept:
            if len(self._kept) >= TEXTS_AT_ONCE:
                del self._kept[next(iter(self._kept))]
            self._kept[window.text] = encode(self.forward, window)
        return self._kept[window.text]

    def _report(self, steps: list[StepFigures], seconds: float, bar: tqdm) -> None:
        mean = StepFigures.mean(steps)
        per_second = len(steps) * self.config.windows * distributed.world_size() / seconds
        bar.set_postfix_str(
            f", draft {mean.draft:.3f}, end {mean.end:.3f}/{mean.canvas_end:.3f}, "
            f"{per_second * mean.canvases:,.0f} canvases/s, step {self.step}"
        )
        self._log(
            **{name: round(value, 4) for name, value in asdict(mean).items()},
            windows_per_second=round(per_second, 3),
            rate_factor=round(self.rate_factor, 4),
        )

    def score(self) -> HeldOutScores:
        """The model's scores on fixed held-out windows."""
        return held_out_scores(self.model, self.held_out)

    def save(self, *, scoring: bool = True) -> None:
        """Write `state.pt`; with `scoring`, score the model, and write `checkpoint/` too if it is
        the best so far.

        Raises `OSError` when they cannot be written; what was saved before is then intact.
        """
        scores = self.score() if scoring else None
        is_best = scores is not None and scores.tokens_per_forward > self.best
        if scores is not None:
            self.best = max(self.best, scores.tokens_per_forward)
        if distributed.rank() > 0:
            return
        try:
            if scores is not None:
                self._keep(scores, is_best=is_best)
            self._write_state()
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise OSError(
                f"{self.directory} could not be written to ({error}); what was saved before is "
                "intact. Free some disk and run the command again"
            ) from error

    def _keep(self, scores: HeldOutScores, *, is_best: bool) -> None:
        figures = rounded(asdict(scores))
        self._log(held_out=figures)
        logger.info("step %d: %s", self.step, json.dumps(figures))
        if not is_best:
            return
        minutes = round(self.seconds / 60, 1)
        save_denoiser(
            self.directory / "checkpoint",
            self.model,
            self.backbone,
            weights=self.optimizer.masters,
            thresholds=thresholds(scores),
            training={"steps": self.step, "minutes": minutes, "held_out": figures},
        )

    def _write_state(self) -> None:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "draft_ids": self.model.draft_ids.cpu(),
            "backbone": self.backbone.digest,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }
        draft = self.directory / "state.pt.draft"
        try:
            torch.save(state, draft)
            os.replace(draft, self.directory / "state.pt")
        finally:
            draft.unlink(missing_ok=True)

    def resume(self) -> bool:
        """Go on from `state.pt` if the run directory has one. Raises `CheckpointError`."""
        state = read_state(self.directory, self.backbone)
        if state is None:
            return False
        if not torch.equal(state["draft_ids"], self.model.draft_ids.cpu()):
            raise CheckpointError(f"{self.directory} was trained with another draft vocabulary")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory} holds a run of a denoiser of other sizes ({error}); give "
                "another --out"
            ) from error
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        return True

    def _log(self, **figures: object) -> None:
        if distributed.rank() > 0:
            return
        row = {"step": self.step, "seconds": round(self.seconds, 1), **figures}
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one step of this process tells the log."""

    draft: float
    end: float
    canvas_end: float
    tokens: float
    canvases: float

    @classmethod
    def of(cls, terms: LossTerms, window: Window) -> StepFigures:
        """Of one window."""
        return cls(terms.draft, terms.end, terms.canvas_end, len(window.ids), len(window.anchors))

    @classmethod
    def mean(cls, steps: Sequence[StepFigures]) -> StepFigures:
        """Of several."""
        columns = zip(*(asdict(step).values() for step in steps), strict=True)
        return cls(*(sum(column) / len(steps) for column in columns))


def read_state(directory: Path, backbone: Backbone) -> dict[str, Any] | None:
    """A run's `state.pt`, if there is one. Raises `CheckpointError` when it is damaged or of
    another backbone."""
    file = directory / "state.pt"
    if not file.is_file():
        return None
    try:
        # Not straight to a GPU: AdamW's step counters stay where they are loaded, and it would
        # wait for each of them in every step. Masters and moments go there by themselves.
        state = torch.load(file, map_location="cpu", weights_only=True)
        digest = state["backbone"]
    except (RuntimeError, OSError, UnpicklingError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"{file} is damaged; delete it to start again from the best checkpoint"
        ) from error
    if digest != backbone.digest:
        raise CheckpointError(
            f"{file} was trained over another backbone (SHA-256 {digest[:12]}…, here "
            f"{backbone.digest[:12]}…); give that one, or another --out"
        )
    return state


def draft_vocabulary(
    documents: Sequence[Document], tokenizer: BackboneTokenizer, size: int
) -> Tensor:
    """The `size` tokens that code uses most, and the end's, sorted."""
    counts: Counter[int] = Counter()
    chars = 0
    for document in documents:
        counts.update(tokenizer.encode(document.text))
        chars += len(document.text)
        if chars > DRAFT_SAMPLE_CHARS:
            break
    return torch.tensor(sorted({*(i for i, _ in counts.most_common(size - 1)), tokenizer.eos_id}))


@contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into "finish this step, save, leave"."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        trainer.asked_to_stop = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
