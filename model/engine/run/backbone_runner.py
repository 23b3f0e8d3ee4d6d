"""Runs the backbone for the engine: streams out of the cache, one forward for rows of several.

Shape letters: B streams, N rows (new tokens) of each, P kept tokens, Y layers, G key/value heads,
D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from model.api import EngineOverloadedError
from model.engine.cache.page_pool import KeyValueShape, PagePool, StreamRows
from model.engine.cache.page_tree import PAGE_SIZE, PageTable, PageTree, Reservation
from model.engine.draft.stream import Stream
from model.engine.run.forward import DenoiserForward, Forward, Rows

CPU_CACHE_BYTES = 256 << 20
"""The cache's budget on a CPU: 10,000 tokens of a backbone of 0.5 billion parameters."""
CUDA_CACHE_SHARE = 4
"""On CUDA the cache takes one part in so many of the memory that is free at the start."""
_SPARE_PAGES = 4


@dataclass(frozen=True, slots=True)
class NewRows:
    """What one stream runs in a forward: tokens behind what the cache holds of it."""

    stream: Stream
    tokens: list[int]
    parents: list[int]
    """Of each token, which one of them it follows; -1: what the cache holds."""
    num_logits: int
    """Of how many, the last ones, logits are wanted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a forward says of one stream's wanted rows."""

    logits: Tensor
    """(num_logits, V) float32, each of the token behind its row."""
    ends: list[float] | None = None
    """Of each row, how likely the middle ends behind it; None where nobody knows."""


class BackboneRunner:
    """A backbone, what it has read, and what a denoiser keeps of that, if there is one."""

    def __init__(
        self,
        forward: Forward,
        *,
        denoiser: DenoiserForward | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """A `denoiser` needs a `forward` that taps its layers and has room for its keys and values.
        `cache_bytes` bounds the pages of the cache (None: by what the device has); the running
        batch's streams have a contiguous copy besides. Raises `ValueError` when it is too little
        for two pages."""
        self.forward, self.denoiser = forward, denoiser
        config = forward.config
        self.device = forward.device
        shape = KeyValueShape(
            forward.num_kv_layers, config.num_kv_heads, config.head_dim, forward.kv_dtype
        )
        if cache_bytes is None:
            cache_bytes = _default_budget(self.device)
        self._page_bytes = shape.page_bytes
        num_pages = cache_bytes // shape.page_bytes
        if num_pages <= _SPARE_PAGES:
            raise ValueError(
                f"cache_bytes is {cache_bytes}; a stream needs some pages of {shape.page_bytes} "
                "bytes"
            )
        self.max_context = min(config.max_positions, (num_pages - _SPARE_PAGES) * PAGE_SIZE)
        self.cache = PageTree(num_pages)
        self._pool = PagePool(shape, num_pages, self.device)
        # A lone stream's rows must lie in one piece, without those of others between.
        self._alone, self._together = StreamRows(self._pool), StreamRows(self._pool)
        self._open: list[Stream] = []
        self._batch: list[NewRows] = []
        self._ran: Rows | None = None
        self._positions: Tensor | None = None
        self._features: Tensor | None = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of the pages that hold something."""
        return self.cache.num_filled * self._page_bytes

    def check_integrity(self) -> None:
        """Raise `AssertionError` when the cache's books contradict themselves or what is open."""
        self.cache.check_integrity(s.table for s in self._open if s.table is not None)

    def drop_cache(self) -> None:
        """Forget every context, whatever state the books are in."""
        for stream in self._open:
            stream.table = None
        self._open.clear()
        self.cache = PageTree(self.cache.num_pages)
        self._alone.clear()
        self._together.clear()

    def open(self, stream: Stream) -> None:
        """Pin what the cache holds of a stream, but its last token, whose logits are wanted."""
        if stream.table is not None:
            return
        stream.num_cached = self.cache.cached_length(stream.ids)
        stream.table = self._pinned(stream.ids, min(stream.num_cached, len(stream.ids) - 1))
        self._open.append(stream)

    def _pinned(self, ids: list[int], length: int) -> PageTable:
        """A table of a stream's first tokens, all of which are cached; a few tokens fewer where
        there is no page to copy a part of another stream's into."""
        for count in (length, length // PAGE_SIZE * PAGE_SIZE):
            if not count:
                break
            reservation = self.cache.reserve(ids[:count])
            if reservation is not None and reservation.cached.length == count:
                self._forget(reservation.new_pages)
                if reservation.new_pages:  # the first tokens of another stream's page
                    copied = reservation.cached.pages[-1:]
                    self._pool.write(reservation.new_pages, self._pool.read(copied))
                return self.cache.commit(reservation)
            if reservation is not None:
                self.cache.cancel(reservation)
        return PageTable()

    def close(self, stream: Stream) -> None:
        """Unpin a stream; what was read stays cached for the next request. Idempotent."""
        if stream.table is not None:
            self._open.remove(stream)
            self.cache.release(stream.table)
            stream.table = stream.anchor = None

    @torch.inference_mode()
    def run(self, batch: Items[NewRows]) -> list[Verdict]:
        """Run new tokens of open streams; what is said of the last `num_logits` of each.

        Nothing is kept yet: see `keep`. After an error it may be called again, with a smaller
        batch, say (`is_out_of_memory`).
        """
        self._ran, self._batch = self._rows_of(batch), list(batch)
        self._keep_for_drafts(self._ran)
        wanted = [slice(len(new.tokens) - new.num_logits, len(new.tokens)) for new in batch]
        hidden = [self._ran.hidden[row, rows] for row, rows in enumerate(wanted)]
        counts = [len(each) for each in hidden]
        if not sum(counts):
            return [Verdict(each) for each in hidden]
        logits = self.forward.logits(torch.cat(hidden)).split(counts)
        if self.denoiser is None or self._ran.taps is None:
            return [Verdict(each) for each in logits]
        ends = self.denoiser.end_logits(self._ran.taps).sigmoid()
        return [
            Verdict(each, ends[row, rows].tolist())
            for row, (each, rows) in enumerate(zip(logits, wanted, strict=True))
        ]

    def _keep_for_drafts(self, ran: Rows) -> None:
        """Beside the backbone's keys and values put what the denoiser makes of them."""
        if self.denoiser is None or ran.taps is None:
            return
        assert self._positions is not None
        kv, self._features = self.denoiser.context(
            ran.taps.to(self.denoiser.dtype), self._positions
        )
        ran.kv[self.forward.config.num_layers :] = kv

    @torch.inference_mode()
    def canvases(self, streams: Items[Stream], size: int) -> Tensor | None:
        """Hidden states (B, size, E) of the denoiser's canvases behind open streams: the first slot
        holds the last token, which is unread, the others are masked. Each stream has an anchor."""
        if self.denoiser is None:
            return None
        tables = [table_of(stream) for stream in streams]
        held = self._alone if len(streams) == 1 else self._together
        held.load(tables, max(table.length for table in tables) + size)
        past = held.contents[self.forward.config.num_layers :, :, : len(streams)]
        lengths = torch.tensor([[table.length] for table in tables], device=self.device)
        ids = torch.zeros((len(streams), size), dtype=torch.long)
        ids[:, 0] = torch.tensor([stream.ids[-1] for stream in streams])
        known = torch.zeros(ids.shape, dtype=torch.bool)
        known[:, 0] = True
        dtype = self.denoiser.dtype
        anchors = [stream.anchor for stream in streams if stream.anchor is not None]
        return self.denoiser.canvas(
            ids.to(self.device),
            known.to(self.device),
            lengths + torch.arange(size, device=self.device),
            torch.stack(anchors).to(dtype),
            past.to(dtype),
            torch.arange(past.shape[4], device=self.device) < lengths,
        )

    def _rows_of(self, batch: Items[NewRows]) -> Rows:
        """One forward; the n-th token of the b-th stream has the place (b, n)."""
        tables = [table_of(new.stream) for new in batch]
        rows = self._alone if len(batch) == 1 else self._together
        room = max(t.length + len(new.tokens) for t, new in zip(tables, batch, strict=True))
        rows.load(tables, room)
        past = rows.contents if any(table.length for table in tables) else None
        num_kept = 0 if past is None else past.shape[4]
        count, size = max(rows.size, len(batch)), max(len(new.tokens) for new in batch)
        ids = torch.zeros((count, size), dtype=torch.long)
        positions = torch.zeros((count, size), dtype=torch.long)
        visible = torch.zeros((count, size, num_kept + size), dtype=torch.bool)
        visible[:, :, num_kept:] = torch.eye(size, dtype=torch.bool)  # padding sees itself
        for row, (new, table) in enumerate(zip(batch, tables, strict=True)):
            num = len(new.tokens)
            ids[row, :num] = torch.tensor(new.tokens)
            seen = ancestors(new.parents)
            positions[row, :num] = table.length + seen.sum(dim=1) - 1
            visible[row, :num, : table.length] = True
            visible[row, :num, num_kept : num_kept + num] = seen
        device = self.device
        self._positions = positions.to(device)
        return self.forward.rows(ids.to(device), positions.to(device), past, visible.to(device))

    @torch.inference_mode()
    def keep(self, index: int, rows: Items[int]) -> None:
        """Of the `index`-th stream of the last `run`, which has these tokens now, put rows into the
        cache, in this order. Where others' pages leave no room for them, they lose theirs."""
        assert self._ran is not None
        stream = self._batch[index].stream
        if stream.table is None:  # it has lost its place to another one of the batch
            return
        if self._features is not None:
            stream.anchor = self._features[index, rows[-1]]
        start = stream.table.length
        tokens = stream.ids[: start + len(rows)]
        while (reservation := self.cache.reserve(tokens)) is None:
            self._make_room_for(stream)
        try:
            self._forget(reservation.new_pages)
            num_cached = reservation.cached.length
            if num_cached < len(tokens):
                self._store(index, rows[num_cached - start :], reservation)
        except BaseException:
            self.cache.cancel(reservation)
            raise
        old, stream.table = stream.table, self.cache.commit(reservation)
        self.cache.release(old)

    def _store(self, index: int, rows: Items[int], reservation: Reservation) -> None:
        """Put rows of the last forward behind what is cached of a reserved stream."""
        assert self._ran is not None
        held = self._alone if len(self._batch) == 1 else self._together
        held.reload(index, reservation.cached)
        kv = self._ran.kv[:, :, index].index_select(3, torch.tensor(rows, device=self.device))
        held.store(index, reservation.table, reservation.cached.length, kv)

    def _make_room_for(self, stream: Stream) -> None:
        """Close the stream that matters least, or raise `EngineOverloadedError`."""
        running = [new.stream for new in self._batch]
        others = [s for s in self._open if s is not stream]
        if not others:
            raise EngineOverloadedError(
                "the context cache has no room for this request; ask for less context"
            )
        idle = [s for s in others if s not in running]
        self.close(idle[0] if idle else max(others, key=running.index))

    def _forget(self, pages: Items[int]) -> None:
        self._alone.forget(pages)
        self._together.forget(pages)


def ancestors(parents: Items[int]) -> Tensor:
    """(N, N) bool: which rows each row sees, itself too. A parent comes before its children."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            seen[row] |= seen[parent]
    return seen


def table_of(stream: Stream) -> PageTable:
    """Where an open stream lies."""
    assert stream.table is not None, "the stream is not open"
    return stream.table


def _default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // CUDA_CACHE_SHARE
    return CPU_CACHE_BYTES
