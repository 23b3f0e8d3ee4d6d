"""Book-keeping of the context cache: which slot holds the keys and values of which stream.

A slot holds one stream's tokens from its far edge on. Streams are causal, so a new stream may use
a slot's contents up to the first token that differs: typing appends, backspace truncates, an edit
further up re-encodes from there. Imports no torch; the tensors live in the model runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """How to make one slot hold one stream."""

    slot: int
    num_cached: int
    """Tokens at the stream's start that need no encoding."""
    copy_from: int | None = None
    """Slot whose first `num_cached` tokens are to be copied over first."""


@dataclass(slots=True)
class _Slot:
    role: int = -1
    tokens: list[int] = field(default_factory=list[int])
    users: int = 0
    last_used: int = 0


class ContextCache:
    """Slots, least recently used first out; a slot in use is never changed or evicted."""

    def __init__(self, num_slots: int) -> None:
        if num_slots < 2:
            raise ValueError(f"num_slots is {num_slots}; a fill needs two, one for each stream")
        self._slots = [_Slot() for _ in range(num_slots)]
        self._clock = 0

    def acquire(self, role: int, tokens: Sequence[int]) -> SlotPlan:
        """Pin a slot for a stream.

        The caller must encode the tokens past `num_cached` into the slot before it acquires
        again, and `release` the slot later. Raises `ValueError` when all slots are pinned.
        """
        self._clock += 1
        source, shared = self._longest_match(role, tokens)
        if source is not None and self._usable_in_place(source, shared, len(tokens)):
            plan = SlotPlan(source, shared)
        else:
            target = self._evictable(source)
            plan = SlotPlan(target, shared, source if source != target else None)
        slot = self._slots[plan.slot]
        slot.role, slot.tokens = role, list(tokens)
        slot.users += 1
        slot.last_used = self._clock
        return plan

    def _usable_in_place(self, source: int, shared: int, num_tokens: int) -> bool:
        held = self._slots[source]
        if shared == num_tokens == len(held.tokens):
            return True  # the very same stream: several users may share it
        # The same text a little later goes on in place; another text must not overwrite it.
        return not held.users and 2 * shared >= len(held.tokens)

    def release(self, slot: int) -> None:
        """Unpin: the contents stay for later streams."""
        if self._slots[slot].users < 1:
            raise ValueError(f"slot {slot} is released more often than it was acquired")
        self._slots[slot].users -= 1

    def forget(self, slot: int) -> None:
        """Drop a slot's contents (its encoding failed), keeping its users."""
        self._slots[slot].tokens = []

    def check_integrity(self) -> None:
        """Raise `AssertionError` when the book-keeping contradicts itself."""
        for index, slot in enumerate(self._slots):
            assert slot.users >= 0, f"slot {index} has {slot.users} users"
            assert slot.last_used <= self._clock, f"slot {index} was used in the future"
            assert slot.tokens or not slot.users, f"slot {index} is in use but empty"

    def _longest_match(self, role: int, tokens: Sequence[int]) -> tuple[int | None, int]:
        """The slot that holds most of the stream, if possible one that needs no copy; how much."""
        best, best_rank = None, (0, False)
        for index, slot in enumerate(self._slots):
            if slot.role != role:
                continue
            shared = shared_length(slot.tokens, tokens)
            rank = (shared, self._usable_in_place(index, shared, len(tokens)))
            if shared and rank > best_rank:
                best, best_rank = index, rank
        return best, best_rank[0]

    def _evictable(self, source: int | None) -> int:
        """The least recently used free slot; the source of a copy only if there is no other."""
        free = [i for i, slot in enumerate(self._slots) if not slot.users]
        others = [i for i in free if i != source] or free
        if not others:
            raise ValueError(f"all {len(self._slots)} slots are in use")
        return min(others, key=lambda i: self._slots[i].last_used)


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    return next(i for i in range(limit) if a[i] != b[i])
