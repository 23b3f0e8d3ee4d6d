"""From logits to committed slots: one step of the one denoising loop, for a whole batch.

A policy says how many slots to trust; the rules that keep a canvas well formed (nothing after
`<eom>` but `<eom>`, no clamped slot changed) hold for all. Shapes are static and no value is looked
at from the host, so that a captured graph can hold forward and decision.

Shape letters: B rows (canvases), C slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.canvas.policies import OpenSlots, UnmaskPolicy, policy_of
from model.engine.canvas.sequence import CanvasParams, CanvasSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The ids that decisions turn on."""

    mask_id: int
    end_id: int
    special_ids: frozenset[int]
    """Ids that stand for no text."""
    forbidden: Tensor
    """(V,) bool: ids that are never generated."""


class SamplingRows:
    """How each row of a batch draws its tokens. Stays the same while the batch does."""

    def __init__(self, params: Items[CanvasParams], device: torch.device) -> None:
        self.policy: UnmaskPolicy = policy_of(params, device)
        self.draws = any(p.temperature > 0 for p in params)
        self.cuts = self.draws and any(p.top_p < 1 for p in params)
        self.remasks = any(p.remask is not None for p in params)

        def column(values: list[float], is_used: bool) -> Tensor:
            # Only what somebody asks for goes to the device: each costs a transfer.
            return torch.tensor(values if is_used else [], device=device)[:, None]

        self.temperature = column([p.temperature for p in params], self.draws)
        self.seed = column([p.seed % 2**63 for p in params], self.draws)
        self.top_p = column([p.top_p for p in params], self.cuts)
        self.remask = column([p.remask or 0.0 for p in params], self.remasks)


@dataclass(slots=True, kw_only=True)
class CanvasBatch:
    """The canvases of a batch, the smaller ones padded to the largest, and their state."""

    ids: Tensor
    """(B, C); the mask id where undecided, `<eom>` in the padding."""
    confidence: Tensor
    """(B, C) probability each slot was committed with; 1 for clamped ones."""
    fixed: Tensor
    """(B, C) bool: slots that are clamped, or were re-masked once: what is in them stays."""
    after: Tensor
    """(B, C, C) bool: [b, i, j] says that slot j comes after slot i in the same hole."""
    step: Tensor
    """(B, 1) steps each canvas has had."""
    no_end: Tensor | None
    """(B, 1) bool: rows whose length is known, which generate no `<eom>`; None where none is."""
    rows: SamplingRows

    @classmethod
    def of(cls, batch: Items[CanvasSequence], end_id: int, device: torch.device) -> CanvasBatch:
        """The canvases of sequences, as they stand."""
        size = max(len(s.canvas) for s in batch)

        def padded(rows: Items[Items[float]], filler: float) -> Tensor:
            padding = [[*row, *[filler] * (size - len(row))] for row in rows]
            return torch.tensor(padding, device=device)

        hole = padded([s.layout.hole_of_slot for s in batch], -1)
        known = [[s.params.length is not None] for s in batch]
        return cls(
            ids=padded([s.canvas for s in batch], end_id),
            confidence=padded([s.confidences for s in batch], 1.0),
            fixed=padded([s.fixed for s in batch], True),
            after=after_in_hole(hole),
            step=torch.tensor([[s.step] for s in batch], device=device),
            no_end=torch.tensor(known, device=device) if [True] in known else None,
            rows=SamplingRows([s.params for s in batch], device),
        )


@torch.inference_mode()
def decide(canvases: CanvasBatch, logits_BCV: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Commit this step's slots, in place: at least one in each row that has a masked one.

    Returns the rows (B,) whose logits are not finite; their canvases mean nothing any more.
    """
    mask_id, end_id = vocabulary.mask_id, vocabulary.end_id
    masked = canvases.ids == mask_id
    logits = _allowed(canvases, logits_BCV, masked, vocabulary)
    tokens, confidence, log_total = pick(logits, canvases.rows, canvases.step)
    is_end = tokens == end_id
    entropy = entropy_of(logits, log_total) if canvases.rows.policy.needs_entropy else None
    chosen = select(
        canvases.rows.policy, canvases.after, canvases.step, masked, is_end, confidence, entropy
    )
    doubted = _doubted(canvases, masked, logits, log_total, end_id)

    ids = torch.where(chosen, tokens, canvases.ids)
    canvases.confidence = torch.where(chosen, confidence, canvases.confidence)
    ended = any_before(canvases.after, ids == end_id)
    ids = torch.where(ended & (ids == mask_id), end_id, ids)
    if doubted is not None:
        ids = torch.where(doubted, mask_id, ids)
        canvases.fixed = canvases.fixed | doubted
    canvases.ids = ids
    canvases.step = canvases.step + 1
    return (masked & ~torch.isfinite(log_total)).any(dim=1)


def pick(logits_BCV: Tensor, rows: SamplingRows, step_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A token for every slot (B, C), its probability (B, C), and the logits' logsumexp (B, C).

    A row takes the likeliest token, or draws one where its temperature is above 0: the same one for
    the same seed, step and slot, whatever else is in the batch. The probability is the model's own,
    before temperature and top-p.
    """
    log_total = logits_BCV.logsumexp(dim=-1)
    top, tokens = logits_BCV.max(dim=-1)
    if not rows.draws:
        return tokens, (top - log_total).exp(), log_total
    drawn = _drawn(logits_BCV, top, rows, step_B1)
    tokens = torch.where(rows.temperature > 0, drawn, tokens)
    found = logits_BCV.gather(-1, tokens[..., None])[..., 0]
    return tokens, (found - log_total).exp(), log_total


def _allowed(
    canvases: CanvasBatch, logits_BCV: Tensor, masked: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """Logits (B, C, V) without what must not be written."""
    logits = logits_BCV.float().masked_fill(vocabulary.forbidden, float("-inf"))
    # A span cannot end before a token that is already committed.
    is_token = ~masked & (canvases.ids != vocabulary.end_id)
    no_end = (canvases.after & is_token[:, None, :]).any(dim=2)
    if canvases.no_end is not None:
        no_end = no_end | canvases.no_end
    logits[..., vocabulary.end_id].masked_fill_(no_end, float("-inf"))
    return logits


def select(
    policy: UnmaskPolicy,
    after: Tensor,
    step_B1: Tensor,
    masked: Tensor,
    is_end: Tensor,
    confidence: Tensor,
    entropy: Tensor | None,
) -> Tensor:
    """The masked slots (B, C) that a step commits, ends only where nothing before them is open.

    An end further right only says that the span is no longer than that; committing it makes the
    next shorter one likelier, and an unsure model would talk itself into an empty span.
    """
    open_now = masked & ~(is_end & any_before(after, masked))
    choosable = torch.where(open_now, confidence, -1.0)
    slots = OpenSlots(choosable, entropy, step_B1)
    chosen = policy.select(slots) & open_now
    open_before = any_before(after, masked & ~chosen)
    trusted = policy.trusts(slots, confidence, chosen)
    chosen = chosen | (masked & is_end & ~open_before & trusted)
    return _without_conflicts(chosen, is_end, confidence, after)


def _without_conflicts(chosen: Tensor, is_end: Tensor, confidence: Tensor, after: Tensor) -> Tensor:
    """Where a step would commit both an end and a token after it, the more confident one wins.

    The most confident slot of the step always survives, so a step never commits nothing.
    """
    ends, tokens = chosen & is_end, chosen & ~is_end
    rival = torch.where(after & tokens[:, None, :], confidence[:, None, :], -1.0).amax(dim=2)
    ends = ends & (confidence > rival)
    return ends | (tokens & ~any_before(after, ends))


def _doubted(
    canvases: CanvasBatch, masked: Tensor, logits: Tensor, log_total: Tensor, end_id: int
) -> Tensor | None:
    """The committed tokens (B, C) that the model, having seen more, finds unlikely: they are masked
    again (as ReMDM, arXiv 2503.00307, by confidence).

    A slot is re-masked once at most and then keeps what it gets. So a canvas of n masked slots, of
    which every step commits at least one, is done after 2 n steps at the latest.
    """
    if not canvases.rows.remasks:
        return None
    ids = canvases.ids
    found = logits.gather(-1, ids[..., None])[..., 0]
    probability = (found - log_total).exp()
    is_token = ~masked & (ids != end_id) & ~canvases.fixed
    return is_token & (probability < canvases.rows.remask)


def after_in_hole(hole_BC: Tensor) -> Tensor:
    """(B, C, C) bool: [b, i, j] says that slot j comes after slot i in the same hole; `hole` is
    below 0 where a slot belongs to none."""
    order = torch.arange(hole_BC.shape[1], device=hole_BC.device)
    is_same = (hole_BC[:, :, None] == hole_BC[:, None, :]) & (hole_BC >= 0)[:, :, None]
    return is_same & (order > order[:, None])


def any_before(after: Tensor, x_BC: Tensor) -> Tensor:
    """(B, C) bool: whether x holds for a slot before this one in the same hole."""
    return (after & x_BC[:, :, None]).any(dim=1)


def entropy_of(logits: Tensor, log_total: Tensor) -> Tensor:
    """Entropy (B, C) of each slot, in nats."""
    return torch.special.entr((logits - log_total[..., None]).exp()).sum(dim=-1)


def _drawn(logits: Tensor, top: Tensor, rows: SamplingRows, step_B1: Tensor) -> Tensor:
    """A token (B, C) for every slot by inversion of the tempered distribution's cumulative sum."""
    # From the top down: a tiny temperature would divide positive logits up to infinity.
    temperature = torch.where(rows.temperature > 0, rows.temperature, 1.0)[..., None]
    weights = ((logits - top[..., None]) / temperature).softmax(dim=-1)
    if rows.cuts:  # the smallest set of the likeliest tokens whose sum reaches top_p
        descending, order = weights.sort(dim=-1, descending=True, stable=True)
        before = descending.cumsum(dim=-1) - descending
        cut = (before >= rows.top_p[..., None]) & (rows.top_p < 1)[..., None]
        # Back in the vocabulary's order: which token a number means must not turn on the batch.
        weights = weights.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), 0.0)
    cumulative = weights.double().cumsum(dim=-1)
    slots = torch.arange(logits.shape[1], device=logits.device)
    goal = _uniform(rows.seed, step_B1, slots) * cumulative[..., -1]
    # Right of equal sums, so that a token of weight 0 is never drawn.
    index = torch.searchsorted(cumulative, goal[..., None], right=True)
    return index.clamp(max=logits.shape[-1] - 1)[..., 0]


def _uniform(seed_B1: Tensor, step_B1: Tensor, slot_C: Tensor) -> Tensor:
    """Numbers (B, C) in [0, 1), a hash of seed, step and slot (the finaliser of SplitMix64): a
    generator would have to be seeded by the host, and would depend on the batch."""
    x = seed_B1 * 0x2545F4914F6CDD1D + step_B1 * 0x369DEA0F31A53F85 + slot_C * 0x1B873593CC9E2D51
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    x = x ^ (x >> 31 & (1 << 33) - 1)
    return (x >> 11 & (1 << 53) - 1).double() * 2.0**-53
