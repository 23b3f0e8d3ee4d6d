"""Text -> prompt -> drafts and verdicts -> text, for a backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import cast

from model.api import (
    Candidate,
    ContextSize,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
)
from model.backbone.checkpoint import OpenedBackbone
from model.backbone.ending import Ending
from model.backbone.prompt import Prompt
from model.engine.draft.repeated_text import IndexedText, RepeatedText
from model.engine.draft.stream import BackboneFill, Stream
from model.engine.draft.verify import VerifyingDecoder
from model.engine.engine import Engine
from model.engine.fill import Fill, FilledHoles, SamplingParams, Sequence
from model.serving.completer import EngineCompleter, whole_lines

NUM_FAR_TEXTS = 64
"""Stretches of documents whose tokens are kept, two for each document that is being edited: of the
length that the language server sends, half a megabyte each at most."""
NUM_ANSWERS = 64
"""Documents whose last answer is kept as the next request's draft."""
ANCHOR_CHARS = 200
"""So much before the cursor tells where the last answer began."""
TYPED_CHARS = 400
"""At most so much has been typed since."""
MARGIN_TOKENS = 16
"""Room in the context for the layout's own tokens."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was written last in a document, and behind what."""

    anchor: str
    text: str

    def rest(self, prefix: str) -> str:
        """What of it is still to come behind `prefix`, if that goes on as it did."""
        at = prefix.rfind(self.anchor, max(len(prefix) - len(self.anchor) - TYPED_CHARS, 0))
        if at < 0:
            return ""
        typed = prefix[at + len(self.anchor) :]
        return self.text[len(typed) :] if self.text.startswith(typed) else ""


class BackboneCompleter(EngineCompleter):
    """A `Completer` of a backbone."""

    verifies = True

    def __init__(self, engine: Engine, backbone: OpenedBackbone) -> None:
        super().__init__(engine, path=backbone.path)
        self._decoder = cast("VerifyingDecoder", engine.decoder)
        self._tokenizer = backbone.tokenizer
        tokenizer = backbone.tokenizer
        # What is far from the cursor stays the same for many keystrokes.

        def indexed(text: str) -> IndexedText:
            return IndexedText(tokenizer.encode(text))

        self._far_text = lru_cache(NUM_FAR_TEXTS)(indexed)
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    @property
    def runtime(self) -> str:
        """What computes the steps, with its version."""
        return self._decoder.runner.forward.runtime

    @property
    def problems(self) -> list[str]:
        """Why fills are slower than they should be on this device."""
        return self._decoder.runner.forward.problems

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """See `model.api.Completer.complete`. Several holes are filled one after the other, each
        seeing those before it."""
        if request.between:
            return await self._complete_holes(request, on_frame)
        result = await super().complete(request, on_frame=on_frame)
        if request.document and result.candidates:
            key = (request.client, request.document)
            anchor = request.prefix[-ANCHOR_CHARS:]
            self._answers[key] = _Answer(anchor, result.candidates[0].text)
            self._answers.move_to_end(key)
            if len(self._answers) > NUM_ANSWERS:
                self._answers.popitem(last=False)
        return result

    async def _complete_holes(
        self, request: InfillRequest, on_frame: FrameListener | None
    ) -> InfillResult:
        """One candidate for all holes."""
        texts, results = list[str](), list[InfillResult]()
        for index in range(len(request.between) + 1):
            before = "".join(
                text + between for text, between in zip(texts, request.between, strict=False)
            )
            alone = replace(
                request,
                prefix=request.prefix + before,
                between=(),
                suffix="".join(request.between[index:]) + request.suffix,
                typed="" if index else request.typed,
                candidates=1,
            )
            results.append(await super().complete(alone, on_frame=on_frame))
            texts.append(results[-1].candidates[0].text)
        firsts = [result.candidates[0] for result in results]
        return InfillResult(
            candidates=(
                Candidate(
                    texts=tuple(texts),
                    confidence=prod(candidate.confidence for candidate in firsts),
                    finished=all(candidate.finished for candidate in firsts),
                    probabilities=tuple(p for c in firsts for p in c.probabilities),
                ),
            ),
            forwards=sum(result.forwards for result in results),
            tokens=sum(result.tokens for result in results),
            encoded_tokens=sum(result.encoded_tokens for result in results),
            ms=sum(result.ms for result in results),
            context=results[0].context,
            verified=True,
        )

    def _answered(self, fill: Fill) -> None:
        """Read at leisure what a first answer could not wait for; the next request finds as much of
        it as there was time for."""
        fill = cast("BackboneFill", fill)
        if any(cast("Stream", sequence).is_close for sequence in fill.sequences):
            self._engine.submit(
                BackboneFill(
                    prompt=fill.prompt,
                    only_reads=True,
                    can_wait=True,
                    client=fill.client,
                    replaces=fill.replaces,
                )
            )

    # ---- text -> fill ----------------------------------------------------------------------

    def _fill(self, request: InfillRequest, now: float) -> tuple[BackboneFill, ContextSize]:
        policy = request.policy or "verified"
        if policy not in ("verified", "autoregressive") or request.steps is not None:
            raise InvalidRequestError(
                "this backbone has no denoiser to fill canvases alone; leave out policy and steps"
            )
        prompt = self._prompt(request)
        encode, heal = self._tokenizer.encode, prompt.heal.decode("utf-8", "replace")
        guess = request.draft or self._rest_of_last_answer(request)
        ending = _ending(request)

        def is_over(tokens: Items[int]) -> bool:
            return ending.cut(self._text(tokens, prompt.heal)) is not None

        is_typed = request.priority == "auto"
        fill = BackboneFill(
            prompt=prompt.ids,
            close_prompt=prompt.without_far().ids if is_typed and prompt.far else (),
            heal=prompt.heal,
            avoid=tuple(text.encode("utf-8", "replace") for text in request.avoid if text),
            length=None if request.length_of is None else len(encode(heal + request.length_of)),
            stop=is_over if request.length_of is None else None,
            guess=tuple(encode(heal + guess)) if guess else (),
            document=self._document(request, prompt),
            params=_params(request, policy),
            max_new_tokens=request.max_new_tokens,
            urgent=request.priority == "manual",
            client=request.client,
            replaces=(request.client, request.document) if request.document else None,
            deadline=None if request.deadline_ms is None else now + request.deadline_ms / 1000,
            min_confidence=request.min_confidence,
        )
        return fill, ContextSize(tokens=len(prompt.ids), dropped=prompt.dropped)

    def _prompt(self, request: InfillRequest) -> Prompt:
        room = self._decoder.runner.max_context - request.max_new_tokens - MARGIN_TOKENS
        if request.special_tokens_in_prefix:  # a rendered conversation: it is what it is
            ids = self._tokenizer.encode(request.prefix + request.typed, special=True)
            kept = ids[-room:]
            return Prompt(ids=tuple(kept or [self._tokenizer.eos_id]), dropped=len(ids) - len(kept))
        suffix_tokens = min(request.suffix_tokens, room // 2)
        prompt = Prompt.of(
            self._tokenizer,
            request.prefix + request.typed,
            request.suffix,
            prefix_tokens=min(request.prefix_tokens, (room - suffix_tokens) * 4 // 5),
            suffix_tokens=suffix_tokens,
        )
        # An empty document has nothing to read; a text's end is where another one begins.
        return prompt if prompt.ids else replace(prompt, ids=(self._tokenizer.eos_id,))

    def _document(self, request: InfillRequest, prompt: Prompt) -> RepeatedText | None:
        """Where the drafts look for repetitions."""
        if request.special_tokens_in_prefix:
            return RepeatedText([IndexedText(prompt.ids)], [])
        near = IndexedText((*prompt.far, *prompt.near))
        return RepeatedText(
            [near, self._far_text(request.before)],
            [IndexedText(prompt.suffix), self._far_text(request.after)],
        )

    def _rest_of_last_answer(self, request: InfillRequest) -> str:
        answer = self._answers.get((request.client, request.document))
        return answer.rest(request.prefix + request.typed) if answer is not None else ""

    # ---- tokens -> text --------------------------------------------------------------------

    def _text(self, tokens: Items[int], heal: bytes) -> str:
        """The text of a hole's tokens, without what they had to begin with."""
        written = b"".join(map(self._tokenizer.token_bytes, tokens))
        # The last character may be decided in part only.
        return whole_lines(written[len(heal) :].decode("utf-8", "replace").rstrip("\ufffd"))

    def _candidates(
        self, request: InfillRequest, fill: Fill, outputs: Items[FilledHoles]
    ) -> list[Candidate]:
        heal, ending = cast("BackboneFill", fill).heal, _ending(request)
        return [self._candidate(request, heal, ending, output) for output in outputs]

    def _candidate(
        self, request: InfillRequest, heal: bytes, ending: Ending, output: FilledHoles
    ) -> Candidate:
        tokens, typed = output.holes[0], request.typed
        text = self._text(tokens, heal)
        ends = [len(self._text(tokens[:n], heal)) for n in range(1, len(tokens) + 1)]
        probabilities = output.probabilities
        cut = ending.cut(text) if request.length_of is None else None
        if cut is not None:  # what the rules cut away says nothing of what is left
            num_kept = sum(end < cut for end in ends) + 1
            text, probabilities = text[:cut], probabilities[:num_kept]
            ends = [min(end, cut) for end in ends[:num_kept]]
        return Candidate(
            texts=(typed + text,),
            confidence=prod(probabilities) if probabilities else 0.0,
            finished=output.finished,
            probabilities=probabilities,
            score=output.score,
            token_ends=tuple(len(typed) + end for end in ends),
        )

    def _num_written(self, fill: Fill, output: FilledHoles) -> int:
        return len(output.holes[0])

    def _frame(self, request: InfillRequest, context: ContextSize, sequence: Sequence) -> Frame:
        stream = cast("Stream", sequence)
        text = self._text(stream.tokens, stream.fill.heal)
        if request.length_of is None:
            text = text[: _ending(request).sure(text)]
        return Frame(
            step=stream.step,
            slots=tuple(self._tokenizer.decode([token]) for token in stream.drafted),
            accepted=stream.accepted,
            tokens=len(stream.tokens),
            text=request.typed + text,
            text_stays=len(stream.fill.sequences) == 1,
            context=context,
        )


def _ending(request: InfillRequest) -> Ending:
    return Ending(
        request.suffix,
        request.max_lines,
        request.min_indent,
        before=request.prefix + request.typed,
    )


def _params(request: InfillRequest, policy: str) -> tuple[SamplingParams, ...]:
    """One a candidate: a greedy one unless that is `drawn`, and drawn ones."""
    return tuple(
        SamplingParams(
            policy="autoregressive" if policy == "autoregressive" else "verified",
            temperature=request.temperature if index or request.drawn else 0.0,
            top_p=request.top_p,
            seed=request.seed + index,
        )
        for index in range(request.candidates)
    )
