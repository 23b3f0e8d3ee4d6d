"""Windows made while the ones before them are trained on, in the order of their numbers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset

from model.training.windows import Window, WindowSampler

CUDA_WORKERS = 4
"""Processes that make windows for a GPU, which needs the first core for itself."""


def num_workers(device: torch.device) -> int:
    """Processes that make windows; on a CPU none, where a thread keeps up."""
    return CUDA_WORKERS if device.type == "cuda" else 0


@contextmanager
def numbered_windows(
    sampler: WindowSampler, first: int, stride: int, workers: int
) -> Iterator[Iterator[Window]]:
    """Endless windows number `first`, `first + stride`, ..., made ahead by `workers` processes, or
    by a thread where there are none."""
    numbers = count(first, stride)
    if workers:
        loader = DataLoader(
            cast("Dataset[Window]", _Numbered(sampler)),
            sampler=numbers,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=_settle_worker,
        )
        yield iter(loader)
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield _one_ahead(pool, sampler, numbers)


def _one_ahead(
    pool: ThreadPoolExecutor, sampler: WindowSampler, numbers: Iterator[int]
) -> Iterator[Window]:
    upcoming = pool.submit(sampler.window, next(numbers))
    while True:
        window = upcoming.result()
        upcoming = pool.submit(sampler.window, next(numbers))
        yield window


class _Numbered:
    """A sampler's windows by their number, as a `DataLoader` asks for them."""

    def __init__(self, sampler: WindowSampler) -> None:
        self.sampler = sampler

    def __getitem__(self, number: int) -> Window:
        return self.sampler.window(number)


def _settle_worker(_worker: int) -> None:
    # Ctrl-C and `timeout` signal the whole process group. The trainer finishes its step and saves;
    # a worker that died meanwhile would make it fail instead. Workers end when their loader does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
