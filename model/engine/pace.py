"""How many steps a device runs before anybody looks at the canvases. Imports no torch.

A look costs a wait and some Python; a step after the last decision costs a step. So a look comes
when a canvas is usually done, and earlier where somebody waits for each step or time runs out.
"""

from __future__ import annotations

from collections.abc import Iterable

from model.engine.sequence import Sequence

MOST_STEPS = 32
"""A cancelled fill leaves at the next look, and a new one joins."""
MEMORY = 0.1
"""Weight of the newest canvas in the running averages."""


class Pace:
    """Running averages of how many steps canvases take, and how long a step does."""

    def __init__(self) -> None:
        self._steps, self._step_s = 8.0, 0.0

    def steps_ahead(self, batch: Iterable[Sequence], now: float) -> int:
        """Steps until the next look, of a batch at time `now` (`time.monotonic()`)."""
        steps = MOST_STEPS
        for sequence in batch:
            fill = sequence.fill
            if fill.on_step is not None:
                return 1
            # From then on, a quarter more each time.
            usual = round(max(self._steps - sequence.step, self._steps / 4))
            steps = min(steps, usual)
            if fill.deadline is not None and self._step_s:
                steps = min(steps, int((fill.deadline - now) / self._step_s))
        return max(steps, 1)

    def saw(self, num_steps: int, seconds: float) -> None:
        """`num_steps` steps took so long together."""
        step_s = seconds / num_steps
        self._step_s += MEMORY * (step_s - self._step_s) if self._step_s else step_s

    def finished(self, num_steps: int) -> None:
        """A canvas was done after so many steps."""
        self._steps += MEMORY * (num_steps - self._steps)
