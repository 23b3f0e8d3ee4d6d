"""Fill holes in programs and run their tests: pass@1, exact match, parse rate and cost.

A hole's prefix and suffix go in as raw text, and what comes back is scored as it comes: nothing is
cut off an answer that goes on too long, and its length is unknown unless an oracle tells.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from model import api
from model.evaluation.decoding import (
    Decoding,
    Fill,
    add_model_arguments,
    add_policy_arguments,
    decoding_of,
    fill_all,
    open_completer,
)
from model.evaluation.problems import (
    Problem,
    load_problems,
    multi_lines,
    single_lines,
    whole_functions,
)
from model.evaluation.report import (
    Figures,
    circumstances,
    make_room,
    percentile,
    share,
    write_report,
)
from model.evaluation.sandbox import Limits, Verdict, confinement, require, run_programs
from model.evaluation.syntax import parses

CUTS: dict[str, Callable[[Iterable[Problem]], list[Problem]]] = {
    "single-line": single_lines,
    "multi-line": multi_lines,
    "whole-function": whole_functions,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One task's result."""

    problem: Problem
    fill: Fill
    verdict: Verdict

    @property
    def is_exact(self) -> bool | None:
        """Whether the fill is the true text, character for character; None where none is known."""
        return self.fill.text == self.problem.middle if self.problem.middle else None

    @property
    def parses(self) -> bool | None:
        """Whether the filled program is one; None where no parser knows the language."""
        filled = self.problem.prefix + self.fill.text + self.problem.suffix
        return parses(filled, self.problem.language)

    @property
    def row(self) -> Figures:
        """The task's line in a report."""
        return {
            "task_id": self.problem.task_id,
            "outcome": self.verdict.outcome,
            "reason": self.verdict.reason,
            "exact": self.is_exact,
            "parses": self.parses,
            "text": self.fill.text,
            "true_text": self.problem.middle,
            "finished": self.fill.finished,
            "confidence": round(self.fill.confidence, 4),
            "forwards": self.fill.forwards,
            "tokens": self.fill.tokens,
            "ms": round(self.fill.ms, 2),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mezzotint evaluate infilling`."""
    add_scoring_arguments(parser)
    add_cut_argument(parser)


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` needs: tasks, a report's place, a decoding and a model."""
    add_task_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write a full report, task by task"
    )
    add_policy_arguments(parser)
    add_model_arguments(parser)


def add_cut_argument(parser: argparse.ArgumentParser) -> None:
    """How tasks may be cut anew."""
    parser.add_argument(
        "--cut", choices=CUTS, help="cut other holes into HumanEval's functions than the file has"
    )


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tasks, and how their tests run."""
    limits = Limits()
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE",
        help="problems: HumanEval, any HumanEval-Infilling split, or MultiPL-E (.jsonl, .jsonl.gz)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only N tasks, evenly spread")
    parser.add_argument(
        "--seed", type=int, default=0, help="order in which things are done (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=int, default=limits.cpu_s, metavar="S",
        help="seconds of CPU time for a task's tests (%(default)s)",
    )  # fmt: skip


def check_arguments(args: argparse.Namespace) -> None:
    """Check what no single option can tell. Raises `ValueError`, `InvalidRequestError`."""
    args.decoding = decoding_of(args)
    check_task_arguments(args)


def check_task_arguments(args: argparse.Namespace) -> None:
    """Check `add_task_arguments`' options. Raises `ValueError`."""
    limits_of(args)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit is {args.limit}; it must be at least 1")


def run(args: argparse.Namespace) -> Figures:
    """Evaluate; returns the figures. Raises `OSError`, `ValueError`, `CompletionError`, and
    `SandboxError` when tests cannot be run."""
    problems = load_tasks(args, CUTS[args.cut] if args.cut else list)
    return evaluate(args, problems, lambda _, fill: fill)


def request_for(problem: Problem, decoding: Decoding) -> api.InfillRequest:
    """The request that fills a problem's hole."""
    return decoding.request(
        prefix=problem.prefix,
        suffix=problem.suffix,
        language=problem.language,
        middle=problem.middle,
    )


def evaluate(
    args: argparse.Namespace,
    problems: Sequence[Problem],
    finish: Callable[[Problem, Fill], Fill],
    ask: Callable[[Problem, Decoding], api.InfillRequest] = request_for,
) -> Figures:
    """Fill all problems' holes as `args.decoding` says, `finish` each fill, run the tests."""
    if args.out is not None:
        make_room(args.out)
    for language in sorted({problem.language for problem in problems}):
        require(language)
    order = random.Random(args.seed).sample(range(len(problems)), len(problems))
    requests = [ask(problems[i], args.decoding) for i in order]
    completer = open_completer(args)
    fills, interrupted = fill_all(completer, requests)
    done = sorted(zip(order, fills, strict=False), key=lambda pair: pair[0])
    scores = judge([(problems[i], finish(problems[i], fill)) for i, fill in done], limits_of(args))
    figures = summary(scores)
    if interrupted:
        figures["interrupted"] = True
    if args.out is not None:
        write_report(args.out, {
            "figures": figures,
            "decoding": args.decoding.label,
            "sandbox": str(confinement()),
            "circumstances": circumstances(args, completer),
            "rows": [score.row for score in scores],
        })  # fmt: skip
    return figures


def load_tasks(
    args: argparse.Namespace, cut: Callable[[Iterable[Problem]], list[Problem]]
) -> list[Problem]:
    """The tasks that `add_task_arguments`' options name. Raises `OSError`, `ValueError`."""
    problems = cut(load_problems(args.data))
    if args.oracle_length and not all(problem.middle for problem in problems):
        raise ValueError(f"{args.data} holds no solutions whose length --oracle-length could tell")
    count = len(problems) if args.limit is None else min(args.limit, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def limits_of(args: argparse.Namespace) -> Limits:
    """What a task's tests may use. Raises `ValueError`."""
    if args.timeout < 1:
        raise ValueError(f"--timeout is {args.timeout}; it must be at least 1 second")
    return Limits(cpu_s=args.timeout, wall_s=4.0 * args.timeout)


def judge(pairs: Sequence[tuple[Problem, Fill]], limits: Limits) -> list[Score]:
    """Run the tests of each filled problem, equal programs once."""
    programs = {(p.language, p.program(fill.text)): None for p, fill in pairs}
    with tqdm(total=len(programs), desc="testing", unit="program") as progress:
        verdicts = run_programs(list(programs), limits=limits, on_done=progress.update)
    verdict_of = dict(zip(programs, verdicts, strict=True))
    return [
        Score(problem=p, fill=fill, verdict=verdict_of[p.language, p.program(fill.text)])
        for p, fill in pairs
    ]


def summary(scores: Sequence[Score]) -> Figures:
    """The figures of a run; shares are of 1, times in milliseconds, None what nothing tells (a
    comparison with solutions that the file does not have)."""
    fills = [score.fill for score in scores]
    n, forwards = len(fills), sum(fill.forwards for fill in fills)
    tokens = sum(fill.tokens for fill in fills)
    parsed = [ok for score in scores if (ok := score.parses) is not None]
    solved = [score for score in scores if score.problem.middle]
    lengths = [len(score.fill.text) - len(score.problem.middle) for score in solved]
    return {
        "pass_at_1": share(sum(score.verdict.outcome == "passed" for score in scores), n),
        "exact_match": share(sum(score.is_exact is True for score in solved), len(solved)),
        "parse_rate": share(sum(parsed), len(parsed)),
        "n": n,
        "forwards_mean": share(forwards, n),
        "tokens_per_forward": share(tokens, forwards),
        "ms_p50": percentile([fill.ms for fill in fills], 50),
        "ms_p95": percentile([fill.ms for fill in fills], 95),
        "tokens_mean": share(tokens, n),
        "longer_than_true": share(sum(length > 0 for length in lengths), len(lengths)),
        "shorter_than_true": share(sum(length < 0 for length in lengths), len(lengths)),
        "unfinished": share(sum(not fill.finished for fill in fills), n),
        "outcomes": dict(Counter(score.verdict.outcome for score in scores)),
    }
