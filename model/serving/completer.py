"""Text -> engine -> text: the `Completer` that runs in this process.

Here, and nowhere else, an `InfillRequest` becomes token streams and a canvas, and filled slots
become text again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Items
from pathlib import Path

import torch

from model.api import (
    Candidate,
    CheckpointError,
    ContextSize,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
)
from model.checkpoint import load_checkpoint
from model.denoiser import Denoiser
from model.engine import float8
from model.engine.assembly import engine_for
from model.engine.engine import Engine
from model.engine.sequence import Fill, FilledHoles, SamplingParams, Sequence
from model.infill import CanvasLayout, fitted, prefix_stream, suffix_stream
from model.tokenizer import CodeTokenizer

FIRST_CANVAS_TOKENS = {"auto": 32, "manual": 64}
"""Slots a hole starts with at most, by priority: typing wants the cheaper step, and the rare
longer span goes on in a further canvas."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class EngineCompleter:
    """A `model.api.Completer` around one engine."""

    def __init__(
        self, model: Denoiser, tokenizer: CodeTokenizer, *, is_float8: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine_for(model, tokenizer, is_float8=is_float8, chooses=True)

    @property
    def engine(self) -> Engine:
        """The engine inside, for whoever measures it."""
        return self._engine

    @classmethod
    def from_checkpoint(
        cls, path: Path, *, device: str = "auto", dtype: str = "auto"
    ) -> EngineCompleter:
        """Load a checkpoint directory. Raises `CheckpointError`, also for an unusable device."""
        chosen, is_float8 = _device(device), dtype == "float8"
        if is_float8 and not float8.is_supported(chosen):
            raise CheckpointError(
                "dtype 'float8' needs a CUDA card of compute capability 8.9 or above; use bfloat16"
            )
        loaded_as = _dtype("bfloat16" if is_float8 else dtype, chosen)
        model, tokenizer = load_checkpoint(path, device=chosen, dtype=loaded_as)
        try:
            return cls(model, tokenizer, is_float8=is_float8)
        except ValueError as error:  # sizes that float8 cannot have
            raise CheckpointError(f"{path} cannot be run: {error}") from error

    @property
    def runtime(self) -> str:
        """What computes the steps, with its version."""
        return getattr(self._engine.runner, "runtime", "torch")

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
        first = min(request.max_new_tokens, FIRST_CANVAS_TOKENS[request.priority])
        return Fill(
            prefix=prefix_stream(
                self._tokenizer,
                encode(request.prefix, special=request.special_tokens_in_prefix),
                request.language,
                starts_file=request.starts_file,
            ),
            suffix=suffix_stream(
                self._tokenizer,
                encode(request.suffix),
                request.language,
                ends_file=request.ends_file,
            ),
            layout=CanvasLayout.for_holes(first, between, len(typed)),
            typed=typed,
            params=_sampling_params(request, length),
            max_new_tokens=request.max_new_tokens,
            urgent=request.priority == "manual",
            client=request.client,
            replaces=(request.client, request.document) if request.document else None,
            deadline=None if request.deadline_ms is None else now + request.deadline_ms / 1000,
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"device {name!r} is not known; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise CheckpointError(f"device {name!r} is not supported; use auto, cpu or cuda")
    num_cuda = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_cuda:
        raise CheckpointError(
            f"device {name!r}: this torch sees {num_cuda} CUDA devices; "
            + ("use a lower number" if num_cuda else "use 'cpu'")
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        # On a CPU fp32 is faster than bf16 (docs/experiments.md), and reused context stays exact.
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is not known; use auto, {' or '.join(DTYPES)}")
    return DTYPES[name]
