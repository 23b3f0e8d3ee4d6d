"""Which candidate is the best: a causal reading of each, in one forward of the same weights.

A candidate's score is the log-probability of its tokens and of the first tokens that follow it in
the document, after the prefix; up to the first of these, what the document repeats weighs in
(`n_grams`). It is a sum, not a mean: all candidates are held to the same text behind them, so a
short one gains nothing by leaving out what the suffix then comes too early for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import replace

from model.engine.n_grams import NGrams
from model.engine.runner import Runner, is_out_of_memory
from model.engine.sequence import Fill, FilledHoles, Sequence

logger = logging.getLogger(__name__)

FOLLOWING_TOKENS = 8
"""Tokens of the suffix that a candidate must lead to. One is enough to tell most wrong lengths;
more than 8 brought nothing (docs/experiments.md)."""


def ranked(
    runner: Runner,
    start: Sequence,
    outputs: Items[FilledHoles],
    special_ids: Collection[int],
    n_grams: NGrams | None = None,
) -> list[FilledHoles]:
    """The outputs with their scores, best first; equal ones keep their order.

    `start` is a sequence of their fill as it was before its first step. A lone distinct output has
    nothing to be compared with, and where memory does not suffice, none gets a score.
    """
    fills = list(dict.fromkeys(output.holes for output in outputs))
    if len(fills) < 2:
        return list(outputs)
    following = _following(start.fill, special_ids)
    texts = [_in_document_order(start.fill, holes) + following for holes in fills]
    # Typed tokens that an autoregressive start holds already are not scored twice.
    num_held = len(start.committed)
    try:
        log_probs = runner.causal_log_probs(start, [text[num_held:] for text in texts])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("no memory to rank %d candidates: they keep their order", len(texts))
        return list(outputs)
    if n_grams is not None and start.fill.document:
        # Behind the first token of what follows, the document would find the very place it is at.
        ends = [len(text) - len(following) - num_held + 1 for text in texts]
        log_probs = [
            [*n_grams.reread(start, text[num_held:][:end], row[:end]), *row[end:]]
            for text, row, end in zip(texts, log_probs, ends, strict=True)
        ]
    score_of = dict(zip(fills, map(sum, log_probs), strict=True))
    scored = [replace(output, score=float(score_of[output.holes])) for output in outputs]
    return sorted(scored, key=lambda output: -score_of[output.holes])


def _in_document_order(fill: Fill, holes: Items[tuple[int, ...]]) -> list[int]:
    """The tokens of the holes and of what lies between them."""
    between = (*fill.layout.between, ())
    return [i for hole, text in zip(holes, between, strict=True) for i in (*hole, *text)]


def _following(fill: Fill, special_ids: Collection[int]) -> list[int]:
    nearest_first = fill.suffix[:0:-1]  # without the language
    return [i for i in nearest_first[:FOLLOWING_TOKENS] if i not in special_ids]
