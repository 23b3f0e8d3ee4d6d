from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import fields
from itertools import islice

import pytest
import torch

from model.training import feed
from model.training.feed import num_workers, numbered_windows
from model.training.windows import Window, WindowSampler


def same(a: Window, b: Window) -> bool:
    _, *names = (field.name for field in fields(Window))
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


# Python warns of forks beside threads; the workers use none of their parent's.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_windows_come_by_their_numbers_however_many_make_them(
    sampler: WindowSampler, workers: int
) -> None:
    with numbered_windows(sampler, first=3, stride=2, workers=workers) as windows:
        found = list(islice(windows, 5))
    for number, window in zip((3, 5, 7, 9, 11), found, strict=True):
        assert same(window, sampler.window(number))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(
    sampler: WindowSampler, number: int
) -> None:
    with numbered_windows(sampler, first=0, stride=1, workers=1) as windows:
        next(windows)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, number)
        assert same(list(islice(windows, 6))[-1], sampler.window(6))


def test_an_error_in_a_sampler_is_not_swallowed(
    sampler: WindowSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: int) -> Window:
        raise ValueError(f"window {step}")

    monkeypatch.setattr(sampler, "window", fail)
    with (
        numbered_windows(sampler, first=4, stride=1, workers=0) as windows,
        pytest.raises(ValueError, match="window 4"),
    ):
        next(windows)


def test_only_a_gpu_is_fed_by_processes() -> None:
    assert num_workers(torch.device("cpu")) == 0
    assert num_workers(torch.device("cuda")) == feed.CUDA_WORKERS
