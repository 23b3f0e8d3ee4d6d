"""Text -> canvases -> text, for open diffusion checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from pathlib import Path
from typing import cast

from model.api import Candidate, ContextSize, Frame, InfillRequest, InvalidRequestError
from model.engine.canvas.decoder import CanvasDecoder
from model.engine.canvas.layout import CanvasLayout, fitted
from model.engine.canvas.sequence import CanvasFill, CanvasParams, CanvasSequence
from model.engine.engine import Engine
from model.engine.fill import Fill, FilledHoles, Sequence
from model.families.layout import OpenLayout
from model.serving.completer import EngineCompleter, whole_lines

FIRST_CANVAS_TOKENS = {"auto": 32, "manual": 64}
"""Slots a hole starts with at most, by priority: typing wants the cheaper step, and the rare
longer span goes on in a further canvas."""


class CanvasCompleter(EngineCompleter):
    """A `Completer` of a model that fills canvases alone."""

    verifies = False

    def __init__(
        self,
        engine: Engine,
        layout: OpenLayout,
        canvas_slots: Callable[[CanvasSequence], int],
        *,
        path: Path | None = None,
    ) -> None:
        """`canvas_slots` is what `CanvasFill` says of the model."""
        super().__init__(engine, path=path)
        self._decoder = cast("CanvasDecoder", engine.decoder)
        self._tokenizer, self._layout = layout.tokenizer, layout
        self._canvas_slots = canvas_slots

    @property
    def runtime(self) -> str:
        """What computes the steps, with its version."""
        return self._decoder.runner.runtime

    @property
    def problems(self) -> list[str]:
        """Why fills are slower than they should be on this device."""
        return self._decoder.runner.problems

    def _fill(self, request: InfillRequest, now: float) -> tuple[CanvasFill, ContextSize]:
        if request.policy in ("verified", "autoregressive"):
            raise InvalidRequestError(
                f"the policy {request.policy!r} needs a backbone, which this checkpoint has not; "
                "leave it out"
            )
        encode = self._tokenizer.encode
        between = [encode(text) for text in request.between]
        typed = tuple(encode(request.typed))
        length = None if request.length_of is None else len(encode(request.length_of))
        params = _params(request, length)
        first = min(request.max_new_tokens, FIRST_CANVAS_TOKENS[request.priority])
        layout = CanvasLayout.for_holes(first, between, len(typed))
        before = encode(request.prefix, special=request.special_tokens_in_prefix)
        prefix = self._layout.prefix_stream(before)
        suffix = self._layout.suffix_stream(encode(request.suffix))
        fill = CanvasFill(
            prefix=prefix,
            suffix=suffix,
            layout=layout,
            typed=typed,
            params=self._decoder.length.candidates(
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
        limit = self._decoder.runner.max_context
        read = len(fitted(prefix, limit)) + len(fitted(suffix, limit))
        return fill, ContextSize(tokens=read, dropped=len(prefix) + len(suffix) - read)

    def _candidates(
        self, request: InfillRequest, fill: Fill, outputs: Items[FilledHoles]
    ) -> list[Candidate]:
        num_typed = len(cast("CanvasFill", fill).typed)
        candidates: list[Candidate] = []
        for output in outputs:
            texts = [self._text(output.holes[0], request.typed)]
            texts += [self._text(hole) for hole in output.holes[1:]]
            single = len(texts) == 1
            candidates.append(
                Candidate(
                    texts=tuple(texts),
                    confidence=output.confidence,
                    finished=output.finished,
                    probabilities=output.probabilities,
                    score=output.score,
                    token_ends=self._token_ends(output.holes[0], num_typed) if single else (),
                )
            )
        return candidates

    def _num_written(self, fill: Fill, output: FilledHoles) -> int:
        return sum(map(len, output.holes)) - len(cast("CanvasFill", fill).typed)

    def _text(self, hole: Items[int], typed: str = "") -> str:
        """Text of a hole that begins with `typed`."""
        return typed + whole_lines(self._tokenizer.decode(hole)[len(typed) :])

    def _token_ends(self, hole: Items[int], num_typed: int) -> tuple[int, ...]:
        """Where in the text of `hole` its tokens after the typed ones end, in characters."""
        texts = (self._tokenizer.decode(hole[:end]) for end in range(num_typed + 1, len(hole) + 1))
        # A token may end inside a character or between the two of a Windows line end.
        whole = (text.rstrip("\ufffd").replace("\r\n", "\n") for text in texts)
        return tuple(len(text) for text in whole)

    def _frame(self, request: InfillRequest, context: ContextSize, sequence: Sequence) -> Frame:
        tok, canvas = self._tokenizer, cast("CanvasSequence", sequence)
        slots = tuple(
            None if i == tok.mask_id else "" if i == tok.end_id else tok.decode([i])
            for i in canvas.canvas
        )
        decided = canvas.as_it_stands(mask_id=tok.mask_id, end_id=tok.end_id).holes[0]
        # The last character may be decided in part only.
        text = self._text(decided, request.typed).rstrip("\ufffd")
        stays = len(sequence.fill.sequences) == 1 and request.remask is None
        return Frame(
            step=sequence.step,
            slots=slots,
            tokens=len(canvas.committed) - len(canvas.fill.typed) + sum(map(bool, slots)),
            text=text,
            text_stays=stays,
            context=context,
        )


def _params(request: InfillRequest, length: int | None) -> tuple[CanvasParams, ...]:
    """One a candidate: a greedy one unless that is `drawn`, and drawn ones."""
    return tuple(
        CanvasParams(
            steps=request.steps,
            policy=request.policy or "threshold",
            threshold=request.threshold,
            entropy_bound=request.entropy_bound,
            factor=request.factor,
            remask=request.remask,
            temperature=request.temperature if index or request.drawn else 0.0,
            top_p=request.top_p,
            seed=request.seed + index,
            length=length,
        )
        for index in range(request.candidates)
    )
