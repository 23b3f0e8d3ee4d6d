"""The engine: admits fills, runs denoising steps on its own thread, hands back filled holes.

`step` is the whole engine in one screen: schedule, open contexts, one forward, commit, finish.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from torch import Tensor

from model.api import (
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidRequestError,
    SupersededError,
)
from model.engine.autoregressive import next_tokens
from model.engine.length import LearnedEnd, LengthPolicy
from model.engine.n_grams import NGrams
from model.engine.pace import Pace
from model.engine.ranking import ranked
from model.engine.runner import DecidedCanvas, Runner, is_out_of_memory
from model.engine.sampler import CanvasBatch, Vocabulary, decide
from model.engine.scheduler import Scheduler
from model.engine.sequence import Fill, FilledHoles, SamplingParams, Sequence
from model.infill import CANVAS_SIZES, fitted

logger = logging.getLogger(__name__)

MAX_BATCH = 16
IDLE_S = 1.0
"""Seconds without work after which the cache's books are checked."""
NOT_FINITE = "the denoiser produced non-finite logits"


class Engine:
    """Fills holes with one model. Its methods may be called from any thread."""

    def __init__(
        self,
        runner: Runner,
        vocabulary: Vocabulary,
        length: LengthPolicy | None = None,
        n_grams: NGrams | None = None,
    ) -> None:
        """`length` says how the model finds out how long a hole is (None: it writes an end);
        `n_grams` weighs what the document repeats (None: the model alone decides)."""
        self.runner, self.vocabulary = runner, vocabulary
        self.length = length or LearnedEnd()
        self.n_grams = n_grams
        self._pace = Pace()
        self._scheduler = Scheduler(MAX_BATCH)
        self._futures: dict[int, Future[list[FilledHoles]]] = {}
        self._replaced: list[Fill] = []
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mezzotint-engine", daemon=True)
        self._thread.start()

    def submit(self, fill: Fill) -> Future[list[FilledHoles]]:
        """Start a fill. Cancelling the future stops it at its next step.

        Its result is one output a candidate, `fill.num_wanted` at most, the best first; where time
        was up before all were finished, as `LengthPolicy.best_first` has them. It raises a
        `CompletionError` when the fill fails, `SupersededError` when a newer one replaced it. What
        is wrong from the start is raised here: `InvalidRequestError`, `EngineOverloadedError`.
        """
        future: Future[list[FilledHoles]] = Future()
        self._check(fill)
        fill.sequences = [self._new_sequence(fill, params) for params in fill.params]
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
            self.runner.check_integrity()
        except AssertionError:
            logger.exception("the context cache is damaged and starts anew; please report this")
            self.runner.drop_cache()

    def step(self) -> None:
        """One step: of every scheduled sequence, one more decision on its canvas, or one more
        token of its stream."""
        with self._work:
            self._end_what_must_end()
            batch = self._scheduler.schedule()
        if not batch:
            return
        try:
            batch = self.runner.open_contexts(batch)
        except Exception as error:
            self._give_way(batch, error)
            return
        canvases = [s for s in batch if not s.is_autoregressive]
        streams = [s for s in batch if s.is_autoregressive]
        ahead = [s for s in canvases if self.runner.decides(s)]
        self._run_ahead(ahead)
        self._forward([s for s in canvases if s not in ahead], self.runner.denoise, self._commit)
        self._forward(streams, self.runner.next_logits, self._append)
        for fill in _fills_of(batch):
            if fill.is_done:
                self._finish(fill)

    def _forward(
        self,
        batch: list[Sequence],
        forward: Callable[[list[Sequence]], Tensor],
        take: Callable[[list[Sequence], Tensor], None],
    ) -> None:
        """Run one forward and have the sequences take what its logits say."""
        if not batch:
            return
        try:
            logits = forward(batch)
            for fill in _fills_of(batch):
                fill.forwards += 1
            take(batch, logits)
        except Exception as error:
            self._give_way(batch, error)
        else:
            self._scheduler.recover()

    def _run_ahead(self, batch: list[Sequence]) -> None:
        """Several steps of what the runner decides itself, and one look at the canvases."""
        if not batch:
            return
        start = time.monotonic()
        num_steps = self._pace.steps_ahead(batch, start)
        try:
            decided = self.runner.decide(batch, num_steps)
        except Exception as error:
            self._give_way(batch, error)
            return
        self._pace.saw(num_steps, time.monotonic() - start)
        self._scheduler.recover()
        for fill in _fills_of(batch):
            steps = [d.num_steps for s, d in zip(batch, decided, strict=True) if s.fill is fill]
            fill.forwards += max(steps)
        for sequence, canvas in zip(batch, decided, strict=True):
            self._accept(sequence, canvas)

    def _accept(self, sequence: Sequence, decided: DecidedCanvas) -> None:
        """Take over a canvas that the runner worked on."""
        if decided.is_broken:
            self._fail([sequence.fill], FloatingPointError(NOT_FINITE))
            return
        sequence.canvas, sequence.confidences = decided.ids, decided.confidences
        sequence.step += decided.num_steps
        if self.vocabulary.mask_id not in sequence.canvas:
            self._pace.finished(sequence.step)
        self._take_stock(sequence)

    def _give_way(self, batch: list[Sequence], error: Exception) -> None:
        """A forward failed. Without memory the next step tries again with half the batch; anything
        else ends the batch's fills, never the engine."""
        if isinstance(error, EngineOverloadedError):  # of the one that always fits
            self._fail([batch[0].fill], error)
        elif not is_out_of_memory(error):
            self._fail(_fills_of(batch), error)
        elif self._scheduler.shrink(len(batch)):
            logger.warning("out of memory with %d sequences: trying fewer", len(batch))
        else:
            message = "there is no memory for this request alone; close other programs"
            self._fail([batch[0].fill], EngineOverloadedError(message))

    def _finish(self, fill: Fill) -> None:
        """Hand back a fill whose sequences are done."""
        sequences = self.length.best_first(fill.sequences)
        outputs = [s.output for s in sequences if s.output is not None]
        try:
            if len(outputs) > 1 and self.length.ranks_by_reading:
                start = self._new_sequence(fill, fill.params[0])
                special_ids = self.vocabulary.special_ids
                outputs = ranked(self.runner, start, outputs, special_ids, self.n_grams)
        except Exception as error:
            self._fail([fill], error)
            return
        with self._work:
            self._end(fill, outputs)

    def _append(self, batch: list[Sequence], logits_BV: Tensor) -> None:
        """Put the next token of autoregressive sequences behind their prefix streams."""
        if self.n_grams is not None:
            self.n_grams.weigh_next(batch, logits_BV)
        found = next_tokens(batch, logits_BV, self.vocabulary)
        for sequence, token_and_probability in zip(batch, found, strict=True):
            if token_and_probability is None:
                self._fail([sequence.fill], FloatingPointError(NOT_FINITE))
                continue
            sequence.append(*token_and_probability)
            if len(sequence.prefix) > self.runner.max_context:  # its far edge goes: another stream
                self.runner.close_context(sequence)
                sequence.prefix = fitted(sequence.prefix, self.runner.max_context)
            is_whole = len(sequence.committed) >= sequence.max_tokens
            if self._told(sequence) and (is_whole or self._is_too_unsure(sequence)):
                self._conclude(sequence)

    def _commit(self, batch: list[Sequence], logits_BCV: Tensor) -> None:
        """Decide this step's slots of every canvas; close the canvases without masks."""
        self.length.look(batch, logits_BCV)
        if self.n_grams is not None:
            self.n_grams.weigh(batch, logits_BCV)
        for row in self._decide(batch, logits_BCV):
            sequence = batch[row]
            if sequence.step == sequence.params.steps:
                # An end that lost to a token behind it is still open; this was the last forward.
                while self.vocabulary.mask_id in sequence.canvas:
                    self._decide([sequence], logits_BCV[row, None])
            self.length.revise(sequence, self.vocabulary)
            if self.length.gives_up(sequence):
                self._conclude(sequence)
            else:
                self._take_stock(sequence)

    def _decide(self, batch: list[Sequence], logits_BCV: Tensor) -> list[int]:
        """Put what the sampler is sure of into the canvases: at least one slot in each. Returns
        the rows for which that went well; the others' fills are ended."""
        canvases = CanvasBatch.of(batch, self.vocabulary.end_id, logits_BCV.device)
        broken = decide(canvases, logits_BCV[:, : canvases.ids.shape[1]], self.vocabulary).tolist()
        ids, confidences = canvases.ids.tolist(), canvases.confidence.tolist()
        fixed = canvases.fixed.tolist()
        for row, sequence in enumerate(batch):
            if broken[row]:
                self._fail([sequence.fill], FloatingPointError(NOT_FINITE))
                continue
            size = len(sequence.canvas)
            sequence.canvas = ids[row][:size]
            sequence.confidences = confidences[row][:size]
            sequence.fixed = fixed[row][:size]
            sequence.step += 1
        return [row for row in range(len(batch)) if not broken[row]]

    def _take_stock(self, sequence: Sequence) -> None:
        """A canvas has had a step, or several: tell, and go on or not."""
        if not self._told(sequence):
            return
        if self._is_too_unsure(sequence):
            self._conclude(sequence)
        elif self.vocabulary.mask_id not in sequence.canvas:
            self._close_canvas(sequence)

    def _told(self, sequence: Sequence) -> bool:
        """Tell the fill's listener of a step; False where that ended the fill."""
        fill = sequence.fill
        if fill.on_step is not None and sequence is self.length.best_first(fill.sequences)[0]:
            try:
                fill.on_step(sequence)
            except Exception as error:  # the other fills go on
                self._fail([fill], error)
                return False
        return True

    def _close_canvas(self, sequence: Sequence) -> None:
        """A canvas without masks: done, or, for a lone hole without an end, on to a further one."""
        self.runner.close_context(sequence)
        if not sequence.go_on(
            mask_id=self.vocabulary.mask_id,
            end_id=self.vocabulary.end_id,
            max_context=self.runner.max_context,
        ):
            self._conclude(sequence)

    def _conclude(self, sequence: Sequence) -> None:
        self.runner.close_context(sequence)
        sequence.output = self._output(sequence)

    # ---- fills and their sequences ---------------------------------------------------------

    def _check(self, fill: Fill) -> None:
        """Raise `InvalidRequestError` for a fill that would take the batch down with it."""
        if fill.layout.size > CANVAS_SIZES[-1]:
            raise InvalidRequestError(
                f"the canvas has {fill.layout.size} slots; the largest has {CANVAS_SIZES[-1]}"
            )
        if not fill.params or not fill.prefix or not fill.suffix:
            raise InvalidRequestError(
                "a fill needs a candidate, and streams that begin with a language"
            )
        vocab_size = self.runner.vocab_size
        for ids in (fill.prefix, fill.suffix, fill.typed, *fill.layout.between):
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise InvalidRequestError(f"token ids must lie in 0..{vocab_size - 1}")

    def _new_sequence(self, fill: Fill, params: SamplingParams) -> Sequence:
        return Sequence.of(
            fill,
            params,
            mask_id=self.vocabulary.mask_id,
            end_id=self.vocabulary.end_id,
            max_context=self.runner.max_context,
        )

    def _is_too_unsure(self, sequence: Sequence) -> bool:
        return sequence.is_too_unsure(
            mask_id=self.vocabulary.mask_id, end_id=self.vocabulary.end_id
        )

    def _output(self, sequence: Sequence) -> FilledHoles:
        return sequence.as_it_stands(mask_id=self.vocabulary.mask_id, end_id=self.vocabulary.end_id)

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
            sequences = self.length.best_first(fill.sequences)
            self._end(fill, [s.output or self._output(s) for s in sequences])

    def _fail(self, fills: Iterable[Fill], error: Exception) -> None:
        logger.error("a denoising step failed", exc_info=error)
        if not isinstance(error, CompletionError):
            error = CompletionError(f"the denoising step failed: {error}")
        with self._work:
            for fill in fills:
                self._end(fill, error)

    def _end(self, fill: Fill, outcome: list[FilledHoles] | CompletionError | None) -> None:
        """Take a fill out and settle its future (None: it was cancelled)."""
        self._scheduler.remove(fill)
        for sequence in fill.sequences:
            self.runner.close_context(sequence)
        future = self._futures.pop(id(fill), None)
        if future is None or not future.set_running_or_notify_cancel() or outcome is None:
            return
        if isinstance(outcome, CompletionError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome[: fill.num_wanted])


def _fills_of(batch: Iterable[Sequence]) -> list[Fill]:
    """The fills that a batch works on, each once."""
    return list(dict.fromkeys(sequence.fill for sequence in batch))
