"""The table of a benchmark: figures, and the goals they are held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit that a figure should keep."""

    sense: Literal["at least", "at most"]
    limit: float

    def __str__(self) -> str:
        return f"{'>=' if self.sense == 'at least' else '<='} {_number(self.limit)}"

    def is_met(self, value: float) -> bool:
        """Whether `value` keeps it."""
        return value >= self.limit if self.sense == "at least" else value <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a section."""

    name: str
    value: float | None
    """None where it was not measured; `note` then says why."""
    unit: str = ""
    goal: Goal | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `unmeasured`; empty without a goal."""
        if self.goal is None:
            return ""
        if self.value is None:
            return "unmeasured"
        return "met" if self.goal.is_met(self.value) else "missed"


def section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a section of the table."""
    cells = [("", "", "goal", "", "")]
    for row in rows:
        value = "-" if row.value is None else f"{_number(row.value)} {row.unit}".rstrip()
        cells.append((row.name, value, str(row.goal or ""), row.verdict, row.note))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    yield title
    if all(row.goal is None for row in rows):
        del cells[0]
    for name, value, goal, verdict, note in cells:
        yield (
            f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {goal:<{widths[2]}}  "
            f"{verdict:<{widths[3]}}  {note}"
        ).rstrip()


def verdicts(part: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows that have a goal, for a report."""
    return [
        {
            "part": part,
            "figure": row.name,
            "value": row.value,
            "goal": str(row.goal),
            "verdict": row.verdict,
        }
        for row in rows
        if row.goal is not None
    ]


def _number(value: float) -> str:
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
