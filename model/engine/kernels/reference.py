"""What the kernels compute, in plain torch: the path without triton, and the tests' oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.engine.run.float8 import quantised as quantised
from model.transformer import KeyValue, rotate


@dataclass(frozen=True, slots=True)
class PagedStreams:
    """Where the streams of a batch lie in a pool of pages. The same in every layer."""

    pages_BP: Tensor
    """int32: the pages of each stream, in order; anything valid behind."""
    lengths_B: Tensor
    """int32: tokens of each stream; an empty one weighs nothing."""

    def capacity(self, pool: KeyValue) -> int:
        """The most tokens a stream's page table can name."""
        return self.pages_BP.shape[1] * pool[0].shape[2]


def paged_attention(
    q_BHND: Tensor, pool: KeyValue, streams: PagedStreams, own: KeyValue, visible_BNN: Tensor
) -> Tensor:
    """Attention of new rows to all of their stream, and to each other as `visible` (bool) says;
    (B, N, H, D).

    `pool` has one layer's keys (rotated) and values, each (P, G, PAGE_SIZE, D); `own` those of the
    new rows, (B, G, N, D). A row sees at least itself.
    """
    heads, groups, num_rows = q_BHND.shape[1], own[0].shape[1], q_BHND.shape[2]
    places = torch.arange(streams.capacity(pool), device=q_BHND.device)
    is_held_BL = places < streams.lengths_B[:, None]
    keys, values = (
        torch.cat((_gathered(pages, streams.pages_BP, is_held_BL), new), dim=2)
        for pages, new in zip(pool, own, strict=True)
    )
    visible = torch.cat((is_held_BL[:, None].expand(-1, num_rows, -1), visible_BNN), dim=2)
    mixed = F.scaled_dot_product_attention(
        q_BHND, keys, values, attn_mask=visible[:, None], enable_gqa=heads != groups
    )
    return mixed.transpose(1, 2)


def _gathered(pages: Tensor, pages_BP: Tensor, is_held_BL: Tensor) -> Tensor:
    """Keys or values (B, G, L, D), 0 behind each stream: what was never written there may be NaN,
    which would survive a mask."""
    rows = pages[pages_BP.long()].transpose(1, 2).flatten(2, 3)
    return rows.masked_fill(~is_held_BL[:, None, :, None], 0.0)


@dataclass(frozen=True, slots=True)
class Projection:
    """What becomes of the joint product for queries, keys and values, beside the split."""

    bias_F: Tensor | None
    norms: tuple[Tensor, Tensor] | None
    """Weights (D,) of the norms of queries and keys."""
    eps: float


def split_rotate(
    qkv_BNF: Tensor, projection: Projection, cos_BNd: Tensor, sin_BNd: Tensor, out: KeyValue
) -> Tensor:
    """Queries (B, H, N, D); keys and values are put into `out`, (B, G, N, D) each.

    All get their bias; queries and keys are normalised if there are norms, and rotated by `cos` and
    `sin`: float32, and the half of each table that the other half repeats.
    """
    groups, dim = out[0].shape[1], out[0].shape[3]
    if projection.bias_F is not None:
        qkv_BNF = qkv_BNF + projection.bias_F
    heads = qkv_BNF.unflatten(-1, (-1, dim)).transpose(1, 2)
    q, k, v = heads.split((heads.shape[1] - 2 * groups, groups, groups), dim=1)
    if projection.norms is not None:
        q_norm, k_norm = projection.norms
        q = F.rms_norm(q, q.shape[-1:], q_norm, projection.eps)
        k = F.rms_norm(k, k.shape[-1:], k_norm, projection.eps)
    cos, sin = (torch.cat((half, half), dim=-1)[:, None].to(q.dtype) for half in (cos_BNd, sin_BNd))
    out[0].copy_(rotate(k, cos, sin))
    out[1].copy_(v)
    return rotate(q, cos, sin)


def add_norm(
    x_BNE: Tensor, delta_BNE: Tensor, weight_E: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum, and its RMS norm."""
    total = x_BNE + delta_BNE
    return total, F.rms_norm(total, total.shape[-1:], weight_E, eps)


def swiglu(gate_up_BNF: Tensor) -> Tensor:
    """silu(first half) · second half."""
    gate, up = gate_up_BNF.chunk(2, dim=-1)
    return F.silu(gate) * up


def logits(hidden_ME: Tensor, weight_VE: Tensor) -> Tensor:
    """(M, V), float32: what the head's weight makes of hidden states."""
    return F.linear(hidden_ME, weight_VE).float()
