"""Text -> engine -> text: the `Completer` that runs in this process.

Here, and nowhere else, an `InfillRequest` becomes token streams and a canvas, and filled slots
become text again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from model.api import (
    Candidate,
    ContextSize,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
)
from model.engine.counted_text import CountedText
from model.engine.engine import Engine
from model.engine.n_grams import NGrams
from model.engine.sequence import Fill, FilledHoles, SamplingParams, Sequence
from model.families.tokenizer import OpenTokenizer
from model.infill import CanvasLayout, Layout, fitted
from model.tokenizer import CodeTokenizer

NUM_FAR_TEXTS = 64
"""Stretches of documents whose tokens are kept, two for each document that is being edited: of the
length that the language server sends, half a megabyte each at most."""
FIRST_CANVAS_TOKENS = {"auto": 32, "manual": 64}
"""Slots a hole starts with at most, by priority: typing wants the cheaper step, and the rare
longer span goes on in a further canvas."""


class EngineCompleter:
    """A `model.api.Completer` around one engine."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: CodeTokenizer | OpenTokenizer,
        layout: Layout,
        *,
        canvas_slots: Callable[[Sequence], int] | None = None,
        at_least: Literal["leftmost", "surest"] = "leftmost",
        directory: Path | None = None,
    ) -> None:
        """An engine, and how its model reads text (`model.serving.loading`).

        `canvas_slots` and `at_least` are what `Fill` and `SamplingParams` say of the model;
        `directory` holds its checkpoint.
        """
        self.directory = directory
        self._engine = engine
        self._tokenizer = tokenizer
        self._layout = layout
        self._canvas_slots, self._at_least = canvas_slots, at_least
        # What is far from the cursor stays the same for many keystrokes.
        self._far_text = lru_cache(NUM_FAR_TEXTS)(_counting(engine.n_grams, tokenizer))

    @property
    def engine(self) -> Engine:
        """The engine inside, for whoever measures it."""
        return self._engine

    @property
    def runtime(self) -> str:
        """What computes the steps, with its version."""
        return self._engine.runner.runtime

    @property
    def problems(self) -> list[str]:
        """Why fills are slower than they should be on this device."""
        return self._engine.runner.problems

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """See `model.api.Completer.complete`. `on_frame` is called on the engine's thread."""
        started = time.monotonic()
        fill = self._fill(request, started)
        context = self._context_size(fill)
        if request.must_fit and context.dropped:
            raise InvalidRequestError(
                f"the context has {context.tokens + context.dropped} tokens, {context.dropped} "
                "more than this model reads; shorten it, or serve a model of a longer context"
            )
        if on_frame is not None:
            listener = on_frame
            fill.on_step = lambda sequence: listener(self._frame(request, context, sequence))
        future = self._engine.submit(fill)
        outputs = await asyncio.wrap_future(future)  # cancelling the task cancels the fill
        return InfillResult(
            candidates=self._candidates(request, outputs, len(fill.typed)),
            forwards=fill.forwards,
            tokens=sum(len(hole) for output in outputs for hole in output.holes)
            - len(fill.typed) * len(outputs),
            encoded_tokens=fill.encoded_tokens,
            ms=1000 * (time.monotonic() - started),
            context=context,
        )

    async def close(self) -> None:
        """Stop the engine's thread; the model goes with the last reference to the completer."""
        await asyncio.to_thread(self._engine.close)

    def _fill(self, request: InfillRequest, now: float) -> Fill:
        """Tokens, layout and sampling parameters of a request. Raises `InvalidRequestError`."""
        encode = self._tokenizer.encode
        between = [encode(text) for text in request.between]
        typed = tuple(encode(request.typed))
        length = None if request.length_of is None else len(encode(request.length_of))
        params = tuple(
            replace(each, at_least=self._at_least) for each in _sampling_params(request, length)
        )
        first = min(request.max_new_tokens, FIRST_CANVAS_TOKENS[request.priority])
        layout = CanvasLayout.for_holes(first, between, len(typed))
        before = encode(request.prefix, special=request.special_tokens_in_prefix)
        after = encode(request.suffix)
        return Fill(
            prefix=self._layout.prefix_stream(
                before, request.language, starts_file=request.starts_file
            ),
            suffix=self._layout.suffix_stream(after, request.language, ends_file=request.ends_file),
            document=self._document(request, before, between, after),
            layout=layout,
            typed=typed,
            params=self._engine.length.candidates(
                params, layout, request.max_new_tokens, bool(request.suffix or between)
            ),
            num_wanted=len(params),
            max_new_tokens=request.max_new_tokens,
            canvas_slots=self._canvas_slots,
            urgent=request.priority == "manual",
            client=request.client,
            replaces=(request.client, request.document) if request.document else None,
            deadline=None if request.deadline_ms is None else now + request.deadline_ms / 1000,
            min_confidence=request.min_confidence,
        )

    def _document(
        self,
        request: InfillRequest,
        before: Items[int],
        between: Items[Items[int]],
        after: Items[int],
    ) -> tuple[CountedText, ...]:
        """What the engine's n-grams are counted in."""
        n_grams = self._engine.n_grams
        if n_grams is None or not request.n_grams:
            return ()
        return (
            n_grams.text(before, precedes_hole=True),
            self._far_text(request.before, precedes_hole=True),
            *(n_grams.text(ids, precedes_hole=True) for ids in between),
            n_grams.text(after, precedes_hole=False),
            self._far_text(request.after, precedes_hole=False),
        )

    def _candidates(
        self, request: InfillRequest, outputs: Items[FilledHoles], num_typed: int
    ) -> tuple[Candidate, ...]:
        """One candidate a distinct text, in the order of the outputs."""
        distinct: dict[tuple[str, ...], Candidate] = {}
        for output in outputs:
            texts = [self._text(output.holes[0], request.typed)]
            texts += [self._text(hole) for hole in output.holes[1:]]
            single = len(texts) == 1
            candidate = Candidate(
                texts=tuple(texts),
                confidence=output.confidence,
                finished=output.finished,
                probabilities=output.probabilities,
                score=output.score,
                token_ends=self._token_ends(output.holes[0], num_typed) if single else (),
            )
            distinct.setdefault(candidate.texts, candidate)
        return tuple(distinct.values())

    def _text(self, hole: Items[int], typed: str = "") -> str:
        """Text of a hole that begins with `typed`."""
        text = self._tokenizer.decode(hole)[len(typed) :]
        # The bytes are tokens as well, so a model can write a carriage return.
        return typed + text.replace("\r\n", "\n").replace("\r", "\n")

    def _token_ends(self, hole: Items[int], num_typed: int) -> tuple[int, ...]:
        """Where in the text of `hole` its tokens after the typed ones end, in characters."""
        texts = (self._tokenizer.decode(hole[:end]) for end in range(num_typed + 1, len(hole) + 1))
        # A token may end inside a character or between the two of a Windows line end.
        whole = (text.rstrip("\ufffd").replace("\r\n", "\n") for text in texts)
        return tuple(len(text) for text in whole)

    def _context_size(self, fill: Fill) -> ContextSize:
        limit = self._engine.runner.max_context
        given = len(fill.prefix) + len(fill.suffix)
        read = len(fitted(fill.prefix, limit)) + len(fitted(fill.suffix, limit))
        return ContextSize(tokens=read, dropped=given - read)

    def _frame(self, request: InfillRequest, context: ContextSize, sequence: Sequence) -> Frame:
        tok = self._tokenizer
        slots = tuple(
            None if i == tok.mask_id else "" if i == tok.end_id else tok.decode([i])
            for i in sequence.canvas
        )
        decided = sequence.as_it_stands(mask_id=tok.mask_id, end_id=tok.end_id).holes[0]
        # The last character may be decided in part only.
        text = self._text(decided, request.typed).rstrip("\ufffd")
        stays = len(sequence.fill.sequences) == 1 and request.remask is None
        return Frame(step=sequence.step, slots=slots, text=text, text_stays=stays, context=context)


def _counting(
    n_grams: NGrams | None, tokenizer: CodeTokenizer | OpenTokenizer
) -> Callable[..., CountedText]:
    """What makes a text one to count in. Knows nothing of the engine, whose model is to go with
    the last reference to it."""

    def counted(text: str, *, precedes_hole: bool) -> CountedText:
        assert n_grams is not None
        return n_grams.text(tokenizer.encode(text), precedes_hole=precedes_hole)

    return counted


def _sampling_params(request: InfillRequest, length: int | None) -> tuple[SamplingParams, ...]:
    """One a candidate: a greedy one unless that is `drawn`, drawn ones, and ones of given lengths,
    which are as the first."""
    count = request.candidates
    wanted = [(index, length) for index in range(count)] + [(0, n) for n in request.lengths]
    return tuple(
        SamplingParams(
            steps=request.steps,
            policy=request.policy,
            threshold=request.threshold,
            entropy_bound=request.entropy_bound,
            factor=request.factor,
            remask=request.remask,
            temperature=request.temperature if index or request.drawn else 0.0,
            top_p=request.top_p,
            seed=request.seed + index,
            length=tokens,
        )
        for index, tokens in wanted
    )
