from __future__ import annotations

import multiprocessing
import os
import signal
from itertools import islice

import pytest
import torch

from model.tokenizer import CodeTokenizer
from model.training import feed
from model.training.corpus import Document
from model.training.data import Batch, BatchShape, WindowSampler
from model.training.feed import num_workers, numbered_batches

SHAPE = BatchShape(windows=2, stream_tokens=64, canvases=4, canvas_sizes=(8, 16))


@pytest.fixture
def sampler(tokenizer: CodeTokenizer, code: str) -> WindowSampler:
    return WindowSampler([Document(code, "python", "")], tokenizer, SHAPE, seed=0)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in Batch.__slots__)


# Python warns of forks beside threads; the workers use none of their parent's.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_by_their_numbers_however_many_make_them(
    sampler: WindowSampler, workers: int
) -> None:
    with numbered_batches(sampler, first=3, stride=2, workers=workers) as batches:
        found = list(islice(batches, 5))
    for number, batch in zip((3, 5, 7, 9, 11), found, strict=True):
        assert same(batch, sampler.batch(number))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(
    sampler: WindowSampler, number: int
) -> None:
    with numbered_batches(sampler, first=0, stride=1, workers=1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, number)
        assert same(list(islice(batches, 6))[-1], sampler.batch(6))


def test_an_error_in_a_sampler_is_not_swallowed(
    sampler: WindowSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: int) -> Batch:
        raise ValueError(f"batch {step}")

    monkeypatch.setattr(sampler, "batch", fail)
    with (
        numbered_batches(sampler, first=4, stride=1, workers=0) as batches,
        pytest.raises(ValueError, match="batch 4"),
    ):
        next(batches)


def test_only_a_gpu_is_fed_by_processes() -> None:
    assert num_workers(torch.device("cpu")) == 0
    assert num_workers(torch.device("cuda")) == feed.CUDA_WORKERS
