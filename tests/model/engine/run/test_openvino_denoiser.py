"""The denoiser by OpenVINO against torch."""

from __future__ import annotations

import pytest
import torch
from backbones import causal, positions, some_ids, tiny

from model.denoiser.config import DenoiserConfig
from model.denoiser.network import Denoiser
from model.engine.run.openvino_denoiser import OpenVinoDenoiser
from model.engine.run.openvino_request import FLOAT32, INT8_FLOAT_KEYS, Arithmetic
from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer

DRAFTED = torch.arange(20, 300)
BATCH, NUM, SLOTS = 2, 11, 5


def denoiser_over(model: Transformer) -> Denoiser:
    config = DenoiserConfig.of(model.config, num_layers=2, taps=(0, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = Denoiser.of(config, model, DRAFTED)
        denoiser.start_from(model)
        for parameter in denoiser.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return denoiser.requires_grad_(False).eval()


def everything(
    model: Transformer, denoiser: Denoiser, other: Denoiser | OpenVinoDenoiser
) -> dict[str, torch.Tensor]:
    """What `other` makes of the same taps."""
    ids, places = some_ids(BATCH, NUM), positions(BATCH, 0, NUM)
    forward = TorchForward(model, tapped_layers=denoiser.config.taps)
    taps = forward.rows(ids, places, None, causal(BATCH, 0, NUM)).taps
    assert taps is not None
    kept, features = other.context(taps, places)
    visible = torch.tensor([[True] * NUM, [True] * (NUM - 4) + [False] * 4])
    canvas = some_ids(BATCH, SLOTS, seed=1)
    known = torch.tensor([[True, False, False, True, False]] * BATCH)
    where = positions(BATCH, NUM, SLOTS)
    hidden = other.canvas(canvas, known, where, features[:, -1], kept, visible)
    told = other.follow(hidden[:, 2], canvas[:, 0])
    return {
        "kept": kept,
        "features": features,
        "ends": other.end_logits(taps),
        "canvas": hidden,
        "canvas ends": other.canvas_end_logits(hidden),
        "logits": other.logits(hidden[:, 1:]),
        "told": told,
        "some logits": other.some_logits(told, torch.tensor([[3, 4], [200, 0]])),
    }


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True, "qkv_bias": False}], ids=["qwen2", "norms"]
)
def test_exact_weights_give_what_torch_gives(changes: dict[str, object]):
    model = tiny(**changes)
    denoiser = denoiser_over(model)
    expected = everything(model, denoiser, denoiser)
    found = everything(model, denoiser, OpenVinoDenoiser(denoiser, FLOAT32, 1, keeps_float=True))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("arithmetic", [INT8_FLOAT_KEYS], ids=lambda a: a.name)
def test_int8_points_the_same_way(arithmetic: Arithmetic):
    model = tiny()
    denoiser = denoiser_over(model)
    expected = everything(model, denoiser, denoiser)
    found = everything(model, denoiser, OpenVinoDenoiser(denoiser, arithmetic, 1))
    for name in ("features", "canvas", "logits"):
        cosine = torch.cosine_similarity(found[name], expected[name], dim=-1).min().item()
        assert cosine > 0.98, name
