"""The plot by which a `minConfidence` is chosen (matplotlib, extra `evaluation`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot looks for a screen

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

SAVED, PRECISION, SHOWN, MUTED = "#0b6e4f", "#c2410c", "#9aa5b1", "#52606d"
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
    x = [point["min_confidence"] for point in curve]
    with plt.rc_context({"font.family": "sans-serif", "font.size": 11}):
        figure, (upper, lower) = plt.subplots(
            2, sharex=True, figsize=(8, 6.4), height_ratios=(3, 2), layout="constrained"
        )
        _line(upper, x, [p["precision"] for p in curve], PRECISION, "precision of what is shown")
        _line(upper, x, [p["shown"] for p in curve], SHOWN, "requests answered with a suggestion")
        upper.axhline(PRECISION_BAR, color=PRECISION, linewidth=0.8, linestyle=(0, (4, 3)))
        upper.set_ylim(-0.02, 1.02)
        _line(lower, x, [p["keystrokes_saved"] for p in curve], SAVED, "keystrokes saved")
        lower.set_ylim(bottom=min(0, *lower.get_ylim()))
        lower.set_xlabel("minConfidence")
        for axes, decimals in ((upper, 0), (lower, None)):  # few keystrokes may be saved
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=decimals))
            axes.axvline(min_confidence, color=MUTED, linewidth=0.8, linestyle=":")
            axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.spines["bottom"].set_color("#cbd2d9")
            axes.tick_params(length=0, colors=MUTED)
            axes.set_xlim(-0.01, 1.01)
            axes.legend(frameon=False, loc="best", labelcolor="linecolor")
        figure.suptitle(
            "What a replay comes to, by the confidence below which nothing is shown",
            x=0.02, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        upper.set_title(
            f"{figures['regions']} regions, {figures['keystrokes']:,} keystrokes; dotted: the "
            f"setting in force ({min_confidence:g}); dashed: {PRECISION_BAR:.0%} precision",
            loc="left", fontsize=10, color=MUTED, pad=10,
        )  # fmt: skip
        try:
            figure.savefig(path, dpi=160, format="png")
        finally:
            plt.close(figure)


def _line(axes: Any, x: Sequence[float], y: Sequence[float | None], color: str, label: str) -> None:
    # Where nothing is shown, there is no precision: a gap in the line.
    known = [float("nan") if value is None else value for value in y]
    axes.plot(
        x, known, color=color, linewidth=2, marker="o", markersize=3.5, label=label, clip_on=False
    )
