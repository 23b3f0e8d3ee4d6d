"""The plain path of the kernels against the model's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.engine.kernels import reference
from model.engine.kernels.reference import PagedStreams, Projection
from model.transformer import Layer, TransformerConfig


def test_a_paged_stream_is_attended_to_as_the_same_stream_in_one_piece() -> None:
    torch.manual_seed(1)
    q, (own_keys, own_values) = torch.randn(1, 4, 5, 16), torch.randn(2, 1, 2, 5, 16)
    keys, values = torch.randn(2, 7, 2, 16, 16)
    pages = torch.tensor([[4, 1, 6]], dtype=torch.int32)
    streams = PagedStreams(pages, torch.tensor([37], dtype=torch.int32))
    causal = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    found = reference.paged_attention(q, (keys, values), streams, (own_keys, own_values), causal)

    def plain(pool: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return torch.cat((torch.cat([pool[page] for page in (4, 1, 6)], dim=1)[None, :, :37], own),
                         dim=2)  # fmt: skip

    visible = torch.ones(5, 42, dtype=torch.bool).tril(37)
    expected = F.scaled_dot_product_attention(
        q, plain(keys, own_keys), plain(values, own_values), attn_mask=visible, enable_gqa=True
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize("kind", [{"qkv_bias": True}, {"qk_norm": True}])
def test_put_together_the_pieces_are_a_layer(kind: dict[str, bool]) -> None:
    torch.manual_seed(2)
    config = TransformerConfig(
        model_type="qwen2", vocab_size=10, hidden_size=64, num_layers=1, num_heads=4,
        num_kv_heads=2, head_dim=16, ffn_size=48, max_positions=32, rope_theta=100.0, norm_eps=1e-6,
        is_tied=False, attention="causal", shifts_logits=True, **kind,
    )  # fmt: skip
    layer = Layer(config).requires_grad_(False)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, angles = torch.randn(1, 5, 64), torch.randn(1, 5, 8)
    cos, sin = (torch.cat((t, t), dim=-1)[:, None] for t in (angles.cos(), angles.sin()))
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    expected, expected_kv = layer(x, (cos, sin), causal, None)

    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    bias = torch.cat([p.bias for p in projections]) if config.qkv_bias else None
    norms = (layer.q_norm.weight, layer.k_norm.weight) if config.qk_norm else None
    qkv = F.linear(layer.input_norm(x), torch.cat([p.weight for p in projections]))
    own = torch.empty(2, 1, 2, 5, 16).unbind()
    projection = Projection(bias, norms, config.norm_eps)  # type: ignore[arg-type]
    q = reference.split_rotate(qkv, projection, angles.cos(), angles.sin(), own)
    nothing = PagedStreams(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    pool = (torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))
    mixed = reference.paged_attention(q, pool, nothing, own, causal[0])
    attended = layer.o_proj(mixed.flatten(-2))
    x, normed = reference.add_norm(x, attended, layer.ffn_norm.weight, config.norm_eps)
    gate_up = F.linear(normed, torch.cat((layer.gate_proj.weight, layer.up_proj.weight)))
    torch.testing.assert_close(x + layer.down_proj(reference.swiglu(gate_up)), expected)
    for found, wanted in zip(own, expected_kv, strict=True):
        torch.testing.assert_close(found, wanted)
