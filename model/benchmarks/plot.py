"""The pictures of `mezzotint bench`, a panel for each of the parts that have one, and of `bench
peers`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.evaluation.plot import BLUE, GREEN, INK, ORANGE, figure, save
from model.evaluation.report import Figures

logger = logging.getLogger(__name__)


def draw(figures: Figures, path: Path, device: str) -> None:
    """Write the figures of the parts that were measured as PNG."""
    panels = [(name, panel) for name, panel in _PANELS.items() if name in figures]
    if not panels or not _can_draw():
        return
    drawn, axes = figure(len(panels), "How fast the engine is", f"{device}; medians.")
    for ax, (name, panel) in zip(axes, panels, strict=True):
        panel(ax, figures[name])
    save(drawn, path)


def draw_peers(figures: Figures, path: Path, device: str) -> None:
    """Write as PNG what those that were compared took for a key, and how fast they read and
    write."""
    if not _can_draw():
        return
    names = [name for name, one in figures.items() if isinstance(one, dict) and "key_ms_p50" in one]
    note = f"{device}, {figures['threads']} threads. llama.cpp {figures['llama.cpp']['build']}"
    drawn, axes = figure(3, "Mezzotint and llama.cpp, the same model file", note)
    colours = [BLUE, *[ORANGE] * (len(names) - 1)]
    for ax, (key, label) in zip(
        axes,
        (
            ("key_ms_p50", "ms to the answer to a typed key, median"),
            ("prompt_tokens_per_s", "tokens of a prompt a second"),
            ("tokens_per_s", "tokens written a second"),
        ),
        strict=True,
    ):
        _bars(ax, names, [figures[name][key] or 0.0 for name in names], colours)
        ax.set_xlabel(label)
        if ax is not axes[0]:
            ax.set_yticklabels([])
    save(drawn, path)


def _can_draw() -> bool:
    """Where matplotlib is missing, as on a borrowed GPU machine, say so: the report holds all that
    the picture shows."""
    if find_spec("matplotlib") is None:
        logger.warning("no plot: it needs matplotlib; pip install 'mezzotint[evaluation]'")
        return False
    return True


def _decoding(ax: Any, figures: Figures) -> None:
    ways: dict[str, Figures] = figures["ways"]
    colours = [BLUE if name == "drafted" else ORANGE for name in ways]
    _bars(ax, list(ways), [way["tokens_per_s"] for way in ways.values()], colours)
    ax.set_xlabel("tokens a second, one user")


def _steps(ax: Any, figures: Figures) -> None:
    times: dict[str, float] = figures["ms_by_rows"]
    counts = [int(rows) for rows in times]
    ax.plot(counts, list(times.values()), color=BLUE, marker="o")
    ax.set(
        xscale="log",
        ylim=(0, 1.1 * max(times.values())),
        xlabel="rows of a forward",
        ylabel="ms",
    )
    ax.set_xticks(counts, [str(count) for count in counts], minor=False)
    ax.minorticks_off()


def _bars(ax: Any, names: Sequence[str], values: Sequence[float], colours: Sequence[str]) -> None:
    bars = ax.barh(names, values, color=colours)
    ax.bar_label(bars, [f" {value:,.0f}" for value in values], fontsize=8, color=INK)
    ax.invert_yaxis()
    ax.margins(x=0.2)
    ax.grid(False, axis="y")


def _clients(ax: Any, figures: Figures) -> None:
    by_count = {name: one for name, one in figures["clients"].items() if name.isdecimal()}
    throughput = [one["requests_per_s"] for one in by_count.values()]
    p95 = [one["ms_p95"] for one in by_count.values()]
    ax.plot(throughput, p95, color=GREEN, marker="o")
    for name, x, y in zip(by_count, throughput, p95, strict=True):
        ax.annotate(f"{name} ", (x, y), ha="right", va="bottom", fontsize=8, color=INK)
    ax.set(
        xlim=(0, 1.1 * max(throughput)),
        yscale="log",
        xlabel="requests a second (clients)",
        ylabel="ms, 95th percentile",
    )
    ax.set_yticks(p95, [f"{ms:,.0f}" for ms in p95])
    ax.minorticks_off()


_PANELS: dict[str, Callable[[Any, Figures], None]] = {
    "decoding": _decoding,
    "steps": _steps,
    "clients": _clients,
}
