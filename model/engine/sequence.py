"""What the engine works on: a fill (one request) and its sequences (one a candidate).

Imports no torch: the scheduler reads these, the model runner turns them into tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from model.api import InvalidRequestError, Policy
from model.engine.counted_text import CountedText
from model.engine.kv_cache import PageTable
from model.infill import CanvasLayout, fitted


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sequence's slots are chosen and committed."""

    steps: int | None = None
    """Commit everything in this many steps a canvas; None: adaptively, by `policy`."""
    policy: Policy = "threshold"
    threshold: float = 0.9
    """`threshold`: commit every slot whose confidence exceeds this, and one however unsure."""
    at_least: Literal["leftmost", "surest"] = "leftmost"
    """`threshold`: which one that is."""
    entropy_bound: float = 0.3
    """`entropy`: nats that a step's slots may be unsure of together, the least sure left aside."""
    factor: float = 1.0
    """`factor`: commit the n surest slots while the n-th is surer than 1 - factor / (n + 1)."""
    remask: float | None = None
    """Mask a committed slot again that the newest logits give less than this probability."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 draws one."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this much probability together."""
    seed: int = 0
    length: int | None = None
    """The lone hole takes exactly as many tokens, typed ones not counted: its end is given, not
    searched for."""
    length_is: Literal["given", "start", "tried"] = "given"
    """Of a length: asked for; what a canvas starts with whose masks may split and vanish; or one
    of several, of which the best is wanted (`model.engine.length`)."""


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One candidate on its way: its context streams and the canvas being denoised."""

    fill: Fill
    params: SamplingParams
    prefix: list[int]
    """Prefix stream; grows by the committed canvas when a lone hole goes on in a further one."""
    suffix: list[int]
    layout: CanvasLayout
    canvas: list[int]
    """Slot ids; the tokenizer's mask id where undecided. None at all when autoregressive."""
    clamped: list[bool]
    """Slots that were given and must never change."""
    fixed: list[bool]
    """Slots that are not masked again: the clamped ones, and those that were once."""
    confidences: list[float]
    """Probability a slot was committed with; 1 for clamped ones."""
    step: int = 0
    """Denoising steps this canvas has had."""
    committed: list[int] = field(default_factory=list)
    """Tokens of the canvases before this one."""
    committed_confidences: list[float] = field(default_factory=list)
    """Their probabilities, those of typed tokens left out."""
    context: tuple[PageTable, PageTable] | None = None
    """Where the cache holds (prefix, suffix) while the sequence runs."""
    output: FilledHoles | None = None
    """Set once the sequence is done."""
    num_expansions: int = 0
    """Masks that have split into two."""
    end_confidence: float | None = None
    """Probability that masks were deleted with, the least one."""
    length_score: float | None = None
    """How much a tried length promises, once it has had a step."""

    @classmethod
    def of(
        cls, fill: Fill, params: SamplingParams, *, mask_id: int, end_id: int, max_context: int
    ) -> Sequence:
        """A candidate of `fill` at its start. Raises `InvalidRequestError` for what fits no
        canvas, or does not go together."""
        typed, layout = list(fill.typed), fill.layout
        is_autoregressive = params.policy == "autoregressive"
        # Where no canvas is to hold it, what is typed is context.
        is_context = is_autoregressive or fill.canvas_slots is not None
        is_known = params.length is not None and params.length_is == "given"
        if len(layout.slots) > 1 and (is_autoregressive or is_known):
            what = "autoregressive decoding" if is_autoregressive else "a known length"
            raise InvalidRequestError(f"{what} takes a single hole, not {len(layout.slots)}")
        sequence = cls(
            fill=fill,
            params=params,
            prefix=fitted(fill.prefix + (typed if is_context else []), max_context),
            suffix=fitted(fill.suffix, max_context),
            layout=layout,
            canvas=[],
            clamped=[],
            fixed=[],
            confidences=[],
        )
        if is_context:
            sequence.committed = typed
        if is_autoregressive:
            sequence.layout = CanvasLayout((0,))
            return sequence
        if fill.canvas_slots is not None:
            layout = sequence.layout_without_ends(fill.canvas_slots)
        elif params.length is not None:
            layout = CanvasLayout.for_holes(params.length + 1, typed=len(typed))
        given = () if is_context else fill.typed
        sequence.blank(layout, given, mask_id=mask_id, end_id=end_id)
        return sequence

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to denoise."""
        return self.output is not None

    @property
    def is_autoregressive(self) -> bool:
        """Whether it has no canvas: its prefix stream grows token by token."""
        return self.params.policy == "autoregressive"

    @property
    def max_tokens(self) -> int:
        """The most tokens that the first hole may take, typed ones included."""
        length = self.params.length
        return len(self.fill.typed) + (self.fill.max_new_tokens if length is None else length)

    @property
    def num_left(self) -> int:
        """Tokens that the first hole may still take, this canvas's included."""
        return self.max_tokens - len(self.committed)

    def is_too_unsure(self, *, mask_id: int, end_id: int) -> bool:
        """Whether what is decided from the left is less likely than the fill wants anything."""
        least = self.fill.min_confidence
        # A token that may be masked again says nothing yet.
        if not least or self.params.remask is not None or len(self.layout.slots) > 1:
            return False
        so_far = self.as_it_stands(mask_id=mask_id, end_id=end_id)
        return bool(so_far.probabilities) and so_far.confidence < least

    def layout_without_ends(self, canvas_slots: Callable[[Sequence], int]) -> CanvasLayout:
        """The next canvas of a model that is shown no ends: nothing but slots to fill and, of
        several holes, each as long as the others, what lies between them."""
        holes = self.fill.layout.slots
        if len(holes) > 1 and self.params.length is not None:
            return CanvasLayout((self.params.length,) * len(holes), self.fill.layout.between)
        if len(holes) > 1:
            raise InvalidRequestError(f"this model fills one hole at a time, not {len(holes)}")
        return CanvasLayout((min(self.num_left, canvas_slots(self)),))

    def blank(
        self, layout: CanvasLayout, typed: tuple[int, ...], *, mask_id: int, end_id: int
    ) -> None:
        """Start a canvas: masks, what is `typed`, and the `<eom>`s of a known length."""
        self.layout, self.step = layout, 0
        self.canvas, self.clamped = layout.blank(mask_id, typed)
        if self.params.length is not None and self.fill.canvas_slots is None:
            # The `<eom>`s in sight tell the model the length, as a half-done canvas would.
            for slot in range(self.num_left, len(self.canvas)):
                self.canvas[slot], self.clamped[slot] = end_id, True
        self.fixed = list(self.clamped)
        self.confidences = [1.0] * len(self.canvas)

    def append(self, token: int, probability: float) -> None:
        """The next token of an autoregressive sequence."""
        self.prefix = [*self.prefix, token]
        self.committed.append(token)
        self.committed_confidences.append(probability)
        self.step += 1

    def go_on(self, *, mask_id: int, end_id: int, max_context: int) -> bool:
        """Commit the canvas of a lone hole to the prefix and start a further one; False where the
        canvas without masks is the last. The context must be closed."""
        left = self.num_left - len(self.canvas)
        if len(self.layout.slots) > 1 or end_id in self.canvas or left <= 0:
            return False
        given = zip(self.confidences, self.clamped, strict=True)
        self.committed_confidences += [p for p, is_given in given if not is_given]
        self.committed += self.canvas
        self.prefix = fitted(self.prefix + self.canvas, max_context)
        if self.fill.canvas_slots is not None:
            layout = self.layout_without_ends(self.fill.canvas_slots)
        else:
            slots = min(left, len(self.canvas)) if self.params.length is None else left + 1
            layout = CanvasLayout.for_holes(slots)
        self.blank(layout, (), mask_id=mask_id, end_id=end_id)
        return True

    def as_it_stands(self, *, mask_id: int, end_id: int) -> FilledHoles:
        """The holes so far: each up to its end or its first undecided slot."""
        holes: list[tuple[int, ...]] = []
        trusted = list(self.committed_confidences)
        finished = True
        for index, hole in enumerate(self.layout.holes()):
            tokens = [] if index else list(self.committed)
            most = self.fill.max_new_tokens if index else self.max_tokens
            if self.params.length is not None and len(self.layout.slots) > 1:
                most = len(tokens) + len(hole)  # the canvas has no ends
            ended = False
            for slot in hole:
                token = self.canvas[slot]
                ended = token == end_id
                if token == mask_id or (len(tokens) == most and not ended):
                    break
                if not self.clamped[slot]:
                    trusted.append(self.confidences[slot])
                if ended:
                    break
                tokens.append(token)
            is_whole = self.params.length is not None and len(tokens) == most
            finished = finished and (ended or is_whole)
            holes.append(tuple(tokens))
        # A deletion is part of the end: it says nothing of tokens that are still open before it.
        if finished and self.end_confidence is not None:
            trusted.append(self.end_confidence)
        return FilledHoles(tuple(holes), tuple(trusted), finished)


@dataclass(frozen=True, slots=True)
class FilledHoles:
    """The tokens of one candidate."""

    holes: tuple[tuple[int, ...], ...]
    """Token ids of each hole, typed ones included, `<eom>` not."""
    probabilities: tuple[float, ...]
    """Probability that each token, and each hole's end, was committed with; not of typed ones."""
    finished: bool
    """False when a deadline, a limit or `Fill.min_confidence` cut it short."""
    score: float | None = None
    """Log-probability, see `ranking`; None for a lone candidate and when time was up."""

    @property
    def confidence(self) -> float:
        """Joint probability of the tokens and of the end, 0..1, by the chain rule; tokens of one
        step count as independent. 0 where nothing was decided.

        Of mean, geometric mean, minimum and product, the product came nearest to how often a fill
        is exact (docs/experiments.md).
        """
        return prod(self.probabilities) if self.probabilities else 0.0


@dataclass(eq=False, slots=True, kw_only=True)
class Fill:
    """One request: its candidates share a context."""

    prefix: list[int]
    suffix: list[int]
    layout: CanvasLayout
    """Of the first canvas, where a sequence's length is unknown."""
    typed: tuple[int, ...] = ()
    """Tokens the first hole begins with."""
    document: tuple[CountedText, ...] = ()
    """What stands around the holes, for the engine's n-grams; none where they are not to count."""
    params: tuple[SamplingParams, ...] = (SamplingParams(),)
    """One a candidate."""
    max_new_tokens: int = 64
    """The most tokens a hole may take, typed ones not counted."""
    client: str = ""
    """Who asks: clients take turns."""
    urgent: bool = False
    """A person asked for it: goes before what was triggered by typing."""
    replaces: tuple[str, str] | None = None
    """(client, document): a newer fill with the same key takes this one's place."""
    deadline: float | None = None
    """`time.monotonic()` at which the best state so far is returned."""
    min_confidence: float = 0.0
    """A sequence of a lone hole ends when what is decided of it is less likely than this."""
    num_wanted: int | None = None
    """Outputs that are handed back at most (None: one a candidate)."""
    canvas_slots: Callable[[Sequence], int] | None = None
    """Of a model whose canvases hold no ends: the most slots of a sequence's next canvas."""
    on_step: Callable[[Sequence], None] | None = None
    """Called on the engine's thread after each step of the first candidate (of tried lengths: the
    most promising one)."""
    sequences: list[Sequence] = field(default_factory=list)
    forwards: int = 0
    """Denoiser passes this fill took part in."""
    encoded_tokens: int = 0
    """Context tokens that no cache held."""

    @property
    def is_done(self) -> bool:
        """Whether every candidate is done."""
        return all(sequence.is_done for sequence in self.sequences)
