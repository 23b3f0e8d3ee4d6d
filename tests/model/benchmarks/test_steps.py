"""A step's time is what further forwards add, whatever else a fill costs."""

from __future__ import annotations

from typing import Any

import pytest

from model.api import InfillRequest
from model.benchmarks.setting import Setting
from model.benchmarks.steps import CANVAS_TEXT, STEPS, in_steps, step_times_ms


async def test_a_slower_step_is_reported_as_so_much_slower(timed_completer: Any) -> None:
    def taking(step_ms: float, overhead_ms: float) -> Any:
        return timed_completer(
            lambda request: ("x", request.steps, overhead_ms + step_ms * request.steps)
        )

    request = InfillRequest(prefix="x")
    times = await step_times_ms(
        {"fast": (taking(2.0, 500.0), request), "slow": (taking(6.0, 1.0), request)},
        rounds=3,
        seed=0,
        desc="",
    )
    assert times == pytest.approx({"fast": 2.0, "slow": 6.0})


async def test_an_engine_takes_exactly_the_steps_that_are_measured(setting: Setting) -> None:
    assert len(setting.tokenizer.encode(CANVAS_TEXT)) == 31
    completer = setting.open_completer()
    try:
        for steps in (1, STEPS):
            result = await completer.complete(in_steps(InfillRequest(prefix="x = "), steps))
            assert (result.forwards, result.tokens) == (steps, 31)
    finally:
        await completer.close()
