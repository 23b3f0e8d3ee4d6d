"""The model runner on CUDA: a step of any batch is the replay of a recording.

A recording serves one shape: so many rows, slots and pages (`Shape`). Batches are padded to the
next shape that there is; its tensors stay where they are, and what changes is copied into them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.engine.graphs import GraphedStep
from model.engine.kernels.choice import kernels_for
from model.engine.kernels.reference import PagedStreams
from model.engine.model_runner import ModelRunner
from model.engine.paged_denoiser import CanvasBatch, PagedDenoiser
from model.engine.sequence import Sequence

logger = logging.getLogger(__name__)

MIN_SLOTS = 16
MIN_PAGES = 32
"""Of a stream: pages behind its end cost a step next to nothing, a further shape a recording."""


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
            _power_of_two(len(batch)),
            _power_of_two(max(MIN_SLOTS, *(len(s.canvas) for s in batch))),
            _power_of_two(max(MIN_PAGES, *(len(table.pages) for table in tables))),
        )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Recording:
    """The tensors of one shape, and the step that was recorded on them."""

    def __init__(self, shape: Shape, runner: GraphedRunner) -> None:
        rows, slots = shape.rows, shape.slots
        device = runner.device

        def zeros(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.batch = CanvasBatch(
            zeros(rows, slots, dtype=torch.int64),
            zeros(rows, dtype=torch.int64),
            zeros(rows),
            PagedStreams(zeros(2, rows, shape.pages), zeros(2, rows)),
        )
        self.logits = zeros(rows, slots, runner.model.config.vocab_size, dtype=runner.dtype)
        self._holds: object = None

        def step() -> None:
            hidden = runner.denoiser.hidden(self.batch, runner.pool.layers)
            self.logits.copy_(runner.model.logits(hidden))

        self.step = GraphedStep(step, device, runner.graph_memory)

    def load(self, batch: Items[Sequence]) -> None:
        """Copy a batch in: its canvases, and its contexts where they changed."""
        rows, slots = self.batch.ids_BC.shape
        ids = [[*s.canvas, *[0] * (slots - len(s.canvas))] for s in batch]
        _fill(self.batch.ids_BC, ids)
        context = [(s.context, len(s.canvas), s.prefix[-1]) for s in batch]
        if context == self._holds:
            return
        self._holds = None
        _fill(self.batch.before_B, [s.prefix[-1] for s in batch])
        _fill(self.batch.sizes_B, [len(s.canvas) for s in batch] + [0] * (rows - len(batch)))
        streams = self.batch.streams
        for role in (0, 1):
            tables = [s.context[role] for s in batch if s.context is not None]
            width = streams.pages_2BP.shape[2]
            pages = [[*t.pages, *[0] * (width - len(t.pages))] for t in tables]
            _fill(streams.pages_2BP[role], pages)
            lengths = [t.length for t in tables] + [0] * (rows - len(batch))
            _fill(streams.lengths_2B[role], lengths)
        self._holds = context


def _fill(tensor: Tensor, rows: list[int] | list[list[int]]) -> None:
    """Copy rows to the front of a device tensor, without waiting for the device."""
    source = torch.tensor(rows, dtype=tensor.dtype)
    if tensor.device.type == "cuda":
        source = source.pin_memory()
    tensor[: len(rows)].copy_(source, non_blocking=True)


class GraphedRunner(ModelRunner):
    """A `ModelRunner` whose canvases run over the pages themselves, recorded on CUDA.

    Anywhere else it is the same code with a plain call in the place of the replay.
    """

    def __init__(
        self, model: Denoiser, *, cache_bytes: int | None = None, is_float8: bool = False
    ) -> None:
        """Raises `ValueError` as `ModelRunner` does, and where float8 cannot have the sizes."""
        super().__init__(model, cache_bytes=cache_bytes)
        kernels, problem = kernels_for(model.config, self.device, self.dtype)
        self.denoiser = PagedDenoiser(model, kernels, is_float8=is_float8)
        # Replays follow one another, so their intermediate results may lie in the same place.
        self.graph_memory = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._recordings: dict[Shape, _Recording] = {}
        self._kernel_problem = problem

    @property
    def problems(self) -> list[str]:
        """Why steps are slower than they should be."""
        recorded = (r.step.problem for r in self._recordings.values())
        return [p for p in {self._kernel_problem, *recorded} if p is not None]

    @torch.inference_mode()
    def denoise(self, batch: Items[Sequence]) -> Tensor:
        """See `ModelRunner.denoise`. The logits hold until the next call."""
        recording = self._recording(Shape.of(batch))
        recording.load(batch)
        recording.step()
        return recording.logits[: len(batch), : max(len(s.canvas) for s in batch)]

    def _recording(self, shape: Shape) -> _Recording:
        found = self._recordings.get(shape)
        if found is None:
            found = self._recordings[shape] = _Recording(shape, self)
        return found
