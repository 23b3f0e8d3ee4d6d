"""From logits to committed slots: the choice of tokens and the unmasking policies.

One step of the one denoising loop. A policy says how many slots to trust; the rules that keep a
canvas well formed (nothing after `<eom>` but `<eom>`, no clamped slot changed) hold for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.engine.sequence import SamplingParams


class UnmaskPolicy(Protocol):
    """Which masked slots a step commits."""

    def select(self, confidence_C: Tensor, probabilities_CV: Tensor, step: int) -> Tensor:
        """Slots (C,) to commit, given the confidence of every slot (C,), -1 where none is to be
        chosen, and its probabilities (C, V). Commits at least one slot."""
        ...

    def trusts(self, chosen_C: Tensor, confidence_C: Tensor, probabilities_CV: Tensor) -> Tensor:
        """Slots (C,) sure enough for one of them to be committed beside the chosen ones."""
        ...


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """Commit every slot more confident than `threshold` (Fast-dLLM, arXiv 2505.22618, 3.3)."""

    threshold: float

    def select(self, confidence_C: Tensor, probabilities_CV: Tensor, step: int) -> Tensor:
        """See `UnmaskPolicy.select`."""
        chosen = confidence_C > max(self.threshold, 0.0)
        chosen[confidence_C.argmax()] = True
        return chosen

    def trusts(self, chosen_C: Tensor, confidence_C: Tensor, probabilities_CV: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        return confidence_C > self.threshold


@dataclass(frozen=True, slots=True)
class EntropyBoundPolicy:
    """Commit the surest slots whose joint error is bounded (EB-Sampler, arXiv 2505.24857, eq. 9):
    in order of entropy, as long as sum - max of the entropies is at most `bound` nats."""

    bound: float

    def select(self, confidence_C: Tensor, probabilities_CV: Tensor, step: int) -> Tensor:
        """See `UnmaskPolicy.select`."""
        is_open = confidence_C >= 0
        entropy_C = _entropy(probabilities_CV).masked_fill(~is_open, float("inf"))
        ascending, order = entropy_C.sort(stable=True)
        # In ascending order the largest entropy of a set is its last one's.
        fits = (ascending.cumsum(0) - ascending <= self.bound) & is_open[order]
        fits[0] = True  # alone a slot costs nothing; rounding must not say otherwise
        chosen = torch.zeros_like(is_open)
        chosen[order[fits]] = True
        return chosen

    def trusts(self, chosen_C: Tensor, confidence_C: Tensor, probabilities_CV: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        entropy_C = _entropy(probabilities_CV)
        taken = entropy_C[chosen_C]
        largest = taken.amax() if len(taken) else entropy_C.new_zeros(())
        return taken.sum() + entropy_C - torch.maximum(entropy_C, largest) <= self.bound


@dataclass(frozen=True, slots=True)
class LeftToRightPolicy:
    """Commit the leftmost open slot and nothing else: the denoiser as an autoregressive model,
    the baseline that parallel commits are measured against."""

    def select(self, confidence_C: Tensor, probabilities_CV: Tensor, step: int) -> Tensor:
        """See `UnmaskPolicy.select`."""
        is_open = confidence_C >= 0
        return is_open & (is_open.cumsum(0) == 1)

    def trusts(self, chosen_C: Tensor, confidence_C: Tensor, probabilities_CV: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        return torch.zeros_like(chosen_C)


@dataclass(frozen=True, slots=True)
class FixedStepsPolicy:
    """Finish a canvas in `steps` steps, the most confident slots first (LLaDA, arXiv 2502.09992,
    low-confidence remasking)."""

    steps: int

    def select(self, confidence_C: Tensor, probabilities_CV: Tensor, step: int) -> Tensor:
        """See `UnmaskPolicy.select`."""
        num_open = int((confidence_C >= 0).sum())
        left = max(self.steps - step, 1)
        chosen = torch.zeros_like(confidence_C, dtype=torch.bool)
        chosen[confidence_C.topk(-(-num_open // left)).indices] = True
        return chosen

    def trusts(self, chosen_C: Tensor, confidence_C: Tensor, probabilities_CV: Tensor) -> Tensor:
        """See `UnmaskPolicy.trusts`."""
        return torch.ones_like(chosen_C)


def policy_of(params: SamplingParams) -> UnmaskPolicy:
    """The policy a sequence asks for."""
    if params.steps is not None:
        return FixedStepsPolicy(params.steps)
    if params.policy == "entropy":
        return EntropyBoundPolicy(params.entropy_bound)
    if params.policy == "left-to-right":
        return LeftToRightPolicy()
    return ThresholdPolicy(params.threshold)


def _entropy(probabilities_CV: Tensor) -> Tensor:
    """Entropy (C,) of each slot, in nats."""
    return torch.special.entr(probabilities_CV).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class StepChoice:
    """What one step commits on one canvas."""

    chosen: Tensor
    """(C,) bool, slots to commit now."""
    tokens: Tensor
    """(C,) their tokens."""
    confidence: Tensor
    """(C,) the probability of each."""


def choose(
    logits_CV: Tensor,
    canvas_C: Tensor,
    hole_C: Tensor,
    params: SamplingParams,
    step: int,
    *,
    mask_id: int,
    end_id: int,
    forbidden: Tensor,
) -> StepChoice:
    """Pick a token for every masked slot of one canvas and the slots to commit.

    `hole_C` numbers each slot's hole, -1 for text between holes. `forbidden` (V,) marks ids that
    are never generated. Raises `FloatingPointError` on non-finite logits.
    """
    masked = canvas_C == mask_id
    after = _after_in_hole(hole_C)
    is_token = ~masked & (canvas_C != end_id)
    logits = logits_CV.float().masked_fill(forbidden, float("-inf"))
    # A span cannot end before a token that is already committed.
    ends_too_early = (after & is_token).any(dim=1)
    logits[ends_too_early, end_id] = float("-inf")
    probabilities = logits.softmax(dim=-1)
    if not torch.isfinite(probabilities[masked]).all():
        raise FloatingPointError("the denoiser produced non-finite logits")
    if params.temperature > 0:
        tokens = _drawn(logits, params, step)
        confidence = probabilities.gather(1, tokens[:, None])[:, 0]
    else:
        confidence, tokens = probabilities.max(dim=-1)
    is_end = tokens == end_id
    chosen = _select(policy_of(params), masked, is_end, confidence, probabilities, after, step)
    return StepChoice(_without_conflicts(chosen, is_end, confidence, after), tokens, confidence)


def _select(
    policy: UnmaskPolicy,
    masked: Tensor,
    is_end: Tensor,
    confidence: Tensor,
    probabilities: Tensor,
    after: Tensor,
    step: int,
) -> Tensor:
    """The masked slots (C,) a policy commits, ends only where nothing before them is open.

    An end further right only says that the span is no longer than that; committing it makes the
    next shorter one likelier, and an unsure model would talk itself into an empty span.
    """
    waits = is_end & (after & masked[:, None]).any(dim=0)
    open_now = masked & ~waits
    choosable = torch.where(open_now, confidence, -1.0)
    chosen = policy.select(choosable, probabilities, step) & open_now
    open_before = (after & (masked & ~chosen)[:, None]).any(dim=0)
    trusted = policy.trusts(chosen, confidence, probabilities)
    return chosen | (masked & is_end & ~open_before & trusted)


def _drawn(logits_CV: Tensor, params: SamplingParams, step: int) -> Tensor:
    """A token for every slot (C,) at the temperature, the same ones for the same seed and step."""
    seed = (params.seed * 1_000_003 + step) % 2**63
    generator = torch.Generator(logits_CV.device).manual_seed(seed)
    # From the top down: a tiny temperature would divide positive logits up to infinity.
    below_top = logits_CV - logits_CV.amax(dim=-1, keepdim=True)
    tempered = (below_top / params.temperature).softmax(dim=-1)
    return torch.multinomial(tempered, 1, generator=generator)[:, 0]


def _after_in_hole(hole_C: Tensor) -> Tensor:
    """(C, C) bool: [i, j] says that slot j comes after slot i in the same hole."""
    order = torch.arange(len(hole_C), device=hole_C.device)
    return (hole_C[:, None] == hole_C[None, :]) & (order[None, :] > order[:, None])


def _without_conflicts(chosen: Tensor, is_end: Tensor, confidence: Tensor, after: Tensor) -> Tensor:
    """Where a step would commit both an end and a token after it, the more confident one wins.

    The most confident slot of the step always survives, so a step never commits nothing.
    """
    ends, tokens = chosen & is_end, chosen & ~is_end
    best_token_after = torch.where(after & tokens, confidence, -1.0).amax(dim=1)
    ends = ends & (confidence > best_token_after)
    end_before = (after & ends[:, None]).any(dim=0)
    return ends | (tokens & ~end_before)


def commit(
    choice: StepChoice, canvas_C: Tensor, hole_C: Tensor, *, mask_id: int, end_id: int
) -> Tensor:
    """The canvas after the step (C,): chosen tokens in place, and `<eom>` after every end."""
    canvas = torch.where(choice.chosen, choice.tokens, canvas_C)
    ended = (_after_in_hole(hole_C) & (canvas == end_id)[:, None]).any(dim=0)
    return torch.where(ended & (canvas == mask_id), end_id, canvas)
