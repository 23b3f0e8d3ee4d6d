"""The output head, fused: from hidden states to a token and its confidence without any logits.

A program multiplies a block of slots with a tile of the vocabulary and keeps, of each slot, the
tile's largest logit, its token, and two sums of which softmax and entropy are made; `_merge` puts
the tiles together. Only slots that are wanted take part: their rows come first in an order made on
the device, and programs behind the last of them leave at once.

The function is `reference.head`; logits are float32 sums, never rounded to the weights' dtype.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false
# Triton's functions run on the device: their Python signatures say little of what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.kernels.reference import SlotBeliefs

TILE = 64
"""Tokens of a vocabulary tile: 8,192 make 128 programs, about one a multiprocessor."""


@triton.jit
def _head_tile(
    hidden_ptr,
    weight_ptr,
    order_ptr,
    num_wanted_ptr,
    no_end_ptr,
    forbidden_ptr,
    top_ptr,
    token_ptr,
    total_ptr,
    moment_ptr,
    num_tokens,
    size,
    end_id,
    num_tiles,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Of a block of wanted rows and one tile: largest logit, its token, Σ e, Σ (x - max) e."""
    tile = tl.program_id(0)
    place = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    num_wanted = tl.load(num_wanted_ptr)
    if tl.program_id(1) * ROWS < num_wanted:
        is_row = place < num_wanted
        row = tl.load(order_ptr + place, mask=is_row, other=0)
        token = tile * TOKENS + tl.arange(0, TOKENS)
        is_token = token < num_tokens
        logits = tl.zeros((ROWS, TOKENS), tl.float32)
        for start in range(0, size, DIMS):
            dim = start + tl.arange(0, DIMS)
            is_dim = dim < size
            hidden = tl.load(
                hidden_ptr + row.to(tl.int64)[:, None] * size + dim[None, :],
                mask=is_row[:, None] & is_dim[None, :],
                other=0.0,
            )
            weight = tl.load(
                weight_ptr + token.to(tl.int64)[None, :] * size + dim[:, None],
                mask=is_token[None, :] & is_dim[:, None],
                other=0.0,
            )
            logits += tl.dot(hidden, weight, input_precision="ieee")
        forbidden = tl.load(forbidden_ptr + token, mask=is_token, other=1)
        no_end = tl.load(no_end_ptr + row, mask=is_row, other=0)
        hidden_end = (no_end[:, None] != 0) & (token[None, :] == end_id)
        logits = tl.where((forbidden[None, :] != 0) | hidden_end, float("-inf"), logits)
        top = tl.max(logits, 1)
        best = tl.min(tl.where(logits == top[:, None], token[None, :], num_tokens), 1)
        below = logits - tl.where(top == float("-inf"), 0.0, top)[:, None]
        share = tl.exp(below)
        at = place * num_tiles + tile
        tl.store(top_ptr + at, top, mask=is_row)
        tl.store(token_ptr + at, best, mask=is_row)
        tl.store(total_ptr + at, tl.sum(share, 1), mask=is_row)
        # Not 0 · -inf where a token is impossible.
        moment = tl.sum(tl.where(share == 0.0, 0.0, below) * share, 1)
        tl.store(moment_ptr + at, moment, mask=is_row)


@triton.jit
def _merge(
    order_ptr,
    num_wanted_ptr,
    top_ptr,
    token_ptr,
    total_ptr,
    moment_ptr,
    tokens_ptr,
    confidence_ptr,
    entropy_ptr,
    num_tokens,
    num_tiles,
    TILES: tl.constexpr,
):
    """One row's tiles together."""
    place = tl.program_id(0)
    row = tl.load(order_ptr + place)
    if place < tl.load(num_wanted_ptr):
        tile = tl.arange(0, TILES)
        is_tile = tile < num_tiles
        at = place * num_tiles + tile
        top = tl.load(top_ptr + at, mask=is_tile, other=float("-inf"))
        total = tl.load(total_ptr + at, mask=is_tile, other=0.0)
        moment = tl.load(moment_ptr + at, mask=is_tile, other=0.0)
        token = tl.load(token_ptr + at, mask=is_tile, other=0)
        best = tl.max(top, 0)
        below = tl.where(top == float("-inf"), 0.0, top - best)
        share = tl.where(top == float("-inf"), 0.0, tl.exp(below))
        whole = tl.sum(total * share, 0)
        spread = tl.sum((moment + below * total) * share, 0)
        chosen = tl.min(tl.where(is_tile & (top == best), token, num_tokens), 0)
        # Rows of NaN equal nothing; the id must still be one.
        tl.store(tokens_ptr + row, tl.minimum(chosen, num_tokens - 1).to(tl.int64))
        tl.store(confidence_ptr + row, 1.0 / whole)
        tl.store(entropy_ptr + row, tl.log(whole) - spread / whole)
    else:
        tl.store(tokens_ptr + row, tl.zeros((), tl.int64))
        tl.store(confidence_ptr + row, 0.0)
        tl.store(entropy_ptr + row, 0.0)


def head(
    hidden_ME: Tensor,
    weight_VE: Tensor,
    wanted_M: Tensor,
    no_end_M: Tensor,
    forbidden_V: Tensor,
    end_id: int,
) -> SlotBeliefs:
    """See `reference.head`. All tensors are contiguous; the last three of them are bool."""
    num_rows, size = hidden_ME.shape
    num_tokens = len(weight_VE)
    tiles = triton.cdiv(num_tokens, TILE)
    order = (~wanted_M).to(torch.uint8).argsort(stable=True).int()
    num_wanted = wanted_M.sum(dtype=torch.int32)
    top, total, moment = hidden_ME.new_empty((3, num_rows, tiles), dtype=torch.float32)
    token = torch.empty((num_rows, tiles), dtype=torch.int32, device=hidden_ME.device)
    rows_block = min(64, max(16, triton.next_power_of_2(num_rows)))
    _head_tile[(tiles, triton.cdiv(num_rows, rows_block))](
        hidden_ME, weight_VE, order, num_wanted,
        no_end_M.view(torch.uint8), forbidden_V.view(torch.uint8), top, token, total, moment,
        num_tokens, size, end_id, tiles, ROWS=rows_block, TOKENS=TILE,
        DIMS=64 if hidden_ME.element_size() == 2 else 32,
    )  # fmt: skip
    tokens = torch.empty(num_rows, dtype=torch.int64, device=hidden_ME.device)
    confidence, entropy = hidden_ME.new_empty((2, num_rows), dtype=torch.float32)
    _merge[(num_rows,)](
        order, num_wanted, top, token, total, moment, tokens, confidence, entropy,
        num_tokens, tiles, TILES=triton.next_power_of_2(tiles),
    )  # fmt: skip
    return SlotBeliefs(tokens, confidence, entropy)
