"""Runs the denoiser for the engine: contexts out of the cache, one forward for a batch of canvases.

The only file of the engine that touches the model and its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from model.attention import KeyValue
from model.denoiser import Denoiser, Role
from model.engine.kv_cache import ContextCache, SlotPlan
from model.engine.sequence import Sequence


class ModelRunner:
    """A denoiser, and the keys and values of the contexts it has encoded."""

    def __init__(self, model: Denoiser, *, max_batch: int, spare_slots: int = 16) -> None:
        """A batch pins at most two slots a sequence; `spare_slots` more keep idle contexts."""
        self.model = model
        num_slots = 2 * max_batch + spare_slots
        self.cache = ContextCache(num_slots)
        config = model.config
        self.max_context = config.max_context
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        # One buffer a layer, (slots, G, tokens, D). Pages are only touched once a slot is used.
        shape = (num_slots, config.num_kv_heads, config.max_context, config.head_dim)
        self._buffers: list[KeyValue] = [
            (weight.new_empty(shape), weight.new_empty(shape)) for _ in range(config.num_layers)
        ]
        self._open: list[Sequence] = []
        self._gathered_for: tuple[tuple[int, int, int, int], ...] = ()
        self._gathered: tuple[list[KeyValue], list[KeyValue], Tensor | None, Tensor | None]

    @property
    def cache_bytes(self) -> int:
        """Bytes of the buffers that keep keys and values."""
        return sum(buffer.nbytes for pair in self._buffers for buffer in pair)

    def open_contexts(self, batch: Items[Sequence]) -> None:
        """Make the cache hold both streams of every sequence of the batch.

        Only the batch's contexts stay pinned: a sequence that sits out a step may lose its slots
        and then finds them again, as any request does, by its tokens.
        """
        for sequence in [s for s in self._open if s not in batch]:
            self.close_context(sequence)
        for sequence in batch:
            if sequence.context_slots is None:
                prefix = self._encode(sequence, Role.PREFIX, sequence.prefix)
                try:
                    suffix = self._encode(sequence, Role.SUFFIX, sequence.suffix)
                except BaseException:
                    self.cache.release(prefix)
                    raise
                sequence.context_slots = (prefix, suffix)
                self._open.append(sequence)

    def close_context(self, sequence: Sequence) -> None:
        """Unpin a sequence's contexts; they stay cached for the next request. Idempotent."""
        if sequence.context_slots is not None:
            self._open.remove(sequence)
            for slot in sequence.context_slots:
                self.cache.release(slot)
            sequence.context_slots = None

    @torch.inference_mode()
    def _encode(self, sequence: Sequence, role: Role, tokens: list[int]) -> int:
        plan = self.cache.acquire(role, tokens)
        try:
            self._fill_slot(plan, role, tokens)
        except BaseException:
            self.cache.forget(plan.slot)
            self.cache.release(plan.slot)
            raise
        sequence.fill.encoded_tokens += len(tokens) - plan.num_cached
        return plan.slot

    def _fill_slot(self, plan: SlotPlan, role: Role, tokens: list[int]) -> None:
        """Copy what another slot holds of the stream, encode the rest."""
        self._gathered_for = ()  # the slot's contents change
        start = plan.num_cached
        if plan.copy_from is not None:
            for buffers in self._buffers:
                for buffer in buffers:
                    buffer[plan.slot, :, :start] = buffer[plan.copy_from, :, :start]
        new = tokens[start:]
        if new:
            past = [(k[plan.slot, None, :, :start], v[plan.slot, None, :, :start])
                    for k, v in self._buffers]  # fmt: skip
            ids = torch.tensor([new], device=self.device)
            _, cache = self.model.encode(ids, role, past if start else None)
            for (keys, values), (k, v) in zip(self._buffers, cache, strict=True):
                keys[plan.slot, :, start : len(tokens)] = k[0, :, start:]
                values[plan.slot, :, start : len(tokens)] = v[0, :, start:]

    @torch.inference_mode()
    def denoise(self, batch: Items[Sequence]) -> Tensor:
        """Logits (B, C, V) of the batch's canvases, which all have C slots and open contexts."""
        prefix, suffix, prefix_mask, suffix_mask = self._gather(batch)
        canvas_size = len(batch[0].canvas)
        ids = torch.tensor([s.canvas for s in batch], device=self.device)
        slots = torch.arange(canvas_size, device=self.device)
        prefix_lengths = torch.tensor([[len(s.prefix)] for s in batch], device=self.device)
        suffix_lengths = torch.tensor([[len(s.suffix)] for s in batch], device=self.device)
        hidden = self.model.denoise(
            ids,
            torch.tensor([s.prefix[-1:] for s in batch], device=self.device),
            prefix_lengths + slots,
            suffix_lengths.expand(-1, canvas_size),
            prefix,
            suffix,
            canvas_size=canvas_size,
            prefix_mask=prefix_mask,
            suffix_mask=suffix_mask,
        )
        return self.model.logits(hidden)

    def _gather(
        self, batch: Items[Sequence]
    ) -> tuple[list[KeyValue], list[KeyValue], Tensor | None, Tensor | None]:
        """Both contexts of every sequence, padded to the longest, with masks where they differ.

        Kept until the batch changes: a fill's steps share one gathering.
        """
        key = tuple((*_slots(s), len(s.prefix), len(s.suffix)) for s in batch)
        if key != self._gathered_for:
            prefix, prefix_mask = self._gather_streams([(k[0], k[2]) for k in key])
            suffix, suffix_mask = self._gather_streams([(k[1], k[3]) for k in key])
            self._gathered = (prefix, suffix, prefix_mask, suffix_mask)
            self._gathered_for = key
        return self._gathered

    def _gather_streams(
        self, streams: list[tuple[int, int]]
    ) -> tuple[list[KeyValue], Tensor | None]:
        """Keys and values of (cache slot, length) streams as one batch, and its padding's mask."""
        longest = max(length for _, length in streams)
        slots = [slot for slot, _ in streams]
        if len(set(slots)) == 1:  # one context: no copy, no mask
            return [
                (
                    k[slots[0], None, :, :longest].expand(len(streams), -1, -1, -1),
                    v[slots[0], None, :, :longest].expand(len(streams), -1, -1, -1),
                )
                for k, v in self._buffers
            ], None
        caches = [(k[slots, :, :longest], v[slots, :, :longest]) for k, v in self._buffers]
        lengths = torch.tensor([length for _, length in streams], device=self.device)
        padding = torch.arange(longest, device=self.device) >= lengths[:, None]
        if not padding.any():
            return caches, None
        for keys, values in caches:
            # What lies past a stream's end was never written: its NaN would survive the mask.
            keys.masked_fill_(padding[:, None, :, None], 0)
            values.masked_fill_(padding[:, None, :, None], 0)
        mask = torch.zeros(padding.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(padding, float("-inf"))
        return caches, mask[:, None, None, :]


def _slots(sequence: Sequence) -> tuple[int, int]:
    assert sequence.context_slots is not None, "the sequence's context is not open"
    return sequence.context_slots
