"""How many completions break the syntax, and how many of those a second attempt mends.

Holes are cut into real files that the model was not trained on, and completed the way the language
server does it: shortened by its rules, checked in place, and what adds a syntax error written
again. Shown is what strict mode shows, however unsure the model is (`minConfidence` 0).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from model import api
from model.evaluation.decoding import add_model_arguments, open_completer
from model.evaluation.holes import (
    Hole,
    add_hole_arguments,
    check_hole_arguments,
    cut_holes,
)
from model.evaluation.report import Figures, beside, circumstances, make_room, share, write_report
from model.evaluation.sources import load_sources, of_languages

if TYPE_CHECKING:
    from lsp_server.ask.completion import Completion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mezzotint evaluate repair`."""
    add_hole_arguments(parser, limit=200)
    parser.add_argument(
        "--languages", nargs="+", metavar="ID", help="files of these LSP language ids alone"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="maxRepairRounds (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/repair"), metavar="STEM",
        help="write STEM.json (%(default)s)",
    )  # fmt: skip
    add_model_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Check what no single option can tell. Raises `ValueError`."""
    check_hole_arguments(args)
    if not 0 <= args.rounds <= 8:
        raise ValueError(f"--rounds is {args.rounds}; it must lie in 0..8")


def run(args: argparse.Namespace) -> Figures:
    """Complete, write the report; returns the figures. Raises `OSError`, `ValueError`,
    `CompletionError`."""
    sources = load_sources(args.data)
    if args.languages:
        sources = of_languages(sources, args.languages)
    holes = cut_holes(sources, args.limit, args.seed)
    report = beside(args.out, ".json")
    make_room(report)
    outcomes: list[Outcome] = []
    interrupted = False
    completer = open_completer(args)
    try:
        asyncio.run(_complete_all(outcomes, completer, holes, args.rounds))
    except KeyboardInterrupt:
        if not outcomes:
            raise
        interrupted = True
    figures = tally(outcomes)
    if interrupted:
        figures["interrupted"] = True
    by_language = {
        language: tally([o for o in outcomes if o.language == language])
        for language in sorted({outcome.language for outcome in outcomes})
    }
    told = circumstances(args, completer)
    write_report(report, {"figures": figures, "languages": by_language, "circumstances": told})
    return figures


class Outcome:
    """What became of one hole."""

    def __init__(self, hole: Hole, completion: Completion, ms: float, num_requests: int) -> None:
        self.language = hole.source.language
        self.was_drafted = completion.syntax is not None
        self.broken = completion.syntax.broken if completion.syntax else 0
        self.repaired = completion.syntax.repaired if completion.syntax else 0
        self.shown = completion.suggestions[0] if completion.suggestions else None
        self.is_exact = self.shown is not None and self.shown.text == hole.middle
        self.ms = ms
        self.num_requests = num_requests


def tally(outcomes: Sequence[Outcome]) -> Figures:
    """The figures of a report."""
    candidates = [outcome for outcome in outcomes if outcome.was_drafted]
    broken = sum(outcome.broken for outcome in candidates)
    repaired = [outcome for outcome in candidates if outcome.repaired]
    mended = [o.ms for o in candidates if o.broken]
    return {
        "holes": len(outcomes),
        "candidates": len(candidates),
        "broken": broken,
        "repaired": len(repaired),
        "dropped": broken - len(repaired),
        "repair_rate": share(len(repaired), broken),
        "repaired_exact": sum(outcome.is_exact for outcome in repaired),
        "shown": sum(outcome.shown is not None for outcome in outcomes),
        "shown_new_errors": sum(
            outcome.shown.new_syntax_errors or 0 for outcome in outcomes if outcome.shown
        ),
        "exact": sum(outcome.is_exact for outcome in outcomes),
        "extra_requests_per_broken": share(
            sum(outcome.num_requests - 1 for outcome in candidates if outcome.broken), broken
        ),
        "ms_mean_whole": _mean([o.ms for o in candidates if not o.broken]),
        "ms_mean_broken": _mean(mended),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 1) if values else None


class _Counting:
    """A completer that counts its requests."""

    def __init__(self, completer: api.Completer) -> None:
        self._completer = completer
        self.num_requests = 0

    async def complete(
        self, request: api.InfillRequest, *, on_frame: api.FrameListener | None = None
    ) -> api.InfillResult:
        self.num_requests += 1
        return await self._completer.complete(request, on_frame=on_frame)

    async def close(self) -> None:
        await self._completer.close()


async def _complete_all(
    outcomes: list[Outcome], completer: api.Completer, holes: Sequence[Hole], rounds: int
) -> None:
    # The language server's packages, which a GPU box may lack.
    from lsp_server.ask.completion import complete_context, window_sizes
    from lsp_server.check.syntax import CHECKED_CHARS, SyntaxChecker, SyntaxPlace
    from lsp_server.document.context import context_at
    from lsp_server.settings import Settings

    settings = Settings(min_confidence=0.0, max_repair_rounds=rounds)
    checker = SyntaxChecker()
    try:
        for hole in tqdm(holes, desc="completing", unit="hole", smoothing=0.1):
            language, text = hole.source.language, hole.source.text
            where: tuple[Any, ...] = (text, hole.start, hole.end)
            context = context_at(*where, language=language, **window_sizes(settings))
            around = context_at(
                *where, language=language, prefix_chars=CHECKED_CHARS, suffix_chars=CHECKED_CHARS
            )
            counting = _Counting(completer)
            started = time.monotonic()
            completion = await complete_context(
                counting,
                context,
                SyntaxPlace(checker, around),
                settings,
                explicit=False,
                deadline_ms=3_600_000,
            )
            ms = 1000 * (time.monotonic() - started)
            outcomes.append(Outcome(hole, completion, ms, counting.num_requests))
    finally:
        await completer.close()
