"""What the document repeats, weighed against what the denoiser expects: a cache language model.

Source code repeats itself, and what it repeats is near (Tu, Su and Devanbu, "On the localness of
software", 2014; the cache is Kuhn and De Mori's, 1990). A small denoiser knows little of that: it
has never seen the document's names. So the tokens that follow the same 1, 2 and 4 tokens elsewhere
in the document are counted, also in what no context stream has room for, and each context in turn
corrects the prediction of the one before, the first one the denoiser's:

    p_k(w) = (count_k(w) + s_k d_k p_{k-1}(w)) / (n_k + s_k d_k)

with n_k occurrences of the context, d_k different tokens behind it (Witten and Bell, 1991) and a
strength s_k that the checkpoint brings along, fitted by `mezzotint evaluate n-grams`. A document
does not tell where a hole ends: that is never less likely than the denoiser thinks, and more likely
where what was seen to come next is what follows the hole (`NGrams.shared`).

This needs to know what stands to the left, so it says nothing of a slot behind an undecided one. A
slot whose token is then sure enough counts as decided for the next: a step commits the whole of a
repeated passage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass
from math import exp, inf, log

import torch
from torch import Tensor

from model.engine.counted_text import CountedText
from model.engine.sampler import Vocabulary
from model.engine.sequence import Sequence
from model.tokenizer import CodeTokenizer


@dataclass(frozen=True, slots=True)
class Strength:
    """How much the denoiser is trusted against contexts of one length."""

    order: int
    """Tokens of context."""
    strength: float
    """s of the module's formula: how many occurrences the prediction before is worth, for each
    different token that follows."""

    def __post_init__(self) -> None:
        if self.order < 1 or not 0 < self.strength < inf:
            raise ValueError(f"an n-gram order must be at least 1 and its strength above 0: {self}")


MAX_TOKENS_A_WORD = 8
"""Tokens beyond the longest context that are read for the beginning of the word at the cursor."""

FOLLOWING_TOKENS = 4
"""Tokens behind a hole that a token may reach into."""


class NGrams:
    """Weighs what documents repeat, for one checkpoint."""

    def __init__(
        self, tokenizer: CodeTokenizer, vocabulary: Vocabulary, strengths: Items[Strength]
    ) -> None:
        self._tokenizer, self.vocabulary = tokenizer, vocabulary
        self.strengths = sorted(strengths, key=lambda each: each.order)
        self._token_bytes = tokenizer.token_bytes
        self._first_of: dict[bytes, int | None] = {}

    def text(self, ids: Items[int], *, precedes_hole: bool) -> CountedText:
        """A stretch of a document, for `Fill.document`."""
        return CountedText(ids, self._token_bytes, precedes_hole=precedes_hole)

    @torch.inference_mode()
    def weigh(self, batch: Items[Sequence], logits_BCV: Tensor) -> None:
        """Correct the logits of each hole's first open slots, in place."""
        for sequence, logits_CV in zip(batch, logits_BCV, strict=False):
            # What the document says is not asked again of a slot that is decided, so a doubt that
            # goes by the denoiser alone would mask it at once.
            if sequence.fill.document and sequence.params.remask is None:
                for hole in sequence.layout.holes():
                    self._weigh_hole(sequence, hole, logits_CV)

    @torch.inference_mode()
    def weigh_next(self, batch: Items[Sequence], logits_BV: Tensor) -> None:
        """Correct the logits of what comes after causal streams, in place. Nothing behind the hole
        counts there: the autoregressive baseline does not see it."""
        for sequence, logits_V in zip(batch, logits_BV, strict=True):
            seen = [part for part in sequence.fill.document if part.precedes_hole]
            if seen:
                context = self._left_of(sequence, (), 0)
                written = len(sequence.committed) - len(sequence.fill.typed)
                counts = self.counts(seen, context, written, len(sequence.fill.typed))
                logits_V.copy_(self.posterior(logits_V, counts, b"", may_end=False).log())

    def reread(self, start: Sequence, text: Items[int], log_probs: Items[float]) -> list[float]:
        """A causal reading of `text` behind a sequence's prefix, log-probabilities (nats) of its
        tokens, as the document corrects it. `start` has written nothing yet."""
        context, corrected = self._left_of(start, (), 0), list[float]()
        for index, (token, log_prob) in enumerate(zip(text, log_probs, strict=True)):
            chance = exp(log_prob)
            counts = self.counts(start.fill.document, context, index)
            for each, count in zip(self.strengths, counts, strict=False):
                if count:
                    weight = each.strength * len(count)
                    chance = (count[token] + weight * chance) / (count.total() + weight)
            corrected.append(log(max(chance, 1e-30)))
            context.append(token)
        return corrected

    def _weigh_hole(self, sequence: Sequence, hole: range, logits_CV: Tensor) -> None:
        mask_id, end_id = self.vocabulary.mask_id, self.vocabulary.end_id
        canvas = list(sequence.canvas)
        slot = next((slot for slot in hole if canvas[slot] == mask_id), None)
        if slot is None:
            return
        params = sequence.params
        may_end = params.length is None and all(
            canvas[later] in (mask_id, end_id) for later in range(slot, hole.stop)
        )
        following = self.following(sequence, hole)
        goes_on = params.policy == "threshold" and params.steps is None and not params.temperature
        while slot < hole.stop and canvas[slot] == mask_id:
            counts = self._counts_at(sequence, canvas, hole, slot)
            posterior = self.posterior(logits_CV[slot], counts, following, may_end=may_end)
            logits_CV[slot] = posterior.log()
            # As the sampler will see it, which may be in half precision.
            highest, token = (value.item() for value in logits_CV[slot].max(dim=-1))
            chance = exp(highest)
            if not goes_on or chance <= params.threshold or token == end_id:
                return
            canvas[slot] = int(token)
            slot += 1

    def counts_at(self, sequence: Sequence, slot: int) -> list[Counter[int]]:
        """What the document says of a slot of the canvas as it stands: see `counts`."""
        hole = next(hole for hole in sequence.layout.holes() if slot in hole)
        return self._counts_at(sequence, sequence.canvas, hole, slot)

    def _counts_at(
        self, sequence: Sequence, canvas: Items[int], hole: range, slot: int
    ) -> list[Counter[int]]:
        written, typed = sequence.clamped[hole.start : slot].count(False), 0
        if hole.start == 0:
            typed = len(sequence.fill.typed)
            written += max(len(sequence.committed) - typed, 0)
        context = self._left_of(sequence, canvas, slot)
        return self.counts(sequence.fill.document, context, written, typed)

    def _left_of(self, sequence: Sequence, canvas: Items[int], slot: int) -> list[int]:
        """The tokens before a slot, as many as are known and the longest context may take."""
        wanted, found = self.strengths[-1].order + MAX_TOKENS_A_WORD, []
        special = self.vocabulary.special_ids
        for token in (*reversed(canvas[:slot]), *reversed(sequence.prefix[-wanted:])):
            if token == self.vocabulary.end_id:
                continue  # of an earlier hole
            if token in special or len(found) == wanted:
                break
            found.append(token)
        return found[::-1]

    def counts(
        self, document: Items[CountedText], context: Items[int], written: int, typed: int = 0
    ) -> list[Counter[int]]:
        """What follows the last tokens of `context` in the document: how often each token, for
        each order that has that much context.

        Contexts are compared as text. The last `written` tokens are the model's, and the `typed`
        ones before them stand alone, too; what stands before either was cut at a cursor, perhaps
        inside a word. Until that word has ended, the rest of a token counts as well.
        """
        tokens = [self._token_bytes[i] for i in context]
        cut = max(len(tokens) - written, 0)
        pieces = healed(healed(tokens, cut), cut - typed if typed else 0)
        is_in_word = bool(pieces) and len(pieces[-1]) > sum(map(len, tokens[cut:]))
        texts = [
            b"".join(pieces[-each.order :]) for each in self.strengths if each.order <= len(pieces)
        ]
        counts: list[Counter[int]] = [Counter() for _ in texts]
        for part in document if texts and texts[0] else ():
            for end in part.occurrences(texts[0]):
                token, rest = part.token_at(end)
                if token is None and rest and is_in_word:
                    token = self._first_token(rest)
                if token is None:
                    continue
                for text, count in zip(texts, counts, strict=True):
                    if not part.ends_with(text, end):
                        break
                    count[token] += 1
        return counts

    def posterior(
        self, logits_V: Tensor, counts: Items[Counter[int]], following: bytes, *, may_end: bool
    ) -> Tensor:
        """Probabilities (V,) of a slot's tokens, from the denoiser's logits and `counts`, in a hole
        before `following`."""
        logits = logits_V.float().masked_fill(self.vocabulary.forbidden, float("-inf"))
        if not may_end:
            logits[self.vocabulary.end_id] = float("-inf")
        denoiser = logits.softmax(dim=-1)
        posterior = denoiser.clone()
        for each, count in zip(self.strengths, counts, strict=False):
            if count:
                weight = each.strength * len(count)
                posterior *= weight / (count.total() + weight)
                shared = self.shared(count, denoiser, following)
                seen = torch.tensor(list(shared), device=posterior.device)
                gain = torch.tensor(list(shared.values()), device=posterior.device)
                posterior[seen] += gain / (count.total() + weight)
        # Other holes end elsewhere: what follows there is no reason for this one not to end here.
        end_id = self.vocabulary.end_id
        end = torch.maximum(denoiser[end_id], posterior[end_id])
        posterior *= torch.where(end < 1, (1 - end) / (1 - posterior[end_id]), 0.0)
        posterior[end_id] = end
        return posterior

    def shared(self, count: Counter[int], denoiser_V: Tensor, following: bytes) -> dict[int, float]:
        """The counts, each divided between its token and what of that the hole would hold, as the
        denoiser thinks.

        A document does not tell where a hole in it ends: of what follows the hole it has seen that
        it comes next, and that is as true when the hole ends here.
        """
        shared: dict[int, float] = {}
        within = [self._within(token, following) for token in count]
        chances = denoiser_V[list(count)].tolist()
        others = denoiser_V[[0 if token is None else token for token in within]].tolist()
        for (token, number), inner, chance, other in zip(
            count.items(), within, chances, others, strict=True
        ):
            share = 1.0 if inner is None or not other else chance / (chance + other)
            shared[token] = shared.get(token, 0.0) + share * number
            if inner is not None:
                shared[inner] = shared.get(inner, 0.0) + (1 - share) * number
        return shared

    def _within(self, token: int, following: bytes) -> int | None:
        """What a hole holds of a token that runs over its right edge, into what follows: the end,
        where that is nothing. None where it does not."""
        text = self._token_bytes[token]
        if not following:
            return None
        if following.startswith(text):
            return self.vocabulary.end_id
        edge = next((i for i in range(1, len(text)) if following.startswith(text[i:])), None)
        return None if edge is None else self._first_token(text[:edge])

    def following(self, sequence: Sequence, hole: range) -> bytes:
        """What stands behind a hole, as far as a token may reach."""
        layout = sequence.layout
        index = layout.holes().index(hole)
        if index < len(layout.between):
            ids = layout.between[index][:FOLLOWING_TOKENS]
        else:
            ids = sequence.fill.suffix[: -FOLLOWING_TOKENS - 1 : -1]
        return b"".join(self._token_bytes[i] for i in ids)

    def _first_token(self, rest: bytes) -> int | None:
        """What the rest of a token begins with when it is read by itself, as behind a cursor; None
        where it is half a letter."""
        if rest not in self._first_of:
            try:
                self._first_of[rest] = self._tokenizer.encode(rest.decode("utf-8"))[0]
            except UnicodeDecodeError:
                self._first_of[rest] = None
        return self._first_of[rest]


def healed(tokens: Items[bytes], cut: int) -> list[bytes]:
    """The tokens, those of the word at the `cut` put together: a cursor inside a word leaves other
    tokens of it than the document has of the whole word."""
    first = last = min(cut, len(tokens))
    if not 0 < cut <= len(tokens):
        return list(tokens)
    first -= 1
    while first > 0 and _belong_together(tokens[first - 1], tokens[first]):
        first -= 1
    while last < len(tokens) and _belong_together(tokens[last - 1], tokens[last]):
        last += 1
    return [*tokens[:first], b"".join(tokens[first:last]), *tokens[last:]]


def _belong_together(left: bytes, right: bytes) -> bool:
    if left == b" ":
        return not right.isspace()
    return _is_of_word(left[-1:]) and _is_of_word(right[:1])


def _is_of_word(byte: bytes) -> bool:
    """Whether a byte belongs to a letter, a digit or an underscore."""
    return byte.isalnum() or byte == b"_" or byte >= b"\x80"
