"""Canvas attention over paged contexts: few queries, many keys.

A canvas has some tens of queries and a context thousands of keys, so one program a head would
leave most of a GPU idle. As in Flash-Decoding, the keys are split: a program attends from the
queries of all heads that share keys to one stretch of one group (prefix stream, suffix stream,
canvas) and writes its softmax's partial sum and logarithm; `_combine` then makes one softmax of
all of them. Nothing depends on the host knowing a length: the grid spans what the page tables can
name, and a program behind its stream's end leaves at once, so a captured graph serves every length.

The function is `reference.paged_attention`; partial sums are float32 whatever the dtype.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false
# Triton's functions run on the device: their Python signatures say little of what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.attention import KeyValue
from model.engine.kernels.reference import PagedStreams

MIN_SPLIT = 64
"""Keys of the shortest stretch: below it a program's start costs more than its work."""
WANTED_PROGRAMS = 512
"""About four for each multiprocessor of the largest cards; more only enlarge the partial sums."""
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    q_ptr,
    keys_ptr,
    values_ptr,
    pages_ptr,
    first,
    last,
    group,
    num_groups,
    row,
    num_rows,
    partial_ptr,
    lse_ptr,
    scale,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    PAGED: tl.constexpr,
):
    """Softmax of query rows over keys first..last; base 2 throughout."""
    dim = tl.arange(0, DIM)
    is_row = row < num_rows
    at_row = row[:, None] * DIM + dim[None, :]
    q = tl.load(q_ptr + at_row, mask=is_row[:, None], other=0.0)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, DIM), tl.float32)
    for start in range(first, last, KEYS):
        key = start + tl.arange(0, KEYS)
        seen = key < last
        if PAGED:
            page = tl.load(pages_ptr + key // PAGE, mask=seen, other=0).to(tl.int64)
            at = (page * num_groups + group) * PAGE + key % PAGE
        else:
            at = key.to(tl.int64)
        k = tl.load(keys_ptr + at[None, :] * DIM + dim[:, None], mask=seen[None, :], other=0.0)
        # "ieee": float32 must not be rounded to TF32, or the CPU would choose other tokens.
        score = tl.dot(q, k, input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - new_top[:, None])
        decay = tl.exp2(top - new_top)
        v = tl.load(values_ptr + at[:, None] * DIM + dim[None, :], mask=seen[:, None], other=0.0)
        mixed = mixed * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * decay + tl.sum(weight, 1)
        top = new_top
    if first < last:
        tl.store(partial_ptr + at_row, mixed / total[:, None], mask=is_row[:, None])
        tl.store(lse_ptr + row, top + tl.log2(total), mask=is_row)
    else:
        tl.store(lse_ptr + row, top, mask=is_row)


@triton.jit
def _attend_split(
    q_ptr,
    keys_ptr,
    values_ptr,
    pages_ptr,
    lengths_ptr,
    canvas_keys_ptr,
    canvas_values_ptr,
    canvas_lengths_ptr,
    partial_ptr,
    lse_ptr,
    num_batch,
    num_groups,
    num_rows,
    num_slots,
    max_pages,
    stream_splits,
    split_keys,
    scale,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One block of a (batch row, key/value head)'s query rows against one stretch of its keys."""
    split = tl.program_id(1)
    batch, group = tl.program_id(2) // num_groups, tl.program_id(2) % num_groups
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    queries = tl.program_id(2).to(tl.int64) * num_rows
    all_queries = (num_batch * num_groups) * num_rows
    partial_ptr += (split.to(tl.int64) * all_queries + queries) * DIM
    lse_ptr += split * all_queries + queries
    if split < 2 * stream_splits:
        stream = split // stream_splits  # 0 prefix, 1 suffix
        first = split % stream_splits * split_keys
        length = tl.load(lengths_ptr + stream * num_batch + batch)
        _attend(
            q_ptr + (stream.to(tl.int64) * all_queries + queries) * DIM, keys_ptr, values_ptr,
            pages_ptr + (stream * num_batch + batch) * max_pages,
            first, tl.minimum(first + split_keys, length), group, num_groups, row,
            num_rows, partial_ptr, lse_ptr, scale, DIM, ROWS, KEYS, PAGE, True,
        )  # fmt: skip
    else:
        own = tl.program_id(2).to(tl.int64) * num_slots * DIM
        _attend(
            q_ptr + queries * DIM, canvas_keys_ptr + own, canvas_values_ptr + own, pages_ptr,
            0, tl.load(canvas_lengths_ptr + batch), group, num_groups, row,
            num_rows, partial_ptr, lse_ptr, scale, DIM, ROWS, KEYS, PAGE, False,
        )  # fmt: skip


@triton.jit
def _combine(
    partial_ptr,
    lse_ptr,
    out_ptr,
    num_splits,
    num_heads,
    num_slots,
    num_queries,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One softmax of all stretches: partial sums weighed by their share of the whole."""
    query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_query = query < num_queries
    dim = tl.arange(0, DIM)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    for split in range(0, num_splits):
        lse = tl.load(lse_ptr + split * num_queries + query, mask=is_query, other=float("-inf"))
        top = tl.maximum(top, lse)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, DIM), tl.float32)
    for split in range(0, num_splits):
        at = split * num_queries + query
        lse = tl.load(lse_ptr + at, mask=is_query, other=float("-inf"))
        # NaN must pass, or a broken canvas would look like an empty one.
        was_written = is_query & (lse != float("-inf"))
        weight = tl.exp2(lse - top)
        partial = tl.load(
            partial_ptr + at.to(tl.int64)[:, None] * DIM + dim[None, :],
            mask=was_written[:, None],
            other=0.0,
        )
        mixed += weight[:, None] * partial
        total += weight
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    # (B, H, N) -> (B, N, H): the output projection then reads the heads of a slot in a row.
    slot, head = query % num_slots, query // num_slots % num_heads
    batch = query // (num_slots * num_heads)
    place = ((batch * num_slots + slot) * num_heads + head).to(tl.int64)
    tl.store(out_ptr + place[:, None] * DIM + dim[None, :], mixed, mask=is_query[:, None])


def split_keys(capacity: int, num_programs: int) -> int:
    """Keys of a stretch, a power of two: so many that about `WANTED_PROGRAMS` programs run, of
    which every stretch of two streams of `capacity` tokens needs `num_programs`."""
    wanted = max(1, WANTED_PROGRAMS // (2 * num_programs))
    return max(MIN_SPLIT, triton.next_power_of_2(triton.cdiv(capacity, wanted)))


def paged_attention(
    q_2BHND: Tensor,
    pool: KeyValue,
    streams: PagedStreams,
    canvas: KeyValue,
    canvas_lengths_B: Tensor,
) -> Tensor:
    """See `reference.paged_attention`. All tensors are contiguous but the result, a view of
    (B, N, H, D)."""
    _, batch, heads, slots, dim = q_2BHND.shape
    _, groups, page, _ = pool[0].shape
    capacity, narrow = streams.capacity(pool), q_2BHND.element_size() == 2
    rows = heads // groups * slots  # query heads that share keys are rows of one product
    # A larger block's sums would not fit the registers.
    most_rows = max(16, (4096 if narrow else 2048) // dim)
    rows_block = min(64, most_rows, max(16, triton.next_power_of_2(rows)))
    row_blocks = triton.cdiv(rows, rows_block)
    stretch = split_keys(capacity, batch * groups * row_blocks)
    stream_splits = triton.cdiv(capacity, stretch)
    splits, queries = 2 * stream_splits + 1, batch * heads * slots
    partial = q_2BHND.new_empty((splits, queries, dim), dtype=torch.float32)
    lse = q_2BHND.new_empty((splits, queries), dtype=torch.float32)
    out = q_2BHND.new_empty((batch, slots, heads, dim))
    _attend_split[(row_blocks, splits, batch * groups)](
        q_2BHND, *pool, streams.pages_2BP, streams.lengths_2B, *canvas, canvas_lengths_B,
        partial, lse, batch, groups, rows, slots, streams.pages_2BP.shape[2], stream_splits,
        stretch, dim**-0.5 * LOG2_E,
        DIM=dim, ROWS=rows_block, KEYS=64 if narrow else 32, PAGE=page,
    )  # fmt: skip
    _combine[(triton.cdiv(queries, 16),)](
        partial, lse, out, splits, heads, slots, queries, DIM=dim, ROWS=16
    )
    return out.transpose(1, 2)
