from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.sampler import (
    EntropyBoundPolicy,
    FixedStepsPolicy,
    LeftToRightPolicy,
    StepChoice,
    ThresholdPolicy,
    choose,
    commit,
)
from model.engine.sequence import SamplingParams

MASK, END, OTHER_SPECIAL = 0, 1, 2
VOCAB = 9
FORBIDDEN = torch.tensor([i in (MASK, OTHER_SPECIAL) for i in range(VOCAB)])
ORDINARY = range(3, VOCAB)
BETWEEN = -1
NO_ONE = torch.empty(0)
"""Probabilities for policies that look at confidences only."""


def likes(*favourites: int, strength: float = 6.0) -> torch.Tensor:
    """Logits (C, V) of a model that wants one token a slot, the earlier the more surely."""
    logits = torch.zeros(len(favourites), VOCAB)
    for slot, token in enumerate(favourites):
        logits[slot, token] = strength - 0.1 * slot
    return logits


def step_of(
    logits: torch.Tensor,
    canvas: list[int],
    params: SamplingParams,
    *,
    holes: list[int] | None = None,
    step: int = 0,
) -> tuple[StepChoice, list[int]]:
    """One choice and the canvas after it."""
    canvas_C, hole_C = torch.tensor(canvas), torch.tensor(holes or [0] * len(canvas))
    choice = choose(
        logits, canvas_C, hole_C, params, step, mask_id=MASK, end_id=END, forbidden=FORBIDDEN
    )
    return choice, commit(choice, canvas_C, hole_C, mask_id=MASK, end_id=END).tolist()


@st.composite
def canvases(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(ids, hole of each slot) of a canvas that steps can have led to, with a mask in it."""
    ids: list[int] = []
    holes: list[int] = []
    for hole in range(draw(st.integers(1, 3))):
        if hole:
            between = draw(st.lists(st.sampled_from(ORDINARY), max_size=3))
            ids += between
            holes += [BETWEEN] * len(between)
        decided = draw(st.lists(st.sampled_from([MASK, MASK, *ORDINARY]), max_size=8))
        slots = decided + [END] * draw(st.integers(0, 3))
        ids += slots
        holes += [hole] * len(slots)
    if MASK not in ids:
        ids.insert(0, MASK)
        holes.insert(0, 0)
    return ids, holes


@st.composite
def sampling(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        steps=draw(st.none() | st.integers(1, 8)),
        policy=draw(st.sampled_from(["threshold", "entropy", "left-to-right"])),
        threshold=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        entropy_bound=draw(st.sampled_from([0.0, 0.5, 5.0, 1e3])),
        temperature=draw(st.sampled_from([0.0, 1e-30, 0.7, 10.0])),
        seed=draw(st.integers(-(2**70), 2**70)),
    )


def random_logits(seed: int, num_slots: int) -> torch.Tensor:
    logits = 3 * torch.randn(num_slots, VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[:, END] += 2  # so that ends and tokens often conflict
    return logits


def assert_well_formed(canvas: list[int], holes: list[int]) -> None:
    """Nothing but `<eom>` follows an `<eom>` of the same hole."""
    for hole in set(holes) - {BETWEEN}:
        ids = [i for i, h in zip(canvas, holes, strict=True) if h == hole]
        if END in ids:
            assert set(ids[ids.index(END) :]) == {END}


class TestAnyStep:
    @given(canvas=canvases(), params=sampling(), step=st.integers(0, 9), seed=st.integers(0, 999))
    def test_decides_a_masked_slot_and_changes_no_other(
        self, canvas: tuple[list[int], list[int]], params: SamplingParams, step: int, seed: int
    ) -> None:
        ids, holes = canvas
        choice, after = step_of(random_logits(seed, len(ids)), ids, params, holes=holes, step=step)
        assert choice.chosen.any()
        assert after.count(MASK) < ids.count(MASK)
        for old, new, chosen in zip(ids, after, choice.chosen.tolist(), strict=True):
            assert new == old or (old == MASK and (chosen or new == END))

    @given(canvas=canvases(), params=sampling(), seed=st.integers(0, 999))
    def test_leads_to_a_canvas_whose_holes_end_once_and_hold_no_forbidden_id(
        self, canvas: tuple[list[int], list[int]], params: SamplingParams, seed: int
    ) -> None:
        ids, holes = canvas
        step = 0
        while MASK in ids:
            logits = random_logits(seed + step, len(ids))
            logits[:, [MASK, OTHER_SPECIAL]] += 20  # what the model would rather write
            _, ids = step_of(logits, ids, params, holes=holes, step=step)
            assert_well_formed(ids, holes)
            step += 1
        assert OTHER_SPECIAL not in ids

    @given(canvas=canvases(), params=sampling(), seed=st.integers(0, 999))
    def test_is_reproducible(
        self, canvas: tuple[list[int], list[int]], params: SamplingParams, seed: int
    ) -> None:
        ids, holes = canvas
        logits = random_logits(seed, len(ids))
        torch.manual_seed(seed)  # the global generator has no say
        first = step_of(logits, ids, params, holes=holes)[1]
        torch.manual_seed(seed + 1)
        assert step_of(logits, ids, params, holes=holes)[1] == first

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_refuses_logits_that_are_not_finite(self, bad: float, temperature: float) -> None:
        logits = likes(3, 4)
        logits[1, 5] = bad
        with pytest.raises(FloatingPointError, match="non-finite"):
            step_of(logits, [MASK, MASK], SamplingParams(temperature=temperature))


class TestEnds:
    all_at_once = SamplingParams(threshold=0.0)

    def test_everything_behind_an_end_becomes_end(self) -> None:
        _, after = step_of(likes(3, END, 4), [MASK] * 3, SamplingParams(threshold=0.99))
        assert after == [3, MASK, MASK]  # one slot at a time: nothing has ended yet
        _, after = step_of(likes(3, END, 4), [3, MASK, MASK], SamplingParams(threshold=0.99))
        assert after == [3, END, END]

    def test_an_end_surer_than_the_tokens_behind_it_wins(self) -> None:
        _, after = step_of(likes(3, END, 4, 5), [MASK] * 4, self.all_at_once)
        assert after == [3, END, END, END]

    def test_a_token_surer_than_an_end_before_it_wins_and_leaves_that_slot_open(self) -> None:
        logits = likes(3, END, 4)
        logits[2, 4] += 2
        _, after = step_of(logits, [MASK] * 3, self.all_at_once)
        assert after == [3, MASK, 4]

    def test_no_end_comes_before_a_committed_token(self) -> None:
        choice, after = step_of(likes(END, END, 3, END), [MASK, MASK, 7, MASK], self.all_at_once)
        assert END not in after[:2]
        assert after[2:] == [7, END]
        assert choice.confidence[0] < 0.5  # of the token it fell back to, END left aside

    def test_an_end_behind_an_open_slot_waits_however_sure_it_is(self) -> None:
        logits = likes(3, 4, END, END)
        logits[:2] /= 4  # unsure tokens before two sure ends
        _, after = step_of(logits, [MASK] * 4, SamplingParams(threshold=0.9))
        assert after == [3, MASK, MASK, MASK]

    def test_an_end_right_behind_what_the_step_commits_is_committed_with_it(self) -> None:
        _, after = step_of(likes(3, 4, END, END), [MASK] * 4, SamplingParams(threshold=0.9))
        assert after == [3, 4, END, END]

    def test_an_end_does_not_reach_into_another_hole(self) -> None:
        _, after = step_of(
            likes(END, END, 3, 4), [MASK, MASK, 8, MASK], self.all_at_once, holes=[0, 0, -1, 1]
        )
        assert after == [END, END, 8, 4]

    def test_a_token_of_a_later_hole_does_not_forbid_an_end(self) -> None:
        _, after = step_of(likes(END, 3), [MASK, 5], self.all_at_once, holes=[0, 1])
        assert after == [END, 5]


class TestThresholdPolicy:
    def test_commits_what_exceeds_the_threshold(self) -> None:
        chosen = ThresholdPolicy(0.5).select(torch.tensor([0.6, 0.5, -1.0, 0.9]), NO_ONE, 0)
        assert chosen.tolist() == [True, False, False, True]

    def test_commits_the_surest_slot_when_none_exceeds_it(self) -> None:
        chosen = ThresholdPolicy(1.0).select(torch.tensor([-1.0, 0.2, 0.4, 0.3]), NO_ONE, 0)
        assert chosen.tolist() == [False, False, True, False]

    @given(tokens=st.lists(st.sampled_from(ORDINARY), min_size=1, max_size=16))
    def test_0_commits_a_canvas_without_conflicts_at_once(self, tokens: list[int]) -> None:
        _, after = step_of(likes(*tokens), [MASK] * len(tokens), SamplingParams(threshold=0.0))
        assert after == tokens


class TestFixedStepsPolicy:
    @given(num_slots=st.integers(1, 40), steps=st.integers(1, 50), data=st.data())
    def test_decides_everything_in_exactly_its_steps_evenly(
        self, num_slots: int, steps: int, data: st.DataObject
    ) -> None:
        confidence = torch.tensor(data.draw(st.permutations([i / 64 for i in range(num_slots)])))
        counts: list[int] = []
        while (confidence >= 0).any():
            chosen = FixedStepsPolicy(steps).select(confidence, NO_ONE, len(counts))
            assert confidence[chosen].min() >= max(confidence[~chosen].tolist(), default=-1.0)
            confidence[chosen] = -1.0
            counts.append(int(chosen.sum()))
        assert len(counts) == min(steps, num_slots)
        assert max(counts) - min(counts) <= 1


def two_way(*probabilities: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(confidence, probabilities) of slots that are torn between two tokens."""
    rows = torch.tensor([[p, 1 - p] for p in probabilities])
    return rows.amax(dim=1), rows


class TestEntropyBoundPolicy:
    # Entropies in nats: 0.056, 0.325, 0.500, 0.693.
    confidence, probabilities = two_way(0.99, 0.5, 0.9, 0.8)

    @pytest.mark.parametrize(
        ("bound", "chosen"),
        [
            (0.0, [True, False, False, False]),
            (0.05, [True, False, False, False]),
            (0.06, [True, False, True, False]),  # 0.056 beside the largest, 0.325
            (0.39, [True, False, True, True]),  # 0.056 + 0.325 beside 0.500
            (0.89, [True, True, True, True]),
        ],
    )
    def test_takes_the_surest_while_all_but_the_largest_entropy_fit(
        self, bound: float, chosen: list[bool]
    ) -> None:
        selected = EntropyBoundPolicy(bound).select(self.confidence, self.probabilities, 0)
        assert selected.tolist() == chosen

    def test_never_takes_a_slot_that_is_not_open(self) -> None:
        confidence = self.confidence.clone()
        confidence[0] = -1.0
        selected = EntropyBoundPolicy(1e3).select(confidence, self.probabilities, 0)
        assert selected.tolist() == [False, True, True, True]

    def test_trusts_one_more_slot_only_within_the_same_bound(self) -> None:
        chosen = torch.tensor([True, False, True, False])
        for bound, trusted in ((0.39, True), (0.38, False)):
            trusts = EntropyBoundPolicy(bound).trusts(chosen, self.confidence, self.probabilities)
            assert trusts[3].item() is trusted

    def test_without_a_choice_yet_any_one_slot_is_within_the_bound(self) -> None:
        nothing = torch.zeros(4, dtype=torch.bool)
        trusts = EntropyBoundPolicy(0.0).trusts(nothing, self.confidence, self.probabilities)
        assert trusts.all()


class TestLeftToRightPolicy:
    def test_takes_the_leftmost_open_slot_however_unsure(self) -> None:
        chosen = LeftToRightPolicy().select(torch.tensor([-1.0, 0.0, 0.9, -1.0, 1.0]), NO_ONE, 0)
        assert chosen.tolist() == [False, True, False, False, False]

    @given(seed=st.integers(0, 999))
    def test_a_canvas_fills_one_slot_a_step_from_the_left_and_ends_at_its_first_end(
        self, seed: int
    ) -> None:
        ids, params = [MASK] * 10, SamplingParams(policy="left-to-right")
        for slot in range(10):
            _, ids = step_of(random_logits(seed + slot, 10), ids, params)
            if END in ids:
                assert ids.index(END) == slot
                assert MASK not in ids
                return
            assert (ids.index(MASK) if slot < 9 else 10) == slot + 1


class TestTemperature:
    def test_a_tiny_one_is_greedy(self) -> None:
        logits = random_logits(3, 12)
        masks = [MASK] * 12
        greedy, _ = step_of(logits, masks, SamplingParams())
        cold, _ = step_of(logits, masks, SamplingParams(temperature=1e-30, seed=5))
        assert cold.tokens.tolist() == greedy.tokens.tolist()

    def test_seeds_and_steps_draw_differently(self) -> None:
        logits, masks = torch.zeros(32, VOCAB), [MASK] * 32
        draws = {
            tuple(
                step_of(logits, masks, SamplingParams(temperature=1.0, seed=seed), step=step)[
                    0
                ].tokens.tolist()
            )
            for seed in range(3)
            for step in range(3)
        }
        assert len(draws) == 9

    def test_confidence_is_the_models_own_probability(self) -> None:
        logits = random_logits(4, 6)
        choice, _ = step_of(logits, [MASK] * 6, SamplingParams(temperature=5.0, seed=1))
        expected = logits.masked_fill(FORBIDDEN, float("-inf")).softmax(-1)
        assert torch.allclose(choice.confidence, expected[range(6), choice.tokens])
