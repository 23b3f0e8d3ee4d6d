from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.engine.run.float8 import Float8Weight, linear, quantised


def test_a_rows_largest_entry_is_kept_and_the_others_within_a_sixteenth() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0])[:, None]
    rows, scale = quantised(x)
    restored = rows.float() * scale
    assert restored.abs().amax(-1).tolist() == pytest.approx(x.abs().amax(-1).tolist(), rel=1e-5)
    # Three bits of mantissa round by a sixteenth at most; below the smallest normal, to a step.
    assert ((restored - x).abs() <= x.abs() / 16 + scale * 2**-10).all()


def test_a_product_is_that_of_the_full_weight_within_eight_bits() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 64), torch.randn(32, 64)
    found, expected = linear(x, Float8Weight.of(weight)), F.linear(x, weight)
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 0.05


def test_sizes_that_a_card_cannot_multiply_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(24, 64\).*use dtype bfloat16"):
        Float8Weight.of(torch.zeros(24, 64))
