"""What a report says besides its figures: where, when and with what they were measured."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from model import api

Figures = dict[str, Any]
"""Names and values, as they go out as JSON."""


def circumstances(args: argparse.Namespace, completer: api.Completer) -> Figures:
    """What is behind a report; of an engine elsewhere, only where it is."""
    told = provenance(["mezzotint", "evaluate", *args.argv])
    if args.engine is not None:
        return {**told, "engine": args.engine}
    import torch

    from model.serving.completer import EngineCompleter

    on_cuda = args.device.startswith("cuda") or (
        args.device == "auto" and torch.cuda.is_available()
    )
    gpu = None if args.device == "auto" else args.device
    told = {
        **told,
        "device": torch.cuda.get_device_name(gpu) if on_cuda else told["cpu"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if not isinstance(completer, EngineCompleter) or completer.path is None:
        return {**told, "model": str(args.model)}
    return {
        **told,
        "runtime": completer.runtime,
        "model": completer.path.name,
        "model_sha256": digest(completer.path),
    }


def provenance(command: Sequence[str]) -> Figures:
    """The command, when and on which machine it ran, and which version of ours it was."""
    return {
        "command": shlex.join(command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "mezzotint": _version(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
    }


def _version() -> str | None:
    """Our version; None where the code runs from a folder and was never installed."""
    try:
        return version("mezzotint")
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name, as the machine tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return f"{value.strip()} ({os.cpu_count()} cores)"
    return platform.processor() or platform.machine()


@cache
def commit() -> str | None:
    """This code's git commit, with `+` behind it when files differ; None outside a repository.

    As it was when this was asked first: whoever measures for long asks before.
    """
    here = Path(__file__).parent
    answers: list[str] = []
    for question in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(
                ["git", *question], cwd=here, capture_output=True, text=True, check=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")


def digest(model: Path) -> str:
    """SHA-256 of a backbone's file, or of a checkpoint's weights, one file after the other."""
    from model.families.weights import weight_files  # imports torch

    sha256 = hashlib.sha256()
    for path in [model] if model.is_file() else weight_files(model):
        with open(path, "rb") as file:
            while block := file.read(2**20):
                sha256.update(block)
    return sha256.hexdigest()


def write_report(path: Path, report: Figures) -> None:
    """Write a report as JSON; its rows a line each, so that two reports can be compared."""
    rows = report.pop("rows", None)
    text = json.dumps(report, indent=2)
    if rows is not None:
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        text = text.removesuffix("\n}") + f',\n  "rows": [\n{lines}\n  ]\n}}'
    path.write_text(text + "\n", encoding="utf-8")


def make_room(path: Path) -> None:
    """See that a report can be written to `path`, before the work and not after it.

    Makes the folder. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    path.open("ab").close()
    if is_new:
        path.unlink()


def beside(stem: Path, extension: str) -> Path:
    """`stem` with an extension put behind it: `sweep-0.9` gives `sweep-0.9.json`."""
    return stem.with_name(stem.name + extension)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """A percentile of measured values, rounded to 0.01; None of none."""
    return round(float(np.percentile(values, percent)), 2) if values else None


def share(part: float, whole: float) -> float | None:
    """`part` of `whole`, rounded to 1e-4; None of nothing."""
    return round(part / whole, 4) if whole else None
