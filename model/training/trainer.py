"""The training loop: batches -> joint loss -> optimizer, with held-out scores, logs and resume.

A run lives in one directory:
    state.pt      everything needed to go on: weights, moments, step, seconds trained
    checkpoint/   the best model so far by held-out infill score, ready to be served
    log.jsonl     one line a report
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from model.api import CheckpointError
from model.checkpoint import save_checkpoint
from model.denoiser import Denoiser
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training import distributed, feed
from model.training.compilation import compile_layers
from model.training.data import Batch, WindowSampler
from model.training.loss import LossTerms, joint_loss
from model.training.optimizer import MasterOptimizer, rate_factor
from model.training.progress import HeldOutScores, held_out_scores, sample_fills

logger = logging.getLogger(__name__)

REPORT_SECONDS = 20.0
SAVE_SECONDS = 240.0
HELD_OUT_BATCHES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how fast to train."""

    minutes: float = 10.0
    """Wall-clock length of the whole run, all its resumptions together."""
    cooldown_minutes: float | None = None
    """How long the rate falls to zero at the end; None: the last 30 % of the run."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    context_weight: float = 1.0
    """Share of the next-token loss beside the diffusion loss."""
    certainty_weight: float = 0.0
    """Share of the certainty loss: above 0 for a second stage that teaches few-step decoding."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.learning_rate <= 0:
            raise ValueError(
                f"minutes ({self.minutes}) and learning_rate ({self.learning_rate}) must be above 0"
            )
        if self.cooldown_minutes is not None and self.cooldown_minutes <= 0:
            raise ValueError(f"cooldown_minutes is {self.cooldown_minutes}; it must be above 0")
        if self.certainty_weight < 0:
            raise ValueError(f"certainty is {self.certainty_weight}; it must be 0 or more")


class Trainer:
    """Trains one model in one run directory; `run` may be called again after any interruption."""

    def __init__(
        self,
        model: Denoiser,
        tokenizer: CodeTokenizer,
        train: WindowSampler,
        held_out: WindowSampler,
        config: TrainingConfig,
        directory: Path,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.model = model.to(device=device, dtype=dtype)
        self.tokenizer, self.train, self.config = tokenizer, train, config
        self.directory, self.device = directory, device
        directory.mkdir(parents=True, exist_ok=True)
        self.optimizer = MasterOptimizer(
            self.model, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = LinearSchedule()
        mine = range(distributed.rank(), HELD_OUT_BATCHES, distributed.world_size())
        self.held_out = [held_out.batch(i) for i in mine]
        self.step, self.seconds, self.best = 0, 0.0, -1.0
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
        return rate_factor(self.seconds / 60, minutes, cooldown)

    def run(self) -> float:
        """Train until the time is up or a signal asks to stop; returns the best held-out score.

        Saves on the way and at the end, so that nothing is lost but the steps since the last save.
        Raises `FloatingPointError` when the loss is no longer finite.
        """
        if self.device.type == "cuda":  # on a CPU it does not pay (docs/experiments.md)
            compile_layers(self.model, self._try_out)
        self.asked_to_stop = self.stopping = False
        reported_at = saved_at = self.seconds
        losses: list[StepFigures] = []
        bar = tqdm(
            total=60 * self.config.minutes,
            initial=min(self.seconds, 60 * self.config.minutes),
            desc="training",
            bar_format="{l_bar}{bar}| {elapsed}, ETA {remaining}{postfix}",
            disable=distributed.rank() > 0,
        )
        with _stop_on_signal(self), self._batches() as batches, bar:
            while not self.is_done and not self.stopping:
                started = time.perf_counter()
                losses.append(self._train_step(next(batches)))
                took = time.perf_counter() - started
                self._agree(self.seconds + took)
                bar.update(min(took, bar.total - bar.n))
                if self.seconds - reported_at >= REPORT_SECONDS:
                    self._report(losses, self.seconds - reported_at, bar)
                    reported_at, losses = self.seconds, []
                if self.seconds - saved_at >= SAVE_SECONDS:
                    self.save()
                    saved_at = self.seconds
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
    def _batch_number(self) -> int:
        """Of this process's next batch; the processes deal them out in turn."""
        return self.step * distributed.world_size() + distributed.rank()

    def _batches(self) -> AbstractContextManager[Iterator[Batch]]:
        workers = feed.num_workers(self.device)
        stride = distributed.world_size()
        return feed.numbered_batches(self.train, self._batch_number, stride, workers)

    def _backward(self, batch: Batch) -> LossTerms:
        terms = joint_loss(
            self.model,
            batch.to(self.device),
            mask_id=self.tokenizer.mask_id,
            schedule=self.schedule,
            context_weight=self.config.context_weight,
            certainty_weight=self.config.certainty_weight,
            # Noise of the step's own, as its batch is: a resumed run goes on as if never stopped.
            generator=torch.Generator().manual_seed(self.config.seed + self._batch_number),
        )
        terms.total.backward()
        return terms

    def _try_out(self) -> None:
        """Both passes over a batch of each canvas size, of which nothing remains."""
        sizes = set(self.train.shape.canvas_sizes)
        batches = map(self.train.batch, count())
        while sizes:
            batch = next(batches)
            if batch.canvas_targets.shape[-1] in sizes:
                self._backward(batch)
                sizes.remove(batch.canvas_targets.shape[-1])
        self.model.zero_grad()

    def _train_step(self, batch: Batch) -> StepFigures:
        terms = self._backward(batch)
        try:
            self.optimizer.step(self.rate_factor)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"step {self.step}: {error}. The last good state is kept in {self.directory}; "
                "go on from it with a lower --learning-rate"
            ) from error
        self.step += 1
        tokens = 2 * batch.prefix_ids.numel() + batch.canvas_targets.numel()
        losses = (terms.diffusion.item(), terms.context.item(), terms.certainty.item())
        return StepFigures(*losses, tokens)

    def _report(self, steps: list[StepFigures], seconds: float, bar: tqdm) -> None:
        diffusion = sum(s.diffusion for s in steps) / len(steps)
        context = sum(s.context for s in steps) / len(steps)
        rate = sum(s.tokens for s in steps) * distributed.world_size() / seconds
        bar.set_postfix_str(
            f", diffusion {diffusion:.3f}, context {context:.3f}, "
            f"{rate:,.0f} tokens/s, step {self.step}"
        )
        certainty = sum(s.certainty for s in steps) / len(steps)
        self._log(
            diffusion=round(diffusion, 4),
            context=round(context, 4),
            certainty=round(certainty, 4),
            tokens_per_second=round(rate),
            rate_factor=round(self.rate_factor, 4),
        )

    def score(self) -> HeldOutScores:
        """The model's scores on fixed held-out batches under fixed noise."""
        return held_out_scores(self.model, self.tokenizer, self.schedule, self.held_out)

    def save(self) -> None:
        """Write `state.pt`; write `checkpoint/` too if this model is the best so far.

        Raises `OSError` when they cannot be written; what was saved before is then intact.
        """
        scores = self.score()
        is_best = scores.accuracy > self.best
        self.best = max(self.best, scores.accuracy)
        if distributed.rank() > 0:
            return
        try:
            self._write(scores, is_best)
        # torch reports a full disk as RuntimeError, safetensors as an error of its own.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(
                f"{self.directory} could not be written to ({error}); what was saved before is "
                "intact. Free some disk and run the command again"
            ) from error

    def _write(self, scores: HeldOutScores, is_best: bool) -> None:
        figures = {f"held_out_{name}": round(v, 4) for name, v in asdict(scores).items()}
        self._log(**figures, samples=sample_fills(self.model, self.tokenizer, self.held_out[0]))
        if is_best:
            facts = {"steps": self.step, "minutes": round(self.seconds / 60, 1), **figures}
            save_checkpoint(
                self.directory / "checkpoint", self.model, self.tokenizer, training=facts
            )
        state = {
            "optimizer": self.optimizer.state_dict(),
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
        """Go on from `state.pt` if the run directory has one.

        Raises `CheckpointError` when it is damaged.
        """
        file = self.directory / "state.pt"
        if not file.is_file():
            return False
        try:
            # Not straight to a GPU: AdamW's step counters stay where they are loaded, and it would
            # wait for each of them in every step. Masters and moments go there by themselves.
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"{file} is damaged; delete it to start again from the best checkpoint"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
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

    diffusion: float
    context: float
    certainty: float
    tokens: int


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
