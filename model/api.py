"""What the rest of the world may know of the model. Imports no torch.

An `InfillRequest` goes in, an `InfillResult` comes out, and a `Completer` stands between them
(`model.engines` gives one).

    text before │ hole │ text between │ hole │ text after
    prefix      │      │ between[0]   │      │ suffix
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args
from urllib.parse import urlsplit

Policy = Literal["verified", "autoregressive", "threshold", "entropy", "factor", "left-to-right"]
"""How tokens are decided. `verified`: drafts are made, and the backbone commits what it agrees
with; `autoregressive`: the backbone alone, token after token, which gives the same text. The others
fill a canvas without a backbone's verdict; a step commits all the sure slots, as many as an entropy
bound allows, as many as their number allows, or the leftmost alone."""

MOST_TOKENS = 1 << 20
"""A budget for context that is none: the model's own limit holds."""

MAX_AVOIDED = 16
"""Texts that one request may avoid."""

_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@((?:(?!\.\.)[\w./-])+))?", re.ASCII)


def hub_id(name: str) -> tuple[str, str | None] | None:
    """Repository and revision of a checkpoint's id on the Hugging Face hub, `owner/name` or
    `owner/name@revision`; None where `name` is none."""
    match = _HUB_ID.fullmatch(name)
    return None if match is None else (match[1], match[2])


class CompletionError(Exception):
    """Base of every error a `Completer` may raise. Its text is one sentence for a person."""


class InvalidRequestError(CompletionError):
    """The request itself is wrong: a limit exceeded, a parameter out of range."""


class CheckpointError(CompletionError):
    """The checkpoint cannot be used: missing, truncated, of the wrong shape or version."""


class EngineUnavailableError(CompletionError):
    """No engine answers: it is still loading, has crashed or was closed."""


class EngineOverloadedError(CompletionError):
    """The engine is up but will not take this request now."""


class SupersededError(CompletionError):
    """A newer request of the same client and document took this one's place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillRequest:
    """One infill: text around one or more holes, and how to fill them.

    Raises `InvalidRequestError` on construction when a value is out of range.
    """

    prefix: str
    """Text before the first hole; lines end in `\\n`."""
    suffix: str = ""
    """Text after the last hole; lines end in `\\n`."""
    between: tuple[str, ...] = ()
    """The texts between neighbouring holes: one fewer than there are holes."""
    typed: str = ""
    """What the first hole is known to begin with. It is clamped: every candidate starts with it."""
    language: str = ""
    """LSP language id, such as `python`; unknown ids are allowed."""
    special_tokens_in_prefix: bool = False
    """Whether the names of special tokens in `prefix` stand for those tokens, as in a prompt that a
    chat template rendered. By default they are text, like everything else."""
    must_fit: bool = False
    """Refuse a context longer than the model reads, instead of dropping its far edges."""
    document: str = ""
    """Names the document the request is about. A newer request of the same `client` and
    `document` replaces a waiting or running older one. Empty: replaces nothing."""
    client: str = ""
    """Names the editor window that asks."""
    priority: Literal["auto", "manual"] = "auto"
    """`manual` requests, which a person asked for, run before `auto` ones."""
    max_new_tokens: int = 64
    """The most tokens a hole may take."""
    candidates: int = 1
    """How many different fills to try for; duplicates are merged, so fewer may come back."""
    prefix_tokens: int = 768
    """The most tokens of `prefix` that are read, but for the cursor's line, which may come on top;
    whole lines go at its far edge."""
    suffix_tokens: int = 128
    """The most tokens of `suffix` that are read."""
    max_lines: int | None = None
    """Nothing after so many lines is wanted; the first is the line that the hole begins in."""
    min_indent: int | None = None
    """Nothing is wanted from the first further line on that is indented by fewer columns."""
    avoid: tuple[str, ...] = ()
    """The fill of a lone hole begins otherwise than these texts, if by one token only."""
    draft: str = ""
    """What the first hole may well hold, such as the rest of the last answer. It costs nothing
    where it is wrong, and saves forwards where it is right."""
    steps: int | None = None
    """Fixed number of denoising steps for each canvas; None commits adaptively by `policy`."""
    policy: Policy | None = None
    """How tokens are decided; None: `verified` where there is a backbone, else `threshold`."""
    threshold: float = 0.9
    """`threshold` policy: a step commits every slot whose top probability exceeds this, and the
    leftmost one (of an open checkpoint, as in the loops published with them, the surest)."""
    entropy_bound: float = 0.3
    """`entropy` policy: commit slots, surest first, while their entropies sum to at most this
    many nats beside the largest of them."""
    factor: float = 1.0
    """`factor` policy: commit the n most confident slots for the largest n such that all of them
    are at least 1 - factor / (n + 1) (dInfer, arXiv 2510.08666)."""
    remask: float | None = None
    """Mask a committed slot again when the newest logits give its token a probability below this
    (None: what is committed stays)."""
    length_of: str | None = None
    """The hole takes exactly as many tokens as this text. An oracle, for measuring what it costs
    that the length of a hole is unknown; `typed` and `between` must be empty."""
    temperature: float = 0.6
    """Sampling temperature of the candidates after the first, which is greedy unless `drawn`."""
    drawn: bool = False
    """Draw the first candidate, too."""
    top_p: float = 1.0
    """The sampled candidates draw from the likeliest tokens that have this much probability
    together."""
    seed: int = 0
    """Seed of the sampled candidates: the same request gives the same result."""
    deadline_ms: float | None = None
    """Answer after this long with the best state reached (None: run to the end)."""
    min_confidence: float = 0.0
    """Stop a candidate of a single hole once what is decided of it, from its left edge on, is less
    likely than this: it can only become less likely still. It comes back `finished` False, its
    first tokens as sure as they would have been."""

    before: str = ""
    """More of the document, before `prefix`. No model reads it, but what it repeats is drafted.
    Lines end in `\\n`."""
    after: str = ""
    """More of the document, after `suffix`; likewise."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_new_tokens", self.max_new_tokens, 1, 4096),
            ("candidates", self.candidates, 1, 16),
            ("prefix_tokens", self.prefix_tokens, 16, MOST_TOKENS),
            ("suffix_tokens", self.suffix_tokens, 0, MOST_TOKENS),
            ("max_lines", 1 if self.max_lines is None else self.max_lines, 1, 4096),
            ("min_indent", 0 if self.min_indent is None else self.min_indent, 0, 4096),
            ("steps", 1 if self.steps is None else self.steps, 1, 4096),
            ("threshold", self.threshold, 0.0, 1.0),
            ("entropy_bound", self.entropy_bound, 0.0, 1e3),
            ("factor", self.factor, 0.0, 100.0),
            ("remask", 0.0 if self.remask is None else self.remask, 0.0, 1.0),
            ("temperature", self.temperature, 0.0, 10.0),
            ("top_p", self.top_p, 0.01, 1.0),
            ("deadline_ms", 1.0 if self.deadline_ms is None else self.deadline_ms, 0.0, 3.6e6),
            ("min_confidence", self.min_confidence, 0.0, 1.0),
        ):
            if not low <= value <= high:
                raise InvalidRequestError(f"{name} is {value}; it must lie in {low}..{high}")
        if self.priority not in ("auto", "manual"):
            raise InvalidRequestError(f"priority is {self.priority!r}; use 'auto' or 'manual'")
        if self.policy is not None and self.policy not in get_args(Policy):
            known = ", ".join(map(repr, get_args(Policy)))
            raise InvalidRequestError(f"policy is {self.policy!r}; use one of {known}")
        if self.length_of is not None and (not self.length_of or self.typed or self.between):
            raise InvalidRequestError(
                "length_of must be a text of at least one character, for a single hole without "
                "`typed`"
            )
        if len(self.avoid) > MAX_AVOIDED or (self.avoid and self.between):
            raise InvalidRequestError(f"avoid takes at most {MAX_AVOIDED} texts, and a single hole")
        self._check_policy()

    def _check_policy(self) -> None:
        """Raise `InvalidRequestError` for parameters that do not go together."""
        if self.steps is not None and self.policy not in (None, "threshold"):
            raise InvalidRequestError(
                f"steps is {self.steps}; it already says how much a step commits, so leave out "
                f"the policy {self.policy!r}"
            )
        if self.remask is not None and self.policy in (
            "left-to-right",
            "autoregressive",
            "verified",
        ):
            raise InvalidRequestError(
                f"the policy {self.policy!r} never returns to a token; leave out `remask`"
            )
        by_threshold = self.steps is None and self.policy in (None, "threshold")
        if self.remask is not None and by_threshold and self.remask > self.threshold:
            raise InvalidRequestError(
                f"remask is {self.remask} and threshold {self.threshold}: what one commits, the "
                "other would mask again; remask must not be larger"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to fill the holes."""

    texts: tuple[str, ...]
    """One text a hole, in document order. The first begins with the request's `typed`."""
    confidence: float
    """How likely the model thinks that this is exactly the text that belongs here, 0..1: the
    product of `probabilities`. `mezzotint evaluate calibration` measures how true that is. NaN
    where the engine does not tell, as some remote ones do not."""
    finished: bool = True
    """False when the deadline, `max_new_tokens` or `min_confidence` cut it short."""
    probabilities: tuple[float, ...] = ()
    """Probability that each token, and each hole's end, was committed with."""
    score: float | None = None
    """The mean log-probability (nats) that its tokens were committed with. None where there was no
    other candidate to compare it with, or no time."""
    token_ends: tuple[int, ...] = ()
    """Where in `text` the token of each of the first `probabilities` ends, in characters: as many
    as the hole has tokens beyond `typed`. Empty where there are several holes."""

    @property
    def text(self) -> str:
        """The text of the first (usually the only) hole."""
        return self.texts[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSize:
    """How much text around its holes a request has, in tokens."""

    tokens: int = 0
    """Tokens that the model reads."""
    dropped: int = 0
    """Tokens at the far edges that are more than it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillResult:
    """The candidates of one request and what they cost."""

    candidates: tuple[Candidate, ...]
    """The best comes first, by `Candidate.score`; when the deadline cut them short, the greedy
    one does."""
    forwards: int
    """Passes over a draft or a canvas."""
    tokens: int
    """Tokens in the candidates' fills, clamped ones not counted."""
    encoded_tokens: int
    """Context tokens that had to be encoded because no cache held them."""
    ms: float
    """Time in the engine, in milliseconds."""
    context: ContextSize = ContextSize()
    verified: bool = False
    """Whether a backbone stands behind every token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The first candidate after one step: its canvas, or the draft that was verified."""

    step: int
    """Steps that this canvas has had; 1 after its first."""
    slots: tuple[str | None, ...]
    """Text of each slot of the canvas or the draft; None where it is still masked, "" where the
    span has ended."""
    accepted: int | None = None
    """Slots, from the left, that the backbone agreed with; the next one, if there is one, it wrote
    itself. None where nothing verifies."""
    tokens: int = 0
    """How many are decided so far, earlier canvases included."""
    text: str = ""
    """What is decided of the first hole, from its left edge on, earlier canvases included."""
    text_stays: bool = False
    """Whether the answer's first candidate will begin with `text`: no other candidate is at work
    that might turn out the better one, and none is masked again."""
    context: ContextSize = ContextSize()


FrameListener = Callable[[Frame], None]


class Completer(Protocol):
    """Fills holes. Cancelling the task that awaits `complete` stops the denoising at its next
    step; so does closing."""

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """Fill the holes of `request`.

        Raises a `CompletionError`, among them `SupersededError`.
        """
        ...

    async def close(self) -> None:
        """Release what the completer holds. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """What a running engine says of itself."""

    state: Literal["loading", "ready", "failed"]
    message: str
    """One sentence for a person; for `failed`, what is wrong and what to do."""
    model: str = ""
    """The checkpoint it serves."""
    fraction: float | None = None
    """Share of the loading that is done, 0..1, where the loader knows it."""


class EngineConnection(Completer, Protocol):
    """A `Completer` that talks to an engine process, which can also be watched and kept alive."""

    async def health(self) -> EngineHealth:
        """Ask how the engine is; it answers while it loads, too.

        Raises `EngineUnavailableError` when nobody answers.
        """
        ...

    async def hold_lease(self) -> None:
        """Keep the engine alive for as long as the awaiting task runs; cancel it to let go.

        Returns when the engine leaves of its own accord, for want of work. Raises
        `EngineUnavailableError` when it vanishes, and `InvalidRequestError` when it refuses us.
        """
        ...


EngineKind = Literal["auto", "mezzotint", "mercury", "llama.cpp", "openai"]
"""What an engine that somebody else runs speaks: our own protocol, Mercury's API, llama.cpp's
`/infill`, or an OpenAI-compatible `/v1/completions`. `auto` finds out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAddress:
    """An engine that somebody else runs, and what it takes to be served by it.

    Raises `InvalidRequestError` on construction for an address that cannot be used.
    """

    url: str
    """`http://…`, `https://…`, or `unix:/path/to.sock` of a Mezzotint engine."""
    kind: EngineKind = "auto"
    key: str = field(default="", repr=False)
    """What to prove ourselves with; empty: nothing is sent."""
    token: str = field(default="", repr=False)
    """In place of `key` for a Mezzotint engine, and never sent to another kind."""
    model: str = ""
    """Which of its models is to answer; empty: Mercury's model for edits, and elsewhere the first
    one that the engine lists."""
    fim_template: str = ""
    """For an `openai` engine whose `/v1/completions` knows no `suffix`: the prompt that its model
    was trained with, holding `{prefix}` and `{suffix}` once each."""
    allow_plain_http: bool = False
    """Whether the key may cross a network unencrypted."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(EngineKind):
            known = ", ".join(map(repr, get_args(EngineKind)))
            raise InvalidRequestError(f"the engine's kind is {self.kind!r}; use one of {known}")
        if self.fim_template and not all(
            self.fim_template.count(part) == 1 for part in ("{prefix}", "{suffix}")
        ):
            raise InvalidRequestError(
                f"the prompt template {self.fim_template!r} must hold {{prefix}} and {{suffix}}, "
                "once each"
            )
        if self.url.startswith("unix:") and self.kind in ("auto", "mezzotint"):
            return
        self._check_network()

    def _check_network(self) -> None:
        """Raise `InvalidRequestError` where the key would not be safe on the way."""
        try:
            parts = urlsplit(self.url)
            host = parts.hostname if parts.port != 0 else None
        except ValueError:  # a port out of range, a bracket too few
            parts, host = urlsplit(""), None
        if not host or parts.scheme not in ("http", "https"):
            raise InvalidRequestError(
                f"the engine's address is {self.url!r}; it must begin with http:// or https://, "
                "or with unix: for a Mezzotint engine"
            )
        if parts.username is not None or parts.password is not None:
            raise InvalidRequestError(
                f"the address of the engine at {host} holds a name or password, which would be "
                "shown and logged; give a key instead"
            )
        has_secret = bool(self.key or self.token)
        is_safe = parts.scheme == "https" or is_loopback(host) or self.allow_plain_http
        if has_secret and not is_safe:
            raise InvalidRequestError(
                f"{self.url} would carry the key to {host} unencrypted; use https://, or set "
                "mezzotint.engine.allowPlainHttp if you trust the network"
            )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, without asking anybody."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
