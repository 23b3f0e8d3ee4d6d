"""The head's kernel against the plain product."""

from __future__ import annotations

import pytest
import torch

from model.engine.kernels import head as kernel
from model.engine.kernels import reference


@pytest.mark.parametrize(("rows", "vocab", "size"), [(1, 300, 40), (17, 64, 64), (70, 130, 16)])
def test_logits_are_those_of_the_product(rows: int, vocab: int, size: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, size), torch.randn(vocab, size)
    found = kernel.logits(hidden, weight)
    torch.testing.assert_close(found, reference.logits(hidden, weight), atol=2e-5, rtol=2e-5)


def test_sums_of_bf16_products_are_not_rounded() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 64).bfloat16(), torch.randn(200, 64).bfloat16()
    found, exact = kernel.logits(hidden, weight), hidden.float() @ weight.float().T
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, exact, atol=2e-5, rtol=2e-5)
    assert not found.bfloat16().float().equal(found)
