"""How long a hole is: three ways to find out, behind one `LengthPolicy`.

* `LearnedEnd`: the model writes an end, as block-causal ones write their end-of-sequence token.
* `ExpandDelete`: masks split and vanish (DreamOn).
* `LengthSearch`: the model knows nothing of the length of a hole, so several are tried side by
  side. Where nothing follows, it writes its end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from math import exp, log
from typing import NamedTuple, cast

import torch
from torch import Tensor

from model.engine.canvas.layout import CANVAS_SIZES, CanvasLayout
from model.engine.canvas.sampler import Vocabulary
from model.engine.canvas.sequence import CanvasParams, CanvasSequence
from model.engine.fill import FilledHoles


class LengthPolicy(ABC):
    """Decides with how many slots a candidate starts, and what becomes of them. What a policy does
    not say leaves everything as it is."""

    __slots__ = ()

    @abstractmethod
    def candidates(
        self,
        params: Items[CanvasParams],
        layout: CanvasLayout,
        max_new_tokens: int,
        follows: bool,
    ) -> tuple[CanvasParams, ...]:
        """The candidates to run for those that are asked for, in the holes of `layout`, of
        `max_new_tokens` each at most; `follows` says whether there is any text behind the first
        hole. Raises `InvalidRequestError`."""

    def look(self, batch: Items[CanvasSequence], logits_BCV: Tensor) -> None:  # noqa: B027
        """See a step's logits before anything is decided; may forbid tokens, in place."""

    def revise(self, sequence: CanvasSequence, vocabulary: Vocabulary) -> None:  # noqa: B027
        """Change the slots of a canvas after a step's decisions."""

    def gives_up(self, sequence: CanvasSequence) -> bool:
        """Whether a candidate is not worth another step."""
        return False

    def best_first(self, sequences: Items[CanvasSequence]) -> list[CanvasSequence]:
        """The candidates of a fill, in the order in which they are handed back."""
        return _surest_first(sequences)


class LearnedEnd(LengthPolicy):
    """The model itself ends a span."""

    def candidates(
        self,
        params: Items[CanvasParams],
        layout: CanvasLayout,
        max_new_tokens: int,
        follows: bool,
    ) -> tuple[CanvasParams, ...]:
        """See `LengthPolicy.candidates`."""
        return tuple(params)


@dataclass(frozen=True, slots=True)
class ExpandDelete(LengthPolicy):
    """DreamOn's own: a mask may become two masks, or go, and with it all masks to its right.

    As its demonstration does, except that a step may commit several slots; a token that is
    committed in the same step, right of a deleted mask, stays.
    """

    expand_id: int
    delete_id: int
    start: int = 64
    """Slots to begin with: more of them cost fewer forwards than too few."""

    def candidates(
        self,
        params: Items[CanvasParams],
        layout: CanvasLayout,
        max_new_tokens: int,
        follows: bool,
    ) -> tuple[CanvasParams, ...]:
        """See `LengthPolicy.candidates`."""
        start = min(self.start, _most_slots(layout, max_new_tokens))
        return tuple(
            replace(p, length=start, length_is="start") if p.length is None else p for p in params
        )

    @torch.inference_mode()
    def look(self, batch: Items[CanvasSequence], logits_BCV: Tensor) -> None:
        """See `LengthPolicy.look`."""
        for row, sequence in enumerate(batch):
            if not self._resizes(sequence):
                logits_BCV[row, :, [self.expand_id, self.delete_id]] = float("-inf")
            elif not self._may_expand(sequence):
                logits_BCV[row, :, self.expand_id] = float("-inf")

    def revise(self, sequence: CanvasSequence, vocabulary: Vocabulary) -> None:
        """See `LengthPolicy.revise`."""
        if not self._resizes(sequence):
            return
        slots = _slots(sequence)
        room = CANVAS_SIZES[-1] - len(slots)
        changed: list[_Slot] = []
        counts: list[int] = []
        end = 0
        for hole in sequence.layout.holes():
            changed += slots[end : hole.start]  # what lies between
            before = len(changed)
            changed += self._revised(sequence, slots[hole.start : hole.stop], room, vocabulary)
            counts.append(len(changed) - before)
            room -= counts[-1] - len(hole)
            end = hole.stop
        _replace_slots(sequence, changed, counts)

    def _revised(
        self, sequence: CanvasSequence, hole: list[_Slot], room: int, vocabulary: Vocabulary
    ) -> list[_Slot]:
        """A hole's slots after splits and deletions; `room` is how many the canvas can take."""
        room = min(room, sequence.fill.max_new_tokens - len(hole))
        revised: list[_Slot] = []
        is_deleting = False
        for slot in hole:
            if slot.token == self.delete_id:
                is_deleting = True
                sequence.end_confidence = min(sequence.end_confidence or 1.0, slot.confidence)
            elif slot.token == self.expand_id:
                count = 2 if room > 0 else 1
                revised += [_Slot(vocabulary.mask_id, False, False, 1.0)] * count
                room -= count - 1
                sequence.num_expansions += 1
            elif not (is_deleting and slot.token == vocabulary.mask_id):
                revised.append(slot)
        return revised

    def _resizes(self, sequence: CanvasSequence) -> bool:
        return sequence.params.length_is == "start"

    def _may_expand(self, sequence: CanvasSequence) -> bool:
        steps = sequence.params.steps
        is_last = steps is not None and sequence.step >= steps - 1
        return (
            not is_last
            and sequence.num_expansions < sequence.fill.max_new_tokens
            and len(sequence.canvas) < CANVAS_SIZES[-1]
            and min(map(len, sequence.layout.holes())) < sequence.fill.max_new_tokens
        )


@dataclass(frozen=True, slots=True)
class LengthSearch(LengthPolicy):
    """Tries several lengths: one step of all, then only the most promising go on to the end.

    A length promises as much as CAL says: the mean confidence of the first step's slots, over what
    that is for any text of this length (`expected_confidence`). CAL climbs from one length to the
    next; a whole grid in one batch cannot get stuck. The finished ones are ranked by the mean
    log-probability their tokens were committed with.
    """

    lengths: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    num_kept: int = 3
    """Lengths that go on after the first step."""

    def candidates(
        self,
        params: Items[CanvasParams],
        layout: CanvasLayout,
        max_new_tokens: int,
        follows: bool,
    ) -> tuple[CanvasParams, ...]:
        """See `LengthPolicy.candidates`. Several wanted fills are fills of several lengths, all
        greedy."""
        if not follows:
            return tuple(params)
        tried: list[CanvasParams] = []
        if greedy := [p for p in params if p.length is None][:1]:
            most = _most_slots(layout, max_new_tokens)
            lengths = [n for n in self.lengths if n <= most]
            tried = [replace(greedy[0], length=n, length_is="tried") for n in lengths]
        return (*tried, *(p for p in params if p.length is not None))

    @torch.inference_mode()
    def look(self, batch: Items[CanvasSequence], logits_BCV: Tensor) -> None:
        """See `LengthPolicy.look`."""
        for row, sequence in enumerate(batch):
            if sequence.length_score is None and sequence.params.length_is == "tried":
                masked = [slot for slot, given in enumerate(sequence.clamped) if not given]
                surest = logits_BCV[row, masked].float().softmax(-1).amax(-1).mean().item()
                length = sequence.params.length or 1
                sequence.length_score = surest / expected_confidence(length)

    def gives_up(self, sequence: CanvasSequence) -> bool:
        """See `LengthPolicy.gives_up`."""
        score, fill = sequence.length_score, sequence.fill
        others = cast("Items[CanvasSequence]", fill.sequences)
        rivals = [s.length_score for s in others if s.params.length_is == "tried"]
        if score is None or None in rivals:
            return False
        better = sum(rival is not None and rival > score for rival in rivals)
        return better >= max(self.num_kept, fill.num_wanted or 0)

    def best_first(self, sequences: Items[CanvasSequence]) -> list[CanvasSequence]:
        """See `LengthPolicy.best_first`. Before the end, those with the best first step lead."""
        by_promise = sorted(sequences, key=lambda s: -(s.length_score or 0.0))
        return _surest_first([s for s in by_promise if not self.gives_up(s)])


def expected_confidence(length: int) -> float:
    """CAL's bias B(L): the mean first-step confidence of Dream-Coder at a length, whatever the
    text. Other models have been fitted by nobody; a constant factor does not matter."""
    return exp(-1.77 * length) + 0.56 * exp(-0.06 * length) + 0.24


def mean_log_probability(output: FilledHoles) -> float:
    """Nats a token, of a model that has no causal score. -inf where nothing was decided."""
    if not output.probabilities:
        return float("-inf")
    return sum(log(max(p, 1e-30)) for p in output.probabilities) / len(output.probabilities)


def _surest_first(sequences: Items[CanvasSequence]) -> list[CanvasSequence]:
    """By `mean_log_probability`, which becomes the score, once all are done."""
    scores = [mean_log_probability(s.output) for s in sequences if s.output is not None]
    if len(scores) < max(len(sequences), 2):
        return list(sequences)
    for sequence, score in zip(sequences, scores, strict=True):
        assert sequence.output is not None
        sequence.output = replace(sequence.output, score=score)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [sequences[index] for index in order]


def _most_slots(layout: CanvasLayout, max_new_tokens: int) -> int:
    """Slots that each hole may have for all to fit into the largest canvas."""
    between = sum(map(len, layout.between))
    return max(min(max_new_tokens, (CANVAS_SIZES[-1] - between) // len(layout.slots)), 1)


class _Slot(NamedTuple):
    token: int
    clamped: bool
    fixed: bool
    confidence: float


def _slots(sequence: CanvasSequence) -> list[_Slot]:
    columns = (sequence.canvas, sequence.clamped, sequence.fixed, sequence.confidences)
    return [_Slot(*row) for row in zip(*columns, strict=True)]


def _replace_slots(sequence: CanvasSequence, slots: list[_Slot], counts: list[int]) -> None:
    """Give a canvas these slots, so many in each hole."""
    if len(counts) == 1:
        sequence.params = replace(sequence.params, length=counts[0])
    sequence.layout = CanvasLayout(tuple(counts), sequence.layout.between)
    sequence.canvas = [slot.token for slot in slots]
    sequence.clamped = [slot.clamped for slot in slots]
    sequence.fixed = [slot.fixed for slot in slots]
    sequence.confidences = [slot.confidence for slot in slots]
