"""The backbone's runner on CUDA: a forward of any batch is the replay of a recording.

A recording serves one shape: so many streams, new rows and pages (`Shape`). Batches are padded to
the next shape that there is; its tensors stay where they are, and what changes is copied into them
at one go. Streams are read where they lie, in their pages. What is kept of a forward is decided on
the host alone: its keys and values are put into the pages before the next forward, those of all
streams together.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from model.api import CompletionError
from model.engine.cache.page_pool import power_of_two
from model.engine.cache.page_tree import PAGE_SIZE, PageTable, Reservation
from model.engine.draft.stream import Stream
from model.engine.kernels.reference import PagedStreams
from model.engine.run.backbone_runner import BackboneRunner, NewRows, ancestors, table_of
from model.engine.run.cuda_forward import CudaForward, PagedRows
from model.engine.run.forward import DenoiserForward, Rows
from model.engine.run.graphs import Recorder, Work, recorder_for
from model.engine.run.memory import is_out_of_memory

logger = logging.getLogger(__name__)

MIN_PAGES = 64
"""Of a stream: pages behind its end cost a forward next to nothing, a further shape a recording."""
MAX_RECORDINGS = 32
MEASURED_ROWS = (1, 2, 4, 8, 16, 32)
PROMPT_ROWS = 128
"""Of a prompt's chunk; recorded at the start, as the measured ones are."""
MEASURED_RUNS = 20


@dataclass(frozen=True, slots=True)
class Shape:
    """What a recording is made for; each a power of two."""

    batch: int
    rows: int
    """New ones of a stream."""
    pages: int
    """Of a stream's page table."""

    @classmethod
    def of(cls, tables: Items[PageTable], num_rows: int) -> Shape:
        """The smallest that holds some streams with so many new rows each."""
        most_pages = max(len(table.pages) for table in tables)
        return cls(
            power_of_two(len(tables)),
            power_of_two(num_rows),
            power_of_two(max(MIN_PAGES, most_pages)),
        )


@dataclass(frozen=True, slots=True)
class _NewRows:
    """What of `NewRows` the device needs."""

    tokens: Items[int]
    parents: Items[int]
    table: PageTable


class _Recording:
    """The tensors of one shape, and a forward recorded on them."""

    def __init__(
        self, shape: Shape, forward: CudaForward, pages: Tensor, recorder: Recorder
    ) -> None:
        self.shape = shape
        device, (batch, rows, num_pages) = forward.device, (shape.batch, shape.rows, shape.pages)
        sizes = (batch * rows, batch * rows, batch * num_pages, batch)
        self._numbers = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        ids, positions, tables, lengths = self._numbers.split(sizes)
        self.positions_BN = positions.view(batch, rows)
        visible = torch.eye(rows, dtype=torch.bool, device=device).repeat(batch, 1, 1)
        self._visible = visible
        inputs = PagedRows(
            ids.view(batch, rows),
            self.positions_BN,
            visible,
            PagedStreams(tables.view(batch, num_pages), lengths),
        )
        config, layers = forward.config, forward.num_kv_layers
        size = (layers, 2, batch, config.num_kv_heads, rows, config.head_dim)
        kv = torch.zeros(size, dtype=forward.kv_dtype, device=device)
        width = config.hidden_size
        hidden = torch.zeros((batch, rows, width), dtype=forward.kv_dtype, device=device)
        num_taps = len(forward.tapped_layers)
        taps = hidden.new_zeros((batch, rows, num_taps * width)) if num_taps else None
        self.results = Rows(hidden, kv, taps)

        def work() -> None:
            kv[config.num_layers :].zero_()
            found = forward.over_pages(inputs, pages, kv)
            hidden.copy_(found.hidden)
            if taps is not None and found.taps is not None:
                taps.copy_(found.taps)

        self.run: Work = recorder.recorded(work)

    def load(self, batch: Items[_NewRows]) -> None:
        """Copy a batch in, and harmless rows behind it."""
        shape = self.shape
        ids = torch.zeros((shape.batch, shape.rows), dtype=torch.int32)
        positions, lengths = torch.zeros_like(ids), torch.zeros(shape.batch, dtype=torch.int32)
        pages = torch.zeros((shape.batch, shape.pages), dtype=torch.int32)
        visible = torch.eye(shape.rows, dtype=torch.bool).repeat(shape.batch, 1, 1)
        for row, new in enumerate(batch):
            num, length = len(new.tokens), new.table.length
            seen = ancestors(new.parents)
            ids[row, :num] = torch.tensor(new.tokens)
            positions[row, :num] = length + seen.sum(dim=1) - 1
            pages[row, : len(new.table.pages)] = torch.tensor(new.table.pages)
            lengths[row] = length
            visible[row, :num, :num] = seen
        numbers = torch.cat([each.flatten() for each in (ids, positions, pages, lengths)])
        _send(numbers, self._numbers)
        _send(visible, self._visible)


@dataclass(frozen=True, slots=True)
class _Unwritten:
    """A row of the last forward whose keys and values belong into a page."""

    stream: int
    row: int
    page: int
    place: int
    """In the page."""


class CudaRunner(BackboneRunner):
    """A `BackboneRunner` over pages. Anywhere else than on CUDA it is the same code with a plain
    call in the place of the replay."""

    forward: CudaForward

    def __init__(
        self,
        forward: CudaForward,
        *,
        denoiser: DenoiserForward | None = None,
        cache_bytes: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """As `BackboneRunner`. `recorder`: None for what the device has."""
        super().__init__(forward, denoiser=denoiser, cache_bytes=cache_bytes)
        self.forward = forward
        self._recorder = recorder_for(self.device) if recorder is None else recorder
        self._recorder.problems = forward.problems  # who asks for one wants the other
        self._recordings: OrderedDict[Shape, _Recording] = OrderedDict()
        self._unwritten: list[_Unwritten] = []
        if self.device.type == "cuda":
            self._measure()

    def drop_cache(self) -> None:
        """See `BackboneRunner.drop_cache`."""
        super().drop_cache()
        self._unwritten.clear()

    @torch.inference_mode()
    def step(self, num_rows: int, num_cached: int) -> Callable[[], Tensor]:
        """A forward of a stream of any content, and its logits, to be measured: rows that see what
        is cached and those before them. Only while nothing else runs."""
        self._write()
        pages = tuple(n % self.cache.num_pages for n in range(-(-num_cached // PAGE_SIZE)))
        new = _NewRows([0] * num_rows, range(-1, num_rows - 1), PageTable(pages, num_cached))
        recording = self._recording(Shape.of([new.table], num_rows))
        recording.load([new])

        @torch.inference_mode()
        def run() -> Tensor:
            recording.run()
            return self.forward.logits(recording.results.hidden[0, :num_rows])

        return run

    @torch.inference_mode()
    def canvases(self, streams: Items[Stream], size: int) -> Tensor | None:
        """See `BackboneRunner.canvases`."""
        self._write()  # pages are copied
        return super().canvases(streams, size)

    # ---- rows ------------------------------------------------------------------------------

    def _rows_of(self, batch: Items[NewRows]) -> Rows:
        self._write()
        rows = [_NewRows(new.tokens, new.parents, table_of(new.stream)) for new in batch]
        shape = Shape.of([new.table for new in rows], max(len(new.tokens) for new in rows))
        recording = self._recording(shape)
        recording.load(rows)
        recording.run()
        self._positions = recording.positions_BN.long()
        return recording.results

    def _recording(self, shape: Shape) -> _Recording:
        """The one for a shape, made at its first use; the least recently used ones go."""
        found = self._recordings.pop(shape, None)
        while len(self._recordings) >= MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        if found is None:
            try:
                found = _Recording(shape, self.forward, self._pool.pages, self._recorder)
            except Exception as error:
                if is_out_of_memory(error):
                    self._recordings.clear()
                raise
        self._recordings[shape] = found
        return found

    # ---- pages -----------------------------------------------------------------------------

    def _pinned(self, ids: list[int], length: int) -> PageTable:
        self._write()  # a page may be copied
        return super()._pinned(ids, length)

    def _forget(self, pages: Items[int]) -> None:
        super()._forget(pages)
        # What another stream of the batch kept there is lost already.
        self._unwritten = [u for u in self._unwritten if u.page not in pages]

    def _store(self, index: int, rows: Items[int], reservation: Reservation) -> None:
        old, new = reservation.cached, reservation.table
        num_own = len(new.pages) - len(reservation.new_pages)
        if len(old.pages) > num_own:  # its last tokens lie in a page of another stream
            self._write()
            self._pool.write(new.pages[num_own : num_own + 1], self._pool.read(old.pages[num_own:]))
        for number, row in enumerate(rows, start=old.length):
            page, place = new.pages[number // PAGE_SIZE], number % PAGE_SIZE
            self._unwritten.append(_Unwritten(index, row, page, place))

    @torch.inference_mode()
    def _write(self) -> None:
        """Put what is kept of the last forward into its pages."""
        if not self._unwritten:
            return
        assert self._ran is not None
        places = [[u.stream, u.row, u.page, u.place] for u in self._unwritten]
        index = torch.empty((4, len(places)), dtype=torch.long, device=self.device)
        _send(torch.tensor(places).T.contiguous(), index)
        streams, rows, pages, slots = index
        # Indices that are apart come first: (rows, layers, 2, G, D).
        kept = self._ran.kv[:, :, streams, :, rows]
        self._pool.pages[:, :, pages, :, slots] = kept
        self._unwritten.clear()

    # ---- what rows cost --------------------------------------------------------------------

    def _measure(self) -> None:
        """Time forwards of a lone stream, which are recorded on the way."""
        cached = min(1024, self.max_context // 2)
        try:
            for num_rows in MEASURED_ROWS:
                self.forward.costs[num_rows] = _median_ms(self.step(num_rows, cached))
            self.step(PROMPT_ROWS, cached)
        except (RuntimeError, CompletionError) as error:
            logger.exception("forwards could not be measured")
            self.forward.problems.append(f"forwards could not be measured: {error}")


def _send(source: Tensor, target: Tensor) -> None:
    """Copy to the device without waiting for it."""
    if target.is_cuda:
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)


def _median_ms(work: Callable[[], object]) -> float:
    """Milliseconds on the device."""
    times: list[float] = []
    for _ in range(MEASURED_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]
