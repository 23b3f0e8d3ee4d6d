"""Attention of new rows over paged streams: few queries, many keys.

A forward that writes has one or some rows a stream and thousands of keys, so one program a head
would leave most of a GPU idle. As in Flash-Decoding, the keys are split: a program attends from the
queries of all heads that share keys to one stretch of the stream, or to the new rows, and writes
its softmax's partial sum and logarithm; `_combine` then makes one softmax of all of them. Nothing
depends on the host knowing a length: the grid spans what the page tables can name, and a program
behind its stream's end leaves at once, so a recorded graph serves every length.

The function is `reference.paged_attention`; partial sums are float32 whatever the dtype.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportUntypedFunctionDecorator=false
# Triton's functions run on the device: their Python signatures say little of what they take.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.kernels.reference import PagedStreams
from model.transformer import KeyValue

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
    visible_ptr,
    first,
    last,
    group,
    num_groups,
    row,
    num_rows,
    num_new,
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
        is_key = key < last
        if PAGED:
            page = tl.load(pages_ptr + key // PAGE, mask=is_key, other=0).to(tl.int64)
            at = (page * num_groups + group) * PAGE + key % PAGE
            seen = is_row[:, None] & is_key[None, :]
        else:
            at = key.to(tl.int64)
            seen = (
                tl.load(
                    visible_ptr + (row % num_new)[:, None] * num_new + key[None, :],
                    mask=is_row[:, None] & is_key[None, :],
                    other=0,
                )
                != 0
            )
        k = tl.load(keys_ptr + at[None, :] * DIM + dim[:, None], mask=is_key[None, :], other=0.0)
        # "ieee": float32 must not be rounded to TF32, or the CPU would choose other tokens.
        score = tl.dot(q, k, input_precision="ieee") * scale
        score = tl.where(seen, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        # A row may see nothing of a stretch of the new rows.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(score - base[:, None])
        decay = tl.exp2(top - base)
        v = tl.load(values_ptr + at[:, None] * DIM + dim[None, :], mask=is_key[:, None], other=0.0)
        mixed = mixed * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * decay + tl.sum(weight, 1)
        top = new_top
    if first < last:
        # Not by `top`, in which NaN is lost: a broken row must not look like an empty one.
        total = tl.where(total == 0.0, 1.0, total)
        tl.store(partial_ptr + at_row, mixed / total[:, None], mask=is_row[:, None])
        tl.store(lse_ptr + row, top + tl.log2(total), mask=is_row)
    else:
        tl.store(lse_ptr + row, top, mask=is_row)


@triton.jit(
    do_not_specialize=[
        "num_batch", "num_rows", "num_new", "max_pages", "stream_splits", "split_keys",
    ]
)  # fmt: skip
def _attend_split(
    q_ptr,
    keys_ptr,
    values_ptr,
    pages_ptr,
    lengths_ptr,
    own_keys_ptr,
    own_values_ptr,
    visible_ptr,
    partial_ptr,
    lse_ptr,
    num_batch,
    num_groups,
    num_rows,
    num_new,
    max_pages,
    stream_splits,
    split_keys,
    scale,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One block of a (stream, key/value head)'s query rows against one stretch of its keys."""
    split = tl.program_id(1)
    batch, group = tl.program_id(2) // num_groups, tl.program_id(2) % num_groups
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    queries = tl.program_id(2).to(tl.int64) * num_rows
    all_queries = (num_batch * num_groups) * num_rows
    partial_ptr += (split.to(tl.int64) * all_queries + queries) * DIM
    lse_ptr += split * all_queries + queries
    if split < stream_splits:
        first = split * split_keys
        length = tl.load(lengths_ptr + batch)
        _attend(
            q_ptr + queries * DIM, keys_ptr, values_ptr, pages_ptr + batch * max_pages,
            visible_ptr, first, tl.minimum(first + split_keys, length), group, num_groups, row,
            num_rows, num_new, partial_ptr, lse_ptr, scale, DIM, ROWS, KEYS, PAGE, True,
        )  # fmt: skip
    else:
        own = tl.program_id(2).to(tl.int64) * num_new * DIM
        _attend(
            q_ptr + queries * DIM, own_keys_ptr + own, own_values_ptr + own, pages_ptr,
            visible_ptr + batch * num_new * num_new, 0, num_new, group, num_groups, row,
            num_rows, num_new, partial_ptr, lse_ptr, scale, DIM, ROWS, KEYS, PAGE, False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_splits", "num_new", "num_queries"])
def _combine(
    partial_ptr,
    lse_ptr,
    out_ptr,
    num_splits,
    num_heads,
    num_new,
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
        # NaN must pass here, too.
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
    # (B, H, N) -> (B, N, H): the output projection then reads the heads of a row in one piece.
    new, head = query % num_new, query // num_new % num_heads
    batch = query // (num_new * num_heads)
    place = ((batch * num_new + new) * num_heads + head).to(tl.int64)
    tl.store(out_ptr + place[:, None] * DIM + dim[None, :], mixed, mask=is_query[:, None])


def split_keys(capacity: int, num_programs: int) -> int:
    """Keys of a stretch, a power of two: so many that about `WANTED_PROGRAMS` programs run, of
    which every stretch of streams of `capacity` tokens needs `num_programs`."""
    wanted = max(1, WANTED_PROGRAMS // num_programs)
    return max(MIN_SPLIT, triton.next_power_of_2(triton.cdiv(capacity, wanted)))


def paged_attention(
    q_BHND: Tensor, pool: KeyValue, streams: PagedStreams, own: KeyValue, visible_BNN: Tensor
) -> Tensor:
    """See `reference.paged_attention`. All tensors are contiguous."""
    batch, heads, num_new, dim = q_BHND.shape
    _, groups, page, _ = pool[0].shape
    capacity, narrow = streams.capacity(pool), q_BHND.element_size() == 2
    rows = heads // groups * num_new  # query heads that share keys are rows of one product
    # A larger block's sums would not fit the registers.
    most_rows = max(16, (4096 if narrow else 2048) // dim)
    rows_block = min(64, most_rows, max(16, triton.next_power_of_2(rows)))
    row_blocks = triton.cdiv(rows, rows_block)
    stretch = split_keys(capacity, batch * groups * row_blocks)
    stream_splits = triton.cdiv(capacity, stretch)
    splits, queries = stream_splits + 1, batch * heads * num_new
    partial = q_BHND.new_empty((splits, queries, dim), dtype=torch.float32)
    lse = q_BHND.new_empty((splits, queries), dtype=torch.float32)
    out = q_BHND.new_empty((batch, num_new, heads, dim))
    _attend_split[(row_blocks, splits, batch * groups)](
        q_BHND, *pool, streams.pages_BP, streams.lengths_B, *own, visible_BNN.view(torch.uint8),
        partial, lse, batch, groups, rows, num_new, streams.pages_BP.shape[1], stream_splits,
        stretch, dim**-0.5 * LOG2_E,
        DIM=dim, ROWS=rows_block, KEYS=64 if narrow else 32, PAGE=page,
    )  # fmt: skip
    _combine[(triton.cdiv(queries, 16),)](
        partial, lse, out, splits, heads, num_new, queries, DIM=dim, ROWS=16
    )
    return out
