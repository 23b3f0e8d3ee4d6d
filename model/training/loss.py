"""What a window teaches: the tokens of its canvases, and where its middles end.

Shape letters as in `model.training.windows`; M slots that carry a loss, V draft vocabulary, S
tokens of the backbone's distribution that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.denoiser import Denoiser
from model.engine.run.torch_forward import TorchForward
from model.training.windows import Window

EARLY_SLOTS = 0.85
"""Weight of a slot as a share of the weight of the one before: a draft counts up to its first
error."""
TEACHER_SHARE = 0.5
"""Of the target: the backbone's own distribution; the rest is the true token."""
KEPT = 16
"""Likeliest tokens of the backbone that its distribution is cut to."""
FOLLOW_SHARE = 0.5
"""Slots that are told the token before them."""
END_WEIGHT = 0.25
"""Share of each of the two losses of the end."""
END_REACH = 128
"""Tokens before a hole's end that have to say that it is not there yet."""
END_TOKENS_WORTH = 8.0
"""An end counts as so many tokens that are none."""
CHUNK = 256
"""Rows of logits at a time: those of all slots would be a gigabyte."""


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Losses of one window, in nats."""

    total: Tensor
    draft: float
    end: float
    canvas_end: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the frozen backbone says of a window."""

    hidden: Tensor
    """(N, E)"""
    taps: Tensor
    """(N, F)"""


@torch.no_grad()
def encode(backbone: TorchForward, window: Window) -> Encoded:
    """Run the backbone over a window."""
    rows = backbone.rows(window.ids[None], window.positions[None], None, window.visible())
    assert rows.taps is not None
    return Encoded(rows.hidden[0], rows.taps[0])


def canvases(
    model: Denoiser, window: Window, encoded: Encoded, ids_KC: Tensor, known_KC: Tensor
) -> Tensor:
    """Hidden states (K, C, E) of a window's canvases."""
    kept, features = model.context(encoded.taps[None], window.positions[None])
    branch = window.canvas_branch
    past = kept[:, :, 0][:, :, :, window.seen].permute(0, 1, 3, 2, 4, 5)  # (layers,2,J,G,P,D)
    visible = window.is_seen[branch] & (window.seen[branch] <= window.anchors[:, None])
    slots = torch.arange(ids_KC.shape[1], device=ids_KC.device)
    positions = window.positions[window.anchors][:, None] + 1 + slots
    counts = branch.bincount(minlength=len(window.seen)).tolist()  # they come branch by branch
    return model.canvas(
        ids_KC, known_KC, positions, features[0, window.anchors], past, visible, counts
    )


def window_loss(
    model: Denoiser,
    encoded: Encoded,
    window: Window,
    draft_index: Tensor,
    generator: torch.Generator,
    *,
    teacher_share: float = TEACHER_SHARE,
) -> LossTerms:
    """The loss of a window. `draft_index` (W,): a token's place in the draft vocabulary, or -1."""
    rows = window.sources.clamp(min=0)
    teacher_ids, teacher_probs = teacher(model, encoded.hidden, window)
    # What stands behind a hole's end is what the backbone would go on with.
    goes_on = model.draft_ids[teacher_ids[:, 0]][window.anchors]
    shown = window.targets.clone()
    shown[window.at_end, 0] = goes_on[window.at_end]
    hidden = canvases(model, window, encoded, shown, window.known)

    asked = ~window.known
    told = torch.rand(asked.shape, generator=generator).to(asked.device) < FOLLOW_SHARE
    before = shown.roll(1, dims=1)
    slots = torch.arange(asked.shape[1], device=asked.device)
    weight = window.weights * EARLY_SLOTS**slots * (asked & ~window.at_end[:, None])
    chosen = asked & ~window.at_end[:, None]
    states = hidden[chosen]
    followed = model.follow(states, before[chosen])
    states = torch.where(told[chosen][:, None], followed, states)
    ids, probs = mixed_targets(
        draft_index[window.targets[chosen]],
        teacher_ids[rows[chosen]],
        teacher_probs[rows[chosen]],
        window.sources[chosen] >= 0,
        teacher_share,
    )
    weights = weight[chosen] / weight[chosen].sum()
    draft = HeadLoss.apply(states, model.head, ids, probs, weights)
    end = _end_loss(model, window, encoded)
    # Where the text goes on as the backbone would not, the first slot alone would tell.
    is_own = window.at_end | (window.targets[:, 0] == goes_on)
    has_end = (window.may_end[window.anchors] >= 0) | window.at_end
    canvas_end = _balanced(model.canvas_end_logits(hidden), window.at_end, is_own & has_end)
    total = draft + END_WEIGHT * (end + canvas_end)
    return LossTerms(total, float(draft.detach()), float(end.detach()), float(canvas_end.detach()))


@torch.no_grad()
def teacher(model: Denoiser, hidden_NE: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The backbone's likeliest next tokens (N, S), as places in the draft vocabulary, and their
    probabilities among themselves; only where a canvas stands."""
    size = min(KEPT, len(model.draft_ids))
    ids = torch.zeros(len(hidden_NE), size, dtype=torch.int64, device=hidden_NE.device)
    probs = torch.zeros(len(hidden_NE), size, device=hidden_NE.device)
    wanted = torch.cat((window.sources[window.sources >= 0], window.anchors)).unique()
    for rows in wanted.split(CHUNK):
        values, ids[rows] = model.logits(hidden_NE[rows]).topk(size, dim=-1)
        probs[rows] = values.float().softmax(dim=-1)
    return ids, probs


def mixed_targets(
    true_M: Tensor, ids_MS: Tensor, probs_MS: Tensor, has_teacher_M: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Token places (M, 1 + S) and probabilities: the truth and the backbone's distribution.

    A true token outside the draft vocabulary (-1) leaves all to the backbone, a slot that the
    backbone says nothing of all to the truth.
    """
    share_M = torch.where(has_teacher_M, share, 0.0)
    share_M = torch.where(true_M < 0, has_teacher_M.float(), share_M)
    of_truth = torch.where(true_M < 0, 0.0, 1 - share_M)
    return (
        torch.cat((true_M.clamp(min=0)[:, None], ids_MS), dim=1),
        torch.cat((of_truth[:, None], share_M[:, None] * probs_MS), dim=1),
    )


class HeadLoss(torch.autograd.Function):
    """Cross entropy of a frozen head's logits and sparse target distributions, by chunks of rows.

    The head gets no gradient, so that of the hidden states can be had at once: the logits are
    never kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ME: Tensor, head_VE: Tensor, ids: Tensor, probs: Tensor, weights_M: Tensor
    ) -> Tensor:
        """The weighted sum of nats; `ids` and `probs` (M, S), `weights` (M,)."""
        grad, loss = torch.empty_like(hidden_ME), hidden_ME.new_zeros((), dtype=torch.float32)
        for at in range(0, len(hidden_ME), CHUNK):
            part = slice(at, at + CHUNK)
            logits = F.linear(hidden_ME[part], head_VE).float()
            mass = probs[part].sum(dim=1)
            lse = logits.logsumexp(dim=1)
            nats = mass * lse - (probs[part] * logits.gather(1, ids[part])).sum(dim=1)
            loss += (weights_M[part] * nats).sum()
            logits.sub_(lse[:, None]).exp_().mul_(mass[:, None])
            logits.scatter_add_(1, ids[part], -probs[part])
            logits.mul_(weights_M[part, None])
            grad[part] = logits.to(head_VE.dtype) @ head_VE
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Of the hidden states alone."""
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None, None


def _end_loss(model: Denoiser, window: Window, encoded: Encoded) -> Tensor:
    is_end = window.may_end == 1
    order = torch.arange(len(is_end), device=is_end.device)
    # The end is a branch's last token, so it is close if one of the next tokens is an end.
    close = F.max_pool1d(
        F.pad(is_end.float(), (0, END_REACH))[None, None], END_REACH + 1, stride=1
    )[0, 0]
    asked = order[(window.may_end >= 0) & (close > 0)]
    if not len(asked):
        return encoded.hidden.new_zeros((), dtype=torch.float32)
    logits = model.end_logits(encoded.taps[asked][None])[0]
    return _balanced(logits, is_end[asked], torch.ones_like(asked, dtype=torch.bool))


def _balanced(logits: Tensor, is_end: Tensor, asked: Tensor) -> Tensor:
    """Mean nats of a yes or no, an end counting as several tokens that are none."""
    weights = torch.where(is_end, END_TOKENS_WORTH, 1.0) * asked
    if not bool(asked.any()):
        return logits.sum() * 0.0
    nats = F.binary_cross_entropy_with_logits(logits, is_end.float(), reduction="none")
    return (nats * weights).sum() / weights.sum()
