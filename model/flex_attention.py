"""The canvases' attention in training on CUDA: FlexAttention (arXiv 2412.05496), which skips the
blocks of keys that no canvas of a block of queries sees.

The same function as `model.attention.canvas_attention`, its reference. FlexAttention knows one
query a score, and ours are rotated twice; so heads are twice as wide: queries are [left, right],
keys of the prefix and of the canvas [key, 0], keys of the suffix [0, key]. Shape letters as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.attention import KeyValue


def canvas_block_mask(
    prefix_seen_BK: Tensor, suffix_seen_BK: Tensor, stream_tokens: int, canvas_size: int
) -> BlockMask:
    """Which of the keys (prefix, suffix, all canvases: 2L + N) each of N = K·C slots sees: the
    first `prefix_seen` and `suffix_seen` tokens of its window's streams, and its own canvas."""
    batch, num_canvases = prefix_seen_BK.shape
    num_slots, first_slot = num_canvases * canvas_size, 2 * stream_tokens

    def sees(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        canvas = query // canvas_size
        prefix = key < prefix_seen_BK[b, canvas]
        suffix = (key >= stream_tokens) & (key < stream_tokens + suffix_seen_BK[b, canvas])
        own = (key >= first_slot) & ((key - first_slot) // canvas_size == canvas)
        return prefix | suffix | own

    return create_block_mask(
        sees, batch, None, num_slots, first_slot + num_slots, device=str(prefix_seen_BK.device)
    )


def flex_canvas_attention(
    q_left_BHND: Tensor,
    q_right_BHND: Tensor,
    prefix: KeyValue,
    suffix: KeyValue,
    canvas: KeyValue,
    block_mask: BlockMask,
) -> Tensor:
    """`canvas_attention` under a mask of `canvas_block_mask`, (B, H, N, D). Fast when compiled
    for CUDA only; elsewhere it computes all scores, and no gradient on a CPU."""
    dim = q_left_BHND.shape[-1]
    keys = (F.pad(prefix[0], (0, dim)), F.pad(suffix[0], (dim, 0)), F.pad(canvas[0], (0, dim)))
    mixed = flex_attention(
        torch.cat((q_left_BHND, q_right_BHND), dim=-1),
        torch.cat(keys, dim=2),
        torch.cat((prefix[1], suffix[1], canvas[1]), dim=2),
        block_mask=block_mask,
        scale=dim**-0.5,
        enable_gqa=q_left_BHND.shape[1] != canvas[0].shape[1],
    )
    assert isinstance(mixed, Tensor)  # only what is asked for returns more
    return mixed
