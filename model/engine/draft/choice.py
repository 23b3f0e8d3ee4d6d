"""From a backbone's logits to the tokens it chooses, drafts or no drafts.

A draft is right where it equals what the backbone chooses at its place. A drawn token is chosen by
a number that turns on the seed and the place alone, so what is drawn does not turn on the drafts
either: the distribution stays the backbone's, and the same request gives the same text.

Shape letters: M rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.fill import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneVocabulary:
    """The ids that decisions turn on."""

    end_ids: frozenset[int]
    """Tokens with which a middle or a text ends."""
    forbidden: Tensor
    """Ids that are never chosen: special tokens that end nothing, and rows of the embedding without
    a token."""

    @property
    def end_id(self) -> int:
        """The one that stands for all ends."""
        return min(self.end_ids)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token is to be chosen."""

    params: SamplingParams
    number: int
    """How many tokens of the hole come before it."""
    allowed: Items[int] | None = None
    """The only ids that may be chosen (None: all)."""
    refused: Items[int] = ()
    """Ids that must not be."""
    may_end: bool = True


@torch.inference_mode()
def chosen(
    logits_MV: Tensor, places: Items[Place], vocabulary: BackboneVocabulary
) -> list[tuple[int, float] | None]:
    """Of each place the token and its probability; None where the logits are not finite.

    All ends count as one token, `BackboneVocabulary.end_id`. The probability is the backbone's own
    among what may be chosen, before temperature and top-p. The logits are overwritten: a copy of
    them takes longer than all the rest.
    """
    logits = logits_MV
    logits[:, vocabulary.forbidden] = -math.inf
    ends = torch.tensor(sorted(vocabulary.end_ids), device=logits.device)
    end = logits[:, ends].logsumexp(dim=1)
    logits[:, ends] = -math.inf
    logits[:, vocabulary.end_id] = end
    for row, place in enumerate(places):
        if place.allowed is not None:
            index = torch.tensor(list(place.allowed), device=logits.device)
            kept = logits[row, index]
            logits[row] = -math.inf
            logits[row, index] = kept
        if place.refused:
            logits[row, list(place.refused)] = -math.inf
        if not place.may_end:
            logits[row, vocabulary.end_id] = -math.inf
    top, tokens = logits.max(dim=1)
    weights = logits.sub_(top[:, None]).exp_()
    for row, place in enumerate(places):
        if place.params.temperature > 0:
            tokens[row] = _drawn(weights[row], place)
    found = weights.gather(1, tokens[:, None])[:, 0] / weights.sum(dim=1)
    return [
        (token, probability) if math.isfinite(probability) else None
        for token, probability in zip(tokens.tolist(), found.tolist(), strict=True)
    ]


def _drawn(weights_V: Tensor, place: Place) -> Tensor:
    """A token by inversion of the tempered distribution's cumulative sum; the largest weight is
    1."""
    weights = weights_V ** (1 / place.params.temperature)
    if place.params.top_p < 1:  # the smallest set of the likeliest that reaches top_p
        descending, order = weights.sort(descending=True, stable=True)
        before = (descending.cumsum(dim=0) - descending) / descending.sum()
        cut = torch.zeros_like(weights, dtype=torch.bool)
        weights = weights.masked_fill(cut.scatter(0, order, before >= place.params.top_p), 0.0)
    cumulative = weights.double().cumsum(dim=0)
    goal = uniform(place.params.seed, place.number) * cumulative[-1]
    # Right of equal sums, so that a token of weight 0 is never drawn.
    index = torch.searchsorted(cumulative, goal, right=True)
    return index.clamp(max=len(weights_V) - 1)


def uniform(seed: int, number: int) -> float:
    """A number in [0, 1), a hash of seed and place (SplitMix64)."""
    mask = (1 << 64) - 1
    x = (seed * 0x2545F4914F6CDD1D + (number + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
    return ((x ^ x >> 31) >> 11) * 2.0**-53
