"""A canvas on its way: the slots of one candidate, and what lies around them.

Imports no torch: runners turn these into tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from model.api import InvalidRequestError
from model.engine.canvas.layout import CanvasLayout, fitted
from model.engine.fill import Fill, FilledHoles, SamplingParams, Sequence


@dataclass(frozen=True, slots=True)
class CanvasParams(SamplingParams):
    """How a canvas is filled."""

    at_least: Literal["leftmost", "surest"] = "surest"
    """`threshold`: which slot a step commits where it is sure of none."""
    length: int | None = None
    """The lone hole takes exactly as many tokens, typed ones not counted: its end is given, not
    searched for."""
    length_is: Literal["given", "start", "tried"] = "given"
    """Of a length: asked for; what a canvas starts with whose masks may split and vanish; or one
    of several, of which the best is wanted (`model.engine.canvas.length`)."""


@dataclass(eq=False, slots=True, kw_only=True)
class CanvasFill(Fill):
    """A request to a model that fills canvases."""

    prefix: list[int]
    """Text before the first hole, after a token that stays when it is shortened."""
    suffix: list[int]
    """Text after the last hole, the nearest last, likewise."""
    layout: CanvasLayout
    """Of the first canvas, where a sequence's length is unknown."""
    typed: tuple[int, ...] = ()
    """Tokens the first hole begins with."""
    canvas_slots: Callable[[CanvasSequence], int] | None = None
    """Of a model whose canvases hold no ends: the most slots of a sequence's next canvas."""


@dataclass(eq=False, slots=True, kw_only=True)
class CanvasSequence(Sequence):
    """One candidate on its way: its context streams and the canvas being denoised."""

    fill: CanvasFill  # pyright: ignore[reportIncompatibleVariableOverride] (never set anew)
    params: CanvasParams  # pyright: ignore[reportIncompatibleVariableOverride]
    prefix: list[int]
    """Prefix stream; grows by the committed canvas when a lone hole goes on in a further one."""
    suffix: list[int]
    layout: CanvasLayout
    canvas: list[int]
    """Slot ids; the tokenizer's mask id where undecided."""
    clamped: list[bool]
    """Slots that were given and must never change."""
    fixed: list[bool]
    """Slots that are not masked again: the clamped ones, and those that were once."""
    confidences: list[float]
    """Probability a slot was committed with; 1 for clamped ones."""
    committed: list[int] = field(default_factory=list)
    """Tokens of the canvases before this one."""
    committed_confidences: list[float] = field(default_factory=list)
    """Their probabilities, those of typed tokens left out."""
    num_expansions: int = 0
    """Masks that have split into two."""
    end_confidence: float | None = None
    """Probability that masks were deleted with, the least one."""
    length_score: float | None = None
    """How much a tried length promises, once it has had a step."""

    @classmethod
    def of(
        cls, fill: CanvasFill, params: CanvasParams, *, mask_id: int, end_id: int, max_context: int
    ) -> CanvasSequence:
        """A candidate of `fill` at its start. Raises `InvalidRequestError` for what fits no
        canvas, or does not go together."""
        typed, layout = list(fill.typed), fill.layout
        is_known = params.length is not None and params.length_is == "given"
        if len(layout.slots) > 1 and is_known:
            raise InvalidRequestError(
                f"a known length takes a single hole, not {len(layout.slots)}"
            )
        # Where no canvas is to hold it, what is typed is context.
        is_context = fill.canvas_slots is not None
        sequence = cls(
            fill=fill,
            params=params,
            prefix=fitted(fill.prefix + (typed if is_context else []), max_context),
            suffix=fitted(fill.suffix, max_context),
            layout=layout,
            canvas=[],
            clamped=[],
            fixed=[],
            confidences=[],
        )
        if is_context:
            sequence.committed = typed
        if fill.canvas_slots is not None:
            layout = sequence.layout_without_ends(fill.canvas_slots)
        elif params.length is not None:
            layout = CanvasLayout.for_holes(params.length + 1, typed=len(typed))
        given = () if is_context else fill.typed
        sequence.blank(layout, given, mask_id=mask_id, end_id=end_id)
        return sequence

    @property
    def width(self) -> int:
        """Slots of its canvas."""
        return len(self.canvas)

    @property
    def max_tokens(self) -> int:
        """The most tokens that the first hole may take, typed ones included."""
        length = self.params.length
        return len(self.fill.typed) + (self.fill.max_new_tokens if length is None else length)

    @property
    def num_left(self) -> int:
        """Tokens that the first hole may still take, this canvas's included."""
        return self.max_tokens - len(self.committed)

    def is_too_unsure(self, *, mask_id: int, end_id: int) -> bool:
        """Whether what is decided from the left is less likely than the fill wants anything."""
        least = self.fill.min_confidence
        # A token that may be masked again says nothing yet.
        if not least or self.params.remask is not None or len(self.layout.slots) > 1:
            return False
        so_far = self.as_it_stands(mask_id=mask_id, end_id=end_id)
        return bool(so_far.probabilities) and so_far.confidence < least

    def layout_without_ends(self, canvas_slots: Callable[[CanvasSequence], int]) -> CanvasLayout:
        """The next canvas of a model that is shown no ends: nothing but slots to fill and, of
        several holes, each as long as the others, what lies between them."""
        holes = self.fill.layout.slots
        if len(holes) > 1 and self.params.length is not None:
            return CanvasLayout((self.params.length,) * len(holes), self.fill.layout.between)
        if len(holes) > 1:
            raise InvalidRequestError(f"this model fills one hole at a time, not {len(holes)}")
        return CanvasLayout((min(self.num_left, canvas_slots(self)),))

    def blank(
        self, layout: CanvasLayout, typed: tuple[int, ...], *, mask_id: int, end_id: int
    ) -> None:
        """Start a canvas: masks, what is `typed`, and the `<eom>`s of a known length."""
        self.layout, self.step = layout, 0
        self.canvas, self.clamped = layout.blank(mask_id, typed)
        if self.params.length is not None and self.fill.canvas_slots is None:
            # The `<eom>`s in sight tell the model the length, as a half-done canvas would.
            for slot in range(self.num_left, len(self.canvas)):
                self.canvas[slot], self.clamped[slot] = end_id, True
        self.fixed = list(self.clamped)
        self.confidences = [1.0] * len(self.canvas)

    def go_on(self, *, mask_id: int, end_id: int, max_context: int) -> bool:
        """Commit the canvas of a lone hole to the prefix and start a further one; False where the
        canvas without masks is the last. The context must be closed."""
        left = self.num_left - len(self.canvas)
        if len(self.layout.slots) > 1 or end_id in self.canvas or left <= 0:
            return False
        given = zip(self.confidences, self.clamped, strict=True)
        self.committed_confidences += [p for p, is_given in given if not is_given]
        self.committed += self.canvas
        self.prefix = fitted(self.prefix + self.canvas, max_context)
        if self.fill.canvas_slots is not None:
            layout = self.layout_without_ends(self.fill.canvas_slots)
        else:
            slots = min(left, len(self.canvas)) if self.params.length is None else left + 1
            layout = CanvasLayout.for_holes(slots)
        self.blank(layout, (), mask_id=mask_id, end_id=end_id)
        return True

    def as_it_stands(self, *, mask_id: int, end_id: int) -> FilledHoles:
        """The holes so far: each up to its end or its first undecided slot."""
        holes: list[tuple[int, ...]] = []
        trusted = list(self.committed_confidences)
        finished = True
        for index, hole in enumerate(self.layout.holes()):
            tokens = [] if index else list(self.committed)
            most = self.fill.max_new_tokens if index else self.max_tokens
            if self.params.length is not None and len(self.layout.slots) > 1:
                most = len(tokens) + len(hole)  # the canvas has no ends
            ended = False
            for slot in hole:
                token = self.canvas[slot]
                ended = token == end_id
                if token == mask_id or (len(tokens) == most and not ended):
                    break
                if not self.clamped[slot]:
                    trusted.append(self.confidences[slot])
                if ended:
                    break
                tokens.append(token)
            is_whole = self.params.length is not None and len(tokens) == most
            finished = finished and (ended or is_whole)
            holes.append(tuple(tokens))
        # A deletion is part of the end: it says nothing of tokens that are still open before it.
        if finished and self.end_confidence is not None:
            trusted.append(self.end_confidence)
        return FilledHoles(tuple(holes), tuple(trusted), finished)
