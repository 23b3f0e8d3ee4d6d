"""The CUDA runner with plain calls in the place of recordings, against the runner it stands for."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from model.denoiser import Denoiser
from model.engine.graphed_runner import GraphedRunner, Shape
from model.engine.model_runner import ModelRunner
from model.engine.sequence import Fill, SamplingParams, Sequence
from model.infill import CanvasLayout
from model.tokenizer import CodeTokenizer


def sequence(seed: int, mask_id: int, *, prefix: int, suffix: int, size: int) -> Sequence:
    """A half-decided canvas between random streams."""
    draw = random.Random(seed)
    layout = CanvasLayout((size,))
    canvas, clamped = layout.blank(mask_id)
    for slot in draw.sample(range(size), 5):
        canvas[slot] = draw.randrange(100, 300)
    streams = [[draw.randrange(100, 300) for _ in range(n)] for n in (prefix, suffix)]
    return Sequence(
        fill=Fill(prefix=streams[0], suffix=streams[1], layout=layout),
        params=SamplingParams(),
        prefix=streams[0],
        suffix=streams[1],
        layout=layout,
        canvas=canvas,
        clamped=clamped,
        confidences=[1.0] * size,
    )


def mixed_batch(mask_id: int) -> list[Sequence]:
    sizes = [(40, 3, 16), (1, 50, 16), (33, 20, 32)]
    return [
        sequence(seed, mask_id, prefix=prefix, suffix=suffix, size=size)
        for seed, (prefix, suffix, size) in enumerate(sizes)
    ]


def logits_of(runner: ModelRunner, batch: list[Sequence]) -> list[torch.Tensor]:
    """Each sequence's own logits, with its context opened for it."""
    assert runner.open_contexts(batch) == batch
    logits = runner.denoise(batch)
    found = [logits[row, : len(s.canvas)].clone() for row, s in enumerate(batch)]
    for s in batch:
        runner.close_context(s)
    return found


def test_a_mixed_batch_over_pages_gives_the_plain_runners_logits(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    batch = mixed_batch(tokenizer.mask_id)
    expected = logits_of(ModelRunner(model), batch)
    found = logits_of(GraphedRunner(copy.deepcopy(model)), batch)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_one_shape_serves_changing_canvases_and_changing_contexts(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    plain, graphed = ModelRunner(model), GraphedRunner(copy.deepcopy(model))
    for seed, prefix in enumerate([40, 41, 7]):
        batch = [sequence(seed, tokenizer.mask_id, prefix=prefix, suffix=9, size=16)]
        for _ in range(2):
            expected, found = logits_of(plain, batch), logits_of(graphed, batch)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            batch[0].canvas[5] = 120 + seed
    assert len(graphed._recordings) == 1


def test_the_models_own_projections_become_views_of_the_joint_ones(model: Denoiser) -> None:
    mine = copy.deepcopy(model)
    before = [p.clone() for p in mine.parameters()]
    runner = GraphedRunner(mine)
    joint = runner.denoiser._layers[0].qkv
    assert isinstance(joint, torch.Tensor)
    q = mine.blocks[0].attention.q_proj.weight
    assert q.untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()
    for a, b in zip(mine.parameters(), before, strict=True):
        assert a.equal(b)


def test_a_float8_models_beliefs_stay_near_the_full_ones(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    batch = mixed_batch(tokenizer.mask_id)
    exact = logits_of(GraphedRunner(copy.deepcopy(model)), batch)
    rounded = logits_of(GraphedRunner(copy.deepcopy(model), is_float8=True), batch)
    for a, b in zip(rounded, exact, strict=True):
        assert not a.equal(b)
        assert torch.cosine_similarity(a, b, dim=-1).min() > 0.98


@pytest.mark.parametrize(("rows", "size", "shape"), [
    (1, 16, Shape(1, 16, 32)), (3, 48, Shape(4, 64, 32)), (5, 128, Shape(8, 128, 32)),
])  # fmt: skip
def test_a_batch_is_padded_to_the_next_powers_of_two(
    model: Denoiser, tokenizer: CodeTokenizer, rows: int, size: int, shape: Shape
) -> None:
    runner = ModelRunner(model)
    batch = [
        sequence(seed, tokenizer.mask_id, prefix=20, suffix=5, size=size) for seed in range(rows)
    ]
    runner.open_contexts(batch)
    assert Shape.of(batch) == shape
