"""The tensors of the context cache: a pool of pages, and streams put together from them.

The pool is allocated once. Attention kernels may read it through page tables as it is; everything
else wants a stream's keys in one piece, so `StreamRows` keeps a contiguous copy of the streams that
are being worked on, and copies of a page only what it does not hold yet.

Shape letters: P pages, R rows, G key/value heads, L tokens of a stream, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from model.attention import KeyValue
from model.denoiser import DenoiserConfig
from model.engine.cache.page_tree import PAGE_SIZE, PageTable


def page_bytes(config: DenoiserConfig, dtype: torch.dtype) -> int:
    """Bytes of one page, keys and values of all layers together."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return PAGE_SIZE * per_token * dtype.itemsize


class PagePool:
    """Keys (already rotated) and values of `num_pages` pages, on the device and in the dtype of
    `like`."""

    def __init__(self, config: DenoiserConfig, num_pages: int, like: Tensor) -> None:
        shape = (config.num_layers, 2, num_pages, config.num_kv_heads, PAGE_SIZE, config.head_dim)
        # Not zeroed: the system gives memory to a page when it is first written.
        self.pages = like.new_empty(shape)

    @property
    def layers(self) -> list[KeyValue]:
        """Keys and values of each layer, (P, G, PAGE_SIZE, D): views, for kernels that page."""
        return [(layer[0], layer[1]) for layer in self.pages]

    def read(self, pages: Sequence[int]) -> Tensor:
        """(layers, 2, G, P, PAGE_SIZE, D): a copy of some pages, ready to be a stream."""
        return self.pages.index_select(2, self._index(pages)).transpose(2, 3)

    def write(self, pages: Sequence[int], contents: Tensor) -> None:
        """Overwrite pages by contents (layers, 2, G, P, PAGE_SIZE, D)."""
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
    """Contiguous copies of streams, one a row. They grow to what was needed so far, and an error
    leaves them usable: a row claims no more than it holds."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._held: list[PageTable] = []
        self._rows = pool.pages.new_empty(0)  # (layers, 2, R, G, L, D)

    def load(self, row: int, table: PageTable, room: int = 0) -> list[KeyValue]:
        """Have a row hold a stream, with room to grow to `room` tokens; returns each layer's keys
        and values, views (1, G, L, D)."""
        self._make_room(row + 1, max(room, table.length))
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
        return self._views(slice(row, row + 1), table.length)

    def store(self, row: int, table: PageTable, start: int, caches: list[KeyValue]) -> None:
        """Put tokens from `start` on (the ends of `caches`) behind the `start` tokens that the row
        was loaded with, and into their pages."""
        assert self._held[row].length == start, "the row holds another stream"
        views = self._views(slice(row, row + 1), table.length)
        for (keys, values), (new_keys, new_values) in zip(views, caches, strict=True):
            keys[:, :, start:] = new_keys[:, :, start:]
            values[:, :, start:] = new_values[:, :, start:]
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

    def batch(self, tables: Sequence[PageTable]) -> tuple[list[KeyValue], Tensor | None]:
        """Keys and values (B, G, L, D) of streams, padded by zeros, and the padding's additive mask
        (B, 1, 1, L). Streams that are all one share one copy and need no mask."""
        if len(set(tables)) == 1:
            one = self.load(0, tables[0])
            return [(k.expand(len(tables), -1, -1, -1), v.expand(len(tables), -1, -1, -1))
                    for k, v in one], None  # fmt: skip
        longest = max(table.length for table in tables)
        self._make_room(len(tables), longest)
        for row, table in enumerate(tables):
            self.load(row, table)
            # What was never written there may be NaN, which would survive the mask.
            self._rows[:, :, row, :, table.length : longest] = 0
        caches = self._views(slice(0, len(tables)), longest)
        if all(table.length == longest for table in tables):
            return caches, None
        lengths = torch.tensor([[table.length] for table in tables], device=self._rows.device)
        padding = torch.arange(longest, device=self._rows.device) >= lengths
        mask = self._rows.new_zeros(padding.shape).masked_fill_(padding, float("-inf"))
        return caches, mask[:, None, None, :]

    def _views(self, rows: slice, length: int) -> list[KeyValue]:
        return [(layer[0, rows, :, :length], layer[1, rows, :, :length]) for layer in self._rows]

    def _paged(self, row: int, first: int, last: int) -> Tensor:
        """A row's places of pages `first` to `last`, (layers, 2, G, P, PAGE_SIZE, D)."""
        return self._rows[:, :, row].unflatten(3, (-1, PAGE_SIZE))[:, :, :, first:last]

    def _make_room(self, num_rows: int, length: int) -> None:
        """May empty all rows."""
        have_rows, have_length = len(self._held), self._rows.shape[4] if self._held else 0
        if num_rows <= have_rows and length <= have_length:
            return
        layers, _, _, heads, page, dim = self._pool.pages.shape
        rows = max(have_rows, power_of_two(num_rows))
        length = max(have_length, power_of_two(max(length, page)))
        # The old rows go first: pages hold all of it, and both at once may be too much.
        self._held, self._rows = [], self._pool.pages.new_empty(0)
        self._rows = self._pool.pages.new_empty((layers, 2, rows, heads, length, dim))
        self._held = [PageTable()] * rows


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
