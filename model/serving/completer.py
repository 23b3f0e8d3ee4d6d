"""Text -> engine -> text: the `Completer` that runs in this process.

What is common to all models. How a request becomes a fill and tokens become text again,
`backbone_completer` and `canvas_completer` say.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from pathlib import Path

from model.api import (
    Candidate,
    ContextSize,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
)
from model.engine.engine import Engine
from model.engine.fill import Fill, FilledHoles, Sequence


class EngineCompleter(ABC):
    """A `model.api.Completer` around one engine."""

    verifies: bool
    """Whether a backbone stands behind what it answers."""

    def __init__(self, engine: Engine, *, path: Path | None) -> None:
        """`path` is that of its checkpoint."""
        self.path = path
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """The engine inside, for whoever measures it."""
        return self._engine

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What computes the steps, with its version."""

    @property
    @abstractmethod
    def problems(self) -> list[str]:
        """Why fills are slower than they should be on this device."""

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """See `model.api.Completer.complete`. `on_frame` is called on the engine's thread."""
        started = time.monotonic()
        fill, context = self._fill(request, started)
        if request.must_fit and context.dropped:
            raise InvalidRequestError(
                f"the context has {context.tokens + context.dropped} tokens, {context.dropped} "
                "more than this model reads; shorten it, or serve a model of a longer context"
            )
        if on_frame is not None:
            listener = on_frame
            fill.on_step = lambda sequence: listener(self._frame(request, context, sequence))
        future = self._engine.submit(fill)
        outputs = await asyncio.wrap_future(future)  # cancelling the task cancels the fill
        self._answered(fill)
        distinct: dict[tuple[str, ...], Candidate] = {}
        for candidate in self._candidates(request, fill, outputs):
            distinct.setdefault(candidate.texts, candidate)
        return InfillResult(
            candidates=tuple(distinct.values()),
            forwards=fill.forwards,
            tokens=sum(self._num_written(fill, output) for output in outputs),
            encoded_tokens=fill.encoded_tokens,
            ms=1000 * (time.monotonic() - started),
            context=context,
            verified=self.verifies,
        )

    async def close(self) -> None:
        """Stop the engine's thread; the model goes with the last reference to the completer."""
        await asyncio.to_thread(self._engine.close)

    def _answered(self, fill: Fill) -> None:  # noqa: B027
        """A fill has its outputs: prepare for what comes next."""

    @abstractmethod
    def _fill(self, request: InfillRequest, now: float) -> tuple[Fill, ContextSize]:
        """A request as the engine takes it, and what of its context is read. Raises
        `InvalidRequestError`."""

    @abstractmethod
    def _candidates(
        self, request: InfillRequest, fill: Fill, outputs: Items[FilledHoles]
    ) -> list[Candidate]:
        """What the engine's outputs mean as text, in their order."""

    @abstractmethod
    def _num_written(self, fill: Fill, output: FilledHoles) -> int:
        """Tokens of an output that were not given."""

    @abstractmethod
    def _frame(self, request: InfillRequest, context: ContextSize, sequence: Sequence) -> Frame:
        """What a sequence looks like after a step."""


def whole_lines(text: str) -> str:
    """The text with one kind of line end: the bytes are tokens as well, so a model can write a
    carriage return."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
