"""The look of the plots: plain, and readable at the width of a README."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

INK, MUTED, GRID = "#1f2328", "#6e7781", "#e4e7eb"
BLUE, ORANGE, GREEN, PURPLE = "#2166ac", "#d6604d", "#3a8f6b", "#7b5aa6"


def require_matplotlib() -> None:
    """Raises `ValueError` where plots cannot be drawn: before the work, not after it."""
    if find_spec("matplotlib") is None:
        raise ValueError("the plot needs matplotlib; pip install 'mezzotint[evaluation]'")


def figure(num_panels: int, title: str, note: str) -> tuple[Any, list[Any]]:
    """A figure with panels side by side, and their axes. `note` goes below, in small print."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.6, 4.4), dpi=160, layout="constrained", facecolor="white")
    drawn.get_layout_engine().set(wspace=0.06, rect=(0, 0.075, 1, 0.925))  # type: ignore[union-attr]
    axes = list(drawn.subplots(1, num_panels, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
        ax.grid(True, color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.xaxis.label.set(color=INK, size=10)
        ax.yaxis.label.set(color=INK, size=10)
    drawn.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    drawn.text(0.012, 0.012, fill(note, 170), fontsize=7.5, color=MUTED)
    return drawn, axes


def save(drawn: Any, path: Path) -> None:
    """Write a figure as PNG."""
    drawn.savefig(
        path, format="png", metadata={"Software": None}
    )  # the same figures, the same file
