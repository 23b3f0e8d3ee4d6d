"""`mezzotint evaluate replay PATH…`: type real files through the real language server.

Regions of the files are taken out and typed again, keystroke by keystroke, into `mezzotint lsp`,
and what it suggests is accepted when it is what comes next (docs/evaluation.md). The
figures say something about files that the model was not trained on, and about nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from tqdm import tqdm

from lsp_server.document.context import DocumentError, read_document
from lsp_server.languages import language_of
from lsp_server.settings import Settings, parse_settings
from model.api import CheckpointError, hub_id
from model.backbone.catalogue import DEFAULT, resolve
from model.evaluation import plot
from model.evaluation.replay_typist import (
    Answer,
    Region,
    RegionLog,
    keystroke_starts,
    pick_regions,
    summarise,
    type_region,
)
from model.evaluation.report import digest, provenance
from model.evaluation.sources import find_files

if TYPE_CHECKING:
    from model.evaluation.replay_curve import SurveyedRegion
    from model.evaluation.replay_editor import Editor

REGIONS_PER_FILE = 3
MAX_FAILURES = 3
"""Servers that may be lost one after another, without a region typed between them."""
OWN_SERVER = (sys.executable, "-m", "lsp_server", "lsp")


# --- The command line -----------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `mezzotint evaluate replay`."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders")
    parser.add_argument(
        "--limit", type=_positive_int, default=100, metavar="N", help="regions (%(default)s)"
    )
    parser.add_argument(
        "--minutes", type=_positive, metavar="M", help="begin no region after so many minutes"
    )
    parser.add_argument("--seed", type=int, default=0, help="picks the regions (%(default)s)")
    parser.add_argument(
        "--typing-speed", type=_positive, metavar="C",
        help="characters a second; without it, every keystroke waits for its answer",
    )  # fmt: skip
    parser.add_argument(
        "--accept", choices=("whole", "words"), default="whole",
        help="suggestions that are right as a whole, or their leading words as well (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--min-confidence", type=float, metavar="X", help="the same as --set minConfidence=X"
    )
    parser.add_argument(
        "--set", type=_assignment, action="append", default=[], metavar="KEY=VALUE",
        dest="assignments",
        help="a setting of the language server, such as deadlineMs.auto=1000; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--open-beside", type=_count, default=0, metavar="N",
        help="have up to N files of the same folder and language open as well (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--curve", type=Path, metavar="FILE.png",
        help="ask at every keystroke and plot what each minConfidence would have come to",
    )  # fmt: skip
    parser.add_argument("--server", type=shlex.split, default=OWN_SERVER, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the whole report")
    parser.add_argument("--json", action="store_true", help="end with a JSON line")


def _positive(argument: str) -> float:
    value = float(argument)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{argument} is not above 0")
    return value


def _positive_int(argument: str) -> int:
    value = int(argument)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{argument} is below 1")
    return value


def _count(argument: str) -> int:
    return 0 if argument == "0" else _positive_int(argument)


def _assignment(argument: str) -> tuple[str, object]:
    key, equals, value = argument.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{argument!r} is no setting; write KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value  # a bare word, such as a path


def raw_settings(args: argparse.Namespace) -> dict[str, object]:
    """The settings as an editor would send them. Raises `ValueError` for one that is none."""
    raw: dict[str, object] = {}
    assignments: list[tuple[str, object]] = [*args.assignments]
    if args.min_confidence is not None:
        assignments.append(("minConfidence", args.min_confidence))
    for key, value in assignments:
        *groups, name = key.split(".")
        group = raw
        for outer in groups:
            group = cast("dict[str, object]", group.setdefault(outer, {}))
            if not isinstance(group, dict):
                raise ValueError(f"{key} lies within {outer}, which is set to a value")
        group[name] = value
    settings, problems = parse_settings(raw)
    if problems:
        raise ValueError("; ".join(problems))
    if hub_id(settings.model.path) is not None:
        # There is nobody to ask, and the shipped model would be measured in its place.
        name = settings.model.path
        raise ValueError(
            f"model.path is {name}; give the folder that `mezzotint download {name}` names"
        )
    return raw


def run(args: argparse.Namespace) -> int:
    """Run the command. 0 with figures, 1 without or when the server was lost, 2 for wrong
    arguments, 130 after Ctrl-C; figures that there are by then are reported in any case."""
    try:
        raw = raw_settings(args)
        if args.curve is not None and args.typing_speed is not None:
            raise ValueError("--curve waits for every answer; leave out --typing-speed")
        if args.curve is not None:
            plot.require_matplotlib()
    except ValueError as error:
        return _fail(str(error), 2)
    settings, _ = parse_settings(raw)
    skipped: list[str] = []
    try:
        regions = plan(args.paths, settings, args.limit, args.seed, skipped)
    except DocumentError as error:
        return _fail(str(error), 1)
    for sentence in skipped:
        print(f"skipped: {sentence}", file=sys.stderr)
    if not regions:
        return _fail("nothing to type: no file in these paths has a region of code", 1)
    replay = Replay(args=args, raw=raw, settings=settings, regions=regions)
    status = 0
    try:
        asyncio.run(replay.drive())
    except KeyboardInterrupt:
        status = 130
    if replay.given_up:
        status = _fail(f"gave up: {replay.failures[-1]}", 1)
    if not replay.logs and not replay.surveyed:
        return status or _fail("not one region was typed; give it more --minutes", 1)
    try:
        report(replay, skipped, interrupted=status == 130)
    except OSError as error:
        return _fail(f"cannot write {error.filename}: {error.strerror}", 1)
    return status


def _fail(reason: str, status: int) -> int:
    print(f"mezzotint evaluate replay: {reason}", file=sys.stderr)
    return status


# --- What is typed --------------------------------------------------------------------------


def plan(
    paths: Sequence[Path], settings: Settings, limit: int, seed: int, skipped: list[str]
) -> list[Region]:
    """Up to `limit` regions, first one of each file and then a second: the same for the same
    seed and contents. Adds a sentence to `skipped` for each file that cannot be used.

    Raises `DocumentError` for a path that does not exist.
    """
    files = find_files(paths)
    random.Random(seed).shuffle(files)
    by_file: list[list[Region]] = []
    for file in files:
        if len(by_file) == limit:
            break
        try:
            text = read_document(file, settings.max_file_kb)
        except DocumentError as error:
            skipped.append(str(error))
            continue
        if settings.excludes(str(file)):
            skipped.append(f"{file} is excluded by mezzotint.exclude")
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()
        rng = random.Random(f"{seed} {digest}")
        picked = pick_regions(file, text, language_of(str(file)), number=REGIONS_PER_FILE, rng=rng)
        if picked:
            by_file.append(picked)
    rounds = zip_longest(*by_file)
    return [region for one_of_each in rounds for region in one_of_each if region][:limit]


def files_beside(region: Region, number: int, settings: Settings) -> dict[Path, str]:
    """Up to `number` other files of the region's folder in its language, by name, that can be
    read, and their texts."""
    files: dict[Path, str] = {}
    for path in sorted(region.path.parent.iterdir()):
        if len(files) == number:
            break
        if path == region.path or language_of(str(path)) != region.language:
            continue
        with suppress(DocumentError):
            files[path] = read_document(path, settings.max_file_kb)
    return files


# --- Typing it ------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Replay:
    """One run, and what it has come to so far."""

    args: argparse.Namespace
    raw: Mapping[str, object]
    settings: Settings
    regions: Sequence[Region]
    logs: list[RegionLog] = field(default_factory=list)
    surveyed: list[SurveyedRegion] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    given_up: bool = False

    async def drive(self) -> None:
        """Type region after region, with another server when one is lost."""
        from model.evaluation.replay_editor import EngineError, ServerError

        minutes = self.args.minutes
        deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        waiting = list(reversed(self.regions))
        lost_in_a_row = 0
        with self._progress_bar() as bar:
            while waiting and time.monotonic() < deadline:
                try:
                    async with self._editor() as editor:
                        await editor.wait_for_engine(waiting[-1].language)
                        while waiting and time.monotonic() < deadline:
                            await self._type(editor, waiting.pop(), bar)
                            lost_in_a_row = 0
                except ServerError as error:
                    lost_in_a_row += 1
                    self.failures.append(str(error))
                    tqdm.write(f"lost a language server: {error}", file=sys.stderr)
                    if isinstance(error, EngineError) or lost_in_a_row == MAX_FAILURES:
                        self.given_up = True
                        return

    async def _type(self, editor: Editor, region: Region, bar: tqdm[NoReturn]) -> None:
        beside = files_beside(region, self.args.open_beside, self.settings)
        if self.args.curve is not None:
            from model.evaluation.replay_curve import survey_region

            editor.open(region, offset=region.length, beside=beside)
            self.surveyed.append(await survey_region(region, editor.ask, bar.update))
            return
        editor.open(region, beside=beside)
        log = RegionLog(region)
        self.logs.append(log)
        before = bar.n

        async def ask(offset: int) -> Answer:
            bar.update(before + log.keystrokes - bar.n)
            return await editor.ask(offset)

        await type_region(log, ask, by_words=self.args.accept == "words")
        bar.update(before + log.keystrokes - bar.n)

    def _progress_bar(self) -> tqdm[NoReturn]:
        keystrokes = sum(len(keystroke_starts(r.truth, 0, r.length)) for r in self.regions)
        return tqdm(
            total=keystrokes, desc="typing", unit="key", dynamic_ncols=True, mininterval=0.5
        )

    @asynccontextmanager
    async def _editor(self) -> AsyncIterator[Editor]:
        """A server with an engine of its own, so that no other window's work or older code
        is measured."""
        from model.evaluation.replay_editor import Editor

        settings = dict(self.raw)
        if self.args.curve is not None:
            settings["minConfidence"] = 0
        with tempfile.TemporaryDirectory(
            prefix="mezzotint-", ignore_cleanup_errors=True
        ) as runtime:
            environment = dict(os.environ) | {"MEZZOTINT_RUNTIME_DIR": runtime}
            async with Editor(
                self.args.server,
                settings,
                environment=environment,
                chars_per_s=self.args.typing_speed,
            ) as editor:
                yield editor


# --- The report -----------------------------------------------------------------------------

HEADLINE = ("keystrokes_saved", "shown", "precision", "first_line_precision", "edit_similarity",
            "ms_p50", "ms_p95", "regions", "keystrokes", "suggestions")  # fmt: skip


def report(replay: Replay, skipped: Sequence[str], *, interrupted: bool) -> None:
    """Print the figures, and write what `--out`, `--curve` and `--json` ask for.

    Raises `OSError` when a file cannot be written, with the figures printed.
    """
    args, settings, logs = replay.args, replay.settings, replay.logs
    curve: list[dict[str, object]] = []
    if args.curve is not None:
        from model.evaluation.replay_curve import confidence_curve, replay_survey

        by_words = args.accept == "words"
        curve = asyncio.run(confidence_curve(replay.surveyed, by_words=by_words))
        logs = asyncio.run(
            replay_survey(replay.surveyed, settings.min_confidence, by_words=by_words)
        )
    figures = {"all": summarise(logs)}
    figures |= _grouped(logs, lambda log: log.region.language or "unknown")
    figures |= _grouped(logs, lambda log: "at the end" if log.region.at_end else "inside")
    print("\n".join(table(figures)))
    if args.json:
        print(json.dumps(figures["all"]))
    document = {
        **provenance(sys.argv),
        **model_of(settings),
        "settings": dict(replay.raw),
        "open_beside": args.open_beside,
        "accept": args.accept,
        "typing_speed": args.typing_speed,
        "seed": args.seed,
        "planned_regions": len(replay.regions),
        "interrupted": interrupted,
        "lost_servers": replay.failures,
        "skipped": list(skipped),
        "figures": figures,
        "curve": curve,
        "rows": [row(log) for log in logs],
    }
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if args.curve is not None:
        from model.evaluation.replay_plot import plot_curve

        args.curve.parent.mkdir(parents=True, exist_ok=True)
        plot_curve(curve, args.curve, settings.min_confidence, figures["all"])


def row(log: RegionLog) -> dict[str, object]:
    """One region's figures, by which two replays of the same regions compare."""
    where = {"file": str(log.region.path), "offset": len(log.region.head)}
    return {**where, **summarise([log])}


def _grouped(
    logs: Sequence[RegionLog], key: Callable[[RegionLog], str]
) -> dict[str, dict[str, object]]:
    names = sorted(set(map(key, logs)))
    return {name: summarise(log for log in logs if key(log) == name) for name in names}


def table(figures: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """The figures for people: one line a group."""
    first = max(map(len, figures))
    heads = [name.replace("_", " ") for name in HEADLINE]
    yield " " * first + "".join(f"  {head}" for head in heads)
    for name, row in figures.items():
        cells = [_cell(key, row[key]).rjust(len(key) + 2) for key in HEADLINE]
        yield name.ljust(first) + "".join(cells)
    reasons = cast("Mapping[str, int]", figures["all"]["nothing_shown"])
    if reasons:
        yield "nothing was shown because"
        yield from (f"{count:>8}  {reason}" for reason, count in reasons.items())


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    is_share = isinstance(value, float) and not key.startswith("ms_")
    return f"{value:.1%}" if is_share else str(value)


def model_of(settings: Settings) -> dict[str, object]:
    """The checkpoint or the engine that answered."""
    if settings.engine.url:
        return {"engine": settings.engine.url}
    name = settings.model.path or DEFAULT
    try:
        checkpoint = resolve(name)
        sha256 = digest(checkpoint) if checkpoint.exists() else None
    except (CheckpointError, OSError):  # the run has told why nothing was suggested
        return {"model": name, "model_sha256": None}
    return {"model": checkpoint.name, "model_sha256": sha256}


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m model.evaluation.replay`."""
    parser = argparse.ArgumentParser(
        prog="mezzotint evaluate replay",
        description="Type regions of real files through the real language server, and accept what "
        "it suggests when it is what comes next. Give it files that the model was not trained on.",
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
