"""Attention of the two kinds of token: context (causal) and canvas (sees both contexts and itself).

Shape letters: B batch, L context tokens, N canvas tokens, H query heads, G key/value heads,
D head dimension, K canvases that share one context, C slots of a canvas (N = K·C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]
"""Keys (already rotated) and values, each (B, G, L, D)."""


def rotary_tables(num_positions: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (num_positions, head_dim) of rotary embeddings (RoFormer, arXiv 2104.09864),
    in the half-split order of Llama checkpoints."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys by tables already gathered at their positions, (B, 1, L, D) or
    (L, D)."""
    first, second = x_BHLD.chunk(2, dim=-1)
    return x_BHLD * cos + torch.cat((-second, first), dim=-1) * sin


def context_attention(q_BHLD: Tensor, key_value: KeyValue, num_past: int) -> Tensor:
    """Causal attention of L new context tokens to `num_past` cached ones and to each other."""
    keys, values = key_value
    num_new = q_BHLD.shape[2]
    mask = None
    if num_past and num_new > 1:
        rows = torch.arange(num_new, device=keys.device)[:, None] + num_past
        mask = torch.arange(keys.shape[2], device=keys.device) <= rows
    return F.scaled_dot_product_attention(
        q_BHLD,
        keys,
        values,
        attn_mask=mask,
        is_causal=not num_past and num_new > 1,
        enable_gqa=q_BHLD.shape[1] != keys.shape[1],
    )


def canvas_attention(
    q_left_BHND: Tensor,
    q_right_BHND: Tensor,
    prefix: KeyValue,
    suffix: KeyValue,
    canvas: KeyValue,
    prefix_mask: Tensor | None,
    suffix_mask: Tensor | None,
    canvas_mask: Tensor | None,
    canvas_size: int,
) -> Tensor:
    """Attention of N = K·C canvas tokens to the prefix, the suffix and their own canvas.

    The queries come rotated twice: relative to the prefix stream (`q_left`, also used within the
    canvas) and relative to the suffix stream (`q_right`), which has an origin of its own; one
    softmax spans all three. Masks are additive, (B, 1, N, L) or None for "all visible";
    `canvas_mask` (B, 1, 1, C) hides slots that only pad a smaller canvas. This is
    the reference path: plain matrix products, exact in every dtype's rounding, on every device.
    """
    batch, heads, num, dim = q_left_BHND.shape
    groups = canvas[0].shape[1]
    rows = heads // groups * num  # query heads that share keys become rows of one product

    def scores(q: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        q, keys = q.reshape(batch * groups, rows, dim), keys.flatten(0, 1).transpose(-1, -2)
        if mask is None:
            return torch.bmm(q, keys).view(batch, heads, num, -1)
        mask = mask.expand(batch, heads, num, -1).reshape(batch * groups, rows, -1)
        return torch.baddbmm(mask, q, keys).view(batch, heads, num, -1)

    def mixed(w: Tensor, values: Tensor) -> Tensor:
        w = w.reshape(batch * groups, rows, -1)
        return torch.bmm(w, values.flatten(0, 1)).view(batch, heads, num, dim)

    def per_canvas(x: Tensor) -> Tensor:  # (B, G, N, D) -> (B, G, 1, K, C, D)
        return x.unflatten(2, (-1, canvas_size)).unsqueeze(2)

    q_left, q_right = q_left_BHND * dim**-0.5, q_right_BHND * dim**-0.5
    q_own = q_left.unflatten(2, (-1, canvas_size)).unflatten(1, (groups, -1))
    own = (q_own @ per_canvas(canvas[0]).transpose(-1, -2)).reshape(batch, heads, num, -1)
    if canvas_mask is not None:
        own = own + canvas_mask
    logits = torch.cat(
        (
            scores(q_left, prefix[0], prefix_mask),
            scores(q_right, suffix[0], suffix_mask),
            own,
        ),
        dim=-1,
    )
    weights = torch.softmax(logits, dim=-1)
    w_prefix, w_suffix, w_own = weights.split(
        (prefix[0].shape[2], suffix[0].shape[2], canvas_size), dim=-1
    )
    w_own = w_own.unflatten(2, (-1, canvas_size)).unflatten(1, (groups, -1))
    own_mix = (w_own @ per_canvas(canvas[1])).reshape(batch, heads, num, dim)
    return mixed(w_prefix, prefix[1]) + mixed(w_suffix, suffix[1]) + own_mix
