from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.backbone.checkpoint import Backbone
from model.denoiser import Denoiser
from model.engine.run.torch_forward import TorchForward
from model.training import loss as loss_module
from model.training.loss import HeadLoss, canvases, encode, mixed_targets, teacher, window_loss
from model.training.windows import WindowSampler


@pytest.fixture
def forward(backbone: Backbone, model: Denoiser) -> TorchForward:
    return TorchForward(backbone.model, tapped_layers=model.config.taps)


def test_the_heads_loss_is_cross_entropy_with_its_gradient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss_module, "CHUNK", 3)  # so that there are several
    torch.manual_seed(0)
    hidden, head = torch.randn(8, 5, requires_grad=True), torch.randn(11, 5)
    ids = torch.randint(11, (8, 4))
    ids[0, 1] = ids[0, 0]  # the truth is among the backbone's choices, too
    probs = torch.rand(8, 4)
    weights = torch.rand(8)
    found = HeadLoss.apply(hidden, head, ids, probs, weights)
    target = torch.zeros(8, 11).scatter_add_(1, ids, probs)
    expected = -((target * F.linear(hidden, head).log_softmax(-1)).sum(1) * weights).sum()
    torch.testing.assert_close(found, expected)
    (mine,) = torch.autograd.grad(3 * found, hidden)
    (theirs,) = torch.autograd.grad(3 * expected, hidden)
    torch.testing.assert_close(mine, theirs)


def test_targets_are_the_truth_and_the_backbone_or_what_there_is_of_them():
    true = torch.tensor([7, -1, 7])
    ids = torch.tensor([[1, 2]] * 3)
    probs = torch.tensor([[0.75, 0.25]] * 3)
    places, shares = mixed_targets(true, ids, probs, torch.tensor([True, True, False]), 0.4)
    assert places.tolist() == [[7, 1, 2], [0, 1, 2], [7, 1, 2]]
    expected = torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.75, 0.25], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(shares, expected)


def test_the_teacher_is_the_backbones_next_token(
    model: Denoiser, forward: TorchForward, sampler: WindowSampler
):
    window = sampler.window(1)
    encoded = encode(forward, window)
    ids, probs = teacher(model, encoded.hidden, window)
    asked = window.sources[window.sources >= 0].unique()
    logits = forward.logits(encoded.hidden[asked])
    assert model.draft_ids[ids[asked, 0]].equal(logits.argmax(dim=-1))
    torch.testing.assert_close(probs[asked].sum(1), torch.ones(len(asked)))


def test_no_canvas_learns_from_what_its_window_has_later(
    model: Denoiser, forward: TorchForward, sampler: WindowSampler
):
    """Whatever tokens stand behind an anchor, or in another branch, its canvas is the same."""
    window = next(w for w in map(sampler.window, range(20)) if len(w.seen) > 1)
    k = int(window.anchors.argmin())
    anchor, row = int(window.anchors[k]), int(window.canvas_branch[k])
    before = canvases(model, window, encode(forward, window), window.targets, window.known)[k]
    hidden = ~window.visible()[0, anchor]
    assert hidden.sum() > 5
    window.ids[hidden] = 17
    after = canvases(model, window, encode(forward, window), window.targets, window.known)[k]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    window.ids[window.seen[row, 0]] = 17
    changed = canvases(model, window, encode(forward, window), window.targets, window.known)[k]
    assert not torch.allclose(changed, before)


def test_the_loss_falls_and_trains_all_weights(
    model: Denoiser, backbone: Backbone, forward: TorchForward, sampler: WindowSampler
):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    index = torch.arange(backbone.model.config.vocab_size)
    totals: list[float] = []
    for step in range(40):
        noise, window = torch.Generator().manual_seed(step), sampler.window(step)
        terms = window_loss(model, encode(forward, window), window, index, noise)
        terms.total.backward()
        if step == 1:  # in the first step the heads that begin at zero pass nothing on
            assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        totals.append(float(terms.total.detach()))
    assert sum(totals[-8:]) < 0.8 * sum(totals[:8])


def test_nothing_of_the_backbone_is_trained(
    model: Denoiser, backbone: Backbone, forward: TorchForward, sampler: WindowSampler
):
    index = torch.arange(backbone.model.config.vocab_size)
    window = sampler.window(0)
    terms = window_loss(model, encode(forward, window), window, index, torch.Generator())
    terms.total.backward()
    assert all(p.grad is None for p in backbone.model.parameters())
    assert model.head.grad is None
