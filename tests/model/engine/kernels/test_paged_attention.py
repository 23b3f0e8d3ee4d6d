"""The attention kernel against the plain path: over pages in any order, over trees, over NaN."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from model.engine.kernels import paged_attention as kernel
from model.engine.kernels import reference
from model.engine.kernels.reference import PagedStreams
from model.transformer import KeyValue

PAGE = 16


def paged(
    lengths: list[int], groups: int, dim: int, dtype: torch.dtype, max_pages: int
) -> tuple[KeyValue, PagedStreams]:
    """A pool of which only the streams' own tokens were ever written: all else is NaN."""
    batch = len(lengths)
    num_pages = batch * max_pages + 1
    keys = torch.full((num_pages, groups, PAGE, dim), float("nan")).to(dtype)
    values = torch.full_like(keys, float("nan"))
    free = list(range(num_pages))
    random.Random(0).shuffle(free)
    pages = torch.full((batch, max_pages), free.pop(), dtype=torch.int32)
    for row, length in enumerate(lengths):
        for index in range(-(-length // PAGE)):
            page = pages[row, index] = free.pop()
            held = min(PAGE, length - index * PAGE)
            keys[page, :, :held] = torch.randn(groups, held, dim).to(dtype)
            values[page, :, :held] = torch.randn(groups, held, dim).to(dtype)
    return (keys, values), PagedStreams(pages, torch.tensor(lengths, dtype=torch.int32))


def tree(new: int, seed: int) -> Tensor:
    """(N, N) bool: rows below random parents."""
    draw = random.Random(seed)
    seen = torch.eye(new, dtype=torch.bool)
    for row in range(1, new):
        parent = draw.randrange(-1, row)
        if parent >= 0:
            seen[row] |= seen[parent]
    return seen


def inputs(
    lengths: list[int],
    *,
    heads: int = 4,
    groups: int = 2,
    new: int = 5,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
    max_pages: int = 10,
) -> tuple[Tensor, KeyValue, PagedStreams, KeyValue, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(len(lengths), heads, new, dim).to(dtype)
    keys, values = torch.randn(2, len(lengths), groups, new, dim).to(dtype)
    pool, streams = paged(lengths, groups, dim, dtype, max_pages)
    visible = torch.stack([tree(new, seed) for seed in range(len(lengths))])
    return q, pool, streams, (keys, values), visible


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "new", "dim"), [
    (4, 2, 5, 16), (2, 2, 1, 64), (14, 2, 8, 32), (8, 1, 3, 128), (4, 2, 70, 16),
])  # fmt: skip
def test_mixed_lengths_and_trees_give_the_references_attention(
    heads: int, groups: int, new: int, dim: int, dtype: torch.dtype
) -> None:
    arguments = inputs([1, 140, 32, 0], heads=heads, groups=groups, new=new, dim=dim, dtype=dtype)
    found = kernel.paged_attention(*arguments)
    expected = reference.paged_attention(*arguments)
    assert found.dtype is dtype
    tolerance = 2e-2 if dtype is torch.bfloat16 else 2e-5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 160])
def test_a_lone_stream_of_any_length_gives_the_references_attention(length: int) -> None:
    arguments = inputs([length])
    expected = reference.paged_attention(*arguments)
    torch.testing.assert_close(kernel.paged_attention(*arguments), expected, atol=2e-5, rtol=2e-5)


def test_how_the_keys_are_split_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs([150])
    found = []
    for programs, shortest in [(1, 1024), (512, 64), (512, 16)]:
        monkeypatch.setattr(kernel, "WANTED_PROGRAMS", programs)
        monkeypatch.setattr(kernel, "MIN_SPLIT", shortest)
        found.append(kernel.paged_attention(*arguments))
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(found[2], found[0], atol=2e-6, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:All-NaN slice")  # numpy
def test_a_broken_query_shows_in_its_own_row_alone() -> None:
    arguments = inputs([20, 40])
    arguments[0][1, :, 2] = float("nan")
    found = kernel.paged_attention(*arguments)
    assert found[1, 2].isnan().all()
    found[1, 2] = 0
    assert found.isfinite().all()


@pytest.mark.parametrize(("capacity", "programs", "keys"), [
    (384, 4, 64), (8_192, 8, 128), (32_768, 2, 128), (32_768, 600, 32_768), (16, 1, 64),
])  # fmt: skip
def test_stretches_are_as_short_as_the_wanted_number_of_programs_allows(
    capacity: int, programs: int, keys: int
) -> None:
    assert kernel.split_keys(capacity, programs) == keys
