"""Runs the denoiser for the engine: contexts out of the cache, one forward for a batch of canvases.

This is the reference. `openvino_runner` and `graphed_runner` put another forward on the same
contexts; `joint_runner` runs open checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from model.api import EngineOverloadedError
from model.attention import KeyValue
from model.denoiser import Denoiser, Role
from model.engine.kv_cache import PageTable, PageTree
from model.engine.page_pool import PagePool, StreamRows, page_bytes
from model.engine.runner import DecidedCanvas, is_out_of_memory
from model.engine.sequence import Sequence
from model.infill import fitted

CPU_CACHE_BYTES = 256 << 20
"""The cache's budget on a CPU: 43,000 tokens of the shipped model, some fifty files."""
CUDA_CACHE_SHARE = 4
"""On CUDA the cache takes one part in so many of the memory that is free at the start."""


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What stays the same from step to step of a batch; as long as it does, it is one object.
    Shapes as `Denoiser.denoise` has them."""

    before_B1: Tensor
    left_BC: Tensor
    right_BC: Tensor
    prefix: list[KeyValue]
    suffix: list[KeyValue]
    prefix_mask: Tensor | None
    suffix_mask: Tensor | None
    canvas_mask: Tensor | None


class ModelRunner:
    """A denoiser, and the keys and values of the contexts it has encoded."""

    def __init__(self, model: Denoiser, *, cache_bytes: int | None = None) -> None:
        """`cache_bytes` bounds the pages of the cache (None: by what the device has); the running
        batch's streams have a contiguous copy besides. Raises `ValueError` when it is too little
        for two pages."""
        self.model = model
        self._problems: list[str] = []
        self.max_context, self.vocab_size = model.config.max_context, model.config.vocab_size
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        if cache_bytes is None:
            cache_bytes = _default_budget(self.device)
        self._page_bytes = page_bytes(model.config, self.dtype)
        num_pages = cache_bytes // self._page_bytes
        if num_pages < 2:
            raise ValueError(
                f"cache_bytes is {cache_bytes}; a fill needs two pages of {self._page_bytes} bytes"
            )
        self.cache = PageTree(num_pages)
        self.pool = PagePool(model.config, num_pages, weight)
        self._rows = {role: StreamRows(self.pool) for role in (Role.PREFIX, Role.SUFFIX)}
        self._open: list[Sequence] = []
        self._context_key: object = None
        self._context: BatchContext
        self.tokens_reused = 0
        """Context tokens, since the start, that the cache held when a stream was opened."""
        self.tokens_encoded = 0
        """Context tokens, since the start, that had to be encoded."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the pages that hold something."""
        return self.cache.num_filled * self._page_bytes

    def check_integrity(self) -> None:
        """Raise `AssertionError` when the cache's books contradict themselves or what is open."""
        self.cache.check_integrity(table for s in self._open for table in _tables(s))
        for sequence in self._open:
            lengths = [table.length for table in _tables(sequence)]
            assert lengths[0] <= len(sequence.prefix), "more is open than the prefix has"
            assert lengths[1] == len(sequence.suffix), "not the suffix's length is open"

    def drop_cache(self) -> None:
        """Forget every context, whatever state the books are in."""
        for sequence in self._open:
            sequence.context = None
        self._open.clear()
        self._context_key = None
        self.cache = PageTree(self.cache.num_pages)
        for rows in self._rows.values():
            rows.forget(range(self.cache.num_pages))

    # ---- contexts ------------------------------------------------------------------------

    @torch.inference_mode()
    def open_contexts(self, batch: Items[Sequence]) -> list[Sequence]:
        """Make the cache hold both streams of the batch's sequences; returns those that fit.

        The others sit this step out. The first one always fits: it takes the room of the others,
        and where even that is too little, its streams are shortened at their far edges. Only what
        is returned stays pinned; a sequence that sits out a step may lose its pages, and then finds
        what is left of them again, as any request does, by its tokens.
        """
        for sequence in [s for s in self._open if s not in batch]:
            self.close_context(sequence)
        opened: list[Sequence] = []
        for sequence in batch:
            if sequence.context is not None or self._open_context(sequence, len(opened)):
                opened.append(sequence)
            elif sequence is batch[0]:
                self._make_fit(sequence, batch[1:])
                opened.append(sequence)
        return opened

    def close_context(self, sequence: Sequence) -> None:
        """Unpin a sequence's contexts; they stay cached for the next request. Idempotent."""
        if sequence.context is not None:
            self._open.remove(sequence)
            for table in sequence.context:
                self.cache.release(table)
            sequence.context = None

    def _make_fit(self, sequence: Sequence, others: Items[Sequence]) -> None:
        """Open the context of a sequence that must not wait."""
        for other in reversed(others):
            if other.context is not None:
                self.close_context(other)
                if self._open_context(sequence, 0):
                    return
        prefix, suffix, limit = sequence.prefix, sequence.suffix, self.max_context // 2
        while limit:
            sequence.prefix, sequence.suffix = fitted(prefix, limit), fitted(suffix, limit)
            if self._open_context(sequence, 0):
                return
            limit //= 2
        raise EngineOverloadedError(
            "the device has no memory left, not even for a single token; close other programs"
        )

    def _open_context(self, sequence: Sequence, row: int) -> bool:
        """Pin both streams, encoding what is new of them; False when there is no memory for it."""
        prefix = suffix = None
        try:
            prefix, _ = self._open_stream(sequence, Role.PREFIX, sequence.prefix, row)
            if prefix is not None:
                suffix, _ = self._open_stream(sequence, Role.SUFFIX, sequence.suffix, row)
        except BaseException as error:
            if prefix is not None:
                self.cache.release(prefix)
            if is_out_of_memory(error):
                return False
            raise
        if prefix is None or suffix is None:
            if prefix is not None:
                self.cache.release(prefix)
            return False
        sequence.context = (prefix, suffix)
        self._open.append(sequence)
        return True

    def _open_stream(
        self, sequence: Sequence, role: Role, tokens: list[int], row: int
    ) -> tuple[PageTable | None, Tensor | None]:
        """Pin a stream, encoding what is new of it; None when too few pages are left. Also the new
        tokens' hidden states (1, L, E), if there are any."""
        reservation = self.cache.reserve(role, tokens)
        if reservation is None:
            return None, None
        table, num_cached, hidden = reservation.table, reservation.cached.length, None
        try:
            if num_cached < len(tokens):
                self._context_key = None  # its row, or a page of it, may change
                for rows in self._rows.values():
                    rows.forget(reservation.new_pages)
                hidden, caches = self._encode(role, tokens, reservation.cached, row)
                self._rows[role].store(row, table, num_cached, caches)
        except BaseException:
            self.cache.cancel(reservation)
            raise
        self.tokens_reused += num_cached
        self.tokens_encoded += len(tokens) - num_cached
        sequence.fill.encoded_tokens += len(tokens) - num_cached
        return self.cache.commit(reservation), hidden

    def _encode(
        self, role: Role, tokens: list[int], past: PageTable, row: int
    ) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states (1, L, E) of a stream's tokens behind `past`, and all keys and values."""
        cached = self._rows[role].load(row, past, room=len(tokens))
        ids = torch.tensor([tokens[past.length :]], device=self.device)
        return self.model.encode(ids, role, cached if past.length else None)

    # ---- forwards ------------------------------------------------------------------------

    @torch.inference_mode()
    def denoise(self, batch: Items[Sequence]) -> Tensor:
        """Logits (B, C, V) of the batch's canvases, whose contexts are open.

        C is the largest canvas's size; what lies behind a smaller one means nothing. They hold
        until the next forward. After an error it may be called again, with a smaller batch, say
        (`is_out_of_memory`).
        """
        canvas_size = max(len(s.canvas) for s in batch)
        context = self._batch_context(batch, canvas_size)
        canvases = [s.canvas + [0] * (canvas_size - len(s.canvas)) for s in batch]
        return self.canvas_logits(torch.tensor(canvases, device=self.device), context)

    def canvas_logits(self, ids_BC: Tensor, context: BatchContext) -> Tensor:
        """`Denoiser.denoise` and the head, for runtimes that do it in their own way."""
        hidden = self.model.denoise(
            ids_BC,
            context.before_B1,
            context.left_BC,
            context.right_BC,
            context.prefix,
            context.suffix,
            canvas_size=ids_BC.shape[1],
            prefix_mask=context.prefix_mask,
            suffix_mask=context.suffix_mask,
            canvas_mask=context.canvas_mask,
        )
        return self.model.logits(hidden)

    @property
    def runtime(self) -> str:
        """What computes the steps."""
        return f"torch {torch.__version__}"

    @property
    def problems(self) -> list[str]:
        """Why steps are slower than they should be on this device."""
        return self._problems

    def decides(self, sequence: Sequence) -> bool:
        """Whether `decide` takes such a sequence. This runner leaves all decisions to the
        sampler."""
        return False

    def decide(self, batch: Items[Sequence], num_steps: int) -> list[DecidedCanvas]:
        """Take so many steps, with the sampler's decisions, before anybody looks. The contexts are
        open, and the sequences stay as they were. Only for what `decides`."""
        raise NotImplementedError

    @torch.inference_mode()
    def next_logits(self, batch: Items[Sequence]) -> Tensor:
        """Logits (B, V) of the token after each sequence's prefix stream: causal decoding.

        The contexts are open; a prefix may have grown since, and what is new of it is encoded on
        the way. Where the cache has no room for that, it is encoded again the next time. Streams of
        different lengths take a forward each.
        """
        last = [self._last_hidden(s, row) for row, s in enumerate(batch)]
        return self.model.logits(torch.cat(last))

    def _last_hidden(self, sequence: Sequence, row: int) -> Tensor:
        """Hidden state (1, E) of the prefix stream's last token."""
        (table, suffix), tokens = _tables(sequence), sequence.prefix
        if table.length < len(tokens):
            longer, hidden = self._open_stream(sequence, Role.PREFIX, tokens, row)
            if longer is not None:
                self.cache.release(table)
                sequence.context, table = (longer, suffix), longer
            if hidden is not None:
                return hidden[:, -1]
        self._context_key = None  # loading may change the row
        past = table.first(min(table.length, len(tokens) - 1))
        hidden, _ = self._encode(Role.PREFIX, tokens, past, row)
        return hidden[:, -1]

    @torch.inference_mode()
    def causal_log_probs(
        self, sequence: Sequence, continuations: Items[Items[int]]
    ) -> list[list[float]]:
        """Log-probability (nats) of each token of each continuation, all of them after the
        sequence's prefix stream, in one forward. The continuations are not cached."""
        longest = max(map(len, continuations), default=0)
        if not longest:
            return [[] for _ in continuations]
        count, last = len(continuations), sequence.prefix[-1:]
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in continuations]
        targets = torch.tensor(padded, device=self.device)
        inputs = torch.cat((targets.new_tensor([last] * count), targets[:, :-1]), dim=1)
        table, past = self._before_last(sequence)
        try:
            past = [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in past]
            hidden, _ = self.model.encode(inputs, Role.PREFIX, past or None)
            logits = self.model.logits(hidden).float()
        finally:
            if table is not None:
                self.cache.release(table)
        found = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
        return [row[: len(ids)] for row, ids in zip(found.tolist(), continuations, strict=True)]

    def _before_last(self, sequence: Sequence) -> tuple[PageTable | None, list[KeyValue]]:
        """Keys and values of the prefix stream without its last token, and what is pinned for it
        (None where the cache has no room); none at all when there is no other token."""
        tokens, rows = sequence.prefix, self._rows[Role.PREFIX]
        self._context_key = None  # loading changes a row
        table, _ = self._open_stream(sequence, Role.PREFIX, tokens, 0)
        if len(tokens) == 1:
            return table, []
        if table is not None:
            return table, rows.load(0, table.first(len(tokens) - 1))
        return None, self._encode(Role.PREFIX, tokens[:-1], PageTable(), 0)[1]

    def page_tables(self, batch: Items[Sequence]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Page numbers (B, P) and lengths (B,), int32, of the prefix and of the suffix streams, for
        a kernel that reads `pool.layers` itself."""
        tables = [_tables(s) for s in batch]
        return tuple(self.pool.tables([pair[role] for pair in tables]) for role in self._rows)

    def _batch_context(self, batch: Items[Sequence], canvas_size: int) -> BatchContext:
        """Kept until the batch changes: a fill's steps share one gathering."""
        tables = [_tables(s) for s in batch]
        sizes = [len(s.canvas) for s in batch]
        key = (tables, sizes)
        if key != self._context_key:
            self._context_key = None
            prefix, prefix_mask = self._rows[Role.PREFIX].batch([t[0] for t in tables])
            suffix, suffix_mask = self._rows[Role.SUFFIX].batch([t[1] for t in tables])
            slots = torch.arange(canvas_size, device=self.device)
            self._context = BatchContext(
                torch.tensor([s.prefix[-1:] for s in batch], device=self.device),
                torch.tensor([[len(s.prefix)] for s in batch], device=self.device) + slots,
                torch.tensor([[len(s.suffix)] * canvas_size for s in batch], device=self.device),
                prefix,
                suffix,
                prefix_mask,
                suffix_mask,
                self._canvas_mask(sizes, slots),
            )
            self._context_key = key
        return self._context

    def _canvas_mask(self, sizes: list[int], slots_C: Tensor) -> Tensor | None:
        if len(set(sizes)) == 1:
            return None
        padding = slots_C >= torch.tensor(sizes, device=self.device)[:, None]
        mask = torch.zeros(padding.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(padding, float("-inf"))[:, None, None, :]


def _default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // CUDA_CACHE_SHARE
    return CPU_CACHE_BYTES


def _tables(sequence: Sequence) -> tuple[PageTable, PageTable]:
    assert sequence.context is not None, "the sequence's context is not open"
    return sequence.context
