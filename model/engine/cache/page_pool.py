"""The tensors of the context cache: a pool of pages, and streams put together from them.

The pool is allocated once. Attention kernels may read it through page tables as it is; everything
else wants a stream's keys in one piece, so `StreamRows` keeps a contiguous copy of the streams that
are being worked on, and copies of a page only what it does not hold yet.

Shape letters: Y layers, P pages, R rows, G key/value heads, L tokens of a stream, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.cache.page_tree import PAGE_SIZE, PageTable

ROOM_STEP = 256
"""Rows grow by so many tokens at a time."""


@dataclass(frozen=True, slots=True)
class KeyValueShape:
    """What is kept of a token."""

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, keys and values of all layers together."""
        per_token = 2 * self.num_layers * self.num_heads * self.head_dim
        return PAGE_SIZE * per_token * self.dtype.itemsize


class PagePool:
    """Keys (already rotated) and values of `num_pages` pages."""

    def __init__(self, shape: KeyValueShape, num_pages: int, device: torch.device | str) -> None:
        size = (shape.num_layers, 2, num_pages, shape.num_heads, PAGE_SIZE, shape.head_dim)
        # Not zeroed: the system gives memory to a page when it is first written.
        self.pages = torch.empty(size, dtype=shape.dtype, device=device)

    def read(self, pages: Sequence[int]) -> Tensor:
        """(Y, 2, G, P, PAGE_SIZE, D): a copy of some pages, ready to be a stream."""
        return self.pages.index_select(2, self._index(pages)).transpose(2, 3)

    def write(self, pages: Sequence[int], contents: Tensor) -> None:
        """Overwrite pages by contents (Y, 2, G, P, PAGE_SIZE, D)."""
        self.pages.index_copy_(2, self._index(pages), contents.transpose(2, 3))

    def tables(self, tables: Sequence[PageTable]) -> tuple[Tensor, Tensor]:
        """Page numbers (B, P) and lengths (B,) of streams, int32; 0 behind a stream's last page."""
        longest = max(len(table.pages) for table in tables)
        padded = [[*table.pages, *[0] * (longest - len(table.pages))] for table in tables]
        lengths = [table.length for table in tables]
        device = self.pages.device
        return (
            torch.tensor(padded, dtype=torch.int32, device=device),
            torch.tensor(lengths, dtype=torch.int32, device=device),
        )

    def _index(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(pages, device=self.pages.device)


class StreamRows:
    """Contiguous copies of streams, one a row, all of the same room. They grow and shrink with what
    is needed, and an error leaves them usable: a row claims no more than it holds."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._held: list[PageTable] = []
        self._rows = pool.pages.new_empty(0)  # (Y, 2, R, G, L, D)

    @property
    def size(self) -> int:
        """R."""
        return len(self._held)

    @property
    def contents(self) -> Tensor:
        """(Y, 2, R, G, L, D), all of it; what lies behind a row's stream means nothing, and is
        finite."""
        return self._rows

    def load(self, tables: Sequence[PageTable], room: int) -> None:
        """Have the first rows hold streams, each with room to grow to `room` tokens."""
        self._make_room(len(tables), room)
        for row, table in enumerate(tables):
            self.reload(row, table)

    def reload(self, row: int, table: PageTable) -> None:
        """Have a row hold a stream for which it has room."""
        held = self._held[row]
        same = 0
        while same < min(len(held.pages), len(table.pages)):
            if held.pages[same] != table.pages[same]:
                break
            same += 1
        valid = min(held.length, same * PAGE_SIZE)
        if valid < table.length:
            first = valid // PAGE_SIZE
            self._held[row] = held.first(first * PAGE_SIZE)
            self._paged(row, first, len(table.pages)).copy_(self._pool.read(table.pages[first:]))
        self._held[row] = table

    def store(self, row: int, table: PageTable, start: int, kv: Tensor) -> None:
        """Put tokens (Y, 2, G, n, D) behind the `start` tokens that the row was loaded with, and
        into their pages."""
        assert self._held[row].length == start, "the row holds another stream"
        self._rows[:, :, row, :, start : table.length] = kv
        first = start // PAGE_SIZE
        # Whole pages: a copied page's first tokens come along, and shared ones stay what they are.
        self._pool.write(table.pages[first:], self._paged(row, first, len(table.pages)))
        self._held[row] = table

    def forget(self, pages: Iterable[int]) -> None:
        """These pages will hold something else."""
        gone = set(pages)
        for row, held in enumerate(self._held):
            kept = next((i for i, page in enumerate(held.pages) if page in gone), None)
            if kept is not None:
                self._held[row] = held.first(kept * PAGE_SIZE)

    def clear(self) -> None:
        """Let go of everything."""
        self._held, self._rows = [], self._pool.pages.new_empty(0)

    def _paged(self, row: int, first: int, last: int) -> Tensor:
        """A row's places of pages `first` to `last`, (Y, 2, G, P, PAGE_SIZE, D)."""
        return self._rows[:, :, row].unflatten(3, (-1, PAGE_SIZE))[:, :, :, first:last]

    def _make_room(self, num_rows: int, length: int) -> None:
        """May empty all rows."""
        have_rows, have_length = len(self._held), self._rows.shape[4] if self._held else 0
        length = -(-length // ROOM_STEP) * ROOM_STEP
        # A row much too long would cost every forward its attention to nothing.
        if num_rows <= have_rows and length <= have_length <= max(2 * length, 4 * ROOM_STEP):
            return
        layers, _, _, heads, _, dim = self._pool.pages.shape
        rows = max(have_rows, power_of_two(num_rows))
        self.clear()  # first: pages hold all of it, and both at once may be too much
        # Zeroed: what was never written may be NaN, which would survive a mask.
        self._rows = self._pool.pages.new_zeros((layers, 2, rows, heads, length, dim))
        self._held = [PageTable()] * rows


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
