"""Rotary positions, by the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.transformer import rotary_tables, rotate

DIM = 4


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


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
