"""How a model in training is doing: held-out losses, an infill score, and fills to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training import distributed
from model.training.data import Batch
from model.training.loss import canvas_hidden, encode_windows, joint_loss

HELD_OUT_SEED = 20_250_617
SAMPLE_CHARS = 160


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Means over the held-out batches of all processes."""

    diffusion: float
    """Nats a slot: the bounded negative ELBO."""
    context: float
    """Nats a token, over both streams."""
    accuracy: float
    """Share of the holes' tokens and ends that one forward from an all-masked canvas gets right:
    the infill score that the best checkpoint is chosen by."""
    exact: float
    """Share of holes that such a forward fills exactly, end included. With a weak model mostly the
    shortest ones, and of more noise than `accuracy`."""


@torch.no_grad()
def held_out_scores(
    model: Denoiser, tokenizer: CodeTokenizer, schedule: LinearSchedule, batches: Sequence[Batch]
) -> HeldOutScores:
    """Scores under fixed noise. Every process passes its own share of the batches."""
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    diffusion = context = 0.0
    num_right = num_slots = num_exact = num_holes = 0
    for batch in (b.to(device) for b in batches):
        terms = joint_loss(
            model,
            batch,
            mask_id=tokenizer.mask_id,
            schedule=schedule,
            context_weight=0.0,
            generator=generator,
        )
        diffusion += terms.diffusion.item()
        context += terms.context.item()
        right, asked = _right_slots(batch, one_step_fill(model, tokenizer, batch), tokenizer.end_id)
        num_right += int(right.sum())
        num_slots += int(asked.sum())
        num_exact += int(((right == asked).all(dim=-1) & asked.any(dim=-1)).sum())
        num_holes += int(asked.any(dim=-1).sum())
    num, diffusion, context, num_right, num_slots, num_exact, num_holes = distributed.total(
        len(batches), diffusion, context, num_right, num_slots, num_exact, num_holes, device=device
    )
    return HeldOutScores(
        diffusion / num, context / num, num_right / max(num_slots, 1), num_exact / max(num_holes, 1)
    )


@torch.no_grad()
def one_step_fill(model: Denoiser, tokenizer: CodeTokenizer, batch: Batch) -> Tensor:
    """(B, K, C): the likeliest token of every slot, all of them masked but the clamped ones."""
    masked = torch.where(batch.canvas_weights > 0, tokenizer.mask_id, batch.canvas_targets)
    _, prefix, suffix = encode_windows(model, batch)
    logits = model.logits(canvas_hidden(model, batch, masked, prefix, suffix))
    logits[..., sorted(tokenizer.special_ids - {tokenizer.end_id})] = float("-inf")
    filled = logits.argmax(dim=-1).view_as(masked)
    return torch.where(batch.canvas_weights > 0, filled, batch.canvas_targets)


def _right_slots(batch: Batch, filled: Tensor, end_id: int) -> tuple[Tensor, Tensor]:
    """(B, K, C) bool each: slots that were filled right, and slots that count: a hole's tokens and
    its first `<eom>`. What follows that end is an end whatever was predicted."""
    targets = batch.canvas_targets
    follows_end = torch.zeros_like(targets, dtype=torch.bool)
    follows_end[..., 1:] = (targets[..., :-1] == end_id) & (targets[..., 1:] == end_id)
    asked = (batch.canvas_weights > 0) & ~follows_end
    return (filled == targets) & asked, asked


def sample_fills(
    model: Denoiser, tokenizer: CodeTokenizer, batch: Batch, num: int = 4
) -> list[dict[str, str]]:
    """The first hole of the first windows: text before it, the true text, the one-step fill."""
    filled = one_step_fill(model, tokenizer, batch.to(model.embedding.weight.device)).cpu()
    samples: list[dict[str, str]] = []
    for window in range(min(num, filled.shape[0])):
        seen = int(batch.prefix_seen[window, 0])
        samples.append(
            {
                "before": tokenizer.decode(batch.prefix_ids[window, :seen].tolist())[
                    -SAMPLE_CHARS:
                ],
                "true": _text(tokenizer, batch.canvas_targets[window, 0]),
                "filled": _text(tokenizer, filled[window, 0]),
            }
        )
    return samples


def _text(tokenizer: CodeTokenizer, canvas_C: Tensor) -> str:
    ids = canvas_C.tolist()
    length = ids.index(tokenizer.end_id) if tokenizer.end_id in ids else len(ids)
    return tokenizer.decode(ids[:length])
