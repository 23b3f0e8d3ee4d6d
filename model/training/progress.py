"""A denoiser in training on held-out projects: tokens a verify forward, and the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.engine.run.torch_forward import TorchForward
from model.training import distributed
from model.training.loss import Encoded, canvases, encode
from model.training.windows import Window


@dataclass(frozen=True, slots=True)
class EndScores:
    """Of one way to tell the end: where its threshold does best, and how well."""

    threshold: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Over the held-out windows of all processes."""

    tokens_per_forward: float
    """What a verify forward commits on the mean: the longest run of drafted slots that equal the
    backbone's own choice, and the token that it decides itself. The score that the best checkpoint
    is kept by."""
    parallel: float
    """The same, if no slot were told the token before it."""
    end: EndScores
    """From the backbone's hidden states."""
    canvas_end: EndScores
    """From the first slot of a canvas."""


@dataclass(frozen=True, slots=True)
class HeldOutWindow:
    """A window, and what the frozen backbone says of it once and for all."""

    window: Window
    encoded: Encoded
    own: Tensor
    """(K, C) the backbone's own choice for each slot, given the true text before it."""
    goes_on: Tensor
    """(K,) its choice for each canvas's first slot."""


def prepare(backbone: TorchForward, window: Window) -> HeldOutWindow:
    """Run the backbone over a window that was made with `draft_only`."""
    encoded = encode(backbone, window)

    def choice(rows: Tensor) -> Tensor:
        chosen = [backbone.logits(part).argmax(dim=-1) for part in encoded.hidden[rows].split(64)]
        return torch.cat(chosen)

    rows = window.sources.clamp(min=0)
    own = choice(rows.flatten()).view_as(rows)
    return HeldOutWindow(window, encoded, own, choice(window.anchors))


@torch.no_grad()
def held_out_scores(model: Denoiser, windows: Sequence[HeldOutWindow]) -> HeldOutScores:
    """Scores of all windows. Every process passes its own share."""
    device = model.mask.device
    runs = torch.zeros(2, dtype=torch.float64, device=device)
    count = 0
    ends: list[tuple[Tensor, Tensor]] = []
    canvas_ends: list[tuple[Tensor, Tensor]] = []
    for held in windows:
        window, goes_on = held.window, held.goes_on
        shown = window.targets.clone()
        shown[window.at_end, 0] = goes_on[window.at_end]
        hidden = canvases(model, window, held.encoded, shown, window.known)
        drafting = ~window.at_end
        for index, follows in enumerate((True, False)):
            drafted = draft(model, hidden, shown[:, 0], follows=follows)
            agreed = (drafted == held.own)[drafting, 1:]
            runs[index] += agreed.int().cumprod(dim=1).sum()
        count += int(drafting.sum())
        body = window.may_end >= 0
        if body.any():
            logits = model.end_logits(held.encoded.taps[body][None])[0]
            ends.append((logits, window.may_end[body] == 1))
            is_own = window.at_end | (window.targets[:, 0] == goes_on)
            canvas_ends.append((model.canvas_end_logits(hidden)[is_own], window.at_end[is_own]))
    with_follow, parallel, total = distributed.total(*runs.tolist(), count, device=device)
    total = max(total, 1)
    return HeldOutScores(
        1 + with_follow / total,
        1 + parallel / total,
        end_scores(*_joined(ends)),
        end_scores(*_joined(canvas_ends)),
    )


@torch.no_grad()
def draft(model: Denoiser, hidden_KCE: Tensor, first_K: Tensor, *, follows: bool) -> Tensor:
    """(K, C): the likeliest token of each slot but the first, which is given; with `follows`, each
    is told the one before it."""
    if not follows:
        rest = model.draft_ids[model.logits(hidden_KCE[:, 1:]).argmax(dim=-1)]
        return torch.cat((first_K[:, None], rest), dim=1)
    drafted = [first_K]
    for slot in range(1, hidden_KCE.shape[1]):
        state = model.follow(hidden_KCE[:, slot], drafted[-1])
        drafted.append(model.draft_ids[model.logits(state).argmax(dim=-1)])
    return torch.stack(drafted, dim=1)


def end_scores(logits: Tensor, is_end: Tensor) -> EndScores:
    """The threshold (a probability) with the best F1, and what it gives."""
    if not bool(is_end.any()):
        return EndScores(1.0, 0.0, 0.0)
    order = logits.argsort(descending=True)
    hits = is_end[order].cumsum(0).double()
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    recall = hits / hits[-1]
    best = int((2 * precision * recall / (precision + recall).clamp(min=1e-9)).argmax())
    threshold = float(logits[order[best]].sigmoid())
    return EndScores(threshold, float(precision[best]), float(recall[best]))


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if not parts:
        return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
