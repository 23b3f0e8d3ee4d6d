"""Drafts by the denoiser: one canvas, filled in one forward, behind what is decided."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from model.engine.draft.stream import Stream
from model.engine.draft.tree import Draft, Drafted
from model.engine.run.backbone_runner import BackboneRunner
from model.engine.run.forward import DenoiserForward

SLOTS = 8
"""Of a canvas; most of those that it was trained on have as many."""
CANDIDATES = 8
"""Tokens of each slot that are looked at again once the token before it is chosen."""
LEAST_LIKELY = 0.02
"""A draft ends where it is less likely than this to be right so far."""


class DenoiserDrafter:
    """See `Drafter`."""

    def __init__(self, runner: BackboneRunner, denoiser: DenoiserForward) -> None:
        self._runner, self._denoiser = runner, denoiser

    def draft(self, streams: Items[Stream], room: int) -> list[list[Draft]]:
        """See `Drafter.draft`."""
        ready = [s for s in streams if s.anchor is not None and s.unread == 1]
        size = min(room + 1, SLOTS, self._denoiser.config.canvas_size)
        hidden = self._runner.canvases(ready, size) if ready and size > 1 else None
        if hidden is None:
            return [[] for _ in streams]
        overruns = self._denoiser.canvas_end_logits(hidden).sigmoid().tolist()
        for stream, overrun in zip(ready, overruns, strict=True):
            stream.overrun = overrun
        found = {id(s): draft for s, draft in zip(ready, self._filled(ready, hidden), strict=True)}
        return [[found[id(s)]] if found.get(id(s)) else [] for s in streams]

    @torch.inference_mode()
    def _filled(self, streams: Items[Stream], hidden_BCE: Tensor) -> list[Draft]:
        """The likeliest tokens of the slots behind the first, from the left, each knowing the one
        before it, as long as they are likely enough."""
        denoiser = self._denoiser
        slots = hidden_BCE[:, 1:]
        logits = denoiser.logits(slots).float()
        totals = logits.logsumexp(dim=-1)
        tops = logits.topk(min(CANDIDATES, logits.shape[-1]), dim=-1)
        others = 1 - (tops.values - totals[..., None]).exp().sum(dim=-1)
        previous = torch.tensor([s.ids[-1] for s in streams], device=logits.device)
        alive = torch.ones(len(streams), device=logits.device)
        drafts: list[Draft] = [[] for _ in streams]
        for slot in range(slots.shape[1]):
            rows = tops.indices[:, slot]
            told = denoiser.follow(slots[:, slot], previous)
            again = denoiser.some_logits(told, rows).float()
            weights = (again - totals[:, slot, None]).exp()
            best, index = weights.max(dim=-1)
            alive = alive * best / (weights.sum(dim=-1) + others[:, slot])
            previous = denoiser.draft_ids[rows.gather(1, index[:, None])[:, 0]].long()
            for row, drafted in enumerate(zip(previous.tolist(), alive.tolist(), strict=True)):
                if drafted[1] >= LEAST_LIKELY and len(drafts[row]) == slot:
                    drafts[row].append(Drafted(*drafted))
            if not any(len(draft) == slot + 1 for draft in drafts):
                break
        return drafts
