"""The kernels between a layer's matrix products against the plain path."""

from __future__ import annotations

import pytest
import torch

from model.engine.kernels import layer as kernel
from model.engine.kernels import reference
from model.engine.kernels.reference import Projection

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    # The reference rounds to bf16 after each operation, the kernels once.
    return {"atol": 5e-2, "rtol": 2e-2} if dtype is torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}


@both_dtypes
@pytest.mark.parametrize(("has_bias", "has_norms"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("dim", [16, 24])
def test_heads_are_split_normed_and_rotated_as_the_reference_does(
    dtype: torch.dtype, has_bias: bool, has_norms: bool, dim: int
) -> None:
    torch.manual_seed(0)
    batch, new, heads, groups = 2, 3, 4, 2
    qkv = torch.randn(batch, new, (heads + 2 * groups) * dim).to(dtype)
    norms = (torch.rand(dim).to(dtype), torch.rand(dim).to(dtype)) if has_norms else None
    bias = torch.randn(qkv.shape[-1]).to(dtype) if has_bias else None
    angles = torch.randn(batch, new, dim // 2)
    results = []
    for module in (kernel, reference):
        out = (torch.zeros(2, batch, groups, new, dim, dtype=dtype)).unbind()
        q = module.split_rotate(qkv, Projection(bias, norms, 1e-6), angles.cos(), angles.sin(), out)
        results.append((q, *out))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance(dtype))


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


@both_dtypes
def test_rows_become_float8_as_the_references_do(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0])[:, None]
    x = (torch.randn(5, 40) * sizes).to(dtype)
    (rows, scale), (expected_rows, expected_scale) = kernel.quantised(x), reference.quantised(x)
    assert rows.dtype is expected_rows.dtype
    torch.testing.assert_close(scale, expected_scale)
    # A tie between two values of float8 may go either way, a sixteenth apart.
    torch.testing.assert_close(rows.float(), expected_rows.float(), rtol=0.13, atol=2e-3)
