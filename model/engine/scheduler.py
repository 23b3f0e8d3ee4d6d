"""Which sequences take part in the next step. Imports no torch.

A batch is chosen anew for every step, so a new fill joins at the next one, a removed one is gone at
the next, and a person's request takes the places of automatic ones at once. Those keep what they
have committed and find their contexts in the cache again.

**Order.** Urgent fills first; then the clients take turns, one sequence each, so that a window
that asks for sixteen candidates leaves its neighbour's single one its place; then by arrival. The
oldest sequence of the client whose turn it is therefore is in every batch until it is done, and
nothing waits for ever but behind people. What can wait runs when there is nothing else.

**Canvases of different sizes** share a batch, the smaller ones padded, as long as at least half of
the batch's slots are real. Alone a 16-slot canvas rides along with a 128-slot one, which costs less
than a forward of its own; two of them, waiting together, are better off in a batch that is no wider
than they are. An automatic fill never widens the batch that an urgent one leads.
"""

from __future__ import annotations

from collections import Counter

from model.api import EngineOverloadedError
from model.engine.fill import Fill, Sequence

RECOVERY_STEPS = 64
"""Steps without running out of memory after which a batch may be larger by one again."""


class Scheduler:
    """Holds the unfinished fills, and how many of their sequences a step can take."""

    def __init__(self, max_batch: int, max_fills: int = 64) -> None:
        """`max_batch` bounds a step's sequences, `max_fills` the fills that are not finished."""
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        if max_fills < 1:
            raise ValueError(f"max_fills is {max_fills}; it must be at least 1")
        self.max_batch, self.max_fills = max_batch, max_fills
        self.batch_limit = max_batch
        """`max_batch`, or less since memory ran out."""
        self._steps_since_change = 0
        self._fills: list[Fill] = []

    @property
    def fills(self) -> list[Fill]:
        """The unfinished fills, in the order of their arrival."""
        return list(self._fills)

    def add(self, fill: Fill) -> Fill | None:
        """Admit a fill; returns the older one whose place it takes, which the caller ends.

        Raises `EngineOverloadedError` when as many as may wait already do.
        """
        replaced = None
        if fill.replaces is not None:
            replaced = next((f for f in self._fills if f.replaces == fill.replaces), None)
        if replaced is not None:
            self._fills.remove(replaced)
        elif len(self._fills) >= self.max_fills:
            raise EngineOverloadedError(
                f"{len(self._fills)} requests are waiting already; try again in a moment"
            )
        self._fills.append(fill)
        return replaced

    def remove(self, fill: Fill) -> bool:
        """Take a fill out; False when it is not (or no longer) here."""
        if fill not in self._fills:
            return False
        self._fills.remove(fill)
        return True

    def overdue(self, now: float) -> list[Fill]:
        """Fills whose deadline has come."""
        return [f for f in self._fills if f.deadline is not None and f.deadline <= now]

    def schedule(self) -> list[Sequence]:
        """The next step's batch, in order of precedence (see the module)."""
        batch: list[Sequence] = []
        for sequence in self._in_order():
            if len(batch) < self.batch_limit and _may_join(batch, sequence):
                batch.append(sequence)
        return batch

    def _in_order(self) -> list[Sequence]:
        turns: Counter[tuple[bool, str]] = Counter()
        order: list[tuple[bool, int, Sequence]] = []
        pressing = [fill for fill in self._fills if not fill.can_wait]
        for fill in pressing or self._fills:
            for sequence in fill.sequences:
                if not sequence.is_done:
                    key = (not fill.urgent, fill.client)
                    order.append((not fill.urgent, turns[key], sequence))
                    turns[key] += 1
        order.sort(key=lambda entry: entry[:2])  # stable: then by arrival
        return [sequence for *_, sequence in order]

    # ---- memory --------------------------------------------------------------------------

    def shrink(self, failed: int) -> bool:
        """Memory ran out in a batch of `failed`: halve the limit. False if that was a lone one."""
        self._steps_since_change = 0
        self.batch_limit = max(min(self.batch_limit, failed // 2), 1)
        return failed > 1

    def recover(self) -> None:
        """A step had enough memory: after `RECOVERY_STEPS` of them the limit grows by one."""
        self._steps_since_change += 1
        if self._steps_since_change >= RECOVERY_STEPS:
            self._steps_since_change = 0
            self.batch_limit = min(self.batch_limit + 1, self.max_batch)


def _may_join(batch: list[Sequence], sequence: Sequence) -> bool:
    """Whether the canvases, padded to the widest of them, stay at least half real."""
    sizes = [s.width for s in batch if s.width]
    if not sizes or not sequence.width:
        return True
    size, widest = sequence.width, max(sizes)
    if size > widest and batch[0].fill.urgent and not sequence.fill.urgent:
        return False
    return (len(sizes) + 1) * max(size, widest) <= 2 * (sum(sizes) + size)
