from __future__ import annotations

import pytest
import torch
from torch import nn

from model.engine.run.eight_bits import Float8Linear, Int8Linear


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def linear(request: pytest.FixtureRequest) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(64, 32, bias=request.param)
    with torch.no_grad():
        made.weight.mul_(torch.linspace(0.01, 10, 32)[:, None])  # rows of very different sizes
    return made.requires_grad_(False)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of each output by itself: a large row must not hide a small one."""
    return ((found - expected).norm(dim=0) / expected.norm(dim=0)).max().item()


def test_int8_rows_are_rounded_to_a_255th_of_their_largest_entry(linear: nn.Linear) -> None:
    small = Int8Linear(linear)
    assert small.weight.dtype == torch.int8
    restored = small.weight * small.scale[:, None]
    largest = linear.weight.abs().amax(dim=1, keepdim=True)
    assert ((restored - linear.weight).abs() <= largest / 254 * 1.001).all()


@pytest.mark.parametrize(("kind", "bound"), [(Int8Linear, 0.02), (Float8Linear, 0.08)])
def test_products_stay_close_row_by_row(
    linear: nn.Linear, kind: type[nn.Module], bound: float
) -> None:
    x = torch.randn(5, 7, 64)
    found, expected = kind(linear)(x), linear(x)
    assert found.shape == expected.shape
    assert 0 < relative_error(found.flatten(0, 1), expected.flatten(0, 1)) < bound


@pytest.mark.parametrize("kind", [Int8Linear, Float8Linear])
def test_products_have_the_dtype_of_their_input(kind: type[nn.Module]) -> None:
    linear = nn.Linear(64, 32).to(torch.bfloat16).requires_grad_(False)
    assert kind(linear)(torch.ones(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_row_of_zeros_stays_one() -> None:
    linear = nn.Linear(16, 16, bias=False).requires_grad_(False)
    linear.weight[3] = 0
    assert Int8Linear(linear)(torch.ones(1, 16))[0, 3] == 0
