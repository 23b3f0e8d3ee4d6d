"""What the engine works on, whatever the model: a fill (one request) and its sequences (one a
candidate). Imports no torch: the scheduler reads these."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from model.api import Policy


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sequence's tokens are chosen and committed."""

    policy: Policy = "threshold"
    steps: int | None = None
    """Commit everything in this many steps a canvas; None: adaptively, by `policy`."""
    threshold: float = 0.9
    """`threshold`: commit every slot whose confidence exceeds this, and one however unsure."""
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


@dataclass(frozen=True, slots=True)
class FilledHoles:
    """The tokens of one candidate."""

    holes: tuple[tuple[int, ...], ...]
    """Token ids of each hole, its end not."""
    probabilities: tuple[float, ...]
    """Probability that each token, and each hole's end, was committed with; not of given ones."""
    finished: bool
    """False when a deadline, a limit or `Fill.min_confidence` cut it short."""
    score: float | None = None
    """Mean log-probability of the tokens; None for a lone candidate and when time was up."""

    @property
    def confidence(self) -> float:
        """Joint probability of the tokens and of the end, 0..1, by the chain rule. 0 where nothing
        was decided.

        Of mean, geometric mean, minimum and product, the product came nearest to how often a fill
        is exact (docs/experiments.md).
        """
        return prod(self.probabilities) if self.probabilities else 0.0


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One candidate on its way. What it consists of is its decoder's."""

    fill: Fill
    params: SamplingParams
    step: int = 0
    """Forwards that it has had, of its present canvas where it has canvases."""
    output: FilledHoles | None = None
    """Set once the sequence is done."""
    error: Exception | None = None
    """Why it cannot go on; it ends its fill."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to decide."""
        return self.output is not None

    @property
    def width(self) -> int:
        """Slots of its canvas; 0 where it has none."""
        return 0


@dataclass(eq=False, slots=True, kw_only=True)
class Fill:
    """One request: its candidates share a context."""

    params: tuple[SamplingParams, ...] = (SamplingParams(),)
    """One a candidate."""
    max_new_tokens: int = 64
    """The most tokens a hole may take, given ones not counted."""
    client: str = ""
    """Who asks: clients take turns."""
    urgent: bool = False
    """A person asked for it: goes before what was triggered by typing."""
    can_wait: bool = False
    """It is worked on only while nobody else asks for anything."""
    replaces: tuple[str, str] | None = None
    """(client, document): a newer fill with the same key takes this one's place."""
    deadline: float | None = None
    """`time.monotonic()` at which the best state so far is returned."""
    min_confidence: float = 0.0
    """A sequence of a lone hole ends when what is decided of it is less likely than this."""
    num_wanted: int | None = None
    """Outputs that are handed back at most (None: one a candidate)."""
    on_step: Callable[[Sequence], None] | None = None
    """Called on the engine's thread after each step of the first candidate."""
    sequences: Items[Sequence] = field(default_factory=tuple)
    forwards: int = 0
    """Passes over drafts or canvases this fill took part in."""
    encoded_tokens: int = 0
    """Context tokens that no cache held."""

    @property
    def is_done(self) -> bool:
        """Whether every candidate is done."""
        return all(sequence.is_done for sequence in self.sequences)


class Decoder(Protocol):
    """A model, and its way from a fill to its outputs. Its methods are called from one thread, the
    engine's, but `check` and `start`."""

    def check(self, fill: Fill) -> None:
        """Raise `InvalidRequestError` for a fill that would take the batch down with it."""
        ...

    def start(self, fill: Fill) -> Items[Sequence]:
        """The candidates of a fill before their first step. Raises `InvalidRequestError`."""
        ...

    def step(self, batch: Items[Sequence]) -> None:
        """Take one step with as many of the sequences as there is room for, the first always, and
        set `output` of those that are done, `error` of those that cannot go on.

        May raise: the engine tries again with a smaller batch where memory was short.
        """
        ...

    def outputs(self, fill: Fill) -> list[FilledHoles]:
        """What there is of a fill's candidates, the best first, whether they are done or not."""
        ...

    def leave(self, sequence: Sequence) -> None:
        """A sequence is taken out. Idempotent."""
        ...

    def check_integrity(self) -> None:
        """Raise `AssertionError` when what is cached contradicts itself."""
        ...

    def drop_cache(self) -> None:
        """Forget every context, whatever state the books are in."""
        ...


def fills_of(batch: Items[Sequence]) -> list[Fill]:
    """The fills that a batch works on, each once."""
    return list(dict.fromkeys(sequence.fill for sequence in batch))


def tell(sequence: Sequence) -> bool:
    """Tell the fill's listener of a step; False where that ended the sequence."""
    if sequence.fill.on_step is None:
        return True
    try:
        sequence.fill.on_step(sequence)
    except Exception as error:  # the other fills go on
        sequence.error = error
    return sequence.error is None
