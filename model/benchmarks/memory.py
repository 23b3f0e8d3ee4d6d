"""Peak memory of an engine, in a process of its own so that no other part's memory counts."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from model.benchmarks.clients import Typist
from model.benchmarks.setting import Setting
from model.benchmarks.table import Row
from model.evaluation.report import Figures

TITLE = "Peak memory"

CLIENTS = 16


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        # A copy: what the setting has read already stays behind.
        work = pool.submit(in_this_process, replace(setting))
        return await asyncio.wrap_future(work)


def in_this_process(setting: Setting) -> Figures:
    """Peaks (bytes) after importing, loading, one user's fill, and `CLIENTS` at once."""
    figures: Figures = {"rss_imported": peak_rss_bytes()}
    asyncio.run(_fill(setting, figures))
    if setting.on_cuda:
        figures["cuda_allocated"] = torch.cuda.max_memory_allocated(setting.torch_device)
        figures["cuda_reserved"] = torch.cuda.max_memory_reserved(setting.torch_device)
    return figures


async def _fill(setting: Setting, figures: Figures) -> None:
    completer = setting.open_completer()
    try:
        figures["rss_loaded"] = peak_rss_bytes()
        text = setting.text_of(setting.size(full=30_000, gpu=30_000, quick=2000))
        await Typist(text, 0).ask(completer)
        figures["rss_one_client"] = peak_rss_bytes()
        await asyncio.gather(*(Typist(text, n).ask(completer) for n in range(CLIENTS)))
        figures[f"rss_{CLIENTS}_clients"] = peak_rss_bytes()
    finally:
        await completer.close()


def peak_rss_bytes() -> int | None:
    """The most memory this process has had resident; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which on Linux counts what our parent held when it started us.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        return 1024 * int(found[1]) if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    return [
        Row(
            name.replace("_", " ").replace("rss", "resident,").replace("cuda", "GPU,"),
            None if value is None else round(value / 1e6, 1),
            "MB",
            note="" if value is not None else "this system does not tell",
        )
        for name, value in figures.items()
    ]
