from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.training.optimizer import VECTOR_RATE, WARMUP_STEPS, MasterOptimizer, rate_factor


class TwoLayers(nn.Module):
    """The smallest model with a matrix, an embedding and a norm; its forward is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.linear = nn.Linear(4, 8, bias=False)
        self.norm = nn.RMSNorm(4)


@pytest.fixture
def model() -> TwoLayers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TwoLayers().to(torch.bfloat16)


def set_gradients(model: nn.Module, seed: int, scale: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator).bfloat16()


def test_updates_too_small_for_bf16_add_up_in_the_masters(model: TwoLayers) -> None:
    nn.init.ones_(model.norm.weight)
    optimizer = MasterOptimizer(model, learning_rate=1e-3 / VECTOR_RATE, weight_decay=0.0)
    seen = []
    for _ in range(8):  # eight steps of 0.001; bf16 below 1 is spaced by 0.004
        model.norm.weight.grad = torch.full((4,), 0.01, dtype=torch.bfloat16)
        optimizer.step(1.0)
        seen.append(model.norm.weight[0].item())
    assert seen[0] == 1.0
    assert seen[-1] < 0.995
    assert optimizer.masters["norm.weight"][0].item() == pytest.approx(0.992, abs=1e-4)


def test_the_model_always_holds_its_rounded_masters(model: TwoLayers) -> None:
    optimizer = MasterOptimizer(model, learning_rate=0.01, weight_decay=0.1)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step(1.0)
        for name, parameter in model.named_parameters():
            assert parameter.equal(optimizer.masters[name].bfloat16())


def test_a_step_reports_the_norm_it_found_and_clears_the_gradients(model: TwoLayers) -> None:
    set_gradients(model, 0, scale=10.0)
    gradients = torch.cat([p.grad.float().flatten() for p in model.parameters()])
    norm = MasterOptimizer(model, learning_rate=0.01, weight_decay=0.0).step(1.0)
    assert norm == pytest.approx(gradients.norm().item())
    assert all(p.grad is None for p in model.parameters())


def test_the_first_step_is_the_rate_by_the_gradients_sign_and_larger_for_vectors(
    model: TwoLayers,
) -> None:
    optimizer = MasterOptimizer(model, learning_rate=0.01, weight_decay=0.0)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    set_gradients(model, 0)
    signs = {name: p.grad.float().sign() for name, p in model.named_parameters()}
    optimizer.step(1.0)
    for name, rate in (("linear.weight", 0.01), ("norm.weight", 0.01 * VECTOR_RATE)):
        moved = optimizer.masters[name] - before[name]
        torch.testing.assert_close(moved, -rate * signs[name], rtol=1e-3, atol=1e-6)


def test_weight_decay_shrinks_matrices_only(model: TwoLayers) -> None:
    optimizer = MasterOptimizer(model, learning_rate=0.1, weight_decay=0.5)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1.0)
    torch.testing.assert_close(optimizer.masters["linear.weight"], 0.95 * before["linear.weight"])
    assert optimizer.masters["norm.weight"].equal(before["norm.weight"])


def test_the_rate_factor_scales_a_step(model: TwoLayers) -> None:
    moves = []
    for factor in (1.0, 0.25, 0.0):
        one = copy.deepcopy(model)
        optimizer = MasterOptimizer(one, learning_rate=0.01, weight_decay=0.0)
        before = optimizer.masters["linear.weight"].clone()
        set_gradients(one, 0)
        optimizer.step(factor)
        moves.append((optimizer.masters["linear.weight"] - before).norm().item())
    assert moves[1] == pytest.approx(moves[0] / 4, rel=1e-3)
    assert moves[2] == 0.0


def test_going_on_from_a_saved_state_equals_never_having_stopped(model: TwoLayers) -> None:
    def steps(optimizer: MasterOptimizer, one: nn.Module, numbers: range) -> None:
        for number in numbers:
            set_gradients(one, number)
            optimizer.step(1.0)

    straight, stopped, resumed = (copy.deepcopy(model) for _ in range(3))
    sizes = {"learning_rate": 0.01, "weight_decay": 0.1}
    whole = MasterOptimizer(straight, **sizes)
    steps(whole, straight, range(6))
    first = MasterOptimizer(stopped, **sizes)
    steps(first, stopped, range(3))
    second = MasterOptimizer(resumed, **sizes)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(a.equal(b) for a, b in zip(stopped.parameters(), resumed.parameters(), strict=True))
    steps(second, resumed, range(3, 6))
    for name, master in whole.masters.items():
        assert second.masters[name].equal(master)


class TestRateFactor:
    @given(step=st.integers(0, 10_000), share=st.floats(0, 1), minutes=st.floats(0.01, 1000))
    def test_lies_between_zero_and_one(self, step: int, share: float, minutes: float) -> None:
        assert 0.0 <= rate_factor(step, share * minutes, minutes) <= 1.0

    def test_rises_from_above_zero_stays_at_one_and_falls_to_zero(self) -> None:
        assert 0 < rate_factor(0, 0.0, 100.0) < 0.1
        assert rate_factor(WARMUP_STEPS // 2 - 1, 5.0, 100.0) == pytest.approx(0.5)
        assert {rate_factor(500, minute, 100.0) for minute in (2.0, 50.0, 70.0)} == {1.0}
        assert rate_factor(500, 85.0, 100.0) == pytest.approx(0.5)
        assert rate_factor(500, 100.0, 100.0) == 0.0

    def test_falls_over_the_cooldown_that_is_asked_for(self) -> None:
        assert rate_factor(500, 95.0, 100.0, cooldown=5.0) == 1.0
        assert rate_factor(500, 99.0, 100.0, cooldown=5.0) == pytest.approx(0.2)

    def test_has_no_jumps(self) -> None:
        factors = [rate_factor(500, i / 10, 100.0) for i in range(1001)]
        assert max(abs(a - b) for a, b in itertools.pairwise(factors)) <= 0.051
