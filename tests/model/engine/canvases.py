"""Canvases to run, and what a runner's logits must be."""

from __future__ import annotations

import random

import torch

from model.denoiser import Denoiser, Role
from model.engine.canvas.sequence import Fill, SamplingParams, Sequence
from model.engine.canvas.layout import CanvasLayout


def stream(seed: int, num_tokens: int) -> list[int]:
    """A random stream."""
    draw = random.Random(seed)
    return [draw.randrange(100, 300) for _ in range(num_tokens)]


def half_decided(
    prefix: list[int], suffix: list[int], mask_id: int, *, seed: int = 0, size: int = 16
) -> Sequence:
    """A half-decided canvas between streams."""
    layout = CanvasLayout((size,))
    canvas, clamped = layout.blank(mask_id)
    draw = random.Random(seed)
    for slot in draw.sample(range(size), 5):
        canvas[slot] = draw.randrange(100, 300)
    return Sequence(
        fill=Fill(prefix=prefix, suffix=suffix, layout=layout),
        params=SamplingParams(),
        prefix=prefix,
        suffix=suffix,
        layout=layout,
        canvas=canvas,
        clamped=clamped,
        fixed=list(clamped),
        confidences=[1.0] * size,
    )


def between_random_streams(
    seed: int, mask_id: int, *, prefix: int, suffix: int, size: int = 16
) -> Sequence:
    """A half-decided canvas between random streams of so many tokens."""
    streams = stream(2 * seed + 1, prefix), stream(2 * seed + 2, suffix)
    return half_decided(*streams, mask_id, seed=seed, size=size)


@torch.inference_mode()
def uncached(model: Denoiser, seq: Sequence) -> torch.Tensor:
    """The reference: encode both streams, denoise the one canvas."""
    _, prefix = model.encode(torch.tensor([seq.prefix]), Role.PREFIX)
    _, suffix = model.encode(torch.tensor([seq.suffix]), Role.SUFFIX)
    size = len(seq.canvas)
    hidden = model.denoise(
        torch.tensor([seq.canvas]),
        torch.tensor([seq.prefix[-1:]]),
        torch.arange(size)[None] + len(seq.prefix),
        torch.full((1, size), len(seq.suffix)),
        prefix,
        suffix,
        canvas_size=size,
    )
    return model.logits(hidden)[0]
