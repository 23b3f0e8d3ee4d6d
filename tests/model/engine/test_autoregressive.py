from __future__ import annotations

from collections import Counter

import pytest
import torch

from model.engine.autoregressive import next_tokens
from model.engine.sampler import Vocabulary
from model.engine.sequence import Fill, SamplingParams, Sequence
from model.infill import CanvasLayout

MASK, END = 4, 5
VOCABULARY = Vocabulary(
    mask_id=MASK,
    end_id=END,
    special_ids=frozenset({MASK, END}),
    forbidden=torch.tensor([False] * 4 + [True, False]),
)
LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4, 9.0, 9.0]).log()


def chosen(
    logits: torch.Tensor, *params: SamplingParams, step: int = 0
) -> list[tuple[int, float] | None]:
    """The next tokens of sequences that all have the same logits."""
    fill = Fill(prefix=[1], suffix=[1], layout=CanvasLayout((16,)))
    batch = [Sequence.of(fill, p, mask_id=MASK, end_id=END, max_context=8) for p in params]
    for sequence in batch:
        sequence.step = step
    return next_tokens(batch, logits.expand(len(params), -1), VOCABULARY)


def drawn(params: SamplingParams, count: int) -> Counter[int]:
    """Draws of as many steps."""
    found = (chosen(LOGITS, params, step=step)[0] for step in range(count))
    return Counter(each[0] for each in found if each is not None)


def test_greedy_takes_the_likeliest_token_that_is_no_mask_and_no_end() -> None:
    (found,) = chosen(LOGITS, SamplingParams(policy="autoregressive"))
    assert found == (3, pytest.approx(0.4))


def test_draws_follow_the_temperature_and_the_seed_whatever_else_is_in_the_batch() -> None:
    params = SamplingParams(policy="autoregressive", temperature=0.5, seed=7)
    draws = drawn(params, 1500)
    squares = torch.tensor([0.01, 0.04, 0.09, 0.16])
    expected = (squares / squares.sum()).tolist()
    assert [draws[i] / 1500 for i in range(4)] == pytest.approx(expected, abs=0.05)
    greedy = SamplingParams(policy="autoregressive")
    for step in range(20):
        assert chosen(LOGITS, greedy, params, step=step)[1] == chosen(LOGITS, params, step=step)[0]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, {3}), (0.69, {2, 3}), (0.89, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_draws_from_the_smallest_set_with_that_probability(
    top_p: float, kept: set[int]
) -> None:
    params = SamplingParams(policy="autoregressive", temperature=1.0, top_p=top_p)
    assert set(drawn(params, 200)) == kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_give_no_token(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[1] = bad
    assert chosen(logits, SamplingParams(policy="autoregressive", temperature=temperature)) == [
        None
    ]
