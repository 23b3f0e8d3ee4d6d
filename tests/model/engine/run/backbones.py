"""Tiny backbones of the Qwen2 kind, and what goes into a forward of them."""

from __future__ import annotations

import torch
from torch import Tensor

from model.transformer import Transformer, TransformerConfig


def tiny(*, seed: int = 0, **changes: object) -> Transformer:
    """Random weights, biases and norms included, so that nothing passes unnoticed."""
    sizes: dict[str, object] = {
        "model_type": "qwen2", "vocab_size": 320, "hidden_size": 64, "num_layers": 3,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "ffn_size": 160, "max_positions": 256,
        "rope_theta": 1e4, "norm_eps": 1e-6, "is_tied": False, "qkv_bias": True,
        "attention": "causal", "shifts_logits": True,
    }  # fmt: skip
    model = Transformer(TransformerConfig(**{**sizes, **changes}))  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        scale = 0.2 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter.data = noise * scale + ("norm" in name)
    if changes.get("is_tied"):
        model.head.weight = model.embedding.weight
    return model.requires_grad_(False).eval()


def some_ids(batch: int, length: int, vocab_size: int = 320, seed: int = 0) -> Tensor:
    """Random tokens (B, L)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, length), generator=draw)


def positions(batch: int, start: int, length: int) -> Tensor:
    """(B, L): `start` and on."""
    return torch.arange(start, start + length).expand(batch, length).contiguous()


def causal(batch: int, past: int, new: int) -> Tensor:
    """(B, N, P + N): all before it and itself."""
    rows = torch.ones(new, past + new, dtype=torch.bool).tril(past)
    return rows.expand(batch, -1, -1).contiguous()
