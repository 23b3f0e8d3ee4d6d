from __future__ import annotations

from collections.abc import Callable

import pytest

from model.engine.pace import MOST_STEPS, Pace
from model.engine.sequence import Fill, SamplingParams, Sequence
from model.infill import CanvasLayout


def sequence(
    *,
    step: int = 0,
    deadline: float | None = None,
    on_step: Callable[[Sequence], None] | None = None,
) -> Sequence:
    layout = CanvasLayout((16,))
    fill = Fill(prefix=[5], suffix=[6], layout=layout, deadline=deadline, on_step=on_step)
    return Sequence(
        fill=fill, params=SamplingParams(), prefix=[5], suffix=[6], layout=layout,
        canvas=[0] * 16, clamped=[False] * 16, fixed=[False] * 16,
        confidences=[1.0] * 16, step=step,
    )  # fmt: skip


def pace_of_canvases_that_take(steps: int) -> Pace:
    pace = Pace()
    for _ in range(100):
        pace.finished(steps)
        pace.saw(steps, 0.01 * steps)
    return pace


def test_a_canvas_that_takes_as_long_as_the_others_needs_one_look() -> None:
    assert pace_of_canvases_that_take(5).steps_ahead([sequence()], now=0.0) == 5
    assert pace_of_canvases_that_take(2).steps_ahead([sequence()], now=0.0) == 2


def test_one_that_takes_longer_is_looked_at_again_soon_and_always() -> None:
    pace = pace_of_canvases_that_take(8)
    assert pace.steps_ahead([sequence(step=6)], now=0.0) == 2
    assert pace.steps_ahead([sequence(step=40)], now=0.0) == 2


def test_the_first_to_be_done_sets_the_pace_of_a_batch() -> None:
    pace = pace_of_canvases_that_take(8)
    assert pace.steps_ahead([sequence(), sequence(step=5)], now=0.0) == 3


def test_whoever_watches_sees_every_step() -> None:
    watched = sequence(on_step=lambda _: None)
    assert pace_of_canvases_that_take(8).steps_ahead([sequence(), watched], now=0.0) == 1


@pytest.mark.parametrize(("left_s", "steps"), [(0.035, 3), (0.001, 1), (-5.0, 1), (9.0, 8)])
def test_no_more_steps_are_begun_than_a_deadline_leaves_time_for(left_s: float, steps: int) -> None:
    pace = pace_of_canvases_that_take(8)
    assert pace.steps_ahead([sequence(deadline=100.0 + left_s)], now=100.0) == steps


def test_long_canvases_are_looked_at_all_the_same() -> None:
    assert pace_of_canvases_that_take(500).steps_ahead([sequence()], now=0.0) == MOST_STEPS
