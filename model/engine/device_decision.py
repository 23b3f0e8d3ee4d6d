"""What `sampler` decides, for a whole batch and without waiting for the device.

The rules are the sampler's (`select`), and a property test holds the two together.
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
from model.engine.policies import (
    EntropyBoundPolicy,
    LeftToRightPolicy,
    PerRow,
    ThresholdPolicy,
    UnmaskPolicy,
)
from model.engine.sampler import after_in_hole, any_before, select
from model.engine.sequence import SamplingParams

POLICIES = ("threshold", "entropy", "left-to-right")
"""The index of a policy is its number on the device."""


def can_decide(params: SamplingParams) -> bool:
    """Whether a sequence's decisions can be made on the device."""
    is_adaptive = params.steps is None and params.policy in POLICIES
    is_plain = params.at_least == "leftmost" and params.remask is None
    return is_adaptive and params.temperature == 0 and is_plain


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

    @property
    def policy(self) -> UnmaskPolicy:
        """The rows' policies, numbered as `POLICIES`."""
        bound = self.bound_B[:, None]
        known = (ThresholdPolicy(bound), EntropyBoundPolicy(bound), LeftToRightPolicy())
        return PerRow(known, self.policy_B[:, None])

    def open_slots(self, mask_id: int) -> Tensor:
        """(B, C) bool: the slots still to be decided."""
        masked = (self.ids_BC == mask_id) & (self.hole_BC >= 0)
        return masked & ~self.is_broken_B[:, None]

    def endless_slots(self, mask_id: int, end_id: int) -> Tensor:
        """(B, C) bool: slots that may not be `<eom>`. A span cannot end before a token that is
        already committed."""
        is_token = (self.ids_BC != mask_id) & (self.ids_BC != end_id)
        before_token = (after_in_hole(self.hole_BC) & is_token[:, None, :]).any(dim=2)
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
        after, is_end = after_in_hole(self.hole_BC), tokens == end_id
        step = self.steps_B[:, None]
        chosen = select(self.policy, after, step, masked, is_end, confidence, entropy)
        ids = torch.where(chosen, tokens, self.ids_BC)
        ended = any_before(after, ids == end_id)
        self.steps_B.add_(masked.any(dim=1))
        self.ids_BC.copy_(ids.masked_fill(ended & masked & ~chosen, end_id))
        self.confidences_BC.copy_(torch.where(chosen, confidence, self.confidences_BC))
