"""Which sequences take part in the next denoising step. Imports no torch.

Sequences at different steps share a batch; they must only have canvases of one size. A new fill
joins at the next step and an aborted one is gone at the next.
"""

from __future__ import annotations

from model.engine.sequence import Fill, Sequence


class Scheduler:
    """Holds the unfinished fills, urgent ones first, then by arrival."""

    def __init__(self, max_batch: int) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        self.max_batch = max_batch
        self._fills: list[Fill] = []

    @property
    def fills(self) -> list[Fill]:
        """The unfinished fills, in the order of their arrival."""
        return list(self._fills)

    def add(self, fill: Fill) -> Fill | None:
        """Admit a fill; returns the older one whose place it takes, which the caller ends."""
        replaced = None
        if fill.replaces is not None:
            replaced = next((f for f in self._fills if f.replaces == fill.replaces), None)
        if replaced is not None:
            self._fills.remove(replaced)
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
        """The next step's batch: every waiting sequence with the first one's canvas size."""
        ordered = sorted(self._fills, key=lambda fill: not fill.urgent)  # stable: then by arrival
        waiting = [s for fill in ordered for s in fill.sequences if not s.is_done]
        if not waiting:
            return []
        size = len(waiting[0].canvas)
        return [s for s in waiting if len(s.canvas) == size][: self.max_batch]
