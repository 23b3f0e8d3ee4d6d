"""Corpus -> windows: stretches of files with holes, as the product's prompt has them, and the
canvases that stand in them.

Several holes share what was read of the far text, each with a branch of its own:

    far | <fim_prefix> <fim_suffix> suffix <fim_middle> near and middle      (a branch)
        | <fim_prefix> <fim_suffix> suffix <fim_middle> near and middle      (another)

so that one forward of the backbone serves them all. A branch ends where its hole ends. Where its
hole begins is not said: any token of it may be the last before a cursor, so a canvas may stand
behind each of them. A share of the windows is plain text, without a suffix and without an end.

Shape letters: N tokens of a window, J branches, P tokens that a branch's canvases can see, K
canvases, C slots.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.backbone.prompt import NEAR_TOKENS
from model.training.corpus import Document, read_shard

CHARS_PER_TOKEN = 5
"""More than the text of nearly any token takes."""
FIRST_END, LAST_END = 12, 1200
"""Characters behind the far text within which holes end: up to about as many tokens as a prompt
has near the cursor."""
NEAR_END_TOKENS = 24
NEAR_END_SHARE = 0.4
"""Canvases within so many tokens of a hole's end, which have to learn where it lies."""
MASKED_SHARE = 0.7
"""Canvases that show nothing but their first slot, as a draft begins."""
MOST_KNOWN = 0.8
TEXTS_AT_ONCE = 64
"""Texts between which canvases change where there are several passes. With eight, each was learnt
by heart before the next ones came (docs/experiments.md)."""
FAR_SHARES = (1.0, 1.0, 0.5, 0.125, 0.0)
"""Of the budget of far text: a file may begin, and a cursor just have come there."""
NO_SOURCE = -1
"""Source of a slot that lies behind the hole: no token of the backbone predicts it."""


class WindowTokenizer(Protocol):
    """What a window needs of the backbone's tokenizer."""

    fim_prefix: int
    fim_suffix: int
    fim_middle: int
    eos_id: int

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for; nothing for a special one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowShape:
    """Sizes of a training window."""

    far_tokens: int = 512
    suffix_tokens: int = 128
    plain_tokens: int = 1024
    """Of a window without holes."""
    branches: int = 2
    canvases: int = 96
    """A window's, in all."""
    slots: int = 8
    wide_slots: int = 16
    """Of some windows' canvases, of which there are half as many."""
    wide_share: float = 0.15
    plain_share: float = 0.15
    passes: int = 1
    """Times that a text is come back to, each time with other canvases: what the backbone says of
    it, the dearest part of a step, is then asked once."""

    def __post_init__(self) -> None:
        for name in (
            "far_tokens",
            "suffix_tokens",
            "plain_tokens",
            "branches",
            "canvases",
            "passes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.slots < 2 or self.wide_slots < 2:
            raise ValueError("a canvas has at least two slots: the first one is given")


@dataclass(frozen=True, slots=True)
class Window:
    """Tensors of one window."""

    text: int
    """Number of the text: windows of one number have the same tokens, in the same branches."""
    ids: Tensor
    """(N,)"""
    positions: Tensor
    """(N,)"""
    branch: Tensor
    """(N,) 0 for the far text, then the branch's number."""
    seen: Tensor
    """(J, P) indices of the tokens that a branch's canvases may see, in order; padded with 0."""
    is_seen: Tensor
    """(J, P) bool: no padding."""
    anchors: Tensor
    """(K,) index of the last token before each canvas."""
    canvas_branch: Tensor
    """(K,) row of `seen`."""
    targets: Tensor
    """(K, C) true tokens; behind the hole's end `<eom>`."""
    sources: Tensor
    """(K, C) the token whose hidden state predicts a slot, or `NO_SOURCE`."""
    known: Tensor
    """(K, C) bool: slots that show their token."""
    at_end: Tensor
    """(K,) bool: the hole ends before the canvas's first slot."""
    weights: Tensor
    """(K, C) each slot's share of the loss, but for its place in the canvas."""
    may_end: Tensor
    """(N,) 1 where a hole ends behind the token, 0 where it goes on; -1: not asked."""

    def to(self, device: torch.device | str) -> Window:
        """The window on another device."""
        _, *names = (field.name for field in fields(self))
        return Window(self.text, *(getattr(self, name).to(device) for name in names))

    def visible(self) -> Tensor:
        """(1, N, N) bool: each token sees the far text and its own branch, up to itself."""
        order = torch.arange(len(self.ids), device=self.ids.device)
        same = (self.branch[:, None] == self.branch) | (self.branch == 0)
        return (same & (order <= order[:, None]))[None]


class WindowSampler:
    """Deterministic source of endless windows: window n of a seed is always the same."""

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: WindowTokenizer,
        shape: WindowShape,
        seed: int,
        *,
        draft_only: bool = False,
    ) -> None:
        """`draft_only`: all canvases as a draft begins, and no end within them but right before."""
        self.documents, self.tokenizer, self.shape, self.seed = documents, tokenizer, shape, seed
        self.draft_only = draft_only
        # A file is drawn in proportion to its length, so that every character is as likely.
        lengths = np.array([len(d.text) for d in documents], dtype=np.float64)
        self._cumulative = np.cumsum(lengths) / lengths.sum()

    def window(self, number: int) -> Window:
        """Window number `number`."""
        # Texts come in groups, a group as many times as there are passes.
        group, within = divmod(number, TEXTS_AT_ONCE * self.shape.passes)
        text = group * TEXTS_AT_ONCE + within % TEXTS_AT_ONCE
        rng = random.Random(f"{self.seed}/{text}")
        while True:
            document = self.documents[int(np.searchsorted(self._cumulative, rng.random()))]
            branches = self._branches(document, rng)
            if branches is not None:
                return self._tensors(text, *branches, random.Random(f"{self.seed}/{number}/canvas"))

    # ---- text ------------------------------------------------------------------------------

    def _branches(
        self, document: Document, rng: random.Random
    ) -> tuple[list[int], list[tuple[list[int], list[int]]]] | None:
        """Far tokens, and each branch's marks with suffix and its near text with the middle; None
        where the file is too short. A plain window is one branch without marks."""
        shape, encode, text = self.shape, self.tokenizer.encode, document.text
        if rng.random() < shape.plain_share:
            start = text.rfind("\n", 0, rng.randrange(len(text))) + 1
            body = encode(text[start : start + CHARS_PER_TOKEN * shape.plain_tokens])
            body = body[: shape.plain_tokens]
            return ([], [([], body)]) if len(body) >= 2 * shape.wide_slots else None
        border = text.rfind("\n", 0, rng.randrange(len(text))) + 1
        ends = _hole_ends(document, border, shape.branches, rng)
        if not ends:
            return None
        num_far = round(shape.far_tokens * rng.choice(FAR_SHARES))
        before = text[max(0, border - CHARS_PER_TOKEN * num_far) : border]
        far = encode(before)[-num_far:] if num_far else []
        tok, branches = self.tokenizer, list[tuple[list[int], list[int]]]()
        for end in ends:
            budget = shape.suffix_tokens if rng.random() < 0.8 else rng.randint(8, 128)
            after = encode(text[end : end + 8 * budget])
            marks = [tok.fim_prefix, tok.fim_suffix, *_whole_lines(tok, after, budget)]
            body = encode(text[border:end])[-2 * NEAR_TOKENS :]
            if after and body:
                branches.append(([*marks, tok.fim_middle], body))
        return (far, branches) if branches else None

    # ---- tokens ----------------------------------------------------------------------------

    def _tensors(
        self,
        text: int,
        far: list[int],
        branches: list[tuple[list[int], list[int]]],
        rng: random.Random,
    ) -> Window:
        shape, eom = self.shape, self.tokenizer.eos_id
        size, canvases = shape.slots, shape.canvases
        if not self.draft_only and rng.random() < shape.wide_share:
            size, canvases = shape.wide_slots, canvases // 2
        ids, positions, branch = list(far), list(range(len(far))), [0] * len(far)
        may_end = [-1] * len(far)
        seen: list[list[int]] = []
        anchors: list[int] = []
        rows: list[tuple[int, list[int], list[int], list[bool], bool, list[float]]] = []
        for number, (marks, body) in enumerate(branches):
            first = len(ids) + len(marks)
            start = len(far)
            ids += [*marks, *body]
            length = len(marks) + len(body)
            positions += range(start, start + length)
            branch += [number + 1] * length
            may_end += [-1] * len(marks) + [0] * len(body)
            if marks:
                may_end[-1] = 1
            else:
                may_end[first:] = [-1] * len(body)
            seen.append([*range(len(far)), *range(first - len(marks), len(ids))])
            has_end = bool(marks)
            lowest = -1 if first else 0  # a canvas may stand right behind the marks
            count = max(1, canvases // len(branches))
            for at in self._anchors(len(body), lowest, size, has_end, count, rng):
                targets = [*body[at + 1 : at + 1 + size]]
                num_true = len(targets)
                sources = [first + at + slot for slot in range(num_true)]
                behind = size - num_true
                targets += [eom] * behind
                sources += [NO_SOURCE] * behind
                known = self._known(size, rng)
                weights = [1.0] * min(size, num_true + 1) + [0.1] * max(0, behind - 1)
                rows.append((number, targets, sources, known, num_true == 0, weights))
                anchors.append(first + at)
        longest = max(map(len, seen))
        columns = list(zip(*rows, strict=True))
        return Window(
            text=text,
            ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            branch=torch.tensor(branch),
            seen=torch.tensor([row + [0] * (longest - len(row)) for row in seen]),
            is_seen=torch.tensor([[i < len(row) for i in range(longest)] for row in seen]),
            anchors=torch.tensor(anchors),
            canvas_branch=torch.tensor(columns[0]),
            targets=torch.tensor(columns[1]),
            sources=torch.tensor(columns[2]),
            known=torch.tensor(columns[3]),
            at_end=torch.tensor(columns[4]),
            weights=torch.tensor(columns[5]),
            may_end=torch.tensor(may_end),
        )

    def _anchors(
        self, length: int, lowest: int, size: int, has_end: bool, count: int, rng: random.Random
    ) -> list[int]:
        """Places in a branch's near text and middle behind which canvases stand; -1 is before all
        of it. A branch with an end always has a canvas right behind that."""
        if not has_end:
            places = range(lowest, length - size)
            return sorted(rng.sample(places, min(count, len(places))))
        if self.draft_only:
            places = range(lowest, length - size)
            return [*sorted(rng.sample(places, min(count - 1, len(places)))), length - 1]
        near = range(max(lowest, length - 1 - NEAR_END_TOKENS), length - 1)
        chosen = set(rng.sample(near, min(round(NEAR_END_SHARE * count), len(near))))
        others = [place for place in range(lowest, length - 1) if place not in chosen]
        chosen.update(rng.sample(others, min(count - 1 - len(chosen), len(others))))
        return [*sorted(chosen), length - 1]

    def _known(self, size: int, rng: random.Random) -> list[bool]:
        share = 0.0
        if not self.draft_only and rng.random() > MASKED_SHARE:
            share = MOST_KNOWN * rng.random()
        return [True, *(rng.random() < share for _ in range(size - 1))]


def _hole_ends(document: Document, border: int, num: int, rng: random.Random) -> list[int]:
    """Where holes end, in characters: at a line's end (before the line break or, less often, behind
    it), or where a piece of the syntax tree ends."""
    text = document.text
    first, last = border + FIRST_END, min(border + LAST_END, len(text) - 1)
    breaks: list[int] = []
    at = text.find("\n", first)
    while 0 <= at < last:
        if text[text.rfind("\n", 0, at) + 1 : at].strip():  # the end of a line with text in it
            breaks.append(at)
        at = text.find("\n", at + 1)
    low = bisect_left(document.spans, (border, 0))
    high = bisect_right(document.spans, (last, 0))
    pieces = [end for _, end in document.spans[low:high] if first <= end <= last]
    if not breaks:
        return []
    ends: set[int] = set()
    for _ in range(num):
        kind = rng.random()
        if pieces and kind < 0.35:
            ends.add(rng.choice(pieces))
        elif kind < 0.8:
            ends.add(rng.choice(breaks))
        else:
            ends.add(rng.choice(breaks) + 1)
    return sorted(end for end in ends if text[end:].strip())


def _whole_lines(tokenizer: WindowTokenizer, ids: Sequence[int], budget: int) -> list[int]:
    """The first lines of a suffix that fit the budget, as the prompt has them."""
    if len(ids) <= budget:
        return list(ids)
    for length in range(budget, budget // 2 - 1, -1):
        if length and tokenizer.token_bytes(ids[length - 1]).endswith(b"\n"):
            return list(ids[:length])
    return list(ids[:budget])


def load_documents(corpus: Path, pattern: str = "train-*.jsonl.gz") -> list[Document]:
    """Every document of the shards that match, in the shards' order.

    Raises `ValueError` when there is none.
    """
    documents = [d for shard in sorted(corpus.glob(pattern)) for d in read_shard(shard)]
    if not documents:
        raise ValueError(
            f"{corpus} has no files in {pattern}; pack the corpus again, "
            "or copy all of it if it came from another machine"
        )
    return documents
