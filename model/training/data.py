"""Corpus -> batches: windows of files, holes cut in them as an editor would, and their canvases.

One window serves many holes. The window is tokenised with the holes' edges as token borders (a
cursor may stand inside a word) and encoded twice, as a prefix stream and as a suffix stream; hole
k's canvas then sees the prefix stream up to the hole and the suffix stream from its end. Because
context never sees a canvas, one encoding of L tokens trains K holes exactly as K separate
encodings would.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.infill import CanvasLayout, prefix_stream, suffix_stream
from model.tokenizer import CodeTokenizer
from model.training.corpus import Document, read_shard

CHARS_PER_TOKEN = 3.3
"""Of our corpus: how much text fills a stream."""
NO_TARGET = -100
"""Target of a stream position that carries no loss (`cross_entropy`'s default `ignore_index`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """Sizes of a training batch. Tokens a step: B · (2·L + K·C)."""

    windows: int = 8
    """B, windows of files."""
    stream_tokens: int = 384
    """L, tokens of each of a window's two streams."""
    canvases: int = 24
    """K, holes a window serves."""
    canvas_sizes: tuple[int, ...] = (16, 16, 16, 16, 16, 32, 32, 64)
    """Drawn from for each batch: most holes are short, and so are the cheap canvases."""

    def __post_init__(self) -> None:
        for name, least in (("windows", 1), ("stream_tokens", 4), ("canvases", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one training step. B windows, L stream tokens, K canvases of C slots each."""

    prefix_ids: Tensor
    """(B, L) the window read forwards."""
    suffix_ids: Tensor
    """(B, L) the window read backwards."""
    prefix_targets: Tensor
    """(B, L) the next token of the prefix stream; NO_TARGET past its end."""
    suffix_targets: Tensor
    """(B, L) likewise."""
    prefix_seen: Tensor
    """(B, K) how many tokens of the prefix stream a canvas sees."""
    suffix_seen: Tensor
    """(B, K) likewise of the suffix stream."""
    canvas_targets: Tensor
    """(B, K, C) the finished canvases."""
    canvas_weights: Tensor
    """(B, K, C) each slot's share of the loss; 0 for clamped slots and empty places."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Hole:
    """A stretch of characters to be filled, [start, end) in its window."""

    start: int
    end: int


def _rest_of_line(text: str, line: tuple[int, int], rng: random.Random) -> Hole:
    start, end = line
    return Hole(rng.randint(start, end), end)


def _within_line(text: str, line: tuple[int, int], rng: random.Random) -> Hole:
    start, end = line
    first = rng.randint(start, end)
    return Hole(first, rng.randint(first, min(end, first + 40)))


def _whole_line(text: str, line: tuple[int, int], rng: random.Random) -> Hole:
    return Hole(_code_start(text, line), line[1])


def _line_with_break(text: str, line: tuple[int, int], rng: random.Random) -> Hole:
    # What a deleted line leaves behind: indentation and line end are to be filled as well.
    start, end = line
    return Hole(start, min(end + 1, len(text)))


def _several_lines(text: str, line: tuple[int, int], rng: random.Random) -> Hole:
    start, end = line
    code = _code_start(text, line)
    first = rng.choice((start, code, code, rng.randint(code, end)))
    last = end
    for _ in range(rng.randint(1, 4)):
        newline = text.find("\n", last + 1)
        last = newline if newline >= 0 else len(text)
    # Lines taken from their very start leave no line end behind either.
    return Hole(first, min(last + (first == start), len(text)))


def _nothing(text: str, line: tuple[int, int], rng: random.Random) -> Hole:
    position = rng.randint(*line)
    return Hole(position, position)


def _code_start(text: str, line: tuple[int, int]) -> int:
    start, end = line
    return start + len(text[start:end]) - len(text[start:end].lstrip())


HOLE_KINDS = (
    (_rest_of_line, 0.36),
    (_within_line, 0.22),
    (_whole_line, 0.12),
    (_line_with_break, 0.10),
    (_several_lines, 0.16),
    (_nothing, 0.04),
)
"""How a hole is cut in a line, and how often. Nothing missing is a case too: the model must say
so."""
SYNTAX_SHARE = 0.25
"""Share of the holes that are a piece of the syntax tree, where the corpus has marked any."""
MAX_SYNTAX_CHARS = 240
"""A longer piece would seldom fit a canvas."""


def sample_holes(
    text: str, num: int, rng: random.Random, pieces: Sequence[tuple[int, int]] = ()
) -> list[Hole]:
    """At most `num` disjoint holes of `text`, in document order, with text between them.

    `pieces` are stretches [start, end) that the syntax tree gives: bodies, arguments, expressions.
    """
    starts = [0, *(i + 1 for i, c in enumerate(text) if c == "\n")]
    lines = [(s, e) for s, e in zip(starts, [*(s - 1 for s in starts[1:]), len(text)], strict=True)]
    lines = [line for line in lines if text[slice(*line)].strip()]
    short = [piece for piece in pieces if piece[1] - piece[0] <= MAX_SYNTAX_CHARS]
    kinds = [kind for kind, _ in HOLE_KINDS]
    shares = [share for _, share in HOLE_KINDS]
    drawn: list[Hole] = []
    for line in rng.sample(lines, min(num, len(lines))):
        if short and rng.random() < SYNTAX_SHARE:
            drawn.append(Hole(*rng.choice(short)))
        else:
            drawn.append(rng.choices(kinds, shares)[0](text, line, rng))
    holes: list[Hole] = []
    for hole in sorted(drawn, key=lambda hole: (hole.start, hole.end)):
        if not holes or hole.start > holes[-1].end:
            holes.append(hole)
    return holes


class WindowSampler:
    """Deterministic source of endless batches: batch n of a seed is always the same."""

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: CodeTokenizer,
        shape: BatchShape,
        seed: int,
        *,
        two_hole_share: float = 0.1,
    ) -> None:
        self.documents, self.tokenizer, self.shape, self.seed = documents, tokenizer, shape, seed
        self.two_hole_share = two_hole_share
        # A file is drawn in proportion to its length, so that every character is as likely.
        lengths = np.array([len(d.text) for d in documents], dtype=np.float64)
        self._cumulative = np.cumsum(lengths) / lengths.sum()

    def batch(self, step: int) -> Batch:
        """Batch number `step`."""
        rng = random.Random(f"{self.seed}/{step}")
        size = rng.choice(self.shape.canvas_sizes)
        windows = [self._window(size, rng) for _ in range(self.shape.windows)]
        return Batch(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*windows, strict=True)))

    def _window(self, canvas_size: int, rng: random.Random) -> tuple[np.ndarray, ...]:
        shape, tok = self.shape, self.tokenizer
        document = self.documents[int(np.searchsorted(self._cumulative, rng.random()))]
        num_chars = int(CHARS_PER_TOKEN * shape.stream_tokens)
        start, end = _window_of(document.text, num_chars, rng)
        starts_file, ends_file = start == 0, end == len(document.text)
        pieces = [
            (first - start, last - start)
            for first, last in document.spans
            if start <= first and last <= end
        ]
        text = document.text[start:end]
        ids, cut = self._tokenise(text, sample_holes(text, shape.canvases // 2, rng, pieces))
        limit = shape.stream_tokens - 2  # language and file edge
        if len(ids) > limit:
            ids, ends_file = ids[:limit], False
            cut = [span for span in cut if span.stop <= limit]
        forward = prefix_stream(tok, ids, document.language, starts_file=starts_file)
        backward = suffix_stream(tok, ids, document.language, ends_file=ends_file)

        prefix_seen = np.ones(shape.canvases, dtype=np.int64)
        suffix_seen = np.ones(shape.canvases, dtype=np.int64)
        targets = np.zeros((shape.canvases, canvas_size), dtype=np.int64)
        weights = np.zeros((shape.canvases, canvas_size), dtype=np.float32)
        for place, spans in enumerate(self._canvases(ids, cut, canvas_size, rng)):
            prefix_seen[place] = len(forward) - len(ids) + spans[0].start
            suffix_seen[place] = len(backward) - spans[-1].stop
            targets[place], weights[place] = self._target(ids, spans, canvas_size)
        prefix_ids, prefix_targets = _stream_arrays(forward, shape.stream_tokens)
        suffix_ids, suffix_targets = _stream_arrays(backward, shape.stream_tokens)
        return (
            prefix_ids,
            suffix_ids,
            prefix_targets,
            suffix_targets,
            prefix_seen,
            suffix_seen,
            targets,
            weights,
        )

    def _tokenise(self, text: str, holes: Sequence[Hole]) -> tuple[list[int], list[range]]:
        """The window's tokens, with token borders at the holes' edges, and the holes in tokens."""
        edges = [0, *(edge for hole in holes for edge in (hole.start, hole.end)), len(text)]
        pieces = self.tokenizer.encode_batch([text[a:b] for a, b in pairwise(edges)])
        borders = [0, *accumulate(map(len, pieces))]
        spans = [range(borders[2 * k + 1], borders[2 * k + 2]) for k in range(len(holes))]
        return [i for piece in pieces for i in piece], spans

    def _canvases(
        self, ids: Sequence[int], cut: Sequence[range], canvas_size: int, rng: random.Random
    ) -> list[list[range]]:
        """The hole (or two) of each canvas: those cut at characters, then some at token borders.

        The latter may overlap: every canvas sees only its own surroundings.
        """
        canvases: list[list[range]] = []
        for span in cut:
            joins = canvases and len(canvases[-1]) == 1 and rng.random() < self.two_hole_share
            if joins and span.start - canvases[-1][0].stop <= canvas_size // 2:
                canvases[-1].append(span)
            else:
                canvases.append([span])
        breaks = [i for i, token in enumerate(ids) if token in self.tokenizer.line_break_ids]
        while len(canvases) < self.shape.canvases and ids:
            span = _span_between_tokens(len(ids), breaks, rng)
            # Longer holes than canvases have to be learned too, but seldom occur.
            if len(span) < canvas_size or rng.random() < 0.1:
                canvases.append([span])
        return canvases

    def _target(
        self, ids: Sequence[int], spans: Sequence[range], canvas_size: int
    ) -> tuple[list[int], list[float]]:
        between = tuple(tuple(ids[a.stop : b.start]) for a, b in pairwise(spans))
        free = canvas_size - sum(map(len, between))
        share = free // len(spans)
        slots = (*(share for _ in between), free - share * len(between))
        contents = [ids[span.start : span.stop] for span in spans]
        return CanvasLayout(slots, between).target(contents, self.tokenizer.end_id)


def _span_between_tokens(num_ids: int, breaks: Sequence[int], rng: random.Random) -> range:
    """A hole whose edges are token borders: part of a line, its rest, all of it, or several.

    `breaks` are the indices of the tokens that begin a new line.
    """

    def line_end(index: int, lines: int = 1) -> int:
        place = bisect_left(breaks, index) + lines - 1
        return breaks[place] if place < len(breaks) else num_ids

    start = rng.randint(0, num_ids)
    kind = rng.random()
    if kind < 0.4:
        return range(start, line_end(start))
    if kind < 0.7:
        return range(start, min(start + rng.randint(0, 6), line_end(start)))
    if kind < 0.85:
        start = min(line_end(start) + 1, num_ids)
        return range(start, line_end(start))
    return range(start, line_end(start, rng.randint(2, 4)))


def _window_of(text: str, num_chars: int, rng: random.Random) -> tuple[int, int]:
    """A window [start, end) of `text` that begins at a line's start."""
    if len(text) <= num_chars:
        return 0, len(text)
    # Windows may lie half outside the file: its top and its end are then as likely as its middle.
    start = max(0, rng.randint(-(num_chars // 2), len(text) - num_chars // 2))
    start = text.rfind("\n", 0, start) + 1
    return start, min(start + num_chars, len(text))


def _stream_arrays(stream: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """ids (L,) and next-token targets (L,) of a stream, padded at its end."""
    ids = np.zeros(length, dtype=np.int64)
    targets = np.full(length, NO_TARGET, dtype=np.int64)
    ids[: len(stream)] = stream
    targets[: len(stream) - 1] = stream[1:]
    return ids, targets


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
