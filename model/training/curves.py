"""Draw a run's log: `python -m model.training.curves RUN`, four panels over the minutes trained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

SMOOTHING = 0.9
"""What a report leaves of the running mean: batches differ by more than a run learns in an hour."""
TRAINED, HELD_OUT, SECOND = "#9aa7b5", "#b3341f", "#33658a"


def read_log(run: Path) -> list[Row]:
    """The log's lines. Raises `ValueError` when there are none, or naming the first bad one."""
    file = run / "log.jsonl"
    if not file.is_file():
        raise ValueError(f"there is no {file}; give the --out directory of a training run")
    rows: list[Row] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            row["minutes"] = row["seconds"] / 60
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number} is no line of a log: {error}") from error
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} is empty: the run has not reported yet")
    return rows


def series(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Minutes and values of the lines that hold the figure `name`."""
    having = [row for row in rows if name in row]
    return [row["minutes"] for row in having], [row[name] for row in having]


def smoothed(values: Sequence[float], keep: float = SMOOTHING) -> list[float]:
    """Exponential running mean, unbiased at its start."""
    means: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        means.append(total / weight)
    return means


def draw(rows: Sequence[Row], title: str, out: Path) -> None:
    """Write the figure, in the format of `out`'s suffix."""
    from matplotlib.figure import Figure  # only drawing asks for it

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flat
    figure.suptitle(title, fontsize=11)
    for axes, name, what in (
        (panels[0], "diffusion", "canvas loss (nats a slot)"),
        (panels[1], "context", "next-token loss (nats a token)"),
    ):
        _draw_loss(axes, rows, name)
        axes.set_ylabel(what)
    _draw_scores(panels[2], rows)
    _draw_rate(panels[3], rows)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (panels[2], panels[3]):
        axes.set_xlabel("minutes trained")
    figure.savefig(out, dpi=150)


def _draw_loss(axes: Axes, rows: Sequence[Row], name: str) -> None:
    minutes, values = series(rows, name)
    axes.plot(minutes, values, color=TRAINED, linewidth=0.6, alpha=0.5)
    axes.plot(minutes, smoothed(values), color=TRAINED, linewidth=1.8, label="training, smoothed")
    held_out = series(rows, f"held_out_{name}")
    axes.plot(*held_out, color=HELD_OUT, marker="o", markersize=3, label="held out")
    axes.legend(frameon=False)


def _draw_scores(axes: Axes, rows: Sequence[Row]) -> None:
    for name, what, colour in (
        ("held_out_accuracy", "tokens right", HELD_OUT),
        ("held_out_exact", "holes exact", SECOND),
    ):
        minutes, values = series(rows, name)
        percent = [100 * value for value in values]
        axes.plot(minutes, percent, color=colour, marker="o", markersize=3, label=what)
    axes.set_ylabel("held out, one forward (%)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _draw_rate(axes: Axes, rows: Sequence[Row]) -> None:
    axes.plot(*series(rows, "rate_factor"), color=SECOND)
    axes.set_ylabel("learning rate (share of full)")
    axes.set_ylim(0, 1.05)


def title_of(rows: Sequence[Row], run: Path) -> str:
    """The run, its length and speed."""
    _, rates = series(rows, "tokens_per_second")
    speed = f", {sum(rates) / len(rates):,.0f} tokens/s" if rates else ""
    last = rows[-1]
    return f"{run.name}: {last['step']:,} steps, {last['minutes']:.0f} minutes{speed}"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m model.training.curves", description="Draw a training run's log."
    )
    parser.add_argument("run", type=Path, help="a training run's directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="RUN/curves.png; or .svg, .pdf")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; prints the figure's path and returns the exit code."""
    args = parse_args(argv)
    out = args.out or args.run / "curves.png"
    try:
        rows = read_log(args.run)
        draw(rows, title_of(rows, args.run), out)
    except ModuleNotFoundError as error:
        print(f"curves: {error}; pip install 'mezzotint[evaluation]'", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"curves: {error}", file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
