"""Quality against forwards and milliseconds, for every way of decoding, in one interleaved run.

Each task is filled with every decoding in turn, in an order drawn anew for each task, after one
fill that nobody counts: so all of them find the task's context in the cache and share whatever
else the machine does. One token a forward is the baseline: `autoregressive` for a backbone,
`left-to-right` for a model that fills canvases. What a model cannot do is left out, and named.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

from model import api
from model.evaluation import plot
from model.evaluation.decoding import (
    Decoding,
    Fill,
    Policy,
    add_model_arguments,
    add_request_arguments,
    fill_all,
    open_completer,
    with_request_arguments,
)
from model.evaluation.infilling import (
    CUTS,
    Score,
    add_cut_argument,
    add_task_arguments,
    check_task_arguments,
    judge,
    limits_of,
    load_tasks,
    request_for,
    summary,
)
from model.evaluation.problems import Problem
from model.evaluation.report import Figures, beside, circumstances, make_room, write_report
from model.evaluation.sandbox import require

logger = logging.getLogger(__name__)

STEPS = (1, 2, 4, 8, 16, 32)
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
ENTROPY_BOUNDS = (0.03, 0.1, 0.3, 1.0, 3.0)
FACTORS = (0.1, 0.3, 1.0, 2.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mezzotint evaluate sweep`."""
    add_task_arguments(parser)
    add_cut_argument(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/sweep"), metavar="STEM",
        help="write STEM.json and STEM.png (%(default)s)",
    )  # fmt: skip
    group = parser.add_argument_group("what is swept (none of a kind: give the option no value)")
    for option, kind, default, metavar in (
        ("--steps", int, STEPS, "T"),
        ("--thresholds", float, THRESHOLDS, "P"),
        ("--entropy-bounds", float, ENTROPY_BOUNDS, "NATS"),
        ("--factors", float, FACTORS, "F"),
    ):
        values = " ".join(f"{value:g}" for value in default)
        group.add_argument(
            option, type=kind, nargs="*", default=default, metavar=metavar, help=f"({values})"
        )
    add_request_arguments(parser)
    add_model_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Check what no single option can tell. Raises `ValueError`, `InvalidRequestError`."""
    plot.require_matplotlib()
    check_task_arguments(args)
    decodings = [
        Decoding(policy="verified"),
        Decoding(policy="autoregressive"),
        *(Decoding(policy="fixed", steps=steps) for steps in args.steps),
        *(Decoding(policy="threshold", threshold=p) for p in args.thresholds),
        *(Decoding(policy="entropy", entropy_bound=nats) for nats in args.entropy_bounds),
        *(Decoding(policy="factor", factor=factor) for factor in args.factors),
        Decoding(policy="left-to-right"),
    ]
    args.decodings = [with_request_arguments(decoding, args) for decoding in decodings]


def run(args: argparse.Namespace) -> Figures:
    """Sweep, write report and plot; returns the figures. Raises as `infilling.run` does."""
    problems = load_tasks(args, CUTS[args.cut] if args.cut else list)
    for extension in (".json", ".png"):
        make_room(beside(args.out, extension))
    for language in sorted({problem.language for problem in problems}):
        require(language)
    completer = open_completer(args)
    decodings = asyncio.run(possible(completer, args.decodings))
    plan = interleaved(problems, decodings, args.seed)
    fills, interrupted = fill_all(completer, [request for request, _ in plan])
    done = collected(plan, fills, len(decodings))
    num_tasks = min(map(len, done))
    if not num_tasks:
        raise ValueError("interrupted before the first task was filled with every decoding")
    scores = judge([pair for pairs in done for pair in pairs[:num_tasks]], limits_of(args))
    points = [
        _point(decoding, scores[index * num_tasks : (index + 1) * num_tasks])
        for index, decoding in enumerate(decodings)
    ]
    figures: Figures = {"n": num_tasks, "points": points}
    if interrupted:
        figures["interrupted"] = True
    write_report(beside(args.out, ".json"), {
        **figures, "circumstances": circumstances(args, completer),
    })  # fmt: skip
    _draw(points, num_tasks, args)
    return figures


async def possible(completer: api.Completer, decodings: Sequence[Decoding]) -> list[Decoding]:
    """The decodings that the model knows: a backbone verifies, and only what fills canvases has
    their policies. Raises `CompletionError`, also where it knows none."""
    known: list[Decoding] = []
    refusal: api.InvalidRequestError | None = None
    for decoding in decodings:
        request = replace(decoding.request(prefix="x = "), max_new_tokens=1)
        try:
            await completer.complete(request)
        except api.InvalidRequestError as error:
            refusal = error
            logger.info("%s is left out: %s", decoding.label, error)
        else:
            known.append(decoding)
    if refusal is not None and not known:
        raise refusal
    return known


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request of the plan is for."""

    problem: Problem
    decoding: int | None
    """Index of the decoding; None for the fill that only warms the cache."""


def interleaved(
    problems: Sequence[Problem], decodings: Sequence[Decoding], seed: int
) -> list[tuple[api.InfillRequest, Turn]]:
    """The requests in the order they are made: task by task, its decodings shuffled."""
    draw = random.Random(seed)
    plan: list[tuple[api.InfillRequest, Turn]] = []
    for problem in draw.sample(problems, len(problems)):
        order = draw.sample(range(len(decodings)), len(decodings))
        warming = replace(request_for(problem, Decoding()), max_new_tokens=1)
        plan.append((warming, Turn(problem, None)))
        plan += [(request_for(problem, decodings[i]), Turn(problem, i)) for i in order]
    return plan


def collected(
    plan: Sequence[tuple[api.InfillRequest, Turn]], fills: Sequence[Fill], num_decodings: int
) -> list[list[tuple[Problem, Fill]]]:
    """The (problem, fill) pairs of each decoding, in one order of tasks for all."""
    done: list[list[tuple[Problem, Fill]]] = [[] for _ in range(num_decodings)]
    for (_, turn), fill in zip(plan, fills, strict=False):
        if turn.decoding is not None:
            done[turn.decoding].append((turn.problem, fill))
    return done


def _point(decoding: Decoding, scores: Sequence[Score]) -> Figures:
    times = [score.fill.ms for score in scores]
    return {
        "decoding": decoding.label,
        "policy": decoding.policy,
        "ms_mean": round(sum(times) / len(times), 2),
        **summary(scores),
    }


# --- The plot -------------------------------------------------------------------------------

_SERIES: tuple[tuple[Policy, str, str, str], ...] = (
    ("fixed", "fixed steps", plot.ORANGE, "s"),
    ("threshold", "threshold", plot.BLUE, "o"),
    ("entropy", "entropy bound", plot.GREEN, "D"),
    ("factor", "factor", plot.PURPLE, "^"),
)
_POINTS: Mapping[Policy, tuple[str, str]] = {
    "verified": ("drafted and verified", plot.BLUE),
    "autoregressive": ("backbone alone", plot.INK),
    "left-to-right": ("left to right", plot.INK),
}
"""Policies without a parameter; the black ones are the baselines."""


def _draw(points: Sequence[Figures], num_tasks: int, args: argparse.Namespace) -> None:
    cut = f" cut {args.cut}" if args.cut else ""
    length = "length told by an oracle" if args.oracle_length else "length unknown to the model"
    note = (
        f"{num_tasks} tasks of {args.data.name}{cut}, {length}. Solid: pass@1 with its 95 % "
        "interval, dashed: exact match. Black: one token a forward."
    )
    drawn, axes = plot.figure(2, "Quality against the cost of a fill", note)
    for ax, x, label in (
        (axes[0], "forwards_mean", "forwards a fill (mean)"),
        (axes[1], "ms_mean", "milliseconds a fill (mean, context cached)"),
    ):
        _draw_panel(ax, points, x, num_tasks)
        ax.set(xscale="log", ylim=(0, None), xlabel=label)
        _plain_ticks(ax)
    axes[0].set_ylabel("% of tasks")
    axes[0].legend(frameon=False, fontsize=8.5, loc="best")
    plot.save(drawn, beside(args.out, ".png"))


def _draw_panel(ax: Any, points: Sequence[Figures], x: str, num_tasks: int) -> None:
    for policy, name, colour, marker in _SERIES:
        series = sorted((p for p in points if p["policy"] == policy), key=lambda p: p[x])
        if series:
            at = [p[x] for p in series]
            passed = [100 * p["pass_at_1"] for p in series]
            if series[0]["exact_match"] is not None:
                exact = [100 * p["exact_match"] for p in series]
                ax.plot(at, exact, color=colour, linewidth=1.1, linestyle=(0, (3, 2)), alpha=0.8)
            low, high = _interval(passed, num_tasks)
            ax.fill_between(at, low, high, color=colour, alpha=0.1, linewidth=0)
            ax.plot(
                at, passed, color=colour, marker=marker, markersize=5, linewidth=1.8, label=name
            )
    for point in points:
        if point["policy"] in _POINTS:
            name, colour = _POINTS[point["policy"]]
            _draw_point(ax, point, x, name, colour)


def _draw_point(ax: Any, point: Figures, x: str, name: str, colour: str) -> None:
    if colour == plot.INK:
        for key, style in (("pass_at_1", "-"), ("exact_match", (0, (3, 2)))):
            if point[key] is not None:
                ax.axhline(100 * point[key], color=colour, linewidth=1, linestyle=style, alpha=0.55)
    ax.plot(point[x], 100 * point["pass_at_1"], color=colour, marker="*", markersize=12,
            linestyle="none", label=name)  # fmt: skip


def _interval(percents: Sequence[float], n: int) -> tuple[list[float], list[float]]:
    """Lower and upper ends of Wilson's 95 % interval of shares of `n` tasks, all in percent."""
    low: list[float] = []
    high: list[float] = []
    for percent in percents:
        share, z2 = percent / 100, 1.96**2
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        low.append(100 * (centre - half))
        high.append(100 * (centre + half))
    return low, high


def _plain_ticks(ax: Any) -> None:
    """1, 2, 5, 10, 20 … as such on a logarithmic axis."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(NullLocator())
