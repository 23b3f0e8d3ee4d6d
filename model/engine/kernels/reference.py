"""What the kernels compute, in plain torch: the path without triton, and the tests' oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import KeyValue, canvas_attention, rotate
from model.engine.canvas.sampler import entropy_of


@dataclass(frozen=True, slots=True)
class PagedStreams:
    """Where the context of each row of a batch lies in a pool of pages: its prefix stream [0] and
    its suffix stream [1]. The same in every layer."""

    pages_2BP: Tensor
    """int32: the pages of each stream, in order; anything valid behind."""
    lengths_2B: Tensor
    """int32: tokens of each stream; an empty one weighs nothing."""

    def capacity(self, pool: KeyValue) -> int:
        """The most tokens a stream's page table can name."""
        return self.pages_2BP.shape[2] * pool[0].shape[2]


def paged_attention(
    q_2BHND: Tensor,
    pool: KeyValue,
    streams: PagedStreams,
    canvas: KeyValue,
    canvas_lengths_B: Tensor,
) -> Tensor:
    """`model.attention.canvas_attention` of one canvas a row over paged streams, (B, H, N, D).

    Queries come rotated for the prefix stream and the canvas [0] and for the suffix stream [1].
    `pool` has one layer's keys (rotated) and values, each (P, G, PAGE_SIZE, D). Slots from
    `canvas_lengths_B` (int32) on only pad a row: nothing sees them. A row that sees nothing at all
    (it pads the batch) gets zeros.
    """
    num_slots = q_2BHND.shape[3]
    behind_2BL = _behind(streams.lengths_2B, streams.capacity(pool))
    padding_BN = _behind(canvas_lengths_B, num_slots)
    masks_2B1NL = _additive(behind_2BL, q_2BHND.dtype)[:, :, None, None].expand(
        -1, -1, -1, num_slots, -1
    )
    mixed = canvas_attention(
        q_2BHND[0],
        q_2BHND[1],
        _gathered(pool, streams.pages_2BP[0], behind_2BL[0]),
        _gathered(pool, streams.pages_2BP[1], behind_2BL[1]),
        canvas,
        masks_2B1NL[0],
        masks_2B1NL[1],
        _additive(padding_BN, q_2BHND.dtype)[:, None, None],
        num_slots,
    )
    sees_nothing = streams.lengths_2B.sum(0) + canvas_lengths_B == 0
    return mixed.masked_fill(sees_nothing[:, None, None, None], 0.0)


def _behind(lengths: Tensor, capacity: int) -> Tensor:
    """(…, capacity) bool: whether a place lies behind its row's last token."""
    return torch.arange(capacity, device=lengths.device) >= lengths[..., None]


def _gathered(pool: KeyValue, pages_BP: Tensor, behind_BL: Tensor) -> KeyValue:
    """Keys and values (B, G, L, D), 0 behind each stream: what was never written there may be NaN,
    which would survive a mask."""
    keys, values = (
        pages[pages_BP.long()]
        .transpose(1, 2)
        .flatten(2, 3)
        .masked_fill(behind_BL[:, None, :, None], 0.0)
        for pages in pool
    )
    return keys, values


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill(hidden, float("-inf"))


@dataclass(frozen=True, slots=True)
class SlotBeliefs:
    """What the denoiser believes of each of M slots, without the logits behind it."""

    tokens: Tensor
    """(M,) int64, the likeliest token (of equals, the one with the smallest id)."""
    confidence: Tensor
    """(M,) float32, its probability; NaN where the slot's logits are not finite."""
    entropy: Tensor
    """(M,) float32, in nats."""


def head(
    hidden_ME: Tensor,
    weight_VE: Tensor,
    wanted_M: Tensor,
    no_end_M: Tensor,
    forbidden_V: Tensor,
    end_id: int,
) -> SlotBeliefs:
    """The likeliest token of every wanted slot, how sure it is, and the entropy.

    `forbidden_V` marks ids that no slot may take, `no_end_M` slots that may not take `end_id`.
    Slots that are not wanted get token 0, confidence 0 and entropy 0.
    """
    logits = F.linear(hidden_ME, weight_VE).float()
    logits = logits.masked_fill(forbidden_V, float("-inf"))
    is_end = torch.arange(len(weight_VE), device=logits.device) == end_id
    logits = logits.masked_fill(no_end_M[:, None] & is_end, float("-inf"))
    # As the sampler computes them, to the last bit: near certainty, rounding decides conflicts.
    log_total = logits.logsumexp(dim=-1)
    confidence = (logits.amax(dim=-1) - log_total).exp()
    tokens = logits.argmax(dim=-1).masked_fill(confidence.isnan(), 0)
    entropy = entropy_of(logits, log_total)
    return SlotBeliefs(
        tokens.masked_fill(~wanted_M, 0),
        confidence.masked_fill(~wanted_M, 0.0),
        entropy.masked_fill(~wanted_M, 0.0),
    )


@dataclass(frozen=True, slots=True)
class Rotations:
    """cos and sin (B, N, D/2), float32, at each slot's place in the prefix stream (`left`) and in
    the suffix stream (`right`). The same in every layer."""

    left: tuple[Tensor, Tensor]
    right: tuple[Tensor, Tensor]


def split_rotate(
    qkv_BNF: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    rotations: Rotations,
    num_heads: int,
    num_groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's joint projection of N slots as attention reads it.

    `qkv` holds for each slot the heads' queries, then keys, then values. Gives the queries
    (2, B, H, N, D), rotated left [0] and right [1], and the canvas's keys (rotated left) and
    values, (B, G, N, D). `norms` are the weights of the RMSNorm of queries and of keys, if any.
    """
    heads = qkv_BNF.unflatten(-1, (num_heads + 2 * num_groups, -1)).transpose(1, 2)
    q, k, v = heads.split((num_heads, num_groups, num_groups), dim=1)
    if norms is not None:
        q, k = (F.rms_norm(x, x.shape[-1:], w, eps) for x, w in zip((q, k), norms, strict=True))
    left, right = (_both_halves(tables, q.dtype) for tables in (rotations.left, rotations.right))
    return torch.stack((rotate(q, *left), rotate(q, *right))), rotate(k, *left), v.contiguous()


def _both_halves(tables: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = (torch.cat((table, table), dim=-1).unsqueeze(1).to(dtype) for table in tables)
    return cos, sin


def add_norm(
    x_BNE: Tensor, delta_BNE: Tensor, weight_E: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + delta, and the RMSNorm of that."""
    total = x_BNE + delta_BNE
    return total, F.rms_norm(total, total.shape[-1:], weight_E, eps)


def swiglu(gate_up_BNF: Tensor) -> Tensor:
    """SiLU of the first half of each row, times the second half."""
    gate, up = gate_up_BNF.chunk(2, dim=-1)
    return F.silu(gate) * up
