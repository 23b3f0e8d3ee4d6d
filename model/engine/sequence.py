"""What the engine works on: a fill (one request) and its sequences (one a candidate).

Imports no torch: the scheduler reads these, the model runner turns them into tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from model.api import AdaptivePolicy
from model.engine.kv_cache import PageTable
from model.infill import CanvasLayout


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sequence's slots are chosen and committed."""

    steps: int | None = None
    """Commit everything in this many steps a canvas; None: adaptively, by `policy`."""
    policy: AdaptivePolicy = "threshold"
    threshold: float = 0.9
    """`threshold`: commit every slot whose confidence exceeds this, at least one a step."""
    entropy_bound: float = 0.3
    """`entropy`: nats that a step's slots may be unsure of together, the least sure left aside."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 draws one."""
    seed: int = 0


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
    """Slot ids; the tokenizer's mask id where undecided."""
    clamped: list[bool]
    """Slots that were given and must never change."""
    confidences: list[float]
    """Probability a slot was committed with; 1 for clamped ones."""
    step: int = 0
    """Denoising steps this canvas has had."""
    committed: list[int] = field(default_factory=list)
    """Tokens of the canvases before this one."""
    committed_confidences: list[float] = field(default_factory=list)
    context: tuple[PageTable, PageTable] | None = None
    """Where the cache holds (prefix, suffix) while the sequence runs."""
    output: FilledHoles | None = None
    """Set once the sequence is done."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to denoise."""
        return self.output is not None


@dataclass(frozen=True, slots=True)
class FilledHoles:
    """The tokens of one candidate."""

    holes: tuple[tuple[int, ...], ...]
    """Token ids of each hole, typed ones included, `<eom>` not."""
    probabilities: tuple[float, ...]
    """Probability that each token, and each hole's end, was committed with; not of typed ones."""
    finished: bool
    """False when a deadline or a limit cut it short."""

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
    typed: tuple[int, ...] = ()
    """Tokens the first hole begins with."""
    params: tuple[SamplingParams, ...] = (SamplingParams(),)
    """One a candidate."""
    max_new_tokens: int = 64
    """The most tokens a hole may take, typed ones not counted."""
    known_length: bool = False
    """The lone hole takes exactly `max_new_tokens`: its end is given, not searched for."""
    urgent: bool = False
    """A person asked for it: goes before what was triggered by typing."""
    replaces: tuple[str, str] | None = None
    """(client, document): a newer fill with the same key takes this one's place."""
    deadline: float | None = None
    """`time.monotonic()` at which the best state so far is returned."""
    on_step: Callable[[Sequence], None] | None = None
    """Called on the engine's thread after each step of the first candidate."""
    sequences: list[Sequence] = field(default_factory=list)
    forwards: int = 0
    """Denoiser passes this fill took part in."""
    encoded_tokens: int = 0
    """Context tokens that no cache held."""

    @property
    def is_done(self) -> bool:
        """Whether every candidate is done."""
        return all(sequence.is_done for sequence in self.sequences)
