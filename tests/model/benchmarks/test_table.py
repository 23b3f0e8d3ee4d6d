"""Figures beside their goals."""

from __future__ import annotations

import pytest

from model.benchmarks.table import Goal, Row, section, verdicts


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal("at least", 10), 10.0, "met"),
        (Goal("at least", 10), 9.9, "missed"),
        (Goal("at most", 1.3), 1.3, "met"),
        (Goal("at most", 1.3), 1.31, "missed"),
        (Goal("at most", 1.3), None, "unmeasured"),
        (None, 5.0, ""),
    ],
)
def test_a_verdict_is_the_goal_s_word_on_the_figure(
    goal: Goal | None, value: float | None, verdict: str
) -> None:
    row = Row("step", value, "ms", goal)
    assert row.verdict == verdict
    assert (verdict or "ms") in "\n".join(section("Steps", [row]))


def test_only_figures_with_a_goal_are_reported_as_verdicts() -> None:
    rows = [Row("bandwidth", 20.0, "GB/s"), Row("ratio", 1.5, "x", Goal("at most", 1.3))]
    (verdict,) = verdicts("floor", rows)
    assert verdict["verdict"] == "missed"
    assert (verdict["part"], verdict["figure"], verdict["goal"]) == ("floor", "ratio", "<= 1.3")
