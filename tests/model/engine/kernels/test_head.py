"""The fused head against the plain path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.engine.kernels import head as kernel
from model.engine.kernels import reference
from model.engine.kernels.reference import SlotBeliefs


def inputs(
    rows: int, tokens: int, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    torch.manual_seed(0)
    forbidden = torch.zeros(tokens, dtype=torch.bool)
    forbidden[[0, tokens // 2]] = True
    return (
        (2 * torch.randn(rows, size)).to(dtype),
        torch.randn(tokens, size).to(dtype),
        torch.rand(rows) < 0.6,
        torch.rand(rows) < 0.5,
        forbidden,
        tokens - 1,
    )


def assert_equal(found: SlotBeliefs, expected: SlotBeliefs, tolerance: float) -> None:
    assert found.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(found.confidence, expected.confidence, atol=tolerance, rtol=1e-4)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize(("rows", "tokens", "size"), [
    (1, 5, 16), (7, 64, 33), (16, 130, 48), (40, 200, 70), (70, 65, 16),
])  # fmt: skip
def test_odd_sizes_give_the_references_beliefs(rows: int, tokens: int, size: int) -> None:
    arguments = inputs(rows, tokens, size)
    assert_equal(kernel.head(*arguments), reference.head(*arguments), 1e-5)


def test_bf16_gives_the_beliefs_of_the_same_weights_in_fp32() -> None:
    hidden, weight, *rest = inputs(20, 100, 64, torch.bfloat16)
    expected = reference.head(hidden.float(), weight.float(), *rest)
    assert_equal(kernel.head(hidden, weight, *rest), expected, 1e-5)


def test_of_equal_logits_the_smallest_id_wins_also_across_tiles() -> None:
    hidden, weight = torch.ones(3, 16), torch.zeros(200, 16)
    weight[[70, 75, 190]] = 1.0
    wanted, no_end = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    forbidden = torch.zeros(200, dtype=torch.bool)
    beliefs = kernel.head(hidden, weight, wanted, no_end, forbidden, 199)
    assert beliefs.tokens.tolist() == [70] * 3


def test_an_end_is_kept_from_the_slots_that_may_not_take_it() -> None:
    hidden, weight = torch.ones(2, 16), torch.zeros(70, 16)
    weight[69], weight[3] = 2.0, 1.0
    no_end = torch.tensor([False, True])
    forbidden = torch.zeros(70, dtype=torch.bool)
    beliefs = kernel.head(hidden, weight, torch.ones_like(no_end), no_end, forbidden, 69)
    assert beliefs.tokens.tolist() == [69, 3]


def test_without_a_wanted_slot_nothing_is_computed() -> None:
    hidden, weight, wanted, *rest = inputs(20, 100, 16)
    hidden.fill_(float("nan"))  # would show
    beliefs = kernel.head(hidden, weight, torch.zeros_like(wanted), *rest)
    assert not beliefs.tokens.any()
    assert not beliefs.confidence.any()
    assert not beliefs.entropy.any()


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # the interpreter is numpy
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_slot_shows_as_nan_in_its_own_row_alone(broken: float) -> None:
    hidden, weight, wanted, *rest = inputs(20, 100, 16)
    hidden[4] = broken
    wanted[4] = True
    found = kernel.head(hidden, weight, wanted, *rest)
    assert found.confidence[4].isnan()
    assert 0 <= found.tokens[4] < 100
    hidden[4] = 0
    expected = reference.head(hidden, weight, wanted, *rest)
    others = torch.arange(20) != 4
    torch.testing.assert_close(found.confidence[others], expected.confidence[others])
    assert found.tokens[others].tolist() == expected.tokens[others].tolist()
