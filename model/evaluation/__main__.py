"""`mezzotint evaluate`: how good is the model? Also `python -m model.evaluation`.

Each subcommand is a module with `add_arguments(parser)`, `check_arguments(args)` and
`run(args)`, whose figures go out as the last line with `--json`, and as a table without. `replay`,
which drives a language server and not a model, has a command line of its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lsp_server.document.context import DocumentError
from model.api import CompletionError
from model.evaluation import calibration, generation, infilling, repair, sweep
from model.evaluation.report import commit
from model.evaluation.sandbox import SandboxError

COMMANDS = {
    "infilling": infilling,
    "generation": generation,
    "sweep": sweep,
    "calibration": calibration,
    "repair": repair,
}
"""The subcommands that share one shape, by name."""


REPLAY_HELP = "Type real files through the real language server: how much typing does it save?"


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="mezzotint evaluate", description="Measure how good the model is."
    )
    commands = parser.add_subparsers(metavar="WHAT", dest="command", required=True)
    for name, module in COMMANDS.items():
        about = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=about.replace("%", "%%"), description=about)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="end with a JSON line")
        command.set_defaults(module=module, parser=command)
    commands.add_parser("replay", help=REPLAY_HELP, add_help=False)
    args = parser.parse_args(argv)
    args.argv = list(argv)
    try:
        args.module.check_arguments(args)
    except (ValueError, CompletionError) as error:
        args.parser.error(str(error))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 130 after Ctrl-C, also where figures came of it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["replay"]:
        from model.evaluation import replay  # needs the language server, which a GPU box lacks

        return replay.main(arguments[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = parse_args(arguments)
    commit()  # of what runs now, not of what may be checked out when it ends
    try:
        figures = args.module.run(args)
    except (ValueError, OSError, DocumentError, CompletionError, SandboxError) as error:
        print(f"mezzotint evaluate: {_sentence(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps(figures))
    else:
        _print_table(figures)
    return 130 if figures.get("interrupted") else 0


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _print_table(figures: Mapping[str, Any]) -> None:
    width = max(map(len, figures))
    for name, value in figures.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:<{width}}  {text}")


if __name__ == "__main__":
    sys.exit(main())
