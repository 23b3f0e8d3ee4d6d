"""The denoiser: one Transformer with three roles.

*Prefix* and *suffix* tokens form two causal streams that end beside the hole. *Canvas* tokens see
both streams and, bidirectionally, each other. No context token ever sees a canvas token or the
other stream, so a stream's keys and values depend on its own tokens alone: they are exact through
every denoising step and across keystrokes. This is why the module has two entry points that share
every weight, `encode` for a stream and `denoise` for a canvas, and no joint one.

The backbone is Llama's (RMSNorm, rotary positions, grouped-query attention, SwiGLU).
Shape letters as in `model.attention`; E is the hidden size, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from model.attention import (
    KeyValue,
    canvas_attention,
    context_attention,
    rotary_tables,
    rotate,
)
from model.flex_attention import flex_canvas_attention


class Role(IntEnum):
    """What a token is to the hole; the index of its role embedding."""

    PREFIX = 0
    SUFFIX = 1
    CANVAS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserConfig:
    """Sizes of a denoiser. Stored in the checkpoint's `config.json`."""

    vocab_size: int
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    ffn_size: int = 768
    max_positions: int = 4096
    """Longest stream the rotary tables cover, canvas included."""
    max_context: int = 384
    """Longest stream the model was trained on; an engine gives it no longer one."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True
    """RMSNorm of queries and keys (as Qwen3): lets a small model train at a high rate."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_size",
            "max_positions", "max_context",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number above 0")
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must divide by num_heads {self.num_heads}, "
                f"and that by num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"the head dimension {self.head_dim} must be even for rotation")
        if self.max_context >= self.max_positions:
            raise ValueError(
                f"max_context {self.max_context} leaves no position for a canvas below "
                f"max_positions {self.max_positions}"
            )

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden_size // self.num_heads


class Attention(nn.Module):
    """Projections of one attention layer; the mixing itself is in `model.attention`."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        kv_size = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        norm = nn.RMSNorm if config.qk_norm else lambda *_: nn.Identity()
        self.q_norm = norm(config.head_dim, config.norm_eps)
        self.k_norm = norm(config.head_dim, config.norm_eps)

    def project(self, x_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unrotated q (B, H, L, D), k and v (B, G, L, D)."""
        q = self.q_proj(x_BLE).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = self.k_proj(x_BLE).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(x_BLE).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        return self.q_norm(q), self.k_norm(k), v

    def output(self, mixed_BHLD: Tensor) -> Tensor:
        """(B, H, L, D) -> (B, L, E)."""
        return self.o_proj(mixed_BHLD.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x_BLE: Tensor) -> Tensor:
        """(B, L, E) -> (B, L, E)."""
        return self.down_proj(F.silu(self.gate_proj(x_BLE)) * self.up_proj(x_BLE))


class Block(nn.Module):
    """Pre-norm Transformer block.

    Its two methods are compiled one by one where that pays: all layers then share one graph.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def encode(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        """One layer over L stream tokens (B, L, E); also keys and values, the past's included."""
        q, k, v = self.attention.project(self.input_norm(x))
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        num_past = 0
        if past is not None:
            num_past = past[0].shape[2]
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        x = x + self.attention.output(context_attention(q, (k, v), num_past))
        return x + self.feed_forward(self.ffn_norm(x)), (k, v)

    def denoise(
        self,
        x: Tensor,
        left: tuple[Tensor, Tensor],
        right: tuple[Tensor, Tensor],
        prefix: KeyValue,
        suffix: KeyValue,
        masks: tuple[Tensor | None, Tensor | None, Tensor | None] | BlockMask,
        canvas_size: int,
    ) -> Tensor:
        """One layer over N canvas slots (B, N, E), whose queries are rotated in two ways."""
        q, k, v = self.attention.project(self.input_norm(x))
        queries, canvas = (rotate(q, *left), rotate(q, *right)), (rotate(k, *left), v)
        if isinstance(masks, BlockMask):
            mixed = flex_canvas_attention(*queries, prefix, suffix, canvas, masks)
        else:
            mixed = canvas_attention(*queries, prefix, suffix, canvas, *masks, canvas_size)
        x = x + self.attention.output(mixed)
        return x + self.feed_forward(self.ffn_norm(x))


class Denoiser(nn.Module):
    """The Transformer. `encode` context streams, then `denoise` canvases against them."""

    cos: Tensor
    sin: Tensor
    is_compiled = False
    """Whether training has compiled the layers for CUDA, where canvases then take a block mask."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.role_embedding = nn.Embedding(len(Role), config.hidden_size)
        # A ModuleList for torch, which its type stubs do not let be one of Blocks.
        self.blocks = cast(
            "list[Block]", nn.ModuleList(Block(config) for _ in range(config.num_layers))
        )
        self.final_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        cos, sin = rotary_tables(config.max_positions, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        # Tied to the head: logits start near zero at this scale.
        nn.init.normal_(self.embedding.weight, std=self.config.hidden_size**-0.5)
        nn.init.zeros_(self.role_embedding.weight)
        for block in self.blocks:  # residual branches start silent (as in muP-style recipes)
            nn.init.zeros_(block.attention.o_proj.weight)
            nn.init.zeros_(block.feed_forward.down_proj.weight)

    def _embed(self, ids: Tensor, role: Tensor | Role) -> Tensor:
        roles = torch.as_tensor(role, device=ids.device)
        # sqrt(E) gives tied embeddings unit scale (as Gemma).
        scale = self.config.hidden_size**0.5
        return self.embedding(ids) * scale + self.role_embedding(roles)

    def _rotation(self, positions_BN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, N, D) at each slot's own position."""
        cos, sin = (t[positions_BN].unsqueeze(1).to(dtype) for t in (self.cos, self.sin))
        return cos, sin

    def encode(
        self, ids_BL: Tensor, role_B: Tensor | Role, past: list[KeyValue] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Encode stream tokens causally after `past` (the same stream's earlier tokens).

        `role_B` is a `Role` or (B, 1) of them. Returns the normed hidden states (B, L, E) and,
        for each layer, the keys and values of past and new tokens together.
        """
        num_past = past[0][0].shape[2] if past else 0
        window = slice(num_past, num_past + ids_BL.shape[1])
        x = self._embed(ids_BL, role_B)
        cos, sin = self.cos[window].to(x.dtype), self.sin[window].to(x.dtype)
        caches: list[KeyValue] = []
        for layer, block in enumerate(self.blocks):
            x, cache = block.encode(x, (cos, sin), past[layer] if past else None)
            caches.append(cache)
        return self.final_norm(x), caches

    def denoise(
        self,
        ids_BN: Tensor,
        before_BK: Tensor,
        left_BN: Tensor,
        right_BN: Tensor,
        prefix: list[KeyValue],
        suffix: list[KeyValue],
        *,
        canvas_size: int,
        prefix_mask: Tensor | None = None,
        suffix_mask: Tensor | None = None,
        canvas_mask: Tensor | None = None,
        block_mask: BlockMask | None = None,
    ) -> Tensor:
        """Hidden states (B, N, E) of K canvases of `canvas_size` slots against encoded streams.

        A slot is predicted from the place of the token before it, as in the streams (Dream, arXiv
        2508.15487): what next-token prediction learns serves the canvas at once. So the network
        reads `before_BK`, the last token of each canvas's prefix stream, and all slots but the
        last, and its hidden state at slot i predicts slot i.
        `left_BN` is a slot's position in the prefix stream (its length, then counting on);
        `right_BN` its position in the suffix stream: that stream's length for *every* slot, since
        how far a slot is from the suffix is unknown until the span's length is. Masks are additive
        (B, 1, N, L); None means every context token is visible. `canvas_mask` (B, 1, 1, C) hides
        the slots that pad a smaller canvas in a batch of mixed sizes. Instead, training on CUDA
        gives one `block_mask` (`model.flex_attention`).
        """
        slots_BKC = ids_BN.unflatten(1, (-1, canvas_size))
        shifted = torch.cat((before_BK[..., None], slots_BKC[..., :-1]), dim=-1)
        x = self._embed(shifted.flatten(1), Role.CANVAS)
        left = self._rotation(left_BN - 1, x.dtype)
        right = self._rotation(right_BN, x.dtype)
        masks = (prefix_mask, suffix_mask, canvas_mask) if block_mask is None else block_mask
        for layer, block in enumerate(self.blocks):
            x = block.denoise(x, left, right, prefix[layer], suffix[layer], masks, canvas_size)
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, E) -> (…, V), with the embedding as the head."""
        return F.linear(hidden, self.embedding.weight)
