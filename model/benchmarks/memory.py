"""Peak memory of an engine, in a process of its own so that no other part's memory counts."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import torch

from model.benchmarks.child import peak_rss_bytes
from model.benchmarks.clients import Typist, long_text
from model.benchmarks.setting import Setting
from model.benchmarks.table import Goal, Row
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
        text = long_text(setting)
        await Typist(text, 0).ask(completer)
        figures["rss_one_client"] = peak_rss_bytes()
        await asyncio.gather(*(Typist(text, n).ask(completer) for n in range(CLIENTS)))
        figures[f"rss_{CLIENTS}_clients"] = peak_rss_bytes()
    finally:
        await completer.close()


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    return [
        Row(
            name.replace("_", " ").replace("rss", "resident,").replace("cuda", "GPU,"),
            None if value is None else round(value / 1e6, 1),
            "MB",
            Goal("at most", 1300) if name == "rss_one_client" and not setting.on_cuda else None,
            "" if value is not None else "this system does not tell",
        )
        for name, value in figures.items()
    ]
