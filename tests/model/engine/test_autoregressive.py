from __future__ import annotations

from collections import Counter

import pytest
import torch

from model.engine.autoregressive import next_token
from model.engine.sequence import SamplingParams

NONE = torch.zeros(4, dtype=torch.bool)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_greedy_takes_the_likeliest_allowed_token_and_its_probability() -> None:
    forbidden = torch.tensor([False, False, False, True])
    token, probability = next_token(logits_of(0.1, 0.3, 0.1, 0.5), SamplingParams(), 0, forbidden)
    assert token == 1
    assert probability == pytest.approx(0.6)


def test_draws_follow_the_temperature_and_the_seed() -> None:
    logits = logits_of(0.1, 0.2, 0.3, 0.4)
    params = SamplingParams(temperature=0.5, seed=7)
    draws = Counter(next_token(logits, params, i, NONE)[0] for i in range(2000))
    squares = torch.tensor([0.01, 0.04, 0.09, 0.16])
    expected = (squares / squares.sum()).tolist()
    assert [draws[i] / 2000 for i in range(4)] == pytest.approx(expected, abs=0.04)
    assert next_token(logits, params, 3, NONE) == next_token(logits, params, 3, NONE)


def test_top_p_draws_from_the_smallest_set_with_that_probability() -> None:
    logits = logits_of(0.1, 0.2, 0.3, 0.4)

    def drawn(top_p: float) -> set[int]:
        params = SamplingParams(temperature=1.0, top_p=top_p)
        return {next_token(logits, params, i, NONE)[0] for i in range(200)}

    assert drawn(0.01) == {3}
    assert drawn(0.69) == {2, 3}
    assert drawn(0.89) == {1, 2, 3}
    assert drawn(1.0) == {0, 1, 2, 3}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = torch.tensor([0.0, bad, 1.0, 2.0])
    with pytest.raises(FloatingPointError, match="non-finite"):
        next_token(logits, SamplingParams(temperature=temperature), 0, NONE)
