"""The next tokens of causal streams: how the autoregressive baseline chooses.

The same weights and the same cache as denoising, but one token a forward, appended to the prefix
stream, and the suffix unseen.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from model.engine.sampler import SamplingRows, Vocabulary, pick
from model.engine.sequence import Sequence


@torch.inference_mode()
def next_tokens(
    batch: Items[Sequence], logits_BV: Tensor, vocabulary: Vocabulary
) -> list[tuple[int, float] | None]:
    """A token and its probability for each sequence; None where the logits are not finite.

    The likeliest one, or one drawn as `pick` does. There is no `<eom>`: causal streams never saw
    one in training.
    """
    forbidden = vocabulary.forbidden.clone()
    forbidden[vocabulary.end_id] = True
    logits = logits_BV.float().masked_fill(forbidden, float("-inf"))[:, None]
    rows = SamplingRows([s.params for s in batch], logits.device)
    step = torch.tensor([[s.step] for s in batch], device=logits.device)
    tokens, probability, log_total = pick(logits, rows, step)
    columns = (tokens, probability, torch.isfinite(log_total))
    found = zip(*(column[:, 0].tolist() for column in columns), strict=True)
    return [(token, chance) if is_finite else None for token, chance, is_finite in found]
