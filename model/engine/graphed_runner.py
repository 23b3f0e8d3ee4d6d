"""The model runner on CUDA: a step of any batch is the replay of a recording.

A recording serves one shape: so many rows, slots and pages (`Shape`). Batches are padded to the
next shape that there is; its tensors stay where they are, and what changes is copied into them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.engine.device_decision import (
    POLICIES,
    Canvases,
    bound_of,
    can_decide,
)
from model.engine.graphs import GraphedStep
from model.engine.kernels.choice import kernels_for
from model.engine.kernels.reference import PagedStreams
from model.engine.model_runner import ModelRunner
from model.engine.page_pool import power_of_two
from model.engine.paged_denoiser import PagedCanvases, PagedDenoiser
from model.engine.runner import DecidedCanvas
from model.engine.sampler import Vocabulary
from model.engine.sequence import Sequence

_S = TypeVar("_S", "_LogitsStep", "_DecidingStep")

MIN_SLOTS = 16
MIN_PAGES = 32
"""Of a stream: pages behind its end cost a step next to nothing, a further shape a recording."""

MAX_RECORDINGS = 32
"""What each holds beside the common memory is mostly its logits, if it makes any."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a recording is made for; each a power of two."""

    rows: int
    slots: int
    pages: int
    """Of a stream's page table."""

    @classmethod
    def of(cls, batch: Items[Sequence]) -> Shape:
        """The smallest that holds the batch, whose contexts are open."""
        tables = [table for s in batch for table in s.context or ()]
        return cls(
            power_of_two(len(batch)),
            power_of_two(max(MIN_SLOTS, *(len(s.canvas) for s in batch))),
            power_of_two(max(MIN_PAGES, *(len(table.pages) for table in tables))),
        )


class _Recording:
    """The tensors of one shape, and a step recorded on them; what becomes of the hidden states is
    the subclasses'."""

    step: GraphedStep

    def __init__(self, shape: Shape, runner: GraphedRunner) -> None:
        self.device = runner.device
        rows, slots = shape.rows, shape.slots
        self.batch = PagedCanvases(
            self.zeros(rows, slots, dtype=torch.int64),
            self.zeros(rows, dtype=torch.int64),
            self.zeros(rows),
            PagedStreams(self.zeros(2, rows, shape.pages), self.zeros(2, rows)),
        )
        self._context: object = None

        def step() -> None:
            self.finish(runner.denoiser.hidden(self.batch, runner.pool.layers))

        self._record = lambda: GraphedStep(step, runner.device, runner.graph_memory)

    def recorded(self) -> GraphedStep:
        """The step. Call it once, with nothing loaded."""
        return self._record()

    def finish(self, hidden_BCE: Tensor) -> None:
        """Turn hidden states into results, in place."""
        raise NotImplementedError

    def zeros(self, *size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """A tensor of the step's."""
        return torch.zeros(size, dtype=dtype, device=self.device)

    def load(self, batch: Items[Sequence]) -> None:
        """Copy a batch in: its canvases, and its contexts where they changed."""
        _fill(self.batch.ids_BC, [s.canvas for s in batch])
        context = [(s.context, len(s.canvas), s.prefix[-1]) for s in batch]
        if context == self._context:
            return
        self._context = None  # until all of it is there
        _fill(self.batch.before_B, [s.prefix[-1] for s in batch])
        _fill(self.batch.sizes_B, [len(s.canvas) for s in batch])
        streams = self.batch.streams
        for role in (0, 1):
            tables = [s.context[role] for s in batch if s.context is not None]
            _fill(streams.pages_2BP[role], [list(table.pages) for table in tables])
            _fill(streams.lengths_2B[role], [table.length for table in tables])
        self._context = context


class _LogitsStep(_Recording):
    """A forward, whose logits go to the sampler."""

    def __init__(self, shape: Shape, runner: GraphedRunner) -> None:
        super().__init__(shape, runner)
        self._logits_of = runner.model.logits
        vocab_size = runner.model.config.vocab_size
        self.logits = self.zeros(shape.rows, shape.slots, vocab_size, dtype=runner.dtype)
        self.step = self.recorded()

    def finish(self, hidden_BCE: Tensor) -> None:
        self.logits.copy_(self._logits_of(hidden_BCE))


class _DecidingStep(_Recording):
    """A forward and the decision on it: steps may follow one another unseen."""

    def __init__(self, shape: Shape, runner: GraphedRunner) -> None:
        super().__init__(shape, runner)
        rows, slots = shape.rows, shape.slots
        self._rules, self._denoiser = runner.rules, runner.denoiser
        self.canvases = Canvases(
            self.batch.ids_BC,
            self.zeros(rows, slots, dtype=torch.float32),
            self.zeros(rows, slots).fill_(-1),
            self.zeros(rows, dtype=torch.int64),
            self.zeros(rows, dtype=torch.float32),
            self.zeros(rows, dtype=torch.bool),
            self.zeros(rows),
            self.zeros(rows, dtype=torch.bool),
        )
        self.step = self.recorded()

    def finish(self, hidden_BCE: Tensor) -> None:
        rules = self._rules
        beliefs = self._denoiser.kernels.head(
            hidden_BCE.flatten(0, 1),
            self._denoiser.embedding,
            self.canvases.open_slots(rules.mask_id).flatten(),
            self.canvases.endless_slots(rules.mask_id, rules.end_id).flatten(),
            rules.forbidden,
            rules.end_id,
        )
        self.canvases.commit(beliefs, rules.mask_id, rules.end_id)

    def load(self, batch: Items[Sequence]) -> None:
        super().load(batch)
        params, canvases = [s.params for s in batch], self.canvases
        _fill(canvases.confidences_BC, [s.confidences for s in batch])
        _fill(canvases.hole_BC, [list(s.layout.hole_of_slot) for s in batch], behind=-1)
        _fill(canvases.policy_B, [POLICIES.index(p.policy) for p in params])
        _fill(canvases.bound_B, [bound_of(p) for p in params])
        _fill(canvases.never_ends_B, [p.length is not None for p in params])
        canvases.steps_B.zero_()
        canvases.is_broken_B.zero_()

    def read(self, batch: Items[Sequence]) -> list[DecidedCanvas]:
        """The batch's canvases as they are now: the one wait for the device."""
        canvases = self.canvases
        ids, confidences, steps, is_broken = _read(
            canvases.ids_BC, canvases.confidences_BC, canvases.steps_B, canvases.is_broken_B
        )
        return [
            DecidedCanvas(
                ids[row][: len(s.canvas)],
                confidences[row][: len(s.canvas)],
                steps[row],
                is_broken[row],
            )
            for row, s in enumerate(batch)
        ]


def _fill(tensor: Tensor, rows: list[Any], behind: int = 0) -> None:
    """Set the front of a step's tensor to rows (numbers, or lists of them) and all the rest to
    `behind`, without waiting for the device."""
    source = torch.full(tensor.shape, behind, dtype=tensor.dtype)
    for index, row in enumerate(rows):
        if isinstance(row, list):
            source[index, : len(row)] = torch.tensor(row, dtype=tensor.dtype)
        else:
            source[index] = row
    if tensor.is_cuda:
        source = source.pin_memory()
    tensor.copy_(source, non_blocking=True)


def _read(*tensors: Tensor) -> list[list]:
    """Tensors as lists, with one wait for all of them."""
    if not tensors[0].is_cuda:
        return [tensor.tolist() for tensor in tensors]
    pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for host, tensor in zip(pinned, tensors, strict=True):
        host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [host.tolist() for host in pinned]


class GraphedRunner(ModelRunner):
    """A `ModelRunner` whose canvases run over the pages themselves, recorded on CUDA, and that
    makes most decisions there, too.

    Anywhere else it is the same code with a plain call in the place of the replay.
    """

    def __init__(
        self,
        model: Denoiser,
        rules: Vocabulary,
        *,
        cache_bytes: int | None = None,
        is_float8: bool = False,
    ) -> None:
        """Raises `ValueError` as `ModelRunner` does, and where float8 cannot have the sizes."""
        super().__init__(model, cache_bytes=cache_bytes)
        kernels, self._kernel_problem = kernels_for(model.config, self.device, self.dtype)
        self.denoiser = PagedDenoiser(model, kernels, is_float8=is_float8)
        self.rules = rules
        # Replays follow one another, so their intermediate results may lie in the same place.
        self.graph_memory = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._steps: OrderedDict[tuple[type, Shape], _Recording] = OrderedDict()

    @property
    def problems(self) -> list[str]:
        """Why steps are slower than they should be."""
        recorded = [step.step.problem for step in self._steps.values()]
        return [p for p in dict.fromkeys([self._kernel_problem, *recorded]) if p is not None]

    def decides(self, sequence: Sequence) -> bool:
        """See `ModelRunner.decides`."""
        # What the document repeats is looked up on the host.
        return can_decide(sequence.params) and not sequence.fill.document

    @torch.inference_mode()
    def denoise(self, batch: Items[Sequence]) -> Tensor:
        """See `ModelRunner.denoise`. The logits hold until the next call."""
        step = self._step_for(_LogitsStep, batch)
        step.load(batch)
        step.step()
        return step.logits[: len(batch), : max(len(s.canvas) for s in batch)]

    @torch.inference_mode()
    def decide(self, batch: Items[Sequence], num_steps: int) -> list[DecidedCanvas]:
        """See `ModelRunner.decide`."""
        step = self._step_for(_DecidingStep, batch)
        step.load(batch)
        for _ in range(num_steps):
            step.step()
        return step.read(batch)

    def _step_for(self, kind: type[_S], batch: Items[Sequence]) -> _S:
        """The recording for a batch, made at its first use; the least recently used ones go."""
        shape = Shape.of(batch)
        found = self._steps.pop((kind, shape), None)
        if not isinstance(found, kind):
            found = kind(shape, self)
        self._steps[kind, shape] = found
        while len(self._steps) > MAX_RECORDINGS:
            self._steps.popitem(last=False)
        return found
