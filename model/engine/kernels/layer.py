"""What lies between a layer's matrix products, in three kernels instead of some thirty.

A step over tens of slots moves little data, and every kernel that torch starts for it costs more
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

from model.engine.kernels.reference import Rotations


@triton.jit
def _split_rotate(
    qkv_ptr,
    q_norm_ptr,
    k_norm_ptr,
    left_cos_ptr,
    left_sin_ptr,
    right_cos_ptr,
    right_sin_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    num_slots,
    num_heads,
    num_groups,
    num_tokens,
    eps,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
):
    """One head of one slot: normalise, rotate, and put where attention reads it."""
    token, head = tl.program_id(0), tl.program_id(1)
    batch, slot = token // num_slots, token % num_slots
    dim = tl.arange(0, HALF)
    at = (token * (num_heads + 2 * num_groups) + head) * (2 * HALF) + dim
    first = tl.load(qkv_ptr + at).to(tl.float32)
    second = tl.load(qkv_ptr + at + HALF).to(tl.float32)
    if head < num_heads + num_groups:
        if NORM:
            mean = (tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF)
            scale = 1.0 / tl.sqrt(mean + eps)
            is_query = head < num_heads
            first *= scale * tl.where(
                is_query, tl.load(q_norm_ptr + dim), tl.load(k_norm_ptr + dim)
            ).to(tl.float32)
            second *= scale * tl.where(
                is_query, tl.load(q_norm_ptr + HALF + dim), tl.load(k_norm_ptr + HALF + dim)
            ).to(tl.float32)
        cos = tl.load(left_cos_ptr + token * HALF + dim)
        sin = tl.load(left_sin_ptr + token * HALF + dim)
        left_first, left_second = first * cos - second * sin, second * cos + first * sin
        if head < num_heads:
            at = ((batch * num_heads + head) * num_slots + slot) * (2 * HALF) + dim
            tl.store(q_ptr + at, left_first)
            tl.store(q_ptr + at + HALF, left_second)
            cos = tl.load(right_cos_ptr + token * HALF + dim)
            sin = tl.load(right_sin_ptr + token * HALF + dim)
            at += num_tokens * num_heads * (2 * HALF)
            tl.store(q_ptr + at, first * cos - second * sin)
            tl.store(q_ptr + at + HALF, second * cos + first * sin)
        else:
            group = head - num_heads
            at = ((batch * num_groups + group) * num_slots + slot) * (2 * HALF) + dim
            tl.store(k_ptr + at, left_first)
            tl.store(k_ptr + at + HALF, left_second)
    else:
        group = head - num_heads - num_groups
        at = ((batch * num_groups + group) * num_slots + slot) * (2 * HALF) + dim
        tl.store(v_ptr + at, first)
        tl.store(v_ptr + at + HALF, second)


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


def split_rotate(
    qkv_BNF: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    rotations: Rotations,
    num_heads: int,
    num_groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.split_rotate`. All tensors are contiguous."""
    batch, slots, width = qkv_BNF.shape
    dim = width // (num_heads + 2 * num_groups)
    q = qkv_BNF.new_empty((2, batch, num_heads, slots, dim))
    k, v = qkv_BNF.new_empty((2, batch, num_groups, slots, dim))
    _split_rotate[(batch * slots, num_heads + 2 * num_groups)](
        qkv_BNF, *(norms or (qkv_BNF, qkv_BNF)), *rotations.left, *rotations.right, q, k, v,
        slots, num_heads, num_groups, batch * slots, eps, HALF=dim // 2, NORM=norms is not None,
    )  # fmt: skip
    return q, k, v


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
