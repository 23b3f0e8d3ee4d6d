"""Canvases, and the text around them: which slots belong to which hole.

    document:   a b c ┆ hole ┆ x y z
    prefix:     a b c          the nearest token last
    suffix:     z y x          the nearest token last, too

With several holes the text between them lies in the canvas, clamped:

    canvas:     hole hole <end> <end> │ between │ hole <end> <end>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from model.api import InvalidRequestError

CANVAS_SIZES = (16, 32, 64, 128)
"""Slots of a canvas. Few sizes, so that an engine can prepare for each."""

MIN_CONTEXT_CHUNK = 128
"""A stream over its limit loses at least this many tokens at its far edge at once: a window that
slid by one token a keystroke would have to be encoded anew on every keystroke. (A stream of a
smaller limit than twice this loses half of itself.)"""


def tokens_to_drop(num_tokens: int, limit: int) -> int:
    """How many of `num_tokens` a stream of at most `limit` drops at its far edge (a multiple of a
    chunk, so that the same answer holds for many keystrokes)."""
    if num_tokens <= limit:
        return 0
    chunk = max(min(MIN_CONTEXT_CHUNK, limit // 2), limit // 4, 1)
    return -(-(num_tokens - limit) // chunk) * chunk


def fitted(stream: Sequence[int], limit: int) -> list[int]:
    """The stream without what it must drop at its far edge; its language token stays."""
    dropped = tokens_to_drop(len(stream), limit)
    return [*stream[:1], *stream[1 + dropped :]] if dropped else list(stream)


@dataclass(frozen=True, slots=True)
class CanvasLayout:
    """Which slots of a canvas belong to which hole, and what lies between the holes."""

    slots: tuple[int, ...]
    """Slots of each hole."""
    between: tuple[tuple[int, ...], ...] = ()
    """Token ids between neighbouring holes."""
    hole_of_slot: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The hole each slot belongs to, -1 for text between holes."""

    def __post_init__(self) -> None:
        if len(self.between) != len(self.slots) - 1:
            raise InvalidRequestError(
                f"{len(self.slots)} holes need {len(self.slots) - 1} texts between them, "
                f"not {len(self.between)}"
            )
        owner = [-1] * self.size
        for index, hole in enumerate(self.holes()):
            owner[hole.start : hole.stop] = [index] * len(hole)
        object.__setattr__(self, "hole_of_slot", tuple(owner))

    @classmethod
    def for_holes(
        cls, max_tokens: int, between: Sequence[Sequence[int]] = (), typed: int = 0
    ) -> CanvasLayout:
        """The smallest canvas whose every hole holds `max_tokens`.

        Where that is more than the largest canvas, a lone hole gets the largest one (a hole that
        fills its slots without an `<eom>` goes on in a further canvas) and several holes share it.
        `typed` is the number of tokens the first hole is known to begin with.
        Raises `InvalidRequestError` when several holes do not fit together.
        """
        num_holes = len(between) + 1
        clamped = sum(len(ids) for ids in between)
        wanted = num_holes * max_tokens + typed + clamped
        size = next((size for size in CANVAS_SIZES if size >= wanted), CANVAS_SIZES[-1])
        per_hole = (size - clamped - typed) // num_holes
        if num_holes > 1 and per_hole < min(max_tokens, 2):
            raise InvalidRequestError(
                f"{num_holes} holes with {clamped} tokens between them do not fit a canvas of "
                f"{CANVAS_SIZES[-1]} slots; fill fewer at once"
            )
        slots = [per_hole] * num_holes
        slots[0] += typed
        slots[-1] += size - clamped - sum(slots)
        return cls(tuple(slots), tuple(tuple(ids) for ids in between))

    @property
    def size(self) -> int:
        """Slots of the whole canvas."""
        return sum(self.slots) + sum(len(ids) for ids in self.between)

    def holes(self) -> list[range]:
        """The slot range of each hole."""
        ranges, start = [], 0
        for index, count in enumerate(self.slots):
            ranges.append(range(start, start + count))
            start += count + (len(self.between[index]) if index < len(self.between) else 0)
        return ranges

    def blank(self, mask_id: int, typed: Sequence[int] = ()) -> tuple[list[int], list[bool]]:
        """An empty canvas (ids, clamped): masks in the holes, `typed` at the first hole's start.

        Raises `InvalidRequestError` when `typed` leaves the first hole no free slot.
        """
        if len(typed) >= self.slots[0]:
            raise InvalidRequestError(
                f"{len(typed)} typed tokens do not fit a hole of {self.slots[0]} slots"
            )
        ids: list[int] = []
        clamped: list[bool] = []
        for index, count in enumerate(self.slots):
            ids += [mask_id] * count
            clamped += [False] * count
            if index < len(self.between):
                ids += self.between[index]
                clamped += [True] * len(self.between[index])
        ids[: len(typed)] = typed
        clamped[: len(typed)] = [True] * len(typed)
        return ids, clamped
