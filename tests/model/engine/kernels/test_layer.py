"""The kernels between a layer's matrix products against the plain path."""

from __future__ import annotations

import pytest
import torch

from model.engine.kernels import layer as kernel
from model.engine.kernels import reference
from model.engine.kernels.reference import Rotations

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    # The reference rounds to bf16 after each operation, the kernels once.
    return {"atol": 5e-2, "rtol": 2e-2} if dtype is torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}


@both_dtypes
@pytest.mark.parametrize("has_norms", [True, False])
def test_heads_are_split_normed_and_rotated_as_the_reference_does(
    dtype: torch.dtype, has_norms: bool
) -> None:
    torch.manual_seed(0)
    batch, slots, heads, groups, dim = 2, 3, 4, 2, 16
    qkv = torch.randn(batch, slots, (heads + 2 * groups) * dim).to(dtype)
    norms = (torch.rand(dim).to(dtype), torch.rand(dim).to(dtype)) if has_norms else None
    angles = torch.randn(2, batch, slots, dim // 2)
    rotations = Rotations((angles[0].cos(), angles[0].sin()), (angles[1].cos(), angles[1].sin()))
    found = kernel.split_rotate(qkv, norms, 1e-6, rotations, heads, groups)
    expected = reference.split_rotate(qkv, norms, 1e-6, rotations, heads, groups)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance(dtype))


@both_dtypes
@pytest.mark.parametrize("size", [16, 40])
def test_a_residual_is_added_and_normed_as_the_reference_does(
    dtype: torch.dtype, size: int
) -> None:
    torch.manual_seed(0)
    x, delta = torch.randn(2, 2, 3, size).to(dtype)
    weight = torch.rand(size).to(dtype)
    found = kernel.add_norm(x, delta, weight, 1e-6)
    expected = reference.add_norm(x, delta, weight, 1e-6)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance(dtype))


@both_dtypes
@pytest.mark.parametrize("size", [16, 1030])
def test_gates_are_applied_as_the_reference_does(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(2, 3, 2 * size).to(dtype)
    found, expected = kernel.swiglu(gate_up), reference.swiglu(gate_up)
    torch.testing.assert_close(found, expected, **tolerance(dtype))
