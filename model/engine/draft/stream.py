"""A backbone's fill on its way: what it has read, what is decided, what it still has to begin with.

Imports no torch: runners turn these into tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from model.engine.cache.page_tree import PageTable
from model.engine.draft.repeated_text import RepeatedText
from model.engine.fill import Fill, FilledHoles, Sequence


@dataclass(eq=False, slots=True, kw_only=True)
class BackboneFill(Fill):
    """A request to a backbone: a prompt, and what is known of the text behind it."""

    prompt: tuple[int, ...]
    """What the backbone reads (`model.backbone.prompt`)."""
    close_prompt: tuple[int, ...] = ()
    """What it may read instead where the whole prompt would take too long: the end of it."""
    only_reads: bool = False
    """Nothing is to be written: the prompt will soon be wanted."""
    heal: bytes = b""
    """What the tokens have to begin with: the end of the text before the hole."""
    avoid: tuple[bytes, ...] = ()
    """Texts behind `heal` that the first token behind it must not begin."""
    length: int | None = None
    """The hole takes exactly as many tokens: an oracle, for measuring."""
    stop: Callable[[Items[int]], bool] | None = None
    """Whether nothing is wanted behind these tokens. Called on the engine's thread."""
    guess: tuple[int, ...] = ()
    """What the tokens may well be."""
    document: RepeatedText | None = None
    """What stands around the hole, where it may repeat itself."""


@dataclass(eq=False, slots=True, kw_only=True)
class Stream(Sequence):
    """One candidate of a backbone: tokens behind a prompt."""

    fill: BackboneFill  # pyright: ignore[reportIncompatibleVariableOverride] (never set anew)
    ids: list[int]
    """The prompt and what is decided. The last one has not been read yet."""
    num_prompt: int
    """How many of them are the prompt."""
    rest: bytes
    """What is left of `BackboneFill.heal`."""
    probabilities: list[float] = field(default_factory=list[float])
    table: PageTable | None = None
    """Where the cache holds the first tokens while the stream runs."""
    num_cached: int = 0
    """Tokens that the cache held when the stream was opened last."""
    anchor: Any = None
    """What the denoiser makes of the last token that was read, a tensor (E,), once one was."""
    overrun: float = 0.0
    """How likely the middle has ended before the last token, which is unread."""
    can_end: bool = False
    """Whether the middle could have ended where the last token was decided."""
    drafted: tuple[int, ...] = ()
    """The longest draft of the last step."""
    accepted: int = 0
    """How many of its tokens the backbone agreed with."""

    @property
    def tokens(self) -> list[int]:
        """What is decided."""
        return self.ids[self.num_prompt :]

    @property
    def unread(self) -> int:
        """Tokens that no forward has seen."""
        return len(self.ids) - (0 if self.table is None else self.table.length)

    @property
    def is_close(self) -> bool:
        """Whether it reads only what is close to the cursor."""
        return self.num_prompt < len(self.fill.prompt)

    def as_it_stands(self, *, finished: bool) -> FilledHoles:
        """The hole so far."""
        return FilledHoles((tuple(self.tokens),), tuple(self.probabilities), finished)
