"""`mezzotint bench`: how fast is the engine? Also `python -m model.benchmarks`.

Each part is a module with a `TITLE`, `measure(setting)` and `rows(figures, setting)`. `keystrokes`
replays the language server's requests and is a command of its own.
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

from lsp_server.context import DocumentError
from model.api import SHIPPED_WEIGHTS, CompletionError
from model.benchmarks import clients, context, decoding, floor, memory, peer, plot, table
from model.benchmarks.setting import Setting
from model.evaluation.report import Figures, cpu_name, digest, make_room, provenance, write_report

PARTS: dict[str, ModuleType] = {
    "decoding": decoding,
    "transformers": peer,
    "floor": floor,
    "context": context,
    "clients": clients,
    "memory": memory,
}
"""The parts of `mezzotint bench`, in the order they run in."""


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on a wrong one."""
    replays = list(argv[:1]) == ["keystrokes"]
    parser = argparse.ArgumentParser(
        prog="mezzotint bench keystrokes" if replays else "mezzotint bench",
        description="Replay an editing session: what does a key cost?"
        if replays
        else "Measure how fast the engine is. `mezzotint bench keystrokes` replays a session.",
    )
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH",
        help="files or folders of code to measure with (Mezzotint's own code)",
    )  # fmt: skip
    if replays:
        parser.add_argument(
            "--events", type=int, metavar="N", help="length of the session (1500; quick: 60)"
        )
    else:
        parser.add_argument(
            "--parts", type=_parts, default=list(PARTS), metavar="A,B,…",
            help=f"what to measure, of {','.join(PARTS)} (all)",
        )  # fmt: skip
        parser.add_argument(
            "--data", type=Path, metavar="FILE",
            help="take prompts from a HumanEval-Infilling file instead (decoding, transformers)",
        )  # fmt: skip
    _add_common_arguments(parser)
    args = parser.parse_args(argv[1:] if replays else argv)
    args.replays, args.argv = replays, list(argv)
    if replays and args.events is not None and args.events < 1:
        parser.error(f"--events is {args.events}; it must be at least 1")
    return args


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, default=SHIPPED_WEIGHTS, metavar="PATH",
        help="checkpoint directory (the shipped one)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
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
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        paths=tuple(args.paths),
        data=None if args.replays else args.data,
        seed=args.seed,
        quick=args.quick,
    )
    report = None
    if args.out is not None:
        name = "keystrokes" if args.replays else "bench"
        report = args.out / f"{name}-{setting.torch_device.type}.json"
        make_room(report)
    figures = _replay(args, setting) if args.replays else _measure(args.parts, setting)
    if report is not None:
        write_report(report, {**figures, "circumstances": _circumstances(args, setting)})
        if not args.replays:
            plot.draw(figures, report.with_suffix(".png"), _device_name(setting))
    return figures


def _replay(args: argparse.Namespace, setting: Setting) -> Figures:
    from model.benchmarks import keystrokes  # needs the language server's grammars, a GPU box none

    num_events = args.events or (60 if args.quick else 1500)
    figures = asyncio.run(keystrokes.measure(setting, num_events))
    rows = keystrokes.rows(figures, setting)
    _print_section(keystrokes.TITLE, rows)
    return {**figures, "goals": table.verdicts("keystrokes", rows)}


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
        "model": str(args.model),
        "model_sha256": digest(args.model),
    }


if __name__ == "__main__":
    sys.exit(main())
