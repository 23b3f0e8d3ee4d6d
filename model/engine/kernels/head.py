"""The output head: logits of the rows that need them, as float32 sums.

The head is the largest weight of a small model, and a forward that writes multiplies it with a
handful of rows. Rounded to bf16, as plain torch's product is, the likeliest tokens would often be
equal. The function is `reference.logits`.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false
# Triton's functions run on the device: their Python signatures say little of what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Tokens of a vocabulary tile: 150,000 make 2,400 programs."""


@triton.jit(do_not_specialize=["num_rows"])
def _head_tile(
    hidden_ptr,
    weight_ptr,
    logits_ptr,
    num_rows,
    num_tokens,
    size,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """A block of rows and a tile of the vocabulary."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_row, is_token = row < num_rows, token < num_tokens
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in range(0, size, DIMS):
        dim = start + tl.arange(0, DIMS)
        is_dim = dim < size
        hidden = tl.load(
            hidden_ptr + row[:, None] * size + dim[None, :],
            mask=is_row[:, None] & is_dim[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + token.to(tl.int64)[None, :] * size + dim[:, None],
            mask=is_token[None, :] & is_dim[:, None],
            other=0.0,
        )
        total += tl.dot(hidden, weight, input_precision="ieee")
    at = row.to(tl.int64)[:, None] * num_tokens + token[None, :]
    tl.store(logits_ptr + at, total, mask=is_row[:, None] & is_token[None, :])


def logits(hidden_ME: Tensor, weight_VE: Tensor) -> Tensor:
    """See `reference.logits`. Both tensors are contiguous."""
    (num_rows, size), num_tokens = hidden_ME.shape, len(weight_VE)
    found = hidden_ME.new_empty((num_rows, num_tokens), dtype=torch.float32)
    rows_block = min(64, max(16, triton.next_power_of_2(num_rows)))
    _head_tile[(triton.cdiv(num_tokens, TILE), triton.cdiv(num_rows, rows_block))](
        hidden_ME, weight_VE, found, num_rows, num_tokens, size,
        ROWS=rows_block, TOKENS=TILE, DIMS=64 if hidden_ME.element_size() == 2 else 32,
    )  # fmt: skip
    return found
