"""Draft and verify: the backbone reads what was drafted, and commits what it agrees with.

One forward reads the tokens that are decided but unread and, behind them, the drafts. At each of
these the backbone says what it would have written; as far as that is what was drafted, it is
decided at once, and the first token that differs is decided, too: what comes out is what the
backbone alone would write, in fewer forwards (Leviathan et al., arXiv 2211.17192; a tree of drafts
as in SpecInfer, arXiv 2305.09781).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from math import log, prod
from typing import Protocol, cast

from model.api import InvalidRequestError
from model.engine.draft.choice import BackboneVocabulary, Place, chosen
from model.engine.draft.drafters import Drafter
from model.engine.draft.stream import BackboneFill, Stream
from model.engine.draft.tree import Draft, DraftTree, least_odds
from model.engine.fill import Fill, FilledHoles, Sequence, fills_of, tell
from model.engine.run.backbone_runner import BackboneRunner, NewRows

CHUNK = 128
"""Tokens of a prompt that are read at a time: a request can be cancelled between two."""
FEW_ROWS = 16
"""Streams with more unread tokens than this do not share a forward with others."""
MOST_DRAFTED = 16
"""Tokens that a forward carries beside the decided ones."""

PATIENCE_MS = 300.0
"""A person who types is answered from what is close to the cursor where reading all of the prompt
would take longer than this."""
MS_PER_TOKEN = 1.0
"""Of reading, where nobody has measured it."""

NOT_FINITE = "the backbone produced non-finite logits"


class TokenBytes(Protocol):
    """What tokens stand for, in bytes: a backbone's tokenizer."""

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for; nothing for a special one."""
        ...

    def allowed_after(self, rest: bytes) -> Items[int]:
        """Tokens that begin with these bytes, and those that these bytes begin with."""
        ...


@dataclass(frozen=True, slots=True)
class _Reading:
    """A stream's part of a forward: what is unread, and the drafts behind it."""

    stream: Stream
    unread: list[int]
    tree: DraftTree

    def rows(self) -> NewRows:
        count = len(self.unread)
        parents = [*range(-1, count - 1), *(count + parent for parent in self.tree.parents)]
        return NewRows(
            self.stream,
            [*self.unread, *self.tree.tokens],
            parents,
            num_logits=1 + len(self.tree.tokens),
        )


class VerifyingDecoder:
    """A `Decoder` of a backbone."""

    def __init__(
        self,
        runner: BackboneRunner,
        vocabulary: BackboneVocabulary,
        in_bytes: TokenBytes,
        drafters: Items[Drafter],
        end_threshold: float | None = None,
        canvas_end_threshold: float | None = None,
    ) -> None:
        """`drafters`: those that come first are believed more. From the thresholds on, which are
        probabilities, a middle ends where the denoiser says so (None: never): by the hidden states
        of the text, and by its canvas."""
        self.end_threshold, self.canvas_end_threshold = end_threshold, canvas_end_threshold
        self.runner, self.vocabulary = runner, vocabulary
        self._in_bytes = in_bytes
        self._drafters = drafters
        costs = runner.forward.costs
        self.least_odds = least_odds(costs, MOST_DRAFTED)
        self._ms_per_token = min((ms / rows for rows, ms in costs.items()), default=MS_PER_TOKEN)

    def check(self, fill: Fill) -> None:
        """See `Decoder.check`."""
        fill = cast("BackboneFill", fill)
        if not fill.params or not fill.prompt:
            raise InvalidRequestError("a fill needs a candidate, and a prompt of at least a token")
        vocab_size = self.runner.forward.config.vocab_size
        for ids in (fill.prompt, fill.guess):
            if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise InvalidRequestError(f"token ids must lie in 0..{vocab_size - 1}")
        room = self.runner.max_context - fill.max_new_tokens
        if len(fill.prompt) > room:
            raise InvalidRequestError(
                f"the prompt has {len(fill.prompt)} tokens; with {fill.max_new_tokens} more this "
                f"engine reads at most {room}"
            )

    def start(self, fill: Fill) -> list[Stream]:
        """See `Decoder.start`."""
        fill = cast("BackboneFill", fill)
        return [
            Stream(
                fill=fill,
                params=params,
                ids=list(fill.prompt),
                num_prompt=len(fill.prompt),
                rest=fill.heal,
            )
            for params in fill.params
        ]

    def step(self, batch: Items[Sequence]) -> None:
        """See `Decoder.step`: of the streams that have read their prompts a verdict, and of one of
        the others the next chunk."""
        streams = cast("list[Stream]", batch)
        for stream in streams:
            self._choose_prompt(stream)
            self.runner.open(stream)
        if ready := [s for s in streams if s.unread <= FEW_ROWS and not s.fill.only_reads]:
            self._verify(ready)
        reading = [s for s in streams if s not in ready and s.table is not None]
        for stream in reading[1:]:
            self.runner.close(stream)  # candidates of one prompt find it once the first has read it
        if reading:
            self._read(reading[0])

    def outputs(self, fill: Fill) -> list[FilledHoles]:
        """See `Decoder.outputs`: by mean log-probability, once all are done."""
        streams = cast("list[Stream]", fill.sequences)
        outputs = [s.output or s.as_it_stands(finished=False) for s in streams]
        if len(outputs) < 2 or not fill.is_done:
            return outputs
        scored = [replace(o, score=_mean_log_probability(o)) for o in outputs]
        return sorted(scored, key=lambda output: -(output.score or 0.0))

    def leave(self, sequence: Sequence) -> None:
        """See `Decoder.leave`."""
        self.runner.close(cast("Stream", sequence))

    def check_integrity(self) -> None:
        """See `Decoder.check_integrity`."""
        self.runner.check_integrity()

    def drop_cache(self) -> None:
        """See `Decoder.drop_cache`."""
        self.runner.drop_cache()

    # ---- a step ----------------------------------------------------------------------------

    def _choose_prompt(self, stream: Stream) -> None:
        """Before its first step: read what is close alone where that is to be had much sooner."""
        fill = stream.fill
        if not fill.close_prompt or stream.step or stream.table is not None or stream.is_close:
            return
        missing = [
            len(ids) - self.runner.cache.cached_length(ids)
            for ids in (fill.prompt, fill.close_prompt)
        ]
        if missing[0] > missing[1] and missing[0] * self._ms_per_token > PATIENCE_MS:
            stream.ids, stream.num_prompt = list(fill.close_prompt), len(fill.close_prompt)

    def _read(self, stream: Stream) -> None:
        """Read more of a prompt; with its last tokens something is decided, too."""
        count = min(stream.unread, CHUNK // 2 if stream.fill.can_wait else CHUNK)
        if stream.unread <= CHUNK and not stream.fill.only_reads:
            self._verify([stream])
            return
        start = len(stream.ids) - stream.unread
        tokens = stream.ids[start : start + count]
        self._count(stream, count)
        self.runner.run([NewRows(stream, tokens, list(range(-1, count - 1)), num_logits=0)])
        self.runner.keep(0, range(count))
        if not stream.unread:
            stream.output = stream.as_it_stands(finished=True)
            self.runner.close(stream)

    def _count(self, stream: Stream, num_rows: int) -> None:
        """Count the tokens of the context that are read now and that no cache held."""
        start = len(stream.ids) - stream.unread
        end = min(start + num_rows, stream.num_prompt)
        stream.fill.encoded_tokens += max(end - max(start, stream.num_cached), 0)

    def _verify(self, streams: list[Stream]) -> None:
        """One forward over unread tokens and drafts, and what the backbone makes of them."""
        readings = [
            _Reading(stream, stream.ids[len(stream.ids) - stream.unread :], tree)
            for stream, tree in zip(streams, self._trees(streams), strict=True)
            if not self._has_ended(stream)
        ]
        streams = [reading.stream for reading in readings]
        if not readings:
            return
        places = [list(self._places(reading)) for reading in readings]
        for stream in streams:
            self._count(stream, stream.unread)
        verdicts = self.runner.run([reading.rows() for reading in readings])
        for fill in fills_of(streams):
            fill.forwards += 1
        for index, (reading, its_places) in enumerate(zip(readings, places, strict=True)):
            choices = chosen(verdicts[index].logits, its_places, self.vocabulary)
            choices = self._with_ends(choices, its_places, verdicts[index].ends)
            kept = self._take(reading, choices, its_places)
            if reading.stream.error is None:
                num_unread = len(reading.unread)
                self.runner.keep(index, [*range(num_unread), *(num_unread + n for n in kept)])
                self._take_stock(reading.stream)

    def _trees(self, streams: list[Stream]) -> list[DraftTree]:
        """What is drafted of each stream."""
        drafts: list[list[Draft]] = [[] for _ in streams]
        drafted = [s for s in streams if s.params.policy == "verified"]
        for drafter in self._drafters:
            for stream, more in zip(drafted, drafter.draft(drafted, MOST_DRAFTED), strict=True):
                left = max(self._left(stream) - 1, 0)
                drafts[streams.index(stream)] += [draft[:left] for draft in more]
        # Together they share what a forward can carry.
        odds = self.least_odds[:: len(streams)]
        return [DraftTree.of(each, odds) for each in drafts]

    def _places(self, reading: _Reading) -> Iterator[Place]:
        """What may be chosen behind the last unread token, and behind each drafted one."""
        stream, fill = reading.stream, reading.stream.fill
        number = len(stream.ids) - stream.num_prompt
        rests, depths = [stream.rest], [0]
        for token, parent in zip(reading.tree.tokens, reading.tree.parents, strict=True):
            rests.append(self._rest_after(rests[parent + 1], token))
            depths.append(depths[parent + 1] + 1)
        for rest, depth in zip(rests, depths, strict=True):
            is_given = fill.length is not None
            is_begun = not rest and number + depth > 0
            yield Place(
                params=stream.params,
                number=number + depth,
                allowed=self._in_bytes.allowed_after(rest) if rest else None,
                refused=() if is_begun else self._refused(rest, fill.avoid),
                may_end=not rest and not is_given,
            )

    def _rest_after(self, rest: bytes, token: int) -> bytes:
        """What is left to begin with behind a token; all of it where a draft goes elsewhere."""
        piece = self._in_bytes.token_bytes(token)
        return rest[len(piece) :] if rest.startswith(piece) else b""

    def _refused(self, rest: bytes, avoided: Items[bytes]) -> list[int]:
        """Tokens that would both end the healing and begin an avoided text."""
        refused: list[int] = []
        for text in avoided:
            whole = rest + text
            for token in self._in_bytes.allowed_after(whole):
                piece = self._in_bytes.token_bytes(token)
                if len(piece) > len(rest) and whole.startswith(piece):
                    refused.append(token)
        return refused

    def _with_ends(
        self,
        choices: list[tuple[int, float] | None],
        places: Items[Place],
        ends: Items[float] | None,
    ) -> list[tuple[int, float] | None]:
        """The choices, an end where it is known to be one whatever the backbone would write on."""
        if ends is None or self.end_threshold is None:
            return choices
        end_id, threshold = self.vocabulary.end_id, self.end_threshold
        return [
            (end_id, end) if choice and place.may_end and end > threshold else choice
            for choice, place, end in zip(choices, places, ends, strict=True)
        ]

    def _has_ended(self, stream: Stream) -> bool:
        """Conclude a stream whose last token already belongs behind the middle."""
        threshold = self.canvas_end_threshold
        if threshold is None or not stream.can_end or stream.overrun <= threshold:
            return False
        stream.ids.pop()
        stream.probabilities[-1] = stream.overrun
        stream.output = stream.as_it_stands(finished=True)
        self._take_stock(stream)
        return True

    def _take(
        self, reading: _Reading, choices: Items[tuple[int, float] | None], places: Items[Place]
    ) -> list[int]:
        """Decide what the backbone chose along the drafts; which drafted rows it came by."""
        stream, tree = reading.stream, reading.tree
        stream.step += 1
        stream.drafted, stream.accepted = tree.longest(), 0
        node, kept = -1, list[int]()
        while True:
            choice = choices[node + 1]
            if choice is None:
                stream.error = FloatingPointError(NOT_FINITE)
                return kept
            token, probability = choice
            stream.probabilities.append(probability)
            if token == self.vocabulary.end_id:
                stream.output = stream.as_it_stands(finished=True)
                return kept
            stream.ids.append(token)
            stream.can_end, stream.overrun = places[node + 1].may_end, 0.0
            stream.rest = self._rest_after(stream.rest, token)
            if self._is_over(stream):
                return kept
            child = tree.child(node, token)
            if child is None:
                return kept
            kept.append(child)
            stream.accepted += 1
            node = child

    def _is_over(self, stream: Stream) -> bool:
        """Conclude a stream behind which nothing is wanted any more."""
        fill = stream.fill
        is_whole = not self._left(stream)
        is_enough = fill.stop is not None and not stream.rest and fill.stop(stream.tokens)
        is_unsure = bool(fill.min_confidence) and prod(stream.probabilities) < fill.min_confidence
        if is_whole or is_enough or is_unsure:
            finished = is_enough or (is_whole and fill.length is not None)
            stream.output = stream.as_it_stands(finished=finished)
        return stream.is_done

    def _left(self, stream: Stream) -> int:
        """Tokens that a stream may still take."""
        fill = stream.fill
        most = fill.max_new_tokens if fill.length is None else fill.length
        return most - (len(stream.ids) - stream.num_prompt)

    def _take_stock(self, stream: Stream) -> None:
        """A stream has had a step: tell, and let it go where it is done."""
        if stream is stream.fill.sequences[0]:
            tell(stream)
        if stream.is_done:
            self.runner.close(stream)


def _mean_log_probability(output: FilledHoles) -> float:
    probabilities = output.probabilities or (1e-30,)
    return sum(log(max(p, 1e-30)) for p in probabilities) / len(probabilities)
