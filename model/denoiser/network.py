"""The denoiser's network: a few bidirectional layers over a canvas, over the context's features.

A context token's hidden states, tapped behind some of the backbone's layers, are fused into one
feature; each layer makes keys and values of it, which are cached beside the backbone's own. A
canvas sees all of its context and all of itself. Its first slot holds the token that the backbone
has just decided; the others are masked, or known. The embedding and the head are the backbone's.

Shape letters: B canvases, C slots, P context tokens kept, N context tokens, E hidden size, F all
taps side by side, H query heads, G key/value heads, D head dimension, V draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.denoiser.config import DenoiserConfig
from model.transformer import (
    KeyValue,
    Layer,
    Transformer,
    TransformerConfig,
    rotary_tables,
    rotate,
)

FUSE_NOISE = 0.002
SKIP_SCALE = 0.3

Embed = Callable[[Tensor], Tensor]
"""Ids (…) to rows of the embedding (…, E)."""


class WordTable(Protocol):
    """What of a backbone a denoiser needs to be built: its sizes, embedding and head."""

    config: TransformerConfig

    def embedded(self, ids: Tensor) -> Tensor:
        """(…) -> (…, E): rows of the embedding."""
        ...

    def head_rows(self, ids_V: Tensor) -> Tensor:
        """(V,) -> (V, E): rows of the head."""
        ...


class CanvasLayer(Layer):
    """A block of the backbone's kind, with keys and values of its own for the context."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        size = config.num_kv_heads * config.head_dim
        self.context_k = nn.Linear(config.hidden_size, size, bias=config.qkv_bias)
        self.context_v = nn.Linear(config.hidden_size, size, bias=config.qkv_bias)

    def start_from(self, layer: Layer) -> None:
        """Begin as a layer of the backbone."""
        states = layer.state_dict()
        self.load_state_dict(states, strict=False)
        # What it read was normalised with a scale; the features come without one.
        scale = layer.input_norm.weight
        for mine, theirs in ((self.context_k, layer.k_proj), (self.context_v, layer.v_proj)):
            mine.load_state_dict(theirs.state_dict())
            mine.weight.data.mul_(scale.to(mine.weight))

    def context(self, features_BNE: Tensor, rotation: tuple[Tensor, Tensor]) -> KeyValue:
        """Keys, rotated, and values (B, G, N, D) of context tokens."""
        k, v = (
            project(features_BNE).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.context_k, self.context_v)
        )
        return rotate(self.k_norm(k), *rotation), v

    def canvas(
        self,
        x_BCE: Tensor,
        rotation: tuple[Tensor, Tensor],
        past: KeyValue,
        visible_BP: Tensor,
        counts: Sequence[int] | None,
    ) -> Tensor:
        """(B, C, E) -> (B, C, E). `visible` (B, P) bool. `past` is (B, G, P, D) each, or one for
        each of `counts` canvases that follow each other."""
        normed = self.input_norm(x_BCE)
        q, k, v = (
            project(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(self.q_norm(q), *rotation), rotate(self.k_norm(k), *rotation)
        if counts is None:
            mixed = _mixed(q, (k, v), past, visible_BP)
        else:
            mixed = _mixed_in_groups(q, (k, v), past, visible_BP, counts)
        x = x_BCE + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        normed = self.ffn_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))


def _mixed(q_BHCD: Tensor, own: KeyValue, past: KeyValue, visible_BP: Tensor) -> Tensor:
    """Attention (B, H, C, D) of canvases, each to a context of its own and to itself."""
    keys, values = (torch.cat(pair, dim=2) for pair in zip(past, own, strict=True))
    # Heads that share keys become rows of one product: all slots see the same.
    rows = q_BHCD.reshape(len(q_BHCD), keys.shape[1], -1, q_BHCD.shape[-1])
    visible = F.pad(visible_BP, (0, q_BHCD.shape[2]), value=True)[:, None, None]
    mask = visible.expand(-1, -1, rows.shape[2], -1)
    mixed = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
    return mixed.reshape(q_BHCD.shape)


def _mixed_in_groups(
    q_BHCD: Tensor, own: KeyValue, past: KeyValue, visible_BP: Tensor, counts: Sequence[int]
) -> Tensor:
    """The same of groups of canvases that share a context: it is not copied for each of them."""
    size = q_BHCD.shape[2]
    parts = [t.split(list(counts)) for t in (q_BHCD, *own, visible_BP)]
    mixed: list[Tensor] = []
    for index, (q, k, v, visible) in enumerate(zip(*parts, strict=True)):
        # A group's slots as one row of them, each of which sees its own canvas only.
        q, k, v = (t.transpose(0, 1).flatten(1, 2)[None] for t in (q, k, v))
        canvas = torch.arange(len(visible), device=q.device).repeat_interleave(size)
        mask = torch.cat((visible[canvas], canvas[:, None] == canvas), dim=1)
        keys, values = (torch.cat((t[index, None], n), 2) for t, n in ((past[0], k), (past[1], v)))
        found = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, enable_gqa=q.shape[1] != keys.shape[1]
        )
        mixed.append(found[0].unflatten(1, (-1, size)).transpose(0, 1))
    return torch.cat(mixed)


class Follow(nn.Module):
    """Tells a slot which token was chosen just before it. Without it all slots are filled as if
    their neighbours were not."""

    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size, size, bias=False)
        self.token = nn.Linear(hidden_size, size, bias=False)
        self.out = nn.Linear(size, hidden_size, bias=False)

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """(…, E) -> (…, E): the hidden states of slots, and the embedded tokens before them."""
        return hidden + self.out(F.silu(self.hidden(hidden)) * self.token(embedded))


class Denoiser(nn.Module):
    """See the module's docstring."""

    cos: Tensor
    sin: Tensor
    draft_ids: Tensor
    head: Tensor

    def __init__(
        self, config: DenoiserConfig, embed: Embed, head_VE: Tensor, draft_ids_V: Tensor
    ) -> None:
        """`embed` is the backbone's, `head` those rows of its head that `draft_ids` names."""
        super().__init__()
        self.config = config
        backbone = config.backbone
        size, taps = backbone.hidden_size, len(config.taps)
        self.embed = unit_size(embed, backbone.norm_eps)
        self.register_buffer("head", head_VE, persistent=False)
        self.register_buffer("draft_ids", draft_ids_V, persistent=False)
        self.fuse = nn.Linear(taps * size, size, bias=False)
        self.mask = nn.Parameter(torch.zeros(size))
        self.slots = nn.Parameter(torch.zeros(config.canvas_size, size))
        self.skip = nn.Linear(size, size, bias=False)
        layers = nn.ModuleList(CanvasLayer(backbone) for _ in range(config.num_layers))
        self.layers = cast("list[CanvasLayer]", layers)
        self.final_norm = nn.RMSNorm(size, backbone.norm_eps)
        self.follower = Follow(size, config.follow_size)
        self.end_in = nn.Linear(taps * size, config.end_size)
        self.end_out = nn.Linear(config.end_size, 1)
        self.canvas_end = nn.Linear(size, 1)
        self.end_threshold: float | None = None
        """Probability of `end_logits` from which the middle ends; None: not to be used."""
        self.canvas_end_threshold: float | None = None
        self.register_rotation("cpu")

    @classmethod
    def of(cls, config: DenoiserConfig, backbone: WordTable, draft_ids_V: Tensor) -> Denoiser:
        """A denoiser over a backbone: its embedding, and the rows of its head that are drafted."""
        head = backbone.head_rows(draft_ids_V)
        return cls(config, backbone.embedded, head, draft_ids_V.to(head.device))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, and wants its taps and the context's keys and values in."""
        return self.mask.dtype

    def register_rotation(self, device: torch.device | str) -> None:
        """The rotary tables, which no checkpoint holds, in float32 on `device`."""
        backbone = self.config.backbone
        with torch.device(device):
            cos, sin = rotary_tables(backbone.max_positions, backbone.head_dim, backbone.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def start_from(self, backbone: Transformer) -> None:
        """Begin as the backbone's last layers, reading the feature that those read."""
        size, count = self.config.backbone.hidden_size, self.config.num_layers
        for layer, theirs in zip(self.layers, backbone.layers[-count:], strict=True):
            layer.start_from(theirs)
        self.final_norm.load_state_dict(backbone.final_norm.state_dict())
        self.fuse.weight.normal_(0.0, FUSE_NOISE)
        continued = max(self.config.backbone.num_layers - count - 1, 0)
        if continued in self.config.taps:
            at = self.config.taps.index(continued) * size
            self.fuse.weight[:, at : at + size] += torch.eye(size)
        self.skip.weight.normal_(0.0, SKIP_SCALE * size**-0.5)
        for weight in (self.follower.out.weight, self.end_out.weight, self.canvas_end.weight):
            weight.zero_()
        for bias in (self.end_out.bias, self.canvas_end.bias):
            bias.zero_()

    def features(self, taps_BNF: Tensor) -> Tensor:
        """The context's fused features (B, N, E)."""
        fused = self.fuse(taps_BNF)
        return F.rms_norm(fused, fused.shape[-1:], eps=self.config.backbone.norm_eps)

    def context(self, taps_BNF: Tensor, positions_BN: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of context tokens: keys and values (layers, 2, B, G, N, D), and their
        features (B, N, E), of which a canvas wants its last context token's.

        `taps` are hidden states behind `config.taps`, each of a root mean square of 1.
        """
        features = self.features(taps_BNF)
        rotation = self._rotation(positions_BN, features)
        kept = [torch.stack(layer.context(features, rotation)) for layer in self.layers]
        return torch.stack(kept), features

    def canvas(
        self,
        ids_BC: Tensor,
        known_BC: Tensor,
        positions_BC: Tensor,
        anchor_feature_BE: Tensor,
        past: Tensor,
        visible_BP: Tensor,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states (B, C, E) of canvases: slot i predicts its own token.

        `known` bool: slots that show their id; the first one always does. `past` (layers, 2, B, G,
        P, D) is `context`'s of what stands before the canvas, `anchor_feature` that of the last
        token of it; `visible` says which of it counts. With `counts`, canvases that follow each
        other share a context: so many the first of `past`, so many the second.
        """
        num_slots = ids_BC.shape[1]
        x = torch.where(known_BC[..., None], self.embed(ids_BC).to(self.dtype), self.mask)
        x = x + self.slots[:num_slots] + self.skip(anchor_feature_BE)[:, None]
        rotation = self._rotation(positions_BC, x)
        for layer, kept in zip(self.layers, past, strict=True):
            x = layer.canvas(x, rotation, (kept[0], kept[1]), visible_BP, counts)
        return self.final_norm(x)

    def follow(self, hidden: Tensor, previous_ids: Tensor) -> Tensor:
        """(…, E) -> (…, E): see `Follow`."""
        return self.follower(hidden, self.embed(previous_ids).to(self.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, E) -> (…, V), over `draft_ids`."""
        return F.linear(hidden, self.head)

    def some_logits(self, hidden_BE: Tensor, places_BK: Tensor) -> Tensor:
        """(B, K): of a few places in `draft_ids`."""
        return (self.head[places_BK] @ hidden_BE[..., None]).squeeze(-1)

    def end_logits(self, taps_BNF: Tensor) -> Tensor:
        """(B, N, F) -> (B, N) float32: that the middle ends behind a context token."""
        return self.end_out(F.silu(self.end_in(taps_BNF))).squeeze(-1).float()

    def canvas_end_logits(self, hidden_BCE: Tensor) -> Tensor:
        """(B, C, E) -> (B,) float32: that the middle ends before the canvas's first slot, whatever
        token the backbone has put there."""
        return self.canvas_end(hidden_BCE[:, 0]).squeeze(-1).float()

    def _rotation(self, positions_BN: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (t[positions_BN].unsqueeze(1).to(like.dtype) for t in (self.cos, self.sin))
        return cos, sin


def unit_size(embed: Embed, eps: float) -> Embed:
    """The embedding with each row of a root mean square of 1."""

    def embedded(ids: Tensor) -> Tensor:
        rows = embed(ids)
        return F.rms_norm(rows, rows.shape[-1:], eps=eps)

    return embedded
