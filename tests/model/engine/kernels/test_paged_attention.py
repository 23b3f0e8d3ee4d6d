"""The paged kernel against the plain path, which test_reference.py ties to the model's own."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from model.attention import KeyValue
from model.engine.kernels import paged_attention as kernel
from model.engine.kernels import reference
from model.engine.kernels.reference import PagedStreams

PAGE = 16


def paged(
    lengths: list[list[int]], groups: int, dim: int, dtype: torch.dtype, max_pages: int
) -> tuple[KeyValue, PagedStreams]:
    """Random streams whose pages lie scattered in a pool that holds NaN wherever nothing is."""
    num_pages = 2 * max_pages * len(lengths[0])
    keys, values = torch.full((2, num_pages, groups, PAGE, dim), float("nan"), dtype=dtype)
    pages = torch.zeros((2, len(lengths[0]), max_pages), dtype=torch.int32)
    free = torch.randperm(num_pages).tolist()
    for role, row in product((0, 1), range(len(lengths[0]))):
        for index in range(-(-lengths[role][row] // PAGE)):
            page = pages[role, row, index] = free.pop()
            held = min(PAGE, lengths[role][row] - index * PAGE)
            keys[page, :, :held] = torch.randn(groups, held, dim).to(dtype)
            values[page, :, :held] = torch.randn(groups, held, dim).to(dtype)
    return (keys, values), PagedStreams(pages, torch.tensor(lengths, dtype=torch.int32))


def inputs(
    prefix: list[int],
    suffix: list[int],
    canvas: list[int],
    *,
    heads: int = 4,
    groups: int = 2,
    slots: int = 5,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
    max_pages: int = 10,
) -> tuple[Tensor, KeyValue, PagedStreams, KeyValue, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(2, len(prefix), heads, slots, dim).to(dtype)
    keys, values = torch.randn(2, len(prefix), groups, slots, dim).to(dtype)
    pool, streams = paged([prefix, suffix], groups, dim, dtype, max_pages)
    return q, pool, streams, (keys, values), torch.tensor(canvas, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "slots", "dim"), [
    (4, 2, 5, 16), (2, 2, 17, 64), (6, 2, 24, 32), (8, 1, 3, 128),
])  # fmt: skip
def test_mixed_lengths_give_the_references_attention(
    heads: int, groups: int, slots: int, dim: int, dtype: torch.dtype
) -> None:
    arguments = inputs(
        [1, 70, 16], [140, 2, 33], [slots, max(1, slots - 3), 1],
        heads=heads, groups=groups, slots=slots, dim=dim, dtype=dtype,
    )  # fmt: skip
    found = kernel.paged_attention(*arguments)
    expected = reference.paged_attention(*arguments)
    assert found.dtype is dtype
    tolerance = 2e-2 if dtype is torch.bfloat16 else 2e-5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("lengths", [(0, 40, 3), (40, 0, 3), (1, 1, 1), (0, 0, 4), (160, 160, 5)])
def test_empty_one_token_and_full_streams_give_the_references_attention(
    lengths: tuple[int, int, int],
) -> None:
    arguments = inputs(*([length] for length in lengths))
    expected = reference.paged_attention(*arguments)
    torch.testing.assert_close(kernel.paged_attention(*arguments), expected, atol=2e-5, rtol=2e-5)


def test_a_row_that_pads_the_batch_gets_zeros_and_leaves_the_others_alone() -> None:
    arguments = inputs([20, 0], [30, 0], [5, 0])
    found = kernel.paged_attention(*arguments)
    assert found[1].eq(0).all()
    assert found[0].isfinite().all()
    torch.testing.assert_close(found, reference.paged_attention(*arguments), atol=2e-5, rtol=2e-5)


def test_how_the_keys_are_split_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs([150], [130], [5])
    found = []
    for programs, shortest in [(1, 1024), (512, 64), (512, 16)]:
        monkeypatch.setattr(kernel, "WANTED_PROGRAMS", programs)
        monkeypatch.setattr(kernel, "MIN_SPLIT", shortest)
        found.append(kernel.paged_attention(*arguments))
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(found[2], found[0], atol=2e-6, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # the interpreter is numpy
def test_a_broken_query_shows_in_its_own_row_alone() -> None:
    arguments = inputs([20, 20], [30, 30], [5, 5])
    arguments[0][:, 1, :, 2] = float("nan")
    found = kernel.paged_attention(*arguments)
    assert found[1, :, 2].isnan().all()
    found[1, :, 2] = 0
    assert found.isfinite().all()


@pytest.mark.parametrize(("capacity", "programs", "keys"), [
    (384, 4, 64), (8_192, 8, 256), (32_768, 2, 256), (32_768, 600, 32_768), (16, 1, 64),
])  # fmt: skip
def test_stretches_are_as_short_as_the_wanted_number_of_programs_allows(
    capacity: int, programs: int, keys: int
) -> None:
    assert kernel.split_keys(capacity, programs) == keys
