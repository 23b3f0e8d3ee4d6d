"""What a report says besides its figures: where, when and with what they were measured."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Figures = dict[str, Any]
"""Names and values, as they go out as JSON."""


def circumstances(args: argparse.Namespace) -> Figures:
    """The command, machine, versions, commit and checkpoint behind a report."""
    import torch

    on_cuda = args.device.startswith("cuda") or (
        args.device == "auto" and torch.cuda.is_available()
    )
    return {
        "command": " ".join(["mezzotint", "evaluate", *args.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if on_cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mezzotint": version("mezzotint"),
        "commit": commit(),
        **(
            {"engine": args.engine}
            if args.engine is not None
            else {"model": str(args.model), "model_sha256": digest(args.model)}
        ),
    }


def cpu_name() -> str:
    """The processor's name, as the machine tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return f"{value.strip()} ({os.cpu_count()} cores)"
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """This code's git commit, with `+` behind it when files differ; None outside a repository."""
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


def digest(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights."""
    with open(checkpoint / "model.safetensors", "rb") as file:
        sha256 = hashlib.sha256()
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


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile of measured values, rounded to 0.01; 0 of none."""
    return round(float(np.percentile(values, percent)), 2) if values else 0.0


def share(part: float, whole: float) -> float | None:
    """`part` of `whole`, rounded to 1e-4; None of nothing."""
    return round(part / whole, 4) if whole else None
