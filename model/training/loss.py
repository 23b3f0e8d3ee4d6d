"""The joint loss: masked diffusion on canvases, next-token prediction on both context streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import KeyValue
from model.denoiser import Denoiser, Role
from model.flex_attention import canvas_block_mask
from model.noise_schedule import LinearSchedule
from model.training.data import NO_TARGET, Batch

CERTAINTY_TEMPERATURE = 0.5
"""As in dParallel. Below 1, predictions that are nearly sure have next to no entropy left."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Mean losses in nats a token."""

    total: Tensor
    diffusion: Tensor
    """The bounded negative ELBO a slot (MDLM, arXiv 2406.07524, eq. 10)."""
    context: Tensor
    """Next-token cross-entropy over both streams."""
    certainty: Tensor
    """Entropy of the slots predicted right (`certainty_loss`); 0 where it has no weight."""


def add_noise(
    batch: Batch, mask_id: int, schedule: LinearSchedule, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Mask the batch's canvases at one time each.

    Returns the noisy ids (B, K, C) and the loss weights (B, K, C): the slot's share times the
    schedule's weight where it is masked, 0 elsewhere. Clamped slots are never masked.
    """
    shape = batch.canvas_targets.shape
    times = schedule.sample_times(shape[0] * shape[1], generator).view(*shape[:2], 1)
    times = times.to(batch.canvas_targets.device)
    draws = torch.rand(shape, generator=generator).to(batch.canvas_targets.device)
    masked = (draws < schedule.mask_probability(times)) & (batch.canvas_weights > 0)
    noisy = torch.where(masked, mask_id, batch.canvas_targets)
    return noisy, batch.canvas_weights * schedule.loss_weight(times) * masked


def joint_loss(
    model: Denoiser,
    batch: Batch,
    *,
    mask_id: int,
    schedule: LinearSchedule,
    context_weight: float,
    certainty_weight: float = 0.0,
    generator: torch.Generator | None = None,
) -> LossTerms:
    """The losses of one batch, from one encoding of its windows."""
    noisy, weights = add_noise(batch, mask_id, schedule, generator)
    hidden, prefix, suffix = encode_windows(model, batch)
    context = F.cross_entropy(
        model.logits(hidden).flatten(0, 1).float(),
        torch.cat((batch.prefix_targets, batch.suffix_targets)).flatten(),
        ignore_index=NO_TARGET,
    )
    hidden = canvas_hidden(model, batch, noisy, prefix, suffix)
    # Logits only where there is a loss: half the slots are not masked, and the head is dear.
    chosen = weights.flatten() > 0
    logits = model.logits(hidden.flatten(0, 1)[chosen]).float()
    targets, num = batch.canvas_targets.flatten()[chosen], batch.canvas_weights.sum().clamp(1)
    losses = F.cross_entropy(logits, targets, reduction="none")
    diffusion = (losses * weights.flatten()[chosen]).sum() / num
    total = diffusion + context_weight * context
    certainty = torch.zeros_like(diffusion)
    if certainty_weight:
        shares = batch.canvas_weights.flatten()[chosen]
        certainty = certainty_loss(logits, targets, shares) / num
        total = total + certainty_weight * certainty
    return LossTerms(total, diffusion, context, certainty)


def certainty_loss(logits_MV: Tensor, targets_M: Tensor, shares_M: Tensor) -> Tensor:
    """Entropy of the M masked slots' predictions where they are right, times their shares, summed.

    Teaches few-step decoding: what the model knows it should know for sure, so that more slots can
    be committed at once (certainty forcing, dParallel, arXiv 2509.26488; there on the model's own
    trajectories, here on data). Slots weigh the same at every time, so that canvases masked most,
    from which few steps start, have most of it.
    """
    logs = torch.log_softmax(logits_MV / CERTAINTY_TEMPERATURE, dim=-1)
    entropy = -(logs.exp() * logs).sum(dim=-1)
    return (entropy * shares_M * (logits_MV.argmax(dim=-1) == targets_M)).sum()


def encode_windows(model: Denoiser, batch: Batch) -> tuple[Tensor, list[KeyValue], list[KeyValue]]:
    """Hidden states (2B, L, E) of both streams, and the prefix's and the suffix's cache.

    The two streams of a window are one batch of causal sequences in two roles.
    """
    num_windows = batch.prefix_ids.shape[0]
    roles = torch.tensor([Role.PREFIX, Role.SUFFIX], device=batch.prefix_ids.device)
    hidden, cache = model.encode(
        torch.cat((batch.prefix_ids, batch.suffix_ids)),
        roles.repeat_interleave(num_windows)[:, None],
    )
    prefix = [(k[:num_windows], v[:num_windows]) for k, v in cache]
    suffix = [(k[num_windows:], v[num_windows:]) for k, v in cache]
    return hidden, prefix, suffix


def canvas_hidden(
    model: Denoiser,
    batch: Batch,
    canvas_BKC: Tensor,
    prefix: list[KeyValue],
    suffix: list[KeyValue],
) -> Tensor:
    """Hidden states (B, K·C, E) of the batch's canvases holding `canvas_BKC`."""
    canvas_size = canvas_BKC.shape[-1]
    slots = torch.arange(canvas_size, device=canvas_BKC.device)
    return model.denoise(
        canvas_BKC.flatten(1),
        batch.prefix_ids.gather(1, batch.prefix_seen - 1),
        (batch.prefix_seen[..., None] + slots).flatten(1),
        batch.suffix_seen.repeat_interleave(canvas_size, dim=1),
        prefix,
        suffix,
        canvas_size=canvas_size,
        **_masks(model, batch, canvas_size, prefix[0][0].dtype),
    )


def _masks(
    model: Denoiser, batch: Batch, canvas_size: int, dtype: torch.dtype
) -> dict[str, Any]:  # of Denoiser.denoise, in the form that this model takes
    seen, length = (batch.prefix_seen, batch.suffix_seen), batch.prefix_ids.shape[1]
    if model.is_compiled:
        return {"block_mask": canvas_block_mask(*seen, length, canvas_size)}
    prefix_mask, suffix_mask = (_visible(s, length, canvas_size, dtype) for s in seen)
    return {"prefix_mask": prefix_mask, "suffix_mask": suffix_mask}


def _visible(seen_BK: Tensor, length: int, canvas_size: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (B, 1, K·C, L): canvas k sees the first `seen_BK[:, k]` stream tokens."""
    hidden = torch.arange(length, device=seen_BK.device) >= seen_BK[..., None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=seen_BK.device)
    mask.masked_fill_(hidden, float("-inf"))
    return mask.repeat_interleave(canvas_size, dim=1)[:, None]
