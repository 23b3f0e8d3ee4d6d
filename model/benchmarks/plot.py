"""The picture of `mezzotint bench`: a panel for each of the parts that have one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.evaluation.plot import BLUE, GREEN, INK, ORANGE, figure, save
from model.evaluation.report import Figures

logger = logging.getLogger(__name__)


def draw(figures: Figures, path: Path, device: str) -> None:
    """Write the figures of the parts that were measured as PNG. Where matplotlib is missing, as on
    a borrowed GPU machine, say so: the report holds all that the picture shows."""
    panels = [(name, panel) for name, panel in _PANELS.items() if name in figures]
    if not panels:
        return
    if find_spec("matplotlib") is None:
        logger.warning("no plot: it needs matplotlib; pip install 'mezzotint[evaluation]'")
        return
    drawn, axes = figure(len(panels), "How fast the engine is", f"{device}; medians.")
    for ax, (name, panel) in zip(axes, panels, strict=True):
        panel(ax, figures[name])
    save(drawn, path)


def _decoding(ax: Any, figures: Figures) -> None:
    ways: dict[str, Figures] = figures["decodings"]
    colours = [BLUE if name.startswith("diffusion") else ORANGE for name in ways]
    bars = ax.barh(list(ways), [way["tokens_per_s"] for way in ways.values()], color=colours)
    labels = [f" {way['tokens_per_s']:,.0f}" for way in ways.values()]
    ax.bar_label(bars, labels, fontsize=8, color=INK)
    ax.invert_yaxis()
    ax.margins(x=0.2)
    ax.grid(False, axis="y")
    ax.set_xlabel("tokens a second, one user")


def _context(ax: Any, figures: Figures) -> None:
    times: dict[str, float] = figures["step_ms"]
    contexts = [int(context) for context in times]
    ax.plot(contexts, list(times.values()), color=BLUE, marker="o")
    ax.set(
        xscale="log",
        ylim=(0, 1.1 * max(times.values())),
        xlabel="tokens of cached context",
        ylabel="ms a step",
    )
    ax.set_xticks(contexts, [f"{context:,}" for context in contexts], minor=False)
    ax.minorticks_off()


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
    "context": _context,
    "clients": _clients,
}
