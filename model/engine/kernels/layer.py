"""What lies between a layer's matrix products, in four kernels instead of some forty.

A forward over a few rows moves little data, and every kernel that torch starts for it costs more
than its work. Sums are float32 and rounded once, where plain torch rounds after each operation.
The functions are those of `reference`.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false
# Triton's functions run on the device: their Python signatures say little of what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.kernels.reference import Projection
from model.engine.run.float8 import FLOAT8, LARGEST, SMALLEST
from model.transformer import KeyValue


@triton.jit(do_not_specialize=["num_new"])
def _split_rotate(
    qkv_ptr,
    bias_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    num_new,
    num_heads,
    num_groups,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
):
    """One head of one row: normalise, rotate, and put where attention reads it."""
    token, head = tl.program_id(0), tl.program_id(1)
    batch, new = token // num_new, token % num_new
    dim = tl.arange(0, BLOCK)
    is_dim = dim < HALF
    at = (token * (num_heads + 2 * num_groups) + head) * (2 * HALF) + dim
    first = tl.load(qkv_ptr + at, mask=is_dim, other=0.0).to(tl.float32)
    second = tl.load(qkv_ptr + at + HALF, mask=is_dim, other=0.0).to(tl.float32)
    if BIAS:
        at = head * (2 * HALF) + dim
        first += tl.load(bias_ptr + at, mask=is_dim, other=0.0).to(tl.float32)
        second += tl.load(bias_ptr + at + HALF, mask=is_dim, other=0.0).to(tl.float32)
    if head < num_heads + num_groups:
        is_query = head < num_heads
        if NORM:
            mean = (tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF)
            scale = 1.0 / tl.sqrt(mean + eps)
            q_first = tl.load(q_norm_ptr + dim, mask=is_dim, other=0.0)
            q_second = tl.load(q_norm_ptr + HALF + dim, mask=is_dim, other=0.0)
            k_first = tl.load(k_norm_ptr + dim, mask=is_dim, other=0.0)
            k_second = tl.load(k_norm_ptr + HALF + dim, mask=is_dim, other=0.0)
            first *= scale * tl.where(is_query, q_first, k_first).to(tl.float32)
            second *= scale * tl.where(is_query, q_second, k_second).to(tl.float32)
        cos = tl.load(cos_ptr + token * HALF + dim, mask=is_dim, other=0.0)
        sin = tl.load(sin_ptr + token * HALF + dim, mask=is_dim, other=0.0)
        turned, other = first * cos - second * sin, second * cos + first * sin
        if is_query:
            at = ((batch * num_heads + head) * num_new + new) * (2 * HALF) + dim
            tl.store(q_ptr + at, turned, mask=is_dim)
            tl.store(q_ptr + at + HALF, other, mask=is_dim)
        else:
            group = head - num_heads
            at = ((batch * num_groups + group) * num_new + new) * (2 * HALF) + dim
            tl.store(k_ptr + at, turned, mask=is_dim)
            tl.store(k_ptr + at + HALF, other, mask=is_dim)
    else:
        group = head - num_heads - num_groups
        at = ((batch * num_groups + group) * num_new + new) * (2 * HALF) + dim
        tl.store(v_ptr + at, first, mask=is_dim)
        tl.store(v_ptr + at + HALF, second, mask=is_dim)


@triton.jit
def _add_norm(
    x_ptr, delta_ptr, weight_ptr, sum_ptr, normed_ptr, size, eps, SIZE: tl.constexpr
):  # fmt: skip
    """One row."""
    dim = tl.arange(0, SIZE)
    is_dim = dim < size
    at = tl.program_id(0).to(tl.int64) * size + dim
    x = tl.load(x_ptr + at, mask=is_dim, other=0.0)
    delta = tl.load(delta_ptr + at, mask=is_dim, other=0.0)
    # Rounded as it is stored: the next layer adds to what this norm saw.
    total = (x.to(tl.float32) + delta.to(tl.float32)).to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + at, total, mask=is_dim)
    total = total.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, 0) / size + eps)
    weight = tl.load(weight_ptr + dim, mask=is_dim, other=0.0).to(tl.float32)
    tl.store(normed_ptr + at, total * scale * weight, mask=is_dim)


@triton.jit
def _swiglu(gate_up_ptr, out_ptr, size, SIZE: tl.constexpr):
    """A stretch of one row."""
    row = tl.program_id(0).to(tl.int64)
    dim = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    is_dim = dim < size
    gate = tl.load(gate_up_ptr + row * 2 * size + dim, mask=is_dim, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * size + size + dim, mask=is_dim, other=0.0)
    tl.store(out_ptr + row * size + dim, gate * tl.sigmoid(gate) * up.to(tl.float32), mask=is_dim)


@triton.jit
def _quantised(
    x_ptr, rows_ptr, scale_ptr, size, largest_float8, smallest_entry, SIZE: tl.constexpr
):  # fmt: skip
    """One row."""
    dim = tl.arange(0, SIZE)
    is_dim = dim < size
    at = tl.program_id(0).to(tl.int64) * size + dim
    x = tl.load(x_ptr + at, mask=is_dim, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), 0)
    scale = tl.where(largest < smallest_entry, smallest_entry, largest) / largest_float8
    tl.store(scale_ptr + tl.program_id(0), scale)
    tl.store(rows_ptr + at, (x / scale).to(rows_ptr.dtype.element_ty), mask=is_dim)


def split_rotate(
    qkv_BNF: Tensor, projection: Projection, cos_BNd: Tensor, sin_BNd: Tensor, out: KeyValue
) -> Tensor:
    """See `reference.split_rotate`. All tensors are contiguous."""
    batch, num_new, width = qkv_BNF.shape
    groups, dim = out[0].shape[1], out[0].shape[3]
    heads = width // dim - 2 * groups
    q = qkv_BNF.new_empty((batch, heads, num_new, dim))
    bias, norms = projection.bias_F, projection.norms
    _split_rotate[(batch * num_new, heads + 2 * groups)](
        qkv_BNF, qkv_BNF if bias is None else bias, *(norms or (qkv_BNF, qkv_BNF)), cos_BNd,
        sin_BNd, q, *out, num_new, heads, groups, projection.eps, HALF=dim // 2,
        BLOCK=triton.next_power_of_2(dim // 2), BIAS=bias is not None, NORM=norms is not None,
    )  # fmt: skip
    return q


def add_norm(
    x_BNE: Tensor, delta_BNE: Tensor, weight_E: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_norm`. All tensors are contiguous."""
    size = x_BNE.shape[-1]
    total, normed = torch.empty_like(x_BNE), torch.empty_like(x_BNE)
    _add_norm[(x_BNE.numel() // size,)](
        x_BNE, delta_BNE, weight_E, total, normed, size, eps, SIZE=triton.next_power_of_2(size)
    )
    return total, normed


def swiglu(gate_up_BNF: Tensor) -> Tensor:
    """See `reference.swiglu`. The tensor is contiguous."""
    size = gate_up_BNF.shape[-1] // 2
    out = gate_up_BNF.new_empty((*gate_up_BNF.shape[:-1], size))
    stretch = min(1024, triton.next_power_of_2(size))
    grid = (out.numel() // size, triton.cdiv(size, stretch))
    _swiglu[grid](gate_up_BNF, out, size, SIZE=stretch)
    return out


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `float8.quantised`. The tensor is contiguous."""
    size = x.shape[-1]
    rows = torch.empty_like(x, dtype=FLOAT8)
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _quantised[(x.numel() // size,)](
        x, rows, scale, size, LARGEST, SMALLEST, SIZE=triton.next_power_of_2(size)
    )
    return rows, scale
