"""One decoder Transformer for the backbone and all open families: Llama's (RMSNorm, rotary
positions, grouped-query attention, SwiGLU), with biases and query/key norms where a configuration
says so.

Shape letters: B rows, L positions that run, P positions kept from before, E hidden size, H query
heads, G key/value heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
"""Keys (already rotated) and values, each (B, G, L, D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """A decoder Transformer of the Llama kind, and the conventions it was trained with.

    Raises `ValueError` on construction for sizes that do not go together.
    """

    model_type: str
    vocab_size: int
    """Rows of the embedding; a tokenizer may know fewer ids."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    max_positions: int
    rope_theta: float
    norm_eps: float
    is_tied: bool | None
    """Whether the embedding is the head as well, unless one is stored; None: nobody says."""
    qkv_bias: bool = False
    qk_norm: bool = False
    attention: Literal["full", "block-causal", "causal"] = "full"
    block_size: int = 0
    """Positions of a block that see each other and all before them; `block-causal` only."""
    shifts_logits: bool
    """Whether the logits at a position are those of the token *after* it."""
    adds_bos: bool = False
    """Whether a text starts with the tokenizer's beginning-of-sequence token, if it has one."""
    adds_eos: bool = False
    """Whether the text after a hole ends with the end-of-sequence token."""
    mask_id: int | None = None
    """From `config.json`; None: the tokenizer has to know."""
    eos_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
            "ffn_size", "max_positions",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number above 0")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"the head dimension {self.head_dim} must be even for rotation")
        if (self.attention == "block-causal") != (self.block_size > 0):
            raise ValueError(f"attention {self.attention!r} with a block size {self.block_size}")


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


class Layer(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden, dim, bias = config.hidden_size, config.head_dim, config.qkv_bias
        self.head_dim = dim
        self.input_norm = nn.RMSNorm(hidden, config.norm_eps)
        self.q_proj = nn.Linear(hidden, config.num_heads * dim, bias=bias)
        self.k_proj = nn.Linear(hidden, config.num_kv_heads * dim, bias=bias)
        self.v_proj = nn.Linear(hidden, config.num_kv_heads * dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * dim, hidden, bias=False)
        norm = nn.RMSNorm if config.qk_norm else lambda *_: nn.Identity()
        self.q_norm = norm(dim, config.norm_eps)
        self.k_norm = norm(dim, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(hidden, config.norm_eps)
        self.gate_proj = nn.Linear(hidden, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(hidden, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        visible: Tensor | None,
        past: KeyValue | None,
    ) -> tuple[Tensor, KeyValue]:
        """(B, L, E) -> (B, L, E), and the keys and values of these positions (B, G, L, D).

        `visible` (B, 1, L or 1, P + L) bool, None where everything is; `past` holds the keys and
        values of P other positions.
        """
        normed = self.input_norm(x)
        q, k, v = (
            project(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(self.q_norm(q), *rotation), rotate(self.k_norm(k), *rotation)
        keys, values = k, v
        if past is not None:
            keys, values = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        mixed = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=visible, enable_gqa=q.shape[1] != k.shape[1]
        )
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        normed = self.ffn_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed)), (k, v)


class Transformer(nn.Module):
    """The model of an open checkpoint."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = cast(
            "list[Layer]", nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        )
        self.final_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_rotation("cpu")

    def register_rotation(self, device: torch.device | str) -> None:
        """The rotary tables, which no checkpoint holds, in float32 on `device`."""
        config = self.config
        with torch.device(device):
            cos, sin = rotary_tables(config.max_positions, config.head_dim, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(
        self,
        ids_BL: Tensor,
        positions_BL: Tensor,
        visible: Tensor | None,
        past: list[KeyValue] | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Normed hidden states (B, L, E), and each layer's keys and values of these positions.

        `visible` (B, L or 1, P + L) bool says what each position sees, the P positions of `past`
        and then the L that run; None: everything.
        """
        x = self.embedding(ids_BL)
        cos, sin = (t[positions_BL].unsqueeze(1).to(x.dtype) for t in (self.cos, self.sin))
        if visible is not None:
            visible = visible[:, None]
        caches: list[KeyValue] = []
        for index, layer in enumerate(self.layers):
            x, cache = layer(x, (cos, sin), visible, past[index] if past else None)
            caches.append(cache)
        return self.final_norm(x), caches

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, E) -> (…, V), each at its own position: not yet shifted."""
        return self.head(hidden)

    def embedded(self, ids: Tensor) -> Tensor:
        """(…) -> (…, E): rows of the embedding, outside any graph of gradients."""
        return F.embedding(ids, self.embedding.weight.detach())

    def head_rows(self, ids_V: Tensor) -> Tensor:
        """(V,) -> (V, E): rows of the head."""
        weight = self.head.weight.detach()
        return weight[ids_V.to(weight.device)]


def visibility(config: TransformerConfig, positions_BL: Tensor, is_real_BL: Tensor) -> Tensor:
    """(B, L or 1, L) bool: which position sees which, by the family's kind of attention.

    None sees padding, which itself sees as much as a position of its number would.
    """
    if config.attention == "full":
        return is_real_BL[:, None, :]
    block = positions_BL // config.block_size
    return is_real_BL[:, None, :] & (block[:, :, None] >= block[:, None, :])
