"""What `sampler` decides, for a whole batch and without waiting for the device.

The rules are `sampler.decide`'s, and a property test holds the two together.
Here they take tensors alone and give tensors of the same shapes, so that forward and decision can
be recorded as one step, and steps follow one another without Python looking at a result. Covered is
what needs no more of the logits than `SlotBeliefs`: the likeliest token under an adaptive policy.

Shape letters: B rows, C slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.kernels.reference import SlotBeliefs
from model.engine.sequence import SamplingParams

POLICIES = ("threshold", "entropy", "left-to-right")
"""The index of a policy is its number on the device."""


def can_decide(params: SamplingParams) -> bool:
    """Whether a sequence's decisions can be made on the device."""
    is_adaptive = params.steps is None and params.policy in POLICIES
    return is_adaptive and params.temperature == 0 and params.remask is None


def bound_of(params: SamplingParams) -> float:
    """The number that the sequence's policy holds its slots against."""
    return params.entropy_bound if params.policy == "entropy" else params.threshold


@dataclass(frozen=True, slots=True)
class Canvases:
    """The state of a batch's canvases on the device; a step changes it in place."""

    ids_BC: Tensor
    """int64."""
    confidences_BC: Tensor
    """float32, the probability a slot was committed with."""
    hole_BC: Tensor
    """int32, the hole each slot belongs to; below 0 for text between holes, and behind a canvas."""
    policy_B: Tensor
    """int64, see `POLICIES`."""
    bound_B: Tensor
    """float32, the policy's threshold or bound."""
    never_ends_B: Tensor
    """bool: the length is known, `<eom>` is no choice."""
    steps_B: Tensor
    """int32, steps that had something to decide."""
    is_broken_B: Tensor
    """bool: logits were not finite; nothing is decided from then on."""

    def open_slots(self, mask_id: int) -> Tensor:
        """(B, C) bool: the slots still to be decided."""
        masked = (self.ids_BC == mask_id) & (self.hole_BC >= 0)
        return masked & ~self.is_broken_B[:, None]

    def endless_slots(self, mask_id: int, end_id: int) -> Tensor:
        """(B, C) bool: slots that may not be `<eom>`. A span cannot end before a token that is
        already committed."""
        is_token = (self.ids_BC != mask_id) & (self.ids_BC != end_id)
        before_token = (_after(self.hole_BC) & is_token[:, None, :]).any(dim=2)
        return before_token | self.never_ends_B[:, None]

    def commit(self, beliefs: SlotBeliefs, mask_id: int, end_id: int) -> None:
        """Put what the policy is sure of into the canvases: of each with an open slot, at least
        one. `beliefs` has B·C rows."""
        masked = self.open_slots(mask_id)
        tokens, confidence, entropy = (
            x.view(masked.shape) for x in (beliefs.tokens, beliefs.confidence, beliefs.entropy)
        )
        is_broken = (masked & ~confidence.isfinite()).any(dim=1)
        self.is_broken_B.logical_or_(is_broken)
        masked = masked & ~is_broken[:, None]
        after, is_end = _after(self.hole_BC), tokens == end_id
        chosen = self._selected(masked, is_end, confidence, entropy, after)
        chosen = _without_conflicts(chosen, is_end, confidence, after)
        ids = torch.where(chosen, tokens, self.ids_BC)
        ended = (after & (ids == end_id)[:, :, None]).any(dim=1)
        self.steps_B.add_(masked.any(dim=1))
        self.ids_BC.copy_(ids.masked_fill(ended & masked & ~chosen, end_id))
        self.confidences_BC.copy_(torch.where(chosen, confidence, self.confidences_BC))

    def _selected(
        self, masked: Tensor, is_end: Tensor, confidence: Tensor, entropy: Tensor, after: Tensor
    ) -> Tensor:
        """See `sampler`: ends wait for what is open before them."""
        waits = is_end & (after & masked[:, :, None]).any(dim=1)
        open_now = masked & ~waits
        bound = self.bound_B[:, None]
        policy = self.policy_B[:, None]
        sure = open_now & (confidence > bound.clamp(min=0.0))
        best = confidence.masked_fill(~open_now, -1.0).argmax(dim=1, keepdim=True)
        sure = sure.scatter(1, best, True) & open_now
        certain = _surest(open_now, entropy, bound)
        leftmost = open_now & (open_now.cumsum(dim=1) == 1)
        chosen = torch.where(policy == 0, sure, torch.where(policy == 1, certain, leftmost))
        open_before = (after & (masked & ~chosen)[:, :, None]).any(dim=1)
        taken = entropy.masked_fill(~chosen, 0.0)
        largest = taken.amax(dim=1, keepdim=True)
        together = taken.sum(dim=1, keepdim=True) + entropy - torch.maximum(entropy, largest)
        trusted = torch.where(policy == 0, confidence > bound, together <= bound) & (policy != 2)
        return chosen | (masked & is_end & ~open_before & trusted)


def _surest(open_now: Tensor, entropy: Tensor, bound: Tensor) -> Tensor:
    """See `sampler.EntropyBoundPolicy.select`."""
    entropy = entropy.masked_fill(~open_now, float("inf"))
    ascending, order = entropy.sort(dim=1, stable=True)
    fits = ascending.cumsum(dim=1) - ascending <= bound
    first = torch.arange(fits.shape[1], device=fits.device) == 0
    return torch.zeros_like(open_now).scatter(1, order, fits | first) & open_now


def _after(hole_BC: Tensor) -> Tensor:
    """(B, C, C) bool: [b, i, j] says that slot j comes after slot i in the same hole."""
    order = torch.arange(hole_BC.shape[1], device=hole_BC.device)
    is_same = (hole_BC[:, :, None] == hole_BC[:, None, :]) & (hole_BC >= 0)[:, :, None]
    return is_same & (order[None, :] > order[:, None])


def _without_conflicts(chosen: Tensor, is_end: Tensor, confidence: Tensor, after: Tensor) -> Tensor:
    """See `sampler._without_conflicts`."""
    ends, tokens = chosen & is_end, chosen & ~is_end
    behind = confidence[:, None, :].masked_fill(~(after & tokens[:, None, :]), -1.0)
    ends = ends & (confidence > behind.amax(dim=2))
    end_before = (after & ends[:, :, None]).any(dim=1)
    return ends | (tokens & ~end_before)
