"""Puts the engine of a backbone together."""

from __future__ import annotations

import torch

from model.backbone.tokenizer import BackboneTokenizer
from model.engine.draft.choice import BackboneVocabulary
from model.engine.draft.denoiser_drafter import DenoiserDrafter
from model.engine.draft.drafters import Drafter, GuessDrafter, RepetitionDrafter
from model.engine.draft.verify import VerifyingDecoder
from model.engine.engine import Engine
from model.engine.run.choice import runner_for
from model.engine.run.forward import DenoiserForward, Forward


def backbone_engine(
    tokenizer: BackboneTokenizer,
    forward: Forward,
    *,
    denoiser: DenoiserForward | None = None,
    end_threshold: float | None = None,
    canvas_end_threshold: float | None = None,
    cache_bytes: int | None = None,
) -> Engine:
    """An engine around what computes a backbone, and a denoiser that drafts for it, if there is
    one. Raises `ValueError` for too small a cache."""
    runner = runner_for(forward, denoiser=denoiser, cache_bytes=cache_bytes)
    never = sorted(tokenizer.special_ids - tokenizer.end_ids)
    forbidden = torch.tensor(never, dtype=torch.long, device=runner.device)
    vocabulary = BackboneVocabulary(end_ids=tokenizer.end_ids, forbidden=forbidden)
    drafters: list[Drafter] = [GuessDrafter(), RepetitionDrafter()]
    if denoiser is not None:
        drafters.append(DenoiserDrafter(runner, denoiser))
    decoder = VerifyingDecoder(
        runner, vocabulary, tokenizer, drafters, end_threshold, canvas_end_threshold
    )
    return Engine(decoder)
