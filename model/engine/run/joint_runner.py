"""Runs an open checkpoint for the engine: prefix, canvas and suffix as one sequence.

What each step runs, and what it keeps from the one before:

* full attention, `none`: everything, each time. Exact, and the only exact way: under full attention
  every token's keys change with the canvas.
* full attention, `dual`: after a canvas's first step only the canvas; the keys and values of what
  is around it stay those of that step. Approximate (Fast-dLLM, arXiv 2505.22618, dual cache).
* block-causal: the blocks before the canvas's own are kept. Exact, since no block sees a later one:
  a step runs one block, and a request the blocks that no earlier one began with.

Shape letters: B sequences, C slots, L positions that run, P kept positions, E hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.engine.canvas.layout import CANVAS_SIZES
from model.engine.canvas.sequence import CanvasSequence
from model.engine.run.memory import is_out_of_memory
from model.families.layout import OpenLayout
from model.transformer import KeyValue, Transformer, visibility

ContextCache = Literal["none", "dual"]
"""What a full-attention model keeps of a context between steps."""

IDLE_CONTEXTS = 4
"""Contexts of a block-causal model that are kept for the next request."""

_LAYOUT_TOKENS = 8
"""Room for the tokens that a layout puts around the streams."""


@dataclass(slots=True)
class _Kept:
    """Keys and values of some positions of a text, and for what text they hold."""

    ids: list[int]
    """The text before the canvas: of a block-causal model, the tokens whose keys these are."""
    caches: list[KeyValue]
    """(1, G, P, D) each."""
    around: tuple[int, list[int]] | None = None
    """Under full attention: slots of the canvas, and the tokens behind it."""

    @property
    def length(self) -> int:
        return self.caches[0][0].shape[2]


@dataclass(frozen=True, slots=True)
class _Row:
    """What one sequence runs in a step."""

    left: list[int]
    """All before the canvas."""
    right: list[int]
    """All behind it."""
    ids: list[int]
    """What runs."""
    first: int
    """Position of the first of them; they are consecutive."""
    sources: list[int]
    """Of each slot, the index in `ids` whose logits predict it."""
    kept: _Kept | None


class JointRunner:
    """An open model, and what it keeps of running sequences."""

    def __init__(
        self, model: Transformer, layout: OpenLayout, *, cache: ContextCache = "none"
    ) -> None:
        """Raises `ValueError` for a model without room for a canvas."""
        self.model, self.layout, self.cache = model, layout, cache
        config = model.config
        self.max_context = (config.max_positions - CANVAS_SIZES[-1] - _LAYOUT_TOKENS) // 2
        if self.max_context < 1:
            raise ValueError(
                f"{config.max_positions} positions leave no room around a canvas of "
                f"{CANVAS_SIZES[-1]} slots"
            )
        self.vocab_size = layout.tokenizer.vocab_size
        self.device = model.embedding.weight.device
        self._is_full = config.attention == "full"
        self._kept: dict[int, _Kept] = {}
        self._idle: list[_Kept] = []
        """Block-causal contexts of sequences that have gone, the last one last."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values that are kept."""
        all_kept = [*self._kept.values(), *self._idle]
        return sum(t.nbytes for kept in all_kept for pair in kept.caches for t in pair)

    @property
    def runtime(self) -> str:
        """What computes the forwards."""
        return f"torch {torch.__version__}"

    @property
    def problems(self) -> list[str]:
        """Why steps are slower than they should be, and what a fill does without."""
        if not self.layout.sees_suffix:
            return [
                "this block-causal model's tokenizer has no fill-in-the-middle tokens, so what "
                "follows a hole is not seen"
            ]
        return []

    def check_integrity(self) -> None:
        """Nothing is kept as running when nothing runs."""
        assert not self._kept, "a sequence that has gone is still kept"

    def drop_cache(self) -> None:
        """Forget every context."""
        self._kept.clear()
        self._idle.clear()

    def close_context(self, sequence: CanvasSequence) -> None:
        """A sequence is done, or its streams change. Idempotent."""
        kept = self._kept.pop(id(sequence), None)
        if kept is not None and not self._is_full:
            # What is the beginning of another one adds nothing to it.
            self._idle = [k for k in self._idle if _shared(k.ids, kept.ids) < k.length]
            self._idle = [*self._idle, kept][-IDLE_CONTEXTS:]

    @torch.inference_mode()
    def denoise(self, batch: Items[CanvasSequence]) -> Tensor:
        """Logits (B, C, V) of canvases; what lies behind a smaller one means nothing. The last id
        of V is the engine's own and gets -inf."""
        rows = [self._row(s) for s in batch]
        try:
            hidden, caches = self._forward(rows)
        except Exception as error:
            if is_out_of_memory(error):
                self._idle.clear()
            raise
        for index, (sequence, row) in enumerate(zip(batch, rows, strict=True)):
            self._keep(sequence, row, [(k[index, None], v[index, None]) for k, v in caches])
            sequence.fill.encoded_tokens += len(row.ids) - len(row.sources)
        size = max(len(s.canvas) for s in batch)
        sources = [row.sources + [0] * (size - len(row.sources)) for row in rows]
        index = torch.tensor(sources, device=self.device)[..., None]
        slots = hidden.gather(1, index.expand(-1, -1, hidden.shape[-1]))
        return self._with_one_end(self.model.logits(slots))

    def _with_one_end(self, logits_BCV: Tensor) -> Tensor:
        """All ways to end a text as the one that the engine knows, and the engine's own id."""
        tokenizer = self.layout.tokenizer
        if tokenizer.turn_end_ids and tokenizer.end_id != tokenizer.no_token_id:
            ends = [tokenizer.end_id, *tokenizer.turn_end_ids]
            logits_BCV[..., tokenizer.end_id] = logits_BCV[..., ends].logsumexp(dim=-1)
        return F.pad(logits_BCV, (0, 1), value=float("-inf"))

    # ---- what a step runs ------------------------------------------------------------------

    def _row(self, sequence: CanvasSequence) -> _Row:
        num_committed = min(len(sequence.committed), len(sequence.prefix) - 1)
        left, right = self.layout.around(sequence.prefix, sequence.suffix, num_committed)
        canvas = sequence.canvas
        shift = int(self.model.config.shifts_logits)
        start = len(left)
        first, kept = 0, self._usable(sequence, left, canvas, right)
        if kept is not None:
            first = max(start - shift, 0) if self._is_full else kept.length
        behind = [] if kept is not None else right
        # The first position of all has none before it; it predicts itself, as in Dream's code.
        sources = [max(start + slot - shift, 0) - first for slot in range(len(canvas))]
        return _Row(left, right, [*left[first:], *canvas, *behind], first, sources, kept)

    def _usable(
        self, sequence: CanvasSequence, left: list[int], canvas: list[int], right: list[int]
    ) -> _Kept | None:
        """What is kept and still holds."""
        kept = self._kept.get(id(sequence))
        if self._is_full:
            is_same = kept is not None and (kept.ids, kept.around) == (left, (len(canvas), right))
            return kept if is_same else None
        if kept is not None and kept.ids == left[: kept.length]:
            return kept
        return self._longest_beginning(left)

    def _longest_beginning(self, left: list[int]) -> _Kept | None:
        """The blocks of `left` that some sequence has had at its beginning."""
        found, most = None, 0
        for kept in (*self._idle, *self._kept.values()):
            shared = _shared(kept.ids, left)
            whole = shared - shared % self.model.config.block_size
            if whole > most:
                found, most = kept, whole
        if found is None:
            return None
        return _Kept(left[:most], [_cut(pair, slice(0, most)) for pair in found.caches])

    def _keep(self, sequence: CanvasSequence, row: _Row, new: list[KeyValue]) -> None:
        """Take over from a step's keys and values (1, G, L, D) what the next can use."""
        if not self._is_full:
            self._kept[id(sequence)] = self._with_blocks(row, new)
        elif self.cache == "dual" and row.kept is None:
            num_slots = len(row.sources)
            start = max(len(row.left) - int(self.model.config.shifts_logits), 0)
            behind = slice(len(row.left) + num_slots, len(row.ids))
            caches = [_cut(pair, slice(0, start), behind) for pair in new]
            self._kept[id(sequence)] = _Kept(row.left, caches, (num_slots, row.right))

    def _with_blocks(self, row: _Row, new: list[KeyValue]) -> _Kept:
        """What was kept, and the whole blocks before the canvas that have run since."""
        whole = len(row.left) - len(row.left) % self.model.config.block_size
        if row.kept is not None and row.kept.length == whole:
            return row.kept
        caches = [_cut(pair, slice(0, whole - row.first)) for pair in new]
        if row.kept is not None:
            caches = [
                (torch.cat((a[0], b[0]), dim=2), torch.cat((a[1], b[1]), dim=2))
                for a, b in zip(row.kept.caches, caches, strict=True)
            ]
        return _Kept(row.left[:whole], caches)

    # ---- the forward -----------------------------------------------------------------------

    def _forward(self, rows: list[_Row]) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states (B, L, E) and new keys and values of rows of different lengths."""
        longest = max(len(row.ids) for row in rows)
        pasts = [row.kept.length if row.kept else 0 for row in rows]
        ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
        steps = torch.arange(longest)
        # Padding has the last positions there are: it must stay inside the rotary tables.
        last = self.model.config.max_positions - 1
        positions = (torch.tensor([[row.first] for row in rows]) + steps).clamp(max=last)
        is_real = steps < torch.tensor([[len(row.ids)] for row in rows])
        visible = visibility(self.model.config, positions, is_real)
        if max(pasts):
            was_kept = torch.arange(max(pasts)) < torch.tensor(pasts)[:, None]
            before = was_kept[:, None].expand(-1, visible.shape[1], -1)
            visible = torch.cat((before, visible), dim=-1)
        return self.model.hidden(
            ids.to(self.device),
            positions.to(self.device),
            None if visible.all() else visible.to(self.device),
            self._pasts(rows, max(pasts)) if max(pasts) else None,
        )

    def _pasts(self, rows: list[_Row], longest: int) -> list[KeyValue]:
        """Each layer's kept keys and values (B, G, P, D), the shorter ones padded."""
        config, weight = self.model.config, self.model.embedding.weight
        shape = (len(rows), config.num_kv_heads, longest, config.head_dim)
        pasts: list[KeyValue] = []
        for layer in range(config.num_layers):
            keys, values = weight.new_zeros(shape), weight.new_zeros(shape)
            for index, row in enumerate(rows):
                if row.kept is not None:
                    key, value = row.kept.caches[layer]
                    keys[index, :, : row.kept.length] = key[0]
                    values[index, :, : row.kept.length] = value[0]
            pasts.append((keys, values))
        return pasts


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _cut(pair: KeyValue, *parts: slice) -> KeyValue:
    """The named positions of keys and values, copied: a view would keep the whole alive."""
    key, value = (torch.cat([t[:, :, part] for part in parts], dim=2) for t in pair)
    return key, value
