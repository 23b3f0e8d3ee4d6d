from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.backbone.checkpoint import Backbone, load_backbone
from model.denoiser import Denoiser, DenoiserConfig
from model.denoiser.config import spread_taps
from model.engine.run.torch_forward import TorchForward

SLOTS, NUM = 6, 12


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder: Path) -> Backbone:
    return load_backbone(tiny_backbone_folder)


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> Denoiser:
    """With nothing left at zero, so that everything counts."""
    config = DenoiserConfig.of(backbone.model.config, num_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Denoiser.of(config, backbone.model, torch.arange(10, 300))
        model.start_from(backbone.model)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def taps(backbone: Backbone, model: Denoiser) -> Tensor:
    """(1, NUM, F)"""
    forward = TorchForward(backbone.model, tapped_layers=model.config.taps)
    ids = torch.arange(20, 20 + NUM)[None]
    visible = torch.ones(1, NUM, NUM, dtype=torch.bool).tril()
    found = forward.rows(ids, torch.arange(NUM)[None], None, visible).taps
    assert found is not None
    return found


def fill(model: Denoiser, taps: Tensor, anchor: int, *, ids: Tensor | None = None) -> Tensor:
    """Hidden states (C, E) of a canvas behind token `anchor`, its first slot known."""
    kept, features = model.context(taps, torch.arange(NUM)[None])
    ids = torch.arange(30, 30 + SLOTS)[None] if ids is None else ids
    known = torch.arange(SLOTS)[None] == 0
    positions = anchor + 1 + torch.arange(SLOTS)[None]
    visible = torch.arange(NUM)[None] <= anchor
    return model.canvas(ids, known, positions, features[:, anchor], kept, visible)[0]


def test_shapes_are_those_of_the_interface(backbone: Backbone, model: Denoiser, taps: Tensor):
    config = backbone.model.config
    kept, features = model.context(taps, torch.arange(NUM)[None])
    assert kept.shape == (2, 2, 1, config.num_kv_heads, NUM, config.head_dim)
    assert features.shape == (1, NUM, config.hidden_size)
    hidden = fill(model, taps, 5)
    assert hidden.shape == (SLOTS, config.hidden_size)
    assert model.logits(hidden).shape == (SLOTS, 290)
    assert model.end_logits(taps).shape == (1, NUM)
    assert model.canvas_end_logits(hidden[None]).shape == (1,)


def test_a_canvas_sees_its_context_up_to_the_anchor_and_nothing_later(
    model: Denoiser, taps: Tensor
):
    before = fill(model, taps, 5)
    later, earlier = taps.clone(), taps.clone()
    later[:, 6:] += 1.0
    earlier[:, 2] += 1.0
    torch.testing.assert_close(fill(model, later, 5), before)
    assert not torch.allclose(fill(model, earlier, 5), before)


def test_masked_slots_do_not_show_their_tokens_and_the_known_one_does(
    model: Denoiser, taps: Tensor
):
    before = fill(model, taps, 5)
    hidden, shown = (torch.arange(30, 30 + SLOTS)[None] for _ in range(2))
    hidden[:, 1:] = 77
    shown[:, 0] = 77
    torch.testing.assert_close(fill(model, taps, 5, ids=hidden), before)
    changed = fill(model, taps, 5, ids=shown)
    assert not torch.isclose(changed, before).all(dim=-1).any()  # all slots see the first one


def test_every_slot_sees_every_known_one_in_both_directions(model: Denoiser, taps: Tensor):
    kept, features = model.context(taps, torch.arange(NUM)[None])
    positions, visible = 6 + torch.arange(SLOTS)[None], torch.arange(NUM)[None] <= 5

    def run(last: int) -> Tensor:
        ids = torch.full((1, SLOTS), 40)
        ids[:, -1] = last
        known = torch.tensor([[True, *[False] * (SLOTS - 2), True]])
        return model.canvas(ids, known, positions, features[:, 5], kept, visible)[0]

    assert not torch.isclose(run(41), run(42)).all(dim=-1).any()


def test_context_kept_in_pieces_is_the_context_made_at_once(model: Denoiser, taps: Tensor):
    whole, features = model.context(taps, torch.arange(NUM)[None])
    first, _ = model.context(taps[:, :7], torch.arange(7)[None])
    second, more = model.context(taps[:, 7:], torch.arange(7, NUM)[None])
    torch.testing.assert_close(torch.cat((first, second), dim=4), whole)
    torch.testing.assert_close(more, features[:, 7:])


def test_canvases_of_a_batch_do_not_see_each_other(model: Denoiser, taps: Tensor):
    kept, features = model.context(taps, torch.arange(NUM)[None])
    anchors = torch.tensor([3, 8])
    ids = torch.arange(30, 30 + SLOTS).repeat(2, 1)
    known = (torch.arange(SLOTS) == 0).repeat(2, 1)
    positions = anchors[:, None] + 1 + torch.arange(SLOTS)
    visible = torch.arange(NUM) <= anchors[:, None]
    both = model.canvas(
        ids, known, positions, features[0, anchors], kept.expand(-1, -1, 2, -1, -1, -1), visible
    )
    for row, anchor in zip(both, (3, 8), strict=True):
        torch.testing.assert_close(row, fill(model, taps, anchor), atol=1e-5, rtol=1e-4)


def test_canvases_that_share_a_context_are_what_they_are_with_one_each(
    model: Denoiser, taps: Tensor
):
    kept, features = model.context(taps, torch.arange(NUM)[None])
    other, _ = model.context(taps.flip(1), torch.arange(NUM)[None])
    past = torch.cat((kept, other), dim=2)
    anchors, group = torch.tensor([3, 8, 5, 2, 9]), torch.tensor([0, 0, 0, 1, 1])
    ids = torch.arange(30, 30 + 5 * SLOTS).view(5, SLOTS)
    known = ids % 3 == 0
    positions = anchors[:, None] + 1 + torch.arange(SLOTS)
    visible = torch.arange(NUM) <= anchors[:, None]
    anchor = features[0, anchors]
    shared = model.canvas(ids, known, positions, anchor, past, visible, [3, 2])
    alone = model.canvas(ids, known, positions, anchor, past[:, :, group], visible)
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-4)


def test_a_slot_that_is_told_the_token_before_it_changes_its_mind(model: Denoiser, taps: Tensor):
    hidden = fill(model, taps, 5)[1]
    told = [model.follow(hidden, torch.tensor(token)) for token in (50, 51)]
    assert not torch.allclose(told[0], told[1])
    assert not torch.allclose(told[0], hidden)


def test_a_new_denoiser_begins_as_the_backbones_last_layers(backbone: Backbone):
    config = DenoiserConfig.of(backbone.model.config, num_layers=2)
    model = Denoiser.of(config, backbone.model, torch.arange(100))
    model.start_from(backbone.model)
    for mine, theirs in zip(model.layers, backbone.model.layers[-2:], strict=True):
        for name, tensor in theirs.state_dict().items():
            assert mine.state_dict()[name].equal(tensor)
    hidden = torch.randn(3, config.backbone.hidden_size)
    assert model.follow(hidden, torch.tensor([1, 2, 3])).equal(hidden)  # it has nothing to say yet


@pytest.mark.parametrize(("layers", "own"), [(24, 3), (28, 3), (2, 2), (1, 1)])
def test_taps_are_layers_that_there_are(layers: int, own: int):
    taps = spread_taps(layers, own)
    assert taps == sorted(set(taps))
    assert taps[0] >= 0
    assert taps[-1] == layers - 1
    assert max(layers - own - 1, 0) in taps


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 3, "taps": (0,)}, "3 layers"),
        ({"num_layers": 0, "taps": (0,)}, "0 layers"),
        ({"num_layers": 1, "taps": (2,)}, "taps"),
        ({"num_layers": 1, "taps": ()}, "taps"),
        ({"num_layers": 1, "taps": (0,), "canvas_size": 0}, "canvas_size"),
    ],
)
def test_sizes_that_cannot_be_are_refused(backbone: Backbone, sizes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DenoiserConfig(backbone=backbone.model.config, **sizes)
