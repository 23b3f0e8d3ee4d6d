"""`mezzotint`: the command line.

What a command needs is imported when it runs: `lsp` has to answer its editor at once, and
`doctor` has to work where half of the packages are missing.

Exit codes: 0 when there is a result, 1 with a sentence on stderr when there is none, 2 for a
wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from lsp_server.cli.screen import GREEN, RED, Screen
from lsp_server.document.context import (
    DocumentError,
)
from model import api

if TYPE_CHECKING:
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
        from lsp_server.cli.complete import run_complete

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
    mark = screen.styled("ok  ", GREEN) if check.ok else screen.styled("FAIL", RED)
    left = f"{mark} {check.name:<16} "
    room = max(20, screen.width - 22)
    advice = wrap(f"→ {check.fix}", room) if check.fix else []
    for line in (*wrap(check.detail, room), *advice):
        yield left + line
        left = " " * 22
