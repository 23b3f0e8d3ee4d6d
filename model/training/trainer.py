"""The training loop: batches -> joint loss -> optimizer, with held-out losses, logs and resume.

A run lives in one directory:
    state.pt      everything needed to go on: weights, moments, step, seconds trained
    checkpoint/   the best model so far by held-out diffusion loss, ready to be served
    log.jsonl     one line a report
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType

import torch
from tqdm import tqdm

from model.api import CheckpointError
from model.checkpoint import save_checkpoint
from model.denoiser import Denoiser
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training.data import Batch, BatchShape, WindowSampler
from model.training.loss import joint_loss
from model.training.optimizer import MasterOptimizer, rate_factor

logger = logging.getLogger(__name__)

REPORT_SECONDS = 20.0
SAVE_SECONDS = 240.0
HELD_OUT_BATCHES = 6
HELD_OUT_SEED = 20_250_617


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how fast to train."""

    minutes: float = 10.0
    """Wall-clock length of the whole run, all its resumptions together."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    context_weight: float = 0.5
    """Share of the next-token loss beside the diffusion loss."""
    shape: BatchShape = field(default_factory=BatchShape)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.learning_rate <= 0:
            raise ValueError(
                f"minutes ({self.minutes}) and learning_rate ({self.learning_rate}) must be above 0"
            )


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
    ) -> None:
        self.model = model.to(device=device, dtype=torch.bfloat16)
        self.tokenizer, self.train, self.config = tokenizer, train, config
        self.directory, self.device = directory, device
        self.optimizer = MasterOptimizer(
            self.model, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = LinearSchedule()
        self.held_out = [held_out.batch(i) for i in range(HELD_OUT_BATCHES)]
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.stopping = False

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def run(self) -> float:
        """Train until the time is up or a signal asks to stop; returns the best held-out loss.

        Saves on the way and at the end, so that nothing is lost but the steps since the last save.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        since_report, since_save, losses = 0.0, 0.0, []
        bar = tqdm(
            total=60 * self.config.minutes,
            initial=min(self.seconds, 60 * self.config.minutes),
            desc="training",
            bar_format="{l_bar}{bar}| {elapsed}, ETA {remaining}{postfix}",
        )
        with _stop_on_signal(self), _prefetched(self.train, self.step) as batches, bar:
            while self.progress < 1.0 and not self.stopping:
                started = time.perf_counter()
                losses.append(self._train_step(next(batches)))
                took = time.perf_counter() - started
                self.seconds += took
                since_report, since_save = since_report + took, since_save + took
                bar.update(min(took, bar.total - bar.n))
                if since_report >= REPORT_SECONDS:
                    self._report(losses, since_report, bar)
                    since_report, losses = 0.0, []
                if since_save >= SAVE_SECONDS:
                    self.save()
                    since_save = 0.0
        self.save()
        return self.best

    def _train_step(self, batch: Batch) -> tuple[float, float, int]:
        terms = joint_loss(
            self.model,
            batch.to(self.device),
            mask_id=self.tokenizer.mask_id,
            schedule=self.schedule,
            context_weight=self.config.context_weight,
            # Noise of the step's own, as its batch is: a resumed run goes on as if never stopped.
            generator=torch.Generator().manual_seed(self.config.seed + self.step),
        )
        terms.total.backward()
        self.optimizer.step(rate_factor(self.progress))
        self.step += 1
        tokens = 2 * batch.prefix_ids.numel() + batch.canvas_targets.numel()
        return terms.diffusion.item(), terms.context.item(), tokens

    def _report(self, losses: list[tuple[float, float, int]], seconds: float, bar: tqdm) -> None:
        diffusion, context, tokens = (sum(column) for column in zip(*losses, strict=True))
        rate = tokens / seconds
        bar.set_postfix_str(
            f", diffusion {diffusion / len(losses):.3f}, context {context / len(losses):.3f}, "
            f"{rate:,.0f} tokens/s, step {self.step}"
        )
        self._log(
            diffusion=diffusion / len(losses),
            context=context / len(losses),
            tokens_per_second=rate,
        )

    @torch.no_grad()
    def held_out_losses(self) -> tuple[float, float]:
        """Mean (diffusion, context) loss on fixed held-out batches under fixed noise."""
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        totals = [0.0, 0.0]
        for batch in self.held_out:
            terms = joint_loss(
                self.model,
                batch.to(self.device),
                mask_id=self.tokenizer.mask_id,
                schedule=self.schedule,
                context_weight=0.0,
                generator=generator,
            )
            totals[0] += terms.diffusion.item() / len(self.held_out)
            totals[1] += terms.context.item() / len(self.held_out)
        return totals[0], totals[1]

    def save(self) -> None:
        """Write `state.pt`; write `checkpoint/` too if this model is the best so far."""
        diffusion, context = self.held_out_losses()
        self._log(held_out_diffusion=diffusion, held_out_context=context)
        if diffusion < self.best:
            self.best = diffusion
            facts = {
                "steps": self.step,
                "minutes": round(self.seconds / 60, 1),
                "held_out_diffusion_loss": round(diffusion, 4),
                "held_out_context_loss": round(context, 4),
            }
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
        torch.save(state, draft)
        os.replace(draft, self.directory / "state.pt")

    def resume(self) -> bool:
        """Go on from `state.pt` if the run directory has one.

        Raises `CheckpointError` when it is damaged.
        """
        file = self.directory / "state.pt"
        if not file.is_file():
            return False
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
        except (RuntimeError, OSError, UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"{file} is damaged; delete it to start again from the best checkpoint"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        return True

    def _log(self, **figures: float) -> None:
        row = {"step": self.step, "seconds": round(self.seconds, 1)}
        row |= {name: round(value, 4) for name, value in figures.items()}
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def _prefetched(sampler: WindowSampler, start: int) -> Iterator[Iterator[Batch]]:
    """The sampler's batches, each made in a thread while the one before it is trained on."""
    with ThreadPoolExecutor(max_workers=1) as pool:

        def batches() -> Iterator[Batch]:
            upcoming = pool.submit(sampler.batch, start)
            step = start
            while True:
                step += 1
                batch, upcoming = upcoming.result(), pool.submit(sampler.batch, step)
                yield batch

        yield batches()


@contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into "finish this step, save, leave"."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        trainer.stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
