"""Unmasking policies: how many of a canvas's masked slots one denoising step trusts.

Each holds its parameters for the rows of a batch as (B, 1) tensors and works on all rows at once:
static shapes, no look at a value from the host, so that a captured graph can hold the decision.

Shape letters: B rows (canvases), C slots.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.engine.canvas.sequence import CanvasParams


@dataclass(frozen=True, slots=True)
class OpenSlots:
    """What a policy sees of a step."""

    confidence: Tensor
    """(B, C) probability of each slot's token; -1 where none is to be chosen now."""
    entropy: Tensor | None
    """(B, C) nats; only where a policy of the batch asks for it (`needs_entropy`)."""
    step: Tensor
    """(B, 1) steps the canvas has had."""


class UnmaskPolicy(Protocol):
    """Which masked slots a step commits."""

    needs_entropy: bool

    def select(self, slots: OpenSlots) -> Tensor:
        """Slots (B, C) to commit: at least one in each row that has an open one. What it says of
        slots that are not open means nothing."""
        ...

    def trusts(self, slots: OpenSlots, all_confidence: Tensor, chosen: Tensor) -> Tensor:
        """Slots (B, C) sure enough for one of them to be committed beside the chosen ones, by
        their confidence whether open or not."""
        ...


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """Commit every slot more confident than `threshold` (Fast-dLLM, arXiv 2505.22618, 3.3), and the
    leftmost or the surest one however unsure.

    The surest is Fast-dLLM's. The leftmost makes as many fills exact, and soon shows when one is
    not worth going on with (docs/experiments.md).
    """

    threshold: Tensor
    takes_leftmost: bool = True
    needs_entropy = False

    def select(self, slots: OpenSlots) -> Tensor:
        """See `UnmaskPolicy.select`."""
        at_least = _leftmost if self.takes_leftmost else _surest
        return (slots.confidence > self.threshold) | at_least(slots.confidence)

    def trusts(self, slots: OpenSlots, all_confidence: Tensor, chosen: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        return all_confidence > self.threshold


@dataclass(frozen=True, slots=True)
class FactorPolicy:
    """Commit the n surest slots for the largest n with c_n >= 1 - factor / (n + 1), c_n the n-th
    confidence: the more at once, the surer each must be (Fast-dLLM, arXiv 2505.22618, theorem 1).
    """

    factor: Tensor
    needs_entropy = False

    def select(self, slots: OpenSlots) -> Tensor:
        """See `UnmaskPolicy.select`."""
        descending, order = slots.confidence.sort(dim=1, descending=True, stable=True)
        n = torch.arange(1, descending.shape[1] + 1, device=descending.device)
        fits = (descending >= 1 - self.factor / (n + 1)) & (descending >= 0)
        leading = fits.cumprod(dim=1).bool()
        return torch.zeros_like(fits).scatter(1, order, leading) | _surest(slots.confidence)

    def trusts(self, slots: OpenSlots, all_confidence: Tensor, chosen: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        n = chosen.sum(dim=1, keepdim=True) + 1
        return all_confidence >= 1 - self.factor / (n + 1)


@dataclass(frozen=True, slots=True)
class EntropyBoundPolicy:
    """Commit the surest slots whose joint error is bounded (EB-Sampler, arXiv 2505.24857, eq. 9):
    in order of entropy, as long as sum - max of the entropies is at most `bound` nats."""

    bound: Tensor
    needs_entropy = True

    def select(self, slots: OpenSlots) -> Tensor:
        """See `UnmaskPolicy.select`."""
        assert slots.entropy is not None
        is_open = slots.confidence >= 0
        ascending, order = slots.entropy.masked_fill(~is_open, float("inf")).sort(
            dim=1, stable=True
        )
        # In ascending order the largest entropy of a set is its last one's.
        fits = ascending.cumsum(1) - ascending <= self.bound
        fits = fits & is_open.gather(1, order)
        # Alone a slot costs nothing; rounding must not say otherwise.
        fits = fits | (torch.arange(fits.shape[1], device=fits.device) == 0)
        return torch.zeros_like(fits).scatter(1, order, fits)

    def trusts(self, slots: OpenSlots, all_confidence: Tensor, chosen: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        assert slots.entropy is not None
        taken = torch.where(chosen, slots.entropy, 0.0)
        largest = torch.maximum(slots.entropy, taken.amax(dim=1, keepdim=True))
        return taken.sum(dim=1, keepdim=True) + slots.entropy - largest <= self.bound


@dataclass(frozen=True, slots=True)
class LeftToRightPolicy:
    """Commit the leftmost open slot and nothing else: the denoiser as an autoregressive model that
    sees the suffix, the baseline that parallel commits are measured against."""

    needs_entropy = False

    def select(self, slots: OpenSlots) -> Tensor:
        """See `UnmaskPolicy.select`."""
        return _leftmost(slots.confidence)

    def trusts(self, slots: OpenSlots, all_confidence: Tensor, chosen: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        return torch.zeros_like(chosen)


@dataclass(frozen=True, slots=True)
class FixedStepsPolicy:
    """Finish a canvas in `steps` steps, the most confident slots first (LLaDA, arXiv 2502.09992,
    low-confidence remasking)."""

    steps: Tensor
    needs_entropy = False

    def select(self, slots: OpenSlots) -> Tensor:
        """See `UnmaskPolicy.select`."""
        num_open = (slots.confidence >= 0).sum(dim=1, keepdim=True)
        left = (self.steps - slots.step).clamp(min=1)
        order = slots.confidence.argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(order.shape[1], device=order.device)
        first = (rank < (num_open + left - 1) // left).expand_as(order)
        return torch.zeros_like(first).scatter(1, order, first)

    def trusts(self, slots: OpenSlots, all_confidence: Tensor, chosen: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        return torch.ones_like(chosen)


class PerRow:
    """Rows that follow policies of their own, as one policy."""

    def __init__(self, policies: Items[UnmaskPolicy], index_B1: Tensor) -> None:
        """`index_B1` names each row's policy."""
        self._policies, self._index = policies, index_B1
        self.needs_entropy = any(policy.needs_entropy for policy in policies)

    def select(self, slots: OpenSlots) -> Tensor:
        """See `UnmaskPolicy.select`."""
        return self._merged([policy.select(slots) for policy in self._policies])

    def trusts(self, slots: OpenSlots, all_confidence: Tensor, chosen: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        return self._merged([p.trusts(slots, all_confidence, chosen) for p in self._policies])

    def _merged(self, opinions: list[Tensor]) -> Tensor:
        merged = opinions[0]
        for number, opinion in enumerate(opinions[1:], start=1):
            merged = torch.where(self._index == number, opinion, merged)
        return merged


def policy_of(params: Items[CanvasParams], device: torch.device) -> UnmaskPolicy:
    """The policy of a batch, one row a `params`."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device)[:, None]

    kinds = [_kind(p) for p in params]
    distinct = sorted(set(kinds))
    policies: list[UnmaskPolicy] = []
    for kind in distinct:
        if kind == "fixed":
            policies.append(FixedStepsPolicy(column([p.steps or 1 for p in params])))
        elif kind == "entropy":
            policies.append(EntropyBoundPolicy(column([p.entropy_bound for p in params])))
        elif kind == "factor":
            policies.append(FactorPolicy(column([p.factor for p in params])))
        elif kind == "left-to-right":
            policies.append(LeftToRightPolicy())
        else:
            threshold = column([p.threshold for p in params])
            policies.append(ThresholdPolicy(threshold, takes_leftmost=kind == "threshold"))
    if len(policies) == 1:
        return policies[0]
    return PerRow(policies, column([distinct.index(kind) for kind in kinds]))


def _kind(params: CanvasParams) -> str:
    if params.steps is not None:
        return "fixed"
    if params.policy == "threshold" and params.at_least == "surest":
        return "threshold, surest"
    return params.policy


def _leftmost(confidence_BC: Tensor) -> Tensor:
    """(B, C) bool: the leftmost open slot of each row."""
    is_open = confidence_BC >= 0
    return is_open & (is_open.cumsum(dim=1) == 1)


def _surest(confidence_BC: Tensor) -> Tensor:
    """(B, C) bool: the most confident slot of each row."""
    slots = torch.arange(confidence_BC.shape[1], device=confidence_BC.device)
    return slots == confidence_BC.argmax(dim=1, keepdim=True)
