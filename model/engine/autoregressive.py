"""The next token of a causal stream: how the autoregressive baseline chooses.

The same weights and the same cache as denoising, but one token a forward, appended to the prefix
stream, and the suffix unseen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.engine.sequence import SamplingParams


def next_token(
    logits_V: Tensor, params: SamplingParams, position: int, forbidden_V: Tensor
) -> tuple[int, float]:
    """A token and its probability: the likeliest, or one drawn at the temperature from the
    smallest set that has `top_p` of the probability (Holtzman et al., arXiv 1904.09751).

    `position` counts the tokens before it: the same seed draws the same token there. Raises
    `FloatingPointError` on non-finite logits.
    """
    logits = logits_V.float().masked_fill(forbidden_V, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if params.temperature > 0:
        token = _drawn(logits, params, position)
    else:
        token = int(probabilities.argmax())
    probability = float(probabilities[token])
    if not probability >= 0:
        raise FloatingPointError("the denoiser produced non-finite logits")
    return token, probability


def _drawn(logits_V: Tensor, params: SamplingParams, position: int) -> int:
    seed = (params.seed * 1_000_003 + position) % 2**63
    generator = torch.Generator(logits_V.device).manual_seed(seed)
    # From the top down: a tiny temperature would divide positive logits up to infinity.
    tempered = ((logits_V - logits_V.amax()) / params.temperature).softmax(dim=-1)
    descending, order = tempered.nan_to_num(0.0).sort(descending=True)
    descending[1:][descending.cumsum(0)[:-1] >= params.top_p] = 0
    if not descending.sum() > 0:
        raise FloatingPointError("the denoiser produced non-finite logits")
    return int(order[torch.multinomial(descending, 1, generator=generator)])
