"""`mezzotint`: the command line.

What a command needs is imported when it runs: `lsp` has to answer its editor at once, and
`doctor` has to work where half of the packages are missing.

Exit codes: 0 when there is a result, 1 with a sentence on stderr when there is none, 2 for a
wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, TextIO

from lsp_server.document.context import (
    DocumentError,
    InfillContext,
    context_at,
    offset_at,
    read_document,
)
from lsp_server.languages import language_of
from lsp_server.settings import CandidateSettings, DeadlineSettings, Settings
from model import api, engines
from model.backbone.catalogue import resolve

if TYPE_CHECKING:
    from lsp_server.ask.completion import Completion, Suggestion
    from lsp_server.cli.doctor import Check

_DELEGATED = {
    "serve": "model.serving.__main__",
    "download": "model.backbone.__main__",
    "train": "model.training.__main__",
    "evaluate": "model.evaluation.__main__",
    "bench": "model.benchmarks.__main__",
}
"""Commands that are modules of their own, with their own command line: they also run as
`python -m model.serving` where no language server is installed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name) asks for; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Neither a terminal without UTF-8 nor Windows' line ends may get between us and
            # the text of a completion.
            stream.reconfigure(errors="backslashreplace", newline="")
    try:
        if arguments and arguments[0] in _DELEGATED:
            return importlib.import_module(_DELEGATED[arguments[0]]).main(arguments[1:])
        args = parse_args(arguments)
        return args.run(args)
    except (DocumentError, api.CompletionError) as error:
        return _fail(str(error))
    except ImportError as error:
        return _fail(f"{error}; `mezzotint doctor` tells what is missing")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(reason: str) -> int:
    print(f"mezzotint: {reason}", file=sys.stderr)
    return 1


# --- The arguments --------------------------------------------------------------------------


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `run` of the result is the command. Exits with 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="mezzotint",
        description="Local code completion by an open model, drafted in parallel and verified.",
    )
    parser.add_argument("--version", action="version", version=f"mezzotint {version('mezzotint')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    lsp = commands.add_parser("lsp", help="the language server, on stdin and stdout")
    lsp.set_defaults(run=run_lsp)
    lsp.add_argument(
        "--tcp", type=_address, metavar="HOST:PORT", help="serve one client here, to debug with"
    )
    # Some clients name the transport that is the default anyway.
    lsp.add_argument("--stdio", action="store_true", help=argparse.SUPPRESS)

    _add_complete(commands.add_parser("complete", help="complete at a place in a file"))
    commands.add_parser("serve", help="the HTTP engine", add_help=False)
    commands.add_parser("download", help="get a model onto this machine", add_help=False)
    commands.add_parser("train", help="train a model on folders of code", add_help=False)
    commands.add_parser("evaluate", help="measure how good the model is", add_help=False)
    commands.add_parser("bench", help="measure how fast the engine is", add_help=False)

    doctor = commands.add_parser("doctor", help="check the installation, say what to do about it")
    doctor.set_defaults(run=run_doctor)
    _add_model_arguments(doctor)
    return parser.parse_args(argv)


def _add_complete(parser: argparse.ArgumentParser) -> None:
    def run(args: argparse.Namespace) -> int:
        """Check what no single argument can tell, then complete."""
        try:
            api.InfillRequest(prefix="", candidates=args.candidates, steps=args.steps)
        except api.InvalidRequestError as error:
            parser.error(str(error))
        if args.until is not None and args.until < (args.place.line, args.place.column):
            parser.error("--until lies before the cursor")
        return run_complete(args)

    parser.set_defaults(run=run)
    parser.add_argument(
        "place",
        type=_place,
        metavar="FILE:LINE:COL",
        help="1-based, the column in characters; the cursor stands before it",
    )
    parser.add_argument(
        "--until", type=_position, metavar="LINE:COL", help="replace the text up to here"
    )
    parser.add_argument(
        "--candidates", type=int, default=1, metavar="N", help="how many to try for (%(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="T", help="denoise in T steps (diffusion models only)"
    )
    parser.add_argument("--film", action="store_true", help="show each draft and what was verified")
    _add_model_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="",
        metavar="MODEL",
        help="a GGUF file, a checkpoint folder, 0.5b, 1.5b or a hub id (0.5b)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--json", action="store_true", help="end with a JSON line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cursor in a file. `line` and `column` are 1-based, the column in characters."""

    path: Path
    line: int
    column: int


_LINE_AND_COLUMN = r"(\d{1,9}):(\d{1,9})"


def _place(argument: str) -> Place:
    # Only the last two colons count: C:\a.py:3:4 has one of its own.
    match = re.fullmatch(rf"(.+):{_LINE_AND_COLUMN}", argument, re.ASCII | re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(f"{argument!r} is no place; write src/app.py:12:5")
    return Place(path=Path(match[1]), line=int(match[2]), column=int(match[3]))


def _position(argument: str) -> tuple[int, int]:
    match = re.fullmatch(_LINE_AND_COLUMN, argument, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{argument!r} is no position; write LINE:COL like 12:5")
    return int(match[1]), int(match[2])


def _address(argument: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[?(.+?)\]?:(\d{1,5})", argument, re.ASCII)
    if match is None or int(match[2]) > 0xFFFF:
        raise argparse.ArgumentTypeError(f"{argument!r} is no address; write 127.0.0.1:2087")
    return match[1], int(match[2])


# --- The commands ---------------------------------------------------------------------------


def run_lsp(args: argparse.Namespace) -> int:
    """`mezzotint lsp`."""
    from lsp_server import launch

    if args.tcp is None:
        return launch.run_stdio()
    try:
        return launch.run_tcp(*args.tcp)
    except OSError as error:
        return _fail(f"cannot listen on {':'.join(map(str, args.tcp))}: {error}")


def run_complete(args: argparse.Namespace) -> int:
    """`mezzotint complete`. Raises `DocumentError`, `CompletionError`."""
    place: Place = args.place
    # No editor waits for this answer: it may take as long as it takes (an hour is the limit).
    settings = Settings(
        candidates=CandidateSettings(manual=args.candidates),
        steps=args.steps,
        deadline_ms=DeadlineSettings(manual=3_600_000),
        syntax_check="warn",
    )
    text = read_document(place.path, settings.max_file_kb)
    start = offset_at(text, place.line, place.column)
    end = start if args.until is None else offset_at(text, *args.until)
    window = partial(context_at, text, start, end, language=language_of(str(place.path)))
    screen = Screen(sys.stderr if args.json else sys.stdout)
    model = resolve(args.model)
    completer = engines.load(model, device=args.device)
    film = Film(screen) if args.film else None
    completion = asyncio.run(_fill(completer, window, settings, film))

    if args.json:
        print(json.dumps(_summary(completion, str(model))))
    if completion.reason is not None:
        return _fail(completion.reason.message)
    best = completion.suggestions[0]
    if args.film:
        screen.write_lines(in_place(text, start, end, best.text, screen))
    if not args.json and not (args.film and len(completion.suggestions) == 1):
        _print_texts(completion.suggestions)
    if best.new_syntax_errors:
        print(f"mezzotint: note that it {_adds_errors(best)}", file=sys.stderr)
    return 0


async def _fill(
    completer: api.Completer,
    window: Callable[..., InfillContext],
    settings: Settings,
    on_frame: api.FrameListener | None,
) -> Completion:
    """Complete in the document that `window` cuts contexts from; closes the completer."""
    from lsp_server.ask.completion import complete_context, window_sizes
    from lsp_server.check.syntax import CHECKED_CHARS, SyntaxChecker, SyntaxPlace

    context = window(**window_sizes(settings))
    surroundings = window(prefix_chars=CHECKED_CHARS, suffix_chars=CHECKED_CHARS)
    try:
        return await complete_context(
            completer,
            context,
            SyntaxPlace(SyntaxChecker(), surroundings),
            settings,
            explicit=True,
            on_frame=on_frame,
        )
    finally:
        await completer.close()


def _summary(completion: Completion, model: str) -> dict[str, object]:
    result = completion.result
    tokens, forwards = (result.tokens, result.forwards) if result else (0, 0)
    return {
        "model": model,
        "candidates": [
            {
                "text": suggestion.text,
                "confidence": round(suggestion.confidence, 4),
                "new_syntax_errors": suggestion.new_syntax_errors,
            }
            for suggestion in completion.suggestions
        ],
        "verified": result is not None and result.verified,
        "forwards": forwards,
        "tokens": tokens,
        "tokens_per_forward": round(tokens / forwards, 2) if forwards else 0.0,
        "ms": round(result.ms, 2) if result else 0.0,
    }


def _print_texts(suggestions: Sequence[Suggestion]) -> None:
    """One text exactly as it is, for programs; several with numbers, for people."""
    if len(suggestions) == 1:
        sys.stdout.write(suggestions[0].text)
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        return
    for number, suggestion in enumerate(suggestions, start=1):
        note = f", {_adds_errors(suggestion)}" if suggestion.new_syntax_errors else ""
        print(f"[{number}] confidence {suggestion.confidence:.2f}{note}")
        print(suggestion.text)


def _adds_errors(suggestion: Suggestion) -> str:
    errors = suggestion.new_syntax_errors
    return f"adds {errors} syntax error{'' if errors == 1 else 's'}"


def run_doctor(args: argparse.Namespace) -> int:
    """`mezzotint doctor`."""
    from lsp_server.cli.doctor import examine

    screen = Screen(sys.stderr if args.json else sys.stdout)
    checks: list[Check] = []
    for check in examine(args.model, args.device):
        checks.append(check)
        screen.write_lines(_table_row(check, screen))
    all_well = all(check.ok for check in checks)
    if args.json:
        print(json.dumps({"ok": all_well, "checks": [asdict(check) for check in checks]}))
    return 0 if all_well else 1


def _table_row(check: Check, screen: Screen) -> Iterator[str]:
    mark = screen.styled("ok  ", _GREEN) if check.ok else screen.styled("FAIL", _RED)
    left = f"{mark} {check.name:<16} "
    room = max(20, screen.width - 22)
    advice = wrap(f"→ {check.fix}", room) if check.fix else []
    for line in (*wrap(check.detail, room), *advice):
        yield left + line
        left = " " * 22


# --- For people to look at ------------------------------------------------------------------

_DIM, _RED, _GREEN, _STRUCK = "2", "31", "32", "2;9"

_PLAIN_SYMBOLS = str.maketrans(
    {"░": "?", "⏎": "\\n", "⇥": "\\t", "…": "...", "│": "|", "→": "->", "⟦": "[[", "⟧": "]]"}
)
"""Stand-ins where the stream's encoding lacks our symbols."""


class Screen:
    """A stream with a person at its end: colours and symbols as far as it has them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        is_terminal = stream.isatty()
        self.coloured = (
            is_terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
            # The old Windows console prints the escape codes.
            and (sys.platform != "win32" or "WT_SESSION" in os.environ)
        )
        self.width = shutil.get_terminal_size().columns if is_terminal else sys.maxsize
        """Characters a line may have."""
        try:
            "".join(map(chr, _PLAIN_SYMBOLS)).encode(stream.encoding or "utf-8")
            self._has_symbols = True
        except UnicodeEncodeError:
            self._has_symbols = False

    def styled(self, text: str, style: str) -> str:
        """`text` in a colour, where there are colours."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.coloured and text else text

    def write_lines(self, lines: Iterable[str]) -> None:
        """Show whole lines, at once."""
        for line in lines:
            print(line if self._has_symbols else line.translate(_PLAIN_SYMBOLS), file=self._stream)
        self._stream.flush()


class Film:
    """Shows each step as one line; listens to frames.

    Of a draft: what was decided in the step. Green is what was drafted and verified, plain what the
    model wrote itself, struck out what was drafted and refused; without colours they are ⟦so⟧, so,
    and ~so~. Of a canvas: masked slots are ░; what the step has committed is green, what the steps
    before it had is not.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._before: tuple[str | None, ...] = ()
        self._decided = ""

    def __call__(self, frame: api.Frame) -> None:
        """Show one frame."""
        pieces = self._canvas(frame) if frame.accepted is None else self._draft(frame)
        line = f"{frame.step:>4}  "
        room = self._screen.width - len(line)
        for text, style in pieces:
            if len(text) > room - 1:
                line += "…"
                break
            line += self._screen.styled(text, style) if style else text
            room -= len(text)
        # The engine's thread calls this. If nobody reads any more, the result's own line will
        # meet the error, in our thread.
        with contextlib.suppress(BrokenPipeError):
            if pieces:
                self._screen.write_lines([line])
        self._before = frame.slots

    def _canvas(self, frame: api.Frame) -> list[tuple[str, str]]:
        return [
            ("░", _DIM)
            if slot is None
            else (_one_line(slot), _GREEN if self._is_new(index, slot) else "")
            for index, slot in enumerate(frame.slots)
        ]

    def _is_new(self, index: int, slot: str) -> bool:
        return index >= len(self._before) or self._before[index] != slot

    def _draft(self, frame: api.Frame) -> list[tuple[str, str]]:
        drafted = [slot or "" for slot in frame.slots]
        new = frame.text.removeprefix(self._decided)
        self._decided = frame.text
        before, verified, after = _parted(new, "".join(drafted[: frame.accepted]))
        refused = "".join(drafted[frame.accepted :])
        marks = ("", "", "", "") if self._screen.coloured else ("⟦", "⟧", "~", "~")
        parts = [
            (_one_line(before), ""),
            (f"{marks[0]}{_one_line(verified)}{marks[1]}" if verified else "", _GREEN),
            (_one_line(after), ""),
            (f"{marks[2]}{_one_line(refused)}{marks[3]}" if refused else "", _STRUCK),
        ]
        return [part for part in parts if part[0]]


def _parted(new: str, drafted: str) -> tuple[str, str, str]:
    """What is new, around what was drafted of it. A draft may begin before the cursor, where the
    word does."""
    at = new.find(drafted)
    if at >= 0:
        return new[:at], drafted, new[at + len(drafted) :]
    shared = next((n for n in range(len(drafted), 0, -1) if new.startswith(drafted[-n:])), 0)
    return "", new[:shared], new[shared:]


_LINES_AROUND = 3
_MAX_LINE_CHARS = 200


def in_place(text: str, start: int, end: int, new: str, screen: Screen) -> list[str]:
    """The lines of `text` around `start`..`end`, with `new` there instead and made to stand out."""
    *before, head = _lines(text[:start])
    tail, *after = _lines(text[end:])
    inserted = [_printable(line) for line in _lines(new)]
    if screen.coloured:
        inserted = [screen.styled(line, _GREEN) for line in inserted]
    else:
        inserted = [f"⟦{inserted[0]}", *inserted[1:]]
        inserted[-1] += "⟧"
    if len(head) > _MAX_LINE_CHARS:
        head = f"…{head[-_MAX_LINE_CHARS:]}"
    inserted[0] = _printable(head) + inserted[0]
    inserted[-1] += _shortened(tail)

    first = max(0, len(before) - _LINES_AROUND)
    shown = [
        *map(_shortened, before[first:]),
        *inserted,
        *map(_shortened, after[:_LINES_AROUND]),
    ]
    return [f"{number:>6} │ {line}" for number, line in enumerate(shown, start=first + 1)]


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _shortened(line: str) -> str:
    line = _printable(line)
    return line if len(line) <= _MAX_LINE_CHARS else f"{line[:_MAX_LINE_CHARS]}…"


def _one_line(text: str) -> str:
    return _printable(text.replace("\n", "⏎").replace("\t", "⇥"))


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def _printable(text: str) -> str:
    """`text` without what would command the terminal instead of being shown."""
    return _CONTROL.sub("\ufffd", text)
