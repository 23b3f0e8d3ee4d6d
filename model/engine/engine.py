"""The engine: admits fills, runs steps on its own thread, hands back filled holes.

`step` is the whole engine in one screen: schedule, one step of the model's decoder, finish. What a
step is, the decoders say: `draft.verify` (a backbone) and `canvas.decoder` (a denoiser alone).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Items
from concurrent.futures import Future

from model.api import (
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    SupersededError,
)
from model.engine.fill import Decoder, Fill, FilledHoles, Sequence, fills_of
from model.engine.run.memory import is_out_of_memory
from model.engine.scheduler import Scheduler

logger = logging.getLogger(__name__)

MAX_BATCH = 16
IDLE_S = 1.0
"""Seconds without work after which the cache's books are checked."""


class Engine:
    """Fills holes with one model. Its methods may be called from any thread."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._scheduler = Scheduler(MAX_BATCH)
        self._futures: dict[int, Future[list[FilledHoles]]] = {}
        self._replaced: list[Fill] = []
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mezzotint-engine", daemon=True)
        self._thread.start()

    def submit(self, fill: Fill) -> Future[list[FilledHoles]]:
        """Start a fill. Cancelling the future stops it at its next step.

        Its result is one output a candidate, `fill.num_wanted` at most, the best first. It raises a
        `CompletionError` when the fill fails, `SupersededError` when a newer one replaced it. What
        is wrong from the start is raised here: `InvalidRequestError`, `EngineOverloadedError`.
        """
        future: Future[list[FilledHoles]] = Future()
        self.decoder.check(fill)
        fill.sequences = self.decoder.start(fill)
        with self._work:
            if self._closed:
                raise EngineUnavailableError("the engine is closed; start it again")
            replaced = self._scheduler.add(fill)
            self._futures[id(fill)] = future
            if replaced is not None:
                self._replaced.append(replaced)  # it may be in the step that runs right now
            self._work.notify()
        return future

    def close(self) -> None:
        """Stop at the next step and fail what is unfinished with `EngineUnavailableError`.
        Idempotent."""
        with self._work:
            self._closed = True
            self._work.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- the engine's thread -------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.step()
        finally:  # also when a bug ends the thread: nobody may wait for it for ever
            with self._work:
                self._closed = True
                for fill in self._scheduler.fills + self._replaced:
                    self._end(fill, EngineUnavailableError("the engine was closed"))
                self._replaced.clear()

    def _wait_for_work(self) -> bool:
        with self._work:
            if self._work.wait_for(self._has_work, IDLE_S):
                return not self._closed
        self._check_cache()
        with self._work:
            self._work.wait_for(self._has_work)
            return not self._closed

    def _has_work(self) -> bool:
        return self._closed or bool(self._scheduler.fills)

    def _check_cache(self) -> None:
        try:
            self.decoder.check_integrity()
        except AssertionError:
            logger.exception("the context cache is damaged and starts anew; please report this")
            self.decoder.drop_cache()

    def step(self) -> None:
        """One step: of every scheduled sequence, as far as there is room, one more decision."""
        with self._work:
            self._end_what_must_end()
            batch = self._scheduler.schedule()
        if not batch:
            return
        try:
            self.decoder.step(batch)
        except Exception as error:
            self._give_way(batch, error)
            return
        self._scheduler.recover()
        for fill in fills_of(batch):
            self._settle(fill)

    def _settle(self, fill: Fill) -> None:
        """Hand back a fill whose sequences are done, or one of which cannot go on."""
        error = next((s.error for s in fill.sequences if s.error is not None), None)
        if error is not None:
            self._fail([fill], error)
        elif fill.is_done:
            with self._work:
                self._end(fill, self.decoder.outputs(fill))

    def _give_way(self, batch: Items[Sequence], error: Exception) -> None:
        """A step failed. Without memory the next step tries again with half the batch; anything
        else ends the batch's fills, never the engine."""
        if isinstance(error, EngineOverloadedError):  # of the one that always fits
            self._fail([batch[0].fill], error)
        elif not is_out_of_memory(error):
            self._fail(fills_of(batch), error)
        elif self._scheduler.shrink(len(batch)):
            logger.warning("out of memory with %d sequences: trying fewer", len(batch))
        else:
            message = "there is no memory for this request alone; close other programs"
            self._fail([batch[0].fill], EngineOverloadedError(message))

    # ---- endings (the lock is held) ------------------------------------------------------

    def _end_what_must_end(self) -> None:
        """Replaced, cancelled and overdue fills leave before the next step."""
        for fill in self._replaced:
            self._end(fill, SupersededError("a newer request of this document came in"))
        self._replaced.clear()
        for fill in self._scheduler.fills:
            if self._futures[id(fill)].cancelled():
                self._end(fill, None)
        for fill in self._scheduler.overdue(time.monotonic()):  # anytime: answer as it stands
            self._end(fill, self.decoder.outputs(fill))

    def _fail(self, fills: Iterable[Fill], error: Exception) -> None:
        logger.error("a step failed", exc_info=error)
        if not isinstance(error, CompletionError):
            error = CompletionError(f"the step failed: {error}")
        with self._work:
            for fill in fills:
                self._end(fill, error)

    def _end(self, fill: Fill, outcome: list[FilledHoles] | CompletionError | None) -> None:
        """Take a fill out and settle its future (None: it was cancelled)."""
        self._scheduler.remove(fill)
        for sequence in fill.sequences:
            self.decoder.leave(sequence)
        future = self._futures.pop(id(fill), None)
        if future is None or not future.set_running_or_notify_cancel() or outcome is None:
            return
        if isinstance(outcome, CompletionError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome[: fill.num_wanted])
