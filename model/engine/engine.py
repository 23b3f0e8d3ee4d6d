"""The engine: admits fills, runs denoising steps on its own thread, hands back filled holes.

`step` is the whole engine in one screen: schedule, open contexts, one forward, commit, finish.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future

import torch
from torch import Tensor

from model.api import CompletionError, EngineUnavailableError, SupersededError
from model.denoiser import Denoiser
from model.engine.model_runner import ModelRunner
from model.engine.sampler import choose, commit
from model.engine.scheduler import Scheduler
from model.engine.sequence import Fill, FilledHoles, Sequence
from model.infill import CanvasLayout, fitted
from model.tokenizer import CodeTokenizer

logger = logging.getLogger(__name__)

MAX_BATCH = 16
IDLE_S = 1.0
"""Seconds without work after which the cache's books are checked."""


class Engine:
    """Fills holes with one denoiser. Its methods may be called from any thread."""

    def __init__(
        self, model: Denoiser, tokenizer: CodeTokenizer, *, cache_bytes: int | None = None
    ) -> None:
        """`cache_bytes` is the context cache's budget (None: by what the device has)."""
        self.mask_id, self.end_id = tokenizer.mask_id, tokenizer.end_id
        self.runner = ModelRunner(model, cache_bytes=cache_bytes)
        self._forbidden = torch.zeros(
            model.config.vocab_size, dtype=torch.bool, device=self.runner.device
        )
        self._forbidden[list(tokenizer.special_ids - {tokenizer.end_id})] = True
        self._forbidden_at_known_length = self._forbidden.clone()
        self._forbidden_at_known_length[tokenizer.end_id] = True
        self._scheduler = Scheduler(MAX_BATCH)
        self._futures: dict[int, Future[list[FilledHoles]]] = {}
        self._replaced: list[Fill] = []
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mezzotint-engine", daemon=True)
        self._thread.start()

    def submit(self, fill: Fill) -> Future[list[FilledHoles]]:
        """Start a fill. Cancelling the future stops it at its next step.

        The future raises a `CompletionError` when the fill fails, `SupersededError` when a newer
        one replaced it.
        """
        future: Future[list[FilledHoles]] = Future()
        fill.sequences = [self._new_sequence(fill, index) for index in range(len(fill.params))]
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
        """One denoising step: of every scheduled sequence, one more decision on its canvas."""
        with self._work:
            self._end_what_must_end()
            batch = self._scheduler.schedule()
        if not batch:
            return
        fills = {id(s.fill): s.fill for s in batch}.values()
        try:
            batch = self.runner.open_contexts(batch)
            fills = {id(s.fill): s.fill for s in batch}.values()
            logits = self.runner.denoise(batch)
        except Exception as error:  # a broken forward ends its fills, never the engine
            self._fail(fills, error)
            return
        for fill in fills:
            fill.forwards += 1
        for row, sequence in enumerate(batch):
            try:
                self._advance(sequence, logits[row])
            except Exception as error:  # its logits or its listener: the other fills go on
                self._fail([sequence.fill], error)
        with self._work:
            for fill in fills:
                if fill.is_done:
                    self._end(fill, [s.output for s in fill.sequences if s.output is not None])

    def _advance(self, sequence: Sequence, logits_CV: Tensor) -> None:
        """Commit this step's slots of one sequence; close its canvas when none is masked."""
        self._decide(sequence, logits_CV)
        if sequence.step + 1 == sequence.params.steps:
            # An end that lost to a token behind it is still open, and this was the last forward.
            while self.mask_id in sequence.canvas:
                self._decide(sequence, logits_CV)
        sequence.step += 1
        fill = sequence.fill
        if fill.on_step is not None and sequence is fill.sequences[0]:
            fill.on_step(sequence)
        if self.mask_id not in sequence.canvas:
            self._close_canvas(sequence)

    def _decide(self, sequence: Sequence, logits_CV: Tensor) -> None:
        """Put what the sampler is sure of into the canvas: at least one slot."""
        hole_C = torch.tensor(_hole_of_slot(sequence.layout), device=logits_CV.device)
        canvas_C = torch.tensor(sequence.canvas, device=logits_CV.device)
        choice = choose(
            logits_CV,
            canvas_C,
            hole_C,
            sequence.params,
            sequence.step,
            mask_id=self.mask_id,
            end_id=self.end_id,
            forbidden=self._forbidden_at_known_length
            if sequence.fill.known_length
            else self._forbidden,
        )
        new_canvas = commit(choice, canvas_C, hole_C, mask_id=self.mask_id, end_id=self.end_id)
        chosen, confidence = choice.chosen.tolist(), choice.confidence.tolist()
        sequence.canvas = new_canvas.tolist()
        sequence.confidences = [
            new if is_chosen else old
            for new, is_chosen, old in zip(confidence, chosen, sequence.confidences, strict=True)
        ]

    def _close_canvas(self, sequence: Sequence) -> None:
        """A canvas without masks: done, or, for a lone hole without an end, on to a further one."""
        fill = sequence.fill
        lone = len(sequence.layout.slots) == 1
        num_tokens = len(sequence.committed) + len(sequence.canvas) - len(fill.typed)
        if not lone or self.end_id in sequence.canvas or num_tokens >= fill.max_new_tokens:
            sequence.output = self._output(sequence)
            self.runner.close_context(sequence)
            return
        self.runner.close_context(sequence)
        sequence.committed += sequence.canvas
        sequence.committed_confidences += [
            confidence
            for confidence, given in zip(sequence.confidences, sequence.clamped, strict=True)
            if not given
        ]
        sequence.prefix = fitted(sequence.prefix + sequence.canvas, self.runner.max_context)
        left = fill.max_new_tokens - num_tokens
        sequence.layout = CanvasLayout.for_holes(
            left + 1 if fill.known_length else min(left, len(sequence.canvas))
        )
        self._blank(sequence, ())

    # ---- sequences -----------------------------------------------------------------------

    def _new_sequence(self, fill: Fill, index: int) -> Sequence:
        sequence = Sequence(
            fill=fill,
            params=fill.params[index],
            prefix=fitted(fill.prefix, self.runner.max_context),
            suffix=fitted(fill.suffix, self.runner.max_context),
            layout=fill.layout,
            canvas=[],
            clamped=[],
            confidences=[],
        )
        self._blank(sequence, fill.typed)
        return sequence

    def _blank(self, sequence: Sequence, typed: tuple[int, ...]) -> None:
        sequence.canvas, sequence.clamped = sequence.layout.blank(self.mask_id, typed)
        if sequence.fill.known_length:
            # The `<eom>`s in sight tell the model the length, as a half-done canvas would.
            left = sequence.fill.max_new_tokens - len(sequence.committed)
            behind = range(min(left, len(sequence.canvas)), len(sequence.canvas))
            for slot in behind:
                sequence.canvas[slot], sequence.clamped[slot] = self.end_id, True
        sequence.confidences = [1.0] * len(sequence.canvas)
        sequence.step = 0

    def _output(self, sequence: Sequence) -> FilledHoles:
        """The sequence's holes as they stand: each up to its end or its first undecided slot."""
        fill = sequence.fill
        holes: list[tuple[int, ...]] = []
        trusted: list[float] = list(sequence.committed_confidences)
        finished = True
        for index, hole in enumerate(sequence.layout.holes()):
            tokens = [] if index else list(sequence.committed)
            most = fill.max_new_tokens + (0 if index else len(fill.typed))
            ended = False
            for slot in hole:
                token = sequence.canvas[slot]
                ended = token == self.end_id
                if token == self.mask_id or (len(tokens) == most and not ended):
                    break
                if not sequence.clamped[slot]:
                    trusted.append(sequence.confidences[slot])
                if ended:
                    break
                tokens.append(token)
            finished = finished and (ended or (fill.known_length and len(tokens) == most))
            holes.append(tuple(tokens))
        return FilledHoles(tuple(holes), tuple(trusted), finished)

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
            self._end(fill, [s.output or self._output(s) for s in fill.sequences])

    def _fail(self, fills: Iterable[Fill], error: Exception) -> None:
        logger.error("a denoising step failed", exc_info=error)
        with self._work:
            for fill in fills:
                self._end(fill, CompletionError(f"the denoising step failed: {error}"))

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
            future.set_result(outcome)


def _hole_of_slot(layout: CanvasLayout) -> list[int]:
    """The hole each slot belongs to, -1 for text between holes."""
    owner = [-1] * layout.size
    for index, hole in enumerate(layout.holes()):
        for slot in hole:
            owner[slot] = index
    return owner
