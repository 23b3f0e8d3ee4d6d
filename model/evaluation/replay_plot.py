"""The plot by which a `minConfidence` is chosen (matplotlib, extra `evaluation`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.evaluation import plot

PRECISION_BAR = 0.4
"""Of what is shown, at least this share shall be right."""


def plot_curve(
    curve: Sequence[Mapping[str, Any]],
    path: Path,
    min_confidence: float,
    figures: Mapping[str, Any],
) -> None:
    """Keystrokes saved, precision and shown rate against `minConfidence`, as a PNG.

    `curve` and `figures` are a replay report's; `min_confidence` is the setting in force. Raises
    `OSError` when the file cannot be written.
    """
    note = (
        f"{figures['regions']} regions, {figures['keystrokes']:,} keystrokes. Dotted: the setting "
        f"in force ({min_confidence:g}); dashed: {PRECISION_BAR:.0%} precision."
    )
    title = "What a replay comes to, by the confidence below which nothing is shown"
    drawn, (left, right) = plot.figure(2, title, note)
    _line(left, curve, "precision", plot.ORANGE, "precision of what is shown")
    _line(left, curve, "shown", plot.BLUE, "requests answered with a suggestion")
    left.axhline(100 * PRECISION_BAR, color=plot.ORANGE, linewidth=0.8, linestyle=(0, (4, 3)))
    left.set(ylim=(-2, 102), ylabel="%")
    _line(right, curve, "keystrokes_saved", plot.GREEN, "keystrokes saved")
    right.set(ylim=(min(0, right.get_ylim()[0]), None), ylabel="%")
    for ax in (left, right):
        ax.axvline(min_confidence, color=plot.MUTED, linewidth=0.8, linestyle=":")
        ax.set(xlim=(-0.01, 1.01), xlabel="minConfidence")
        ax.legend(frameon=False, fontsize=8.5, loc="best")
    plot.save(drawn, path)


def _line(ax: Any, curve: Sequence[Mapping[str, Any]], key: str, colour: str, label: str) -> None:
    # Where nothing is shown, there is no precision: a gap in the line.
    percents = [float("nan") if point[key] is None else 100 * point[key] for point in curve]
    ax.plot(
        [point["min_confidence"] for point in curve], percents, color=colour, linewidth=2,
        marker="o", markersize=3.5, label=label,
    )  # fmt: skip
