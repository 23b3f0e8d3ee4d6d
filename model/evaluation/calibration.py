"""Does a confidence of 0.8 mean that 80 % of such fills are exact?

Holes are cut into real files that the model was not trained on, and each fill's confidence is held
against whether it is the true text, character for character. A fill may be right without being
exact, so this is the strict end of the question; it needs no tests and no judge.

Besides the engine's own confidence, the product of the commit probabilities, the report rates
other ways to make one number of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation import plot
from model.evaluation.decoding import (
    Fill,
    add_model_arguments,
    add_policy_arguments,
    decoding_of,
    fill_all,
    open_completer,
)
from model.evaluation.holes import (
    Hole,
    add_hole_arguments,
    check_hole_arguments,
    cut_holes,
)
from model.evaluation.report import Figures, beside, circumstances, make_room, share, write_report
from model.evaluation.sources import load_sources

NUM_BINS = 10
MIN_DRAWN = 5
"""Fewer fills than this make no point in the plot; the report has them all."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SCORES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "product": math.prod,
    "geometric mean": lambda p: math.prod(p) ** (1 / len(p)),
    "mean": lambda p: sum(p) / len(p),
    "minimum": min,
}
"""Ways to make one confidence of the probabilities that tokens and end were committed with. (The
engine's is the product.)"""


@dataclass(frozen=True, slots=True)
class Reliability:
    """What one way of scoring is worth."""

    ece: float
    """Expected calibration error: the mean distance of confidence and share of exact fills over
    `NUM_BINS` equally wide bins, weighted by their sizes (arXiv 1706.04599, eq. 3)."""
    brier: float
    """Mean squared distance of confidence and outcome."""
    auroc: float | None
    """Probability that an exact fill has more confidence than one that is not; None when all fills
    are of one kind. Says how well a threshold can separate them, whatever the scale."""
    bins: tuple[tuple[float, float, int], ...]
    """(mean confidence, share exact, number) of the bins that are not empty."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mezzotint evaluate calibration`."""
    add_hole_arguments(parser, limit=1000)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/calibration"), metavar="STEM",
        help="write STEM.json and STEM.png (%(default)s)",
    )  # fmt: skip
    add_policy_arguments(parser)
    parser.set_defaults(max_new_tokens=64)  # no hole is longer than a line
    add_model_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Check what no single option can tell. Raises `ValueError`, `InvalidRequestError`."""
    plot.require_matplotlib()
    args.decoding = decoding_of(args)
    check_hole_arguments(args)


def run(args: argparse.Namespace) -> Figures:
    """Evaluate, write report and plot; returns the figures. Raises `OSError`, `ValueError`,
    `CompletionError`."""
    holes = cut_holes(load_sources(args.data), args.limit, args.seed)
    for extension in (".json", ".png"):
        make_room(beside(args.out, extension))
    requests = [
        args.decoding.request(
            prefix=hole.prefix,
            suffix=hole.suffix,
            language=hole.source.language,
            middle=hole.middle,
        )
        for hole in holes
    ]
    completer = open_completer(args)
    fills, interrupted = fill_all(completer, requests)
    pairs = list(zip(holes, fills, strict=False))
    exact = np.array([fill.text == hole.middle for hole, fill in pairs])
    scored = {name: _scores(fills, score) for name, score in SCORES.items()}
    reliabilities = {name: reliability(scores, exact) for name, scores in scored.items()}
    curve = shown_curve(
        scored["product"], exact, np.array([fill.text.strip() != "" for fill in fills])
    )
    figures = _figures(reliabilities["product"], pairs, exact)
    if interrupted:
        figures["interrupted"] = True
    write_report(beside(args.out, ".json"), {
        "figures": figures,
        "decoding": args.decoding.label,
        "scores": {name: _as_json(r) for name, r in reliabilities.items()},
        "thresholds": thresholds(curve),
        "circumstances": circumstances(args, completer),
        "rows": [_row(hole, fill) for hole, fill in pairs],
    })  # fmt: skip
    _draw(reliabilities, curve, len(pairs), args)
    return figures


def _scores(fills: Sequence[Fill], score: Callable[[Sequence[float]], float]) -> Floats:
    return np.array([score(fill.probabilities) for fill in fills])


def _figures(rated: Reliability, pairs: Sequence[tuple[Hole, Fill]], exact: Bools) -> Figures:
    kinds = sorted({hole.kind for hole, _ in pairs})
    of_kind = {kind: np.array([hole.kind == kind for hole, _ in pairs]) for kind in kinds}
    return {
        "ece": round(rated.ece, 4),
        "brier": round(rated.brier, 4),
        "auroc": None if rated.auroc is None else round(rated.auroc, 4),
        "exact_match": share(int(exact.sum()), len(exact)),
        "n": len(exact),
        "forwards_mean": share(sum(fill.forwards for _, fill in pairs), len(pairs)),
        "tokens_per_forward": share(
            sum(fill.tokens for _, fill in pairs), sum(fill.forwards for _, fill in pairs)
        ),
        "by_kind": {
            kind: share(int(exact[chosen].sum()), int(chosen.sum()))
            for kind, chosen in of_kind.items()
        },
    }


def _as_json(rated: Reliability) -> Figures:
    return {
        "ece": round(rated.ece, 4),
        "brier": round(rated.brier, 4),
        "auroc": None if rated.auroc is None else round(rated.auroc, 4),
        "bins": [
            {"confidence": round(confidence, 4), "exact": round(exact, 4), "n": n}
            for confidence, exact, n in rated.bins
        ],
    }


def _row(hole: Hole, fill: Fill) -> Figures:
    return {
        "file": hole.source.name,
        "language": hole.source.language,
        "kind": hole.kind,
        "start": hole.start,
        "true_text": hole.middle,
        "text": fill.text,
        "confidence": round(fill.confidence, 4),
        "probabilities": [round(p, 4) for p in fill.probabilities],
        "forwards": fill.forwards,
        "tokens": fill.tokens,
    }


# --- The statistics -------------------------------------------------------------------------


def reliability(confidence: Floats, exact: Bools) -> Reliability:
    """Rate confidences (N,) in 0..1 by the outcomes (N,); N is at least 1."""
    index = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = tuple(
        (float(confidence[here].mean()), float(exact[here].mean()), int(here.sum()))
        for here in (index == number for number in range(NUM_BINS))
        if here.any()
    )
    return Reliability(
        ece=sum(n * abs(said - was) for said, was, n in bins) / len(exact),
        brier=float(np.mean((confidence - exact) ** 2)),
        auroc=auroc(confidence, exact),
        bins=bins,
    )


def auroc(confidence: Floats, exact: Bools) -> float | None:
    """Area under the ROC curve by ranks; equal confidences count half."""
    num_exact = int(exact.sum())
    num_others = len(exact) - num_exact
    if not num_exact or not num_others:
        return None
    _, index, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks = (last - (counts - 1) / 2)[index]
    surplus = ranks[exact].sum() - num_exact * (num_exact + 1) / 2
    return float(surplus / (num_exact * num_others))


@dataclass(frozen=True, slots=True)
class ShownCurve:
    """What a user would see at each threshold of confidence, strictest first."""

    threshold: Floats
    """(M,) distinct confidences, falling."""
    shown: Floats
    """(M,) share of the holes where a text would be shown."""
    precision: Floats
    """(M,) share of the shown texts that are exact."""


def shown_curve(confidence: Floats, exact: Bools, has_text: Bools) -> ShownCurve:
    """The curve over all N holes; an empty or blank fill shows nothing, however sure."""
    order = np.argsort(-confidence[has_text], kind="stable")
    said, right = confidence[has_text][order], exact[has_text][order]
    # Fills of equal confidence are shown together or not at all.
    last = np.append(said[1:] != said[:-1], True) if len(said) else np.zeros(0, dtype=bool)
    number = np.arange(1, len(said) + 1)[last]
    return ShownCurve(said[last], number / len(exact), right.cumsum()[last] / number)


def thresholds(curve: ShownCurve) -> list[Figures]:
    """Share shown and precision at round thresholds, for choosing `minConfidence`."""
    table: list[Figures] = []
    for minimum in [0.0, *(round(0.05 * i, 2) for i in range(1, 20))]:
        count = int((curve.threshold >= minimum).sum())
        table.append(
            {
                "min_confidence": minimum,
                "shown": round(float(curve.shown[count - 1]), 4) if count else 0.0,
                "precision": round(float(curve.precision[count - 1]), 4) if count else None,
            }
        )
    return table


# --- The plot -------------------------------------------------------------------------------


def _draw(
    rated: Mapping[str, Reliability], curve: ShownCurve, num_holes: int, args: argparse.Namespace
) -> None:
    note = (
        f"{num_holes} holes in real files, greedy, {args.decoding.label}. "
        f"Bins and thresholds of fewer than {MIN_DRAWN} fills are not drawn."
    )
    drawn, (left, right) = plot.figure(2, "What a confidence is worth", note)
    _draw_reliability(left, rated)
    _draw_curve(right, curve, num_holes)
    plot.save(drawn, beside(args.out, ".png"))


def _draw_reliability(ax: Any, rated: Mapping[str, Reliability]) -> None:
    ax.plot([0, 1], [0, 1], color=plot.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    colours = (plot.BLUE, plot.GREEN, plot.ORANGE, plot.PURPLE)
    for (name, result), colour in zip(rated.items(), colours, strict=True):
        chosen = name == "product"
        bins = [b for b in result.bins if b[2] >= MIN_DRAWN]
        said, was, sizes = (np.array([b[i] for b in bins]) for i in range(3))
        ax.plot(said, was, color=colour, linewidth=2 if chosen else 1.1,
                alpha=1 if chosen else 0.75, label=f"{name} (ECE {result.ece:.3f})")  # fmt: skip
        area = 18 + 160 * sizes / max(sizes.sum(), 1) if chosen else 10
        ax.scatter(said, was, s=area, color=colour, alpha=0.9 if chosen else 0.75, zorder=3)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence",
           ylabel="share of fills that are exact")  # fmt: skip
    ax.legend(frameon=False, fontsize=8, loc="best")


def _draw_curve(ax: Any, curve: ShownCurve, num_holes: int) -> None:
    enough = curve.shown * num_holes >= MIN_DRAWN - 0.5
    shown, precision = 100 * curve.shown[enough], 100 * curve.precision[enough]
    ax.plot(shown, precision, color=plot.BLUE, linewidth=2)
    last = (np.inf, np.inf)
    for minimum in (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05):
        count = int((curve.threshold[enough] >= minimum).sum())
        if not count:
            continue
        point = (float(shown[count - 1]), float(precision[count - 1]))
        ax.scatter(*point, s=26, color=plot.BLUE, zorder=3)
        if max(abs(point[0] - last[0]), abs(point[1] - last[1])) >= 5:
            ax.annotate(f"≥ {minimum:g}", point, xytext=(7, 3), textcoords="offset points",
                        fontsize=8, color=plot.INK)  # fmt: skip
            last = point
    ax.set(xlim=(0, None), ylim=(0, 106), xlabel="% of holes where a text is shown",
           ylabel="% of shown texts that are exact")  # fmt: skip
