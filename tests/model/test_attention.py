from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.attention import canvas_attention, context_attention, rotary_tables, rotate

HEADS, GROUPS, DIM = 6, 2, 4


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query, (D,), by the definition of attention."""
    scores = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
    weighted = (s / sum(scores) * value for s, value in zip(scores, values, strict=True))
    return torch.stack(list(weighted)).sum(0)


class TestRotation:
    def test_scores_depend_on_the_distance_alone(self) -> None:
        cos, sin = (table.double() for table in rotary_tables(64, DIM, 10_000.0))
        query, key = random(DIM, seed=1), random(DIM, seed=2)
        scores = [
            (rotate(query, cos[at], sin[at]) @ rotate(key, cos[at - 5], sin[at - 5])).item()
            for at in (5, 6, 40, 63)
        ]
        assert scores == pytest.approx([scores[0]] * 4, rel=1e-5)  # the tables are fp32
        moved = rotate(query, cos[20], sin[20]) @ rotate(key, cos[19], sin[19])
        assert moved.item() != pytest.approx(scores[0], rel=1e-2)

    def test_position_zero_changes_nothing(self) -> None:
        cos, sin = rotary_tables(4, DIM, 10_000.0)
        x = random(DIM, dtype=torch.float32)
        assert rotate(x, cos[0], sin[0]).equal(x)

    def test_halves_are_paired_as_in_llama_checkpoints(self) -> None:
        cos, sin = rotary_tables(8, 4, 100.0)  # frequencies 1 and 0.1
        x = torch.tensor([1.0, 2.0, 3.0, 4.0])
        a, b = 5.0, 0.5  # angles at position 5
        expected = [
            1 * math.cos(a) - 3 * math.sin(a),
            2 * math.cos(b) - 4 * math.sin(b),
            3 * math.cos(a) + 1 * math.sin(a),
            4 * math.cos(b) + 2 * math.sin(b),
        ]
        assert rotate(x, cos[5], sin[5]).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("num_past", "num_new"), [(0, 5), (3, 1), (3, 4), (0, 1)])
def test_context_attention_is_causal_attention_by_definition(num_past: int, num_new: int) -> None:
    total = num_past + num_new
    q = random(2, HEADS, num_new, DIM, seed=1)
    keys, values = random(2, GROUPS, total, DIM, seed=2), random(2, GROUPS, total, DIM, seed=3)
    mixed = context_attention(q, (keys, values), num_past)
    for b, h, n in torch.cartesian_prod(*map(torch.arange, (2, HEADS, num_new))).tolist():
        group, seen = h // (HEADS // GROUPS), num_past + n + 1
        expected = attend(q[b, h, n], [*keys[b, group, :seen]], [*values[b, group, :seen]])
        torch.testing.assert_close(mixed[b, h, n], expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_canvas_attention_is_one_softmax_over_both_contexts_and_the_own_canvas(
    groups: int, masked: bool
) -> None:
    batch, canvases, size, num_prefix, num_suffix = 2, 3, 2, 5, 4
    num = canvases * size
    q_left = random(batch, HEADS, num, DIM, seed=1)
    q_right = random(batch, HEADS, num, DIM, seed=2)
    prefix, suffix, canvas = (
        (random(batch, groups, n, DIM, seed=s), random(batch, groups, n, DIM, seed=s + 1))
        for n, s in ((num_prefix, 3), (num_suffix, 5), (num, 7))
    )
    seen_prefix = random(batch, num, num_prefix, seed=9) > 0
    seen_suffix = random(batch, num, num_suffix, seed=10) > 0
    if not masked:
        seen_prefix, seen_suffix = torch.ones_like(seen_prefix), torch.ones_like(seen_suffix)

    def additive(seen: Tensor) -> Tensor | None:
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
        return mask[:, None] if masked else None

    mixed = canvas_attention(
        q_left,
        q_right,
        prefix,
        suffix,
        canvas,
        additive(seen_prefix),
        additive(seen_suffix),
        None,
        size,
    )
    assert mixed.shape == (batch, HEADS, num, DIM)
    for b, h, n in torch.cartesian_prod(*map(torch.arange, (batch, HEADS, num))).tolist():
        g = h // (HEADS // groups)
        own = range(n // size * size, n // size * size + size)
        left = [*prefix[0][b, g][seen_prefix[b, n]], *(canvas[0][b, g, i] for i in own)]
        # Suffix keys meet the other rotation of the query; the scores stand in one softmax.
        right = [*suffix[0][b, g][seen_suffix[b, n]]]
        scores = [float(q_left[b, h, n] @ k) for k in left]
        scores += [float(q_right[b, h, n] @ k) for k in right]
        weights = torch.softmax(torch.tensor(scores, dtype=torch.float64) / math.sqrt(DIM), 0)
        values = [*prefix[1][b, g][seen_prefix[b, n]], *(canvas[1][b, g, i] for i in own)]
        values += [*suffix[1][b, g][seen_suffix[b, n]]]
        torch.testing.assert_close(mixed[b, h, n], weights @ torch.stack(values))


def test_canvas_attention_in_bf16_is_close_to_fp64() -> None:
    inputs = [random(1, HEADS, 4, DIM, seed=s) for s in (1, 2)]
    contexts = [
        (random(1, GROUPS, n, DIM, seed=s), random(1, GROUPS, n, DIM, seed=s + 1))
        for n, s in ((9, 3), (7, 5), (4, 7))
    ]
    exact = canvas_attention(*inputs, *contexts, None, None, None, 4)
    half = canvas_attention(
        *(x.bfloat16() for x in inputs),
        *((k.bfloat16(), v.bfloat16()) for k, v in contexts),
        None,
        None,
        None,
        4,
    )
    torch.testing.assert_close(half.double(), exact, rtol=0.05, atol=0.02)


def test_a_padded_canvas_is_attended_to_as_the_shorter_one() -> None:
    q = [random(1, HEADS, 6, DIM, seed=s) for s in (1, 2)]
    prefix, suffix, canvas = [
        (random(1, GROUPS, n, DIM, seed=s), random(1, GROUPS, n, DIM, seed=s + 1))
        for n, s in ((9, 3), (7, 5), (6, 7))
    ]
    mask = torch.zeros(1, 1, 1, 6, dtype=torch.float64)
    mask[..., 4:] = float("-inf")
    padded = canvas_attention(*q, prefix, suffix, canvas, None, None, mask, 6)
    short = [x[:, :, :4] for x in q]
    alone = canvas_attention(
        *short, prefix, suffix, (canvas[0][:, :, :4], canvas[1][:, :, :4]), None, None, None, 4
    )
    torch.testing.assert_close(padded[:, :, :4], alone)
