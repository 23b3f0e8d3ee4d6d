"""`mezzotint bench`: how fast is the engine? Also `python -m model.benchmarks`.

Each part is a module with a `TITLE`, `measure(setting)` and `rows(figures, setting)`. `keystrokes`
replays the language server's requests, `peers` compares with llama.cpp; they are commands of their
own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lsp_server.document.context import DocumentError
from model.api import CompletionError
from model.backbone.catalogue import DEFAULT, resolve
from model.benchmarks import clients, decoding, memory, plot, steps, table
from model.benchmarks.setting import Setting
from model.evaluation.report import Figures, cpu_name, digest, make_room, provenance, write_report

PARTS: dict[str, ModuleType] = {
    "decoding": decoding,
    "steps": steps,
    "clients": clients,
    "memory": memory,
}
"""The parts of `mezzotint bench`, in the order they run in."""

SESSIONS = {"keystrokes": (1500, 60), "peers": (120, 8)}
"""Commands that replay a session: how many events it has, and with --quick."""

_WHAT = {
    "bench": "Measure how fast the engine is. `mezzotint bench keystrokes` replays a session, "
    "`mezzotint bench peers` compares with llama.cpp.",
    "keystrokes": "Replay an editing session: what does a key cost?",
    "peers": "Compare with llama.cpp: the same model file, the same keys, by turns.",
}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on a wrong one."""
    command = argv[0] if argv and argv[0] in SESSIONS else "bench"
    parser = argparse.ArgumentParser(
        prog="mezzotint bench" if command == "bench" else f"mezzotint bench {command}",
        description=_WHAT[command],
    )
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH",
        help="files or folders of code to measure with (Mezzotint's own code)",
    )  # fmt: skip
    if command == "bench":
        parser.add_argument(
            "--parts", type=_parts, default=list(PARTS), metavar="A,B,…",
            help=f"what to measure, of {','.join(PARTS)} (all)",
        )  # fmt: skip
        parser.add_argument(
            "--data", type=Path, metavar="FILE",
            help="take prompts from a HumanEval-Infilling file instead (decoding)",
        )  # fmt: skip
    else:
        full, quick = SESSIONS[command]
        parser.add_argument(
            "--events",
            type=int,
            metavar="N",
            help=f"length of the session ({full}; quick: {quick})",
        )
    if command == "peers":
        parser.add_argument(
            "--llama-server", type=Path, metavar="PATH",
            help="the build to compare with (the one in the xllamacpp wheel)",
        )  # fmt: skip
    _add_common_arguments(parser)
    args = parser.parse_args(argv if command == "bench" else argv[1:])
    args.command, args.argv = command, list(argv)
    if command != "bench" and args.events is not None and args.events < 1:
        parser.error(f"--events is {args.events}; it must be at least 1")
    return args


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT, metavar="MODEL",
        help="a backbone's name, a file or a folder (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float8")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="see that it runs; measures little")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write the report there, and a plot"
    )
    parser.add_argument("--json", action="store_true", help="end with a JSON line")


def _parts(argument: str) -> list[str]:
    names = argument.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(
            f"there is no part {', '.join(map(repr, unknown))}; choose from {', '.join(PARTS)}"
        )
    return [name for name in PARTS if name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 130 after Ctrl-C, also where figures came of it."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    args = parse_args(sys.argv[1:] if argv is None else argv)
    try:
        figures = run(args)
    except (ValueError, OSError, ImportError, DocumentError, CompletionError) as error:
        print(f"mezzotint bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps(figures))
    return 130 if figures.get("interrupted") else 0


def run(args: argparse.Namespace) -> Figures:
    """Measure, print the table as it grows, write report and plot; returns the figures."""
    setting = Setting(
        model=resolve(args.model),
        device=args.device,
        dtype=args.dtype,
        paths=tuple(args.paths),
        data=getattr(args, "data", None),
        seed=args.seed,
        quick=args.quick,
    )
    report = None
    if args.out is not None:
        report = args.out / f"{args.command}-{setting.torch_device.type}.json"
        make_room(report)
    is_bench = args.command == "bench"
    figures = _measure(args.parts, setting) if is_bench else _replay(args, setting)
    if report is not None:
        write_report(report, {**figures, "circumstances": _circumstances(args, setting)})
        _draw(args.command, figures, report.with_suffix(".png"), _device_name(setting))
    return figures


def _replay(args: argparse.Namespace, setting: Setting) -> Figures:
    # Both need the language server's grammars or a server's packages; a GPU box has neither.
    num_events = args.events or SESSIONS[args.command][setting.quick]
    if args.command == "keystrokes":
        from model.benchmarks import keystrokes as part

        figures = asyncio.run(part.measure(setting, num_events))
    else:
        from model.benchmarks import peers as part

        figures = asyncio.run(part.measure(setting, num_events, args.llama_server))
    rows = part.rows(figures, setting)
    _print_section(part.TITLE, rows)
    return {**figures, "goals": table.verdicts(args.command, rows)}


def _measure(parts: Sequence[str], setting: Setting) -> Figures:
    """The figures of some parts; after Ctrl-C those of the parts that were done."""
    figures: Figures = {"device": setting.torch_device.type}
    goals: list[dict[str, Any]] = []
    for name in parts:
        part = PARTS[name]
        try:
            figures[name] = asyncio.run(part.measure(setting))
        except KeyboardInterrupt:
            if len(figures) == 1:
                raise
            figures["interrupted"] = True
            break
        rows = part.rows(figures[name], setting)
        _print_section(part.TITLE, rows)
        _let_go_of_memory()
        goals += table.verdicts(name, rows)
    return {**figures, "goals": goals}


def _let_go_of_memory() -> None:
    """The next part finds the GPU as empty as the first one did."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _print_section(title: str, rows: Sequence[table.Row]) -> None:
    print("\n".join(table.section(title, rows)), end="\n\n", flush=True)


def _draw(command: str, figures: Figures, path: Path, device: str) -> None:
    if command == "bench":
        plot.draw(figures, path, device)
    elif command == "peers":
        plot.draw_peers(figures, path, device)


def _device_name(setting: Setting) -> str:
    if setting.on_cuda:
        return torch.cuda.get_device_name(setting.torch_device)
    return cpu_name()


def _circumstances(args: argparse.Namespace, setting: Setting) -> Figures:
    return {
        **provenance(["mezzotint", "bench", *args.argv]),
        "device": _device_name(setting),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "openvino": version("openvino") if find_spec("openvino") else None,
        "model": str(setting.model),
        "model_sha256": digest(setting.model),
    }


if __name__ == "__main__":
    sys.exit(main())
