"""Text -> engine -> text: the `Completer` that runs in this process.

Here, and nowhere else, an `InfillRequest` becomes token streams and a canvas, and filled slots
become text again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
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
from model.checkpoint import MODEL_TYPE, load_checkpoint, load_open_checkpoint, model_type
from model.denoiser import Denoiser
from model.engine import float8
from model.engine.assembly import engine_for
from model.engine.eight_bits import Float8Linear, Int8Linear
from model.engine.engine import Engine
from model.engine.joint_runner import ContextCache
from model.engine.open_assembly import canvas_slots, open_engine
from model.engine.sequence import Fill, FilledHoles, SamplingParams, Sequence
from model.families.configs import TransformerConfig
from model.families.layout import OpenLayout
from model.families.memory import require_memory
from model.families.tokenizer import OpenTokenizer
from model.families.transformer import Transformer
from model.infill import CanvasLayout, Layout, StreamLayout, fitted
from model.tokenizer import CodeTokenizer

FIRST_CANVAS_TOKENS = {"auto": 32, "manual": 64}
"""Slots a hole starts with at most, by priority: typing wants the cheaper step, and the rare
longer span goes on in a further canvas."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EIGHT_BITS = {"float8": Float8Linear, "int8": Int8Linear}
"""Dtypes of the layers' weights alone; everything else then has the device's usual one."""


class EngineCompleter:
    """A `model.api.Completer` around one engine."""

    def __init__(
        self,
        model: Denoiser | Transformer,
        tokenizer: CodeTokenizer | OpenTokenizer,
        *,
        is_float8: bool = False,
        context_cache: ContextCache = "none",
    ) -> None:
        """A denoiser of ours with its tokenizer, or the two of an open checkpoint. `is_float8` is
        for ours, `context_cache` for open checkpoints (`model.engine.joint_runner`)."""
        self._tokenizer = tokenizer
        self._layout: Layout
        self._canvas_slots: Callable[[Sequence], int] | None = None
        if isinstance(model, Denoiser):
            assert isinstance(tokenizer, CodeTokenizer)
            self._layout = StreamLayout(tokenizer)
            self._engine = engine_for(model, tokenizer, is_float8=is_float8, chooses=True)
        else:
            assert isinstance(tokenizer, OpenTokenizer)
            self._layout = layout = OpenLayout(model.config, tokenizer)
            self._engine = open_engine(model, layout, cache=context_cache)
            self._canvas_slots = canvas_slots(layout)

    @property
    def engine(self) -> Engine:
        """The engine inside, for whoever measures it."""
        return self._engine

    @classmethod
    def from_checkpoint(
        cls,
        path: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        context_cache: ContextCache = "none",
    ) -> EngineCompleter:
        """Load a checkpoint directory, or a hub id. Raises `CheckpointError`, also for an unusable
        device."""
        chosen = _device(device)
        if dtype == "float8" and not float8.is_supported(chosen):
            raise CheckpointError(
                "dtype 'float8' needs a CUDA card of compute capability 8.9 or above; use bfloat16"
            )
        directory = path if path.is_dir() else _from_hub(path)
        is_ours = model_type(directory) == MODEL_TYPE
        if is_ours and dtype == "int8":
            raise CheckpointError("dtype 'int8' is for open checkpoints; this one is small enough")
        try:
            if not is_ours:
                model, tokenizer = _load_open(directory, chosen, dtype)
                return cls(model, tokenizer, context_cache=context_cache)
            loaded_as = _dtype("bfloat16" if dtype == "float8" else dtype, chosen)
            model, tokenizer = load_checkpoint(directory, device=chosen, dtype=loaded_as)
            return cls(model, tokenizer, is_float8=dtype == "float8")
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
        params = _sampling_params(request, length)
        first = min(request.max_new_tokens, FIRST_CANVAS_TOKENS[request.priority])
        layout = CanvasLayout.for_holes(first, between, len(typed))
        return Fill(
            prefix=self._layout.prefix_stream(
                encode(request.prefix, special=request.special_tokens_in_prefix),
                request.language,
                starts_file=request.starts_file,
            ),
            suffix=self._layout.suffix_stream(
                encode(request.suffix), request.language, ends_file=request.ends_file
            ),
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


def _from_hub(path: Path) -> Path:
    # Takes a second to import, which local directories need not pay.
    from model.families.hub import local_directory

    return local_directory(path)


def _load_open(
    directory: Path, device: torch.device, dtype: str
) -> tuple[Transformer, OpenTokenizer]:
    """An open checkpoint, once it is known to fit. Raises `CheckpointError`."""
    loaded_as = _dtype("auto" if dtype in EIGHT_BITS else dtype, device)
    name = dtype if dtype in EIGHT_BITS else str(loaded_as).removeprefix("torch.")

    def check(config: TransformerConfig) -> None:
        room = _memory_of(device)
        if room is not None:
            require_memory(config, name, room, str(device))

    return load_open_checkpoint(
        directory, device=device, dtype=loaded_as, convert=EIGHT_BITS.get(dtype), check=check
    )


def _memory_of(device: torch.device) -> int | None:
    """Bytes that a model can have: what is free of a card, all that the machine has on a CPU; None
    where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
        known = ", ".join((*DTYPES, *EIGHT_BITS))
        raise CheckpointError(f"dtype {name!r} is not known; use auto or one of {known}")
    return DTYPES[name]
