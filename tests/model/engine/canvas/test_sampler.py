from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.canvas.policies import (
    EntropyBoundPolicy,
    FactorPolicy,
    FixedStepsPolicy,
    LeftToRightPolicy,
    OpenSlots,
    ThresholdPolicy,
    UnmaskPolicy,
    policy_of,
)
from model.engine.canvas.sampler import CanvasBatch, SamplingRows, Vocabulary, decide, pick
from model.engine.canvas.sequence import CanvasParams

CPU = torch.device("cpu")
MASK, END, OTHER_SPECIAL = 0, 1, 2
VOCAB = 9
FORBIDDEN = torch.tensor([i in (MASK, OTHER_SPECIAL) for i in range(VOCAB)])
ORDINARY = range(3, VOCAB)
BETWEEN = -1
VOCABULARY = Vocabulary(
    mask_id=MASK, end_id=END, special_ids=frozenset({MASK, END}), forbidden=FORBIDDEN
)


def likes(*favourites: int, strength: float = 6.0) -> torch.Tensor:
    """Logits (C, V) of a model that wants one token a slot, the earlier the more surely."""
    logits = torch.zeros(len(favourites), VOCAB)
    for slot, token in enumerate(favourites):
        logits[slot, token] = strength - 0.1 * slot
    return logits


def canvas_batch(
    canvases: list[list[int]],
    params: list[CanvasParams],
    *,
    holes: list[list[int]] | None = None,
    fixed: list[list[bool]] | None = None,
    step: int = 0,
    no_end: bool = False,
) -> CanvasBatch:
    """Canvases of one size, with the hole of each slot."""
    ids = torch.tensor(canvases)
    hole = torch.tensor(holes) if holes else torch.zeros_like(ids)
    order = torch.arange(ids.shape[1])
    return CanvasBatch(
        ids=ids,
        confidence=torch.ones(ids.shape),
        fixed=torch.tensor(fixed) if fixed else torch.zeros_like(ids, dtype=torch.bool),
        after=(hole[:, :, None] == hole[:, None, :]) & (order > order[:, None]),
        step=torch.full((len(canvases), 1), step),
        no_end=torch.tensor([[no_end]] * len(canvases)) if no_end else None,
        rows=SamplingRows(params, CPU),
    )


def step_of(
    logits: torch.Tensor,
    canvas: list[int],
    params: CanvasParams,
    *,
    holes: list[int] | None = None,
    step: int = 0,
) -> tuple[list[float], list[int]]:
    """Confidences and ids of one canvas after one decision."""
    canvases = canvas_batch([canvas], [params], holes=[holes] if holes else None, step=step)
    assert not decide(canvases, logits[None], VOCABULARY).any()
    return canvases.confidence[0].tolist(), canvases.ids[0].tolist()


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
def sampling(draw: st.DrawFn) -> CanvasParams:
    return CanvasParams(
        steps=draw(st.none() | st.integers(1, 8)),
        policy=draw(st.sampled_from(["threshold", "entropy", "factor", "left-to-right"])),
        threshold=draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        entropy_bound=draw(st.sampled_from([0.0, 0.5, 5.0, 1e3])),
        factor=draw(st.sampled_from([0.0, 1.0, 3.0])),
        temperature=draw(st.sampled_from([0.0, 1e-30, 0.7, 10.0])),
        top_p=draw(st.sampled_from([1.0, 0.9, 1e-9])),
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
        self, canvas: tuple[list[int], list[int]], params: CanvasParams, step: int, seed: int
    ) -> None:
        ids, holes = canvas
        _, after = step_of(random_logits(seed, len(ids)), ids, params, holes=holes, step=step)
        assert after.count(MASK) < ids.count(MASK)
        assert all(new == old or old == MASK for old, new in zip(ids, after, strict=True))

    @given(canvas=canvases(), params=sampling(), seed=st.integers(0, 999))
    def test_leads_to_a_canvas_whose_holes_end_once_and_hold_no_forbidden_id(
        self, canvas: tuple[list[int], list[int]], params: CanvasParams, seed: int
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
        self, canvas: tuple[list[int], list[int]], params: CanvasParams, seed: int
    ) -> None:
        ids, holes = canvas
        logits = random_logits(seed, len(ids))
        torch.manual_seed(seed)  # the global generator has no say
        first = step_of(logits, ids, params, holes=holes)[1]
        torch.manual_seed(seed + 1)
        assert step_of(logits, ids, params, holes=holes)[1] == first

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_names_the_rows_whose_logits_are_not_finite(
        self, bad: float, temperature: float
    ) -> None:
        logits = likes(3, 4).repeat(2, 1, 1)
        logits[1, 1, 5] = bad
        canvases = canvas_batch([[MASK, MASK]] * 2, [CanvasParams(temperature=temperature)] * 2)
        assert decide(canvases, logits, VOCABULARY).tolist() == [False, True]

    def test_logits_of_decided_slots_do_not_matter(self) -> None:
        logits = likes(3, 4)
        logits[0] = float("nan")
        assert step_of(logits, [5, MASK], CanvasParams())[1] == [5, 4]

    @given(data=st.data(), seed=st.integers(0, 999), size=st.integers(1, 4))
    def test_a_row_gets_what_it_gets_alone_whatever_else_is_in_the_batch(
        self, data: st.DataObject, seed: int, size: int
    ) -> None:
        drawn = [data.draw(canvases()) for _ in range(size)]
        params = [data.draw(sampling()) for _ in range(size)]
        longest = max(len(ids) for ids, _ in drawn)
        logits = torch.stack([random_logits(seed + row, longest) for row in range(size)])
        together = canvas_batch(
            [ids + [END] * (longest - len(ids)) for ids, _ in drawn],
            params,
            holes=[holes + [BETWEEN] * (longest - len(holes)) for _, holes in drawn],
        )
        decide(together, logits, VOCABULARY)
        for row, (ids, holes) in enumerate(drawn):
            confidence, alone = step_of(logits[row, : len(ids)], ids, params[row], holes=holes)
            assert together.ids[row, : len(ids)].tolist() == alone
            found = together.confidence[row, : len(ids)]
            torch.testing.assert_close(found, torch.tensor(confidence))

    def test_generates_no_end_in_a_row_of_known_length(self) -> None:
        canvases = canvas_batch([[MASK] * 3], [CanvasParams(threshold=0.0)], no_end=True)
        decide(canvases, likes(3, END, END)[None], VOCABULARY)
        assert END not in canvases.ids


class TestEnds:
    all_at_once = CanvasParams(threshold=0.0)

    def test_everything_behind_an_end_becomes_end(self) -> None:
        _, after = step_of(likes(3, END, 4), [MASK] * 3, CanvasParams(threshold=0.99))
        assert after == [3, MASK, MASK]  # one slot at a time: nothing has ended yet
        _, after = step_of(likes(3, END, 4), [3, MASK, MASK], CanvasParams(threshold=0.99))
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
        confidence, after = step_of(
            likes(END, END, 3, END), [MASK, MASK, 7, MASK], self.all_at_once
        )
        assert END not in after[:2]
        assert after[2:] == [7, END]
        assert confidence[0] < 0.5  # of the token it fell back to, END left aside

    def test_an_end_behind_an_open_slot_waits_however_sure_it_is(self) -> None:
        logits = likes(3, 4, END, END)
        logits[:2] /= 4  # unsure tokens before two sure ends
        _, after = step_of(logits, [MASK] * 4, CanvasParams(threshold=0.9))
        assert after == [3, MASK, MASK, MASK]

    def test_an_end_right_behind_what_the_step_commits_is_committed_with_it(self) -> None:
        _, after = step_of(likes(3, 4, END, END), [MASK] * 4, CanvasParams(threshold=0.9))
        assert after == [3, 4, END, END]

    def test_an_end_does_not_reach_into_another_hole(self) -> None:
        _, after = step_of(
            likes(END, END, 3, 4), [MASK, MASK, 8, MASK], self.all_at_once, holes=[0, 0, -1, 1]
        )
        assert after == [END, END, 8, 4]

    def test_a_token_of_a_later_hole_does_not_forbid_an_end(self) -> None:
        _, after = step_of(likes(END, 3), [MASK, 5], self.all_at_once, holes=[0, 1])
        assert after == [END, 5]


def selected(policy: UnmaskPolicy, confidence: list[float]) -> list[bool]:
    """What a policy that looks at confidences only commits of one canvas."""
    slots = OpenSlots(torch.tensor([confidence]), None, torch.tensor([[0]]))
    return policy.select(slots)[0].tolist()


class TestThresholdPolicy:
    def test_commits_what_exceeds_the_threshold(self) -> None:
        policy = ThresholdPolicy(torch.tensor([[0.5]]))
        assert selected(policy, [0.6, 0.5, -1.0, 0.9]) == [True, False, False, True]

    def test_commits_the_leftmost_open_slot_also_when_none_exceeds_it(self) -> None:
        policy = ThresholdPolicy(torch.tensor([[0.5]]))
        assert selected(policy, [-1.0, 0.2, 0.4, 0.3]) == [False, True, False, False]
        assert selected(policy, [-1.0, 0.2, 0.4, 0.6]) == [False, True, False, True]

    def test_commits_the_surest_one_instead_where_that_is_asked_for(self) -> None:
        policy = ThresholdPolicy(torch.tensor([[1.0]]), takes_leftmost=False)
        assert selected(policy, [-1.0, 0.2, 0.4, 0.3]) == [False, False, True, False]

    def test_rows_may_differ_in_which_one_that_is(self) -> None:
        params = [CanvasParams(threshold=1.0, at_least=one) for one in ("leftmost", "surest")]
        policy = policy_of(params, torch.device("cpu"))
        slots = OpenSlots(torch.tensor([[0.2, 0.4]] * 2), None, torch.zeros(2, 1))
        assert policy.select(slots).tolist() == [[True, False], [False, True]]

    @given(tokens=st.lists(st.sampled_from(ORDINARY), min_size=1, max_size=16))
    def test_0_commits_a_canvas_without_conflicts_at_once(self, tokens: list[int]) -> None:
        _, after = step_of(likes(*tokens), [MASK] * len(tokens), CanvasParams(threshold=0.0))
        assert after == tokens


class TestFixedStepsPolicy:
    @given(num_slots=st.integers(1, 40), steps=st.integers(1, 50), data=st.data())
    def test_decides_everything_in_exactly_its_steps_evenly(
        self, num_slots: int, steps: int, data: st.DataObject
    ) -> None:
        confidence = torch.tensor(data.draw(st.permutations([i / 64 for i in range(num_slots)])))
        counts: list[int] = []
        while (confidence >= 0).any():
            slots = OpenSlots(confidence[None], None, torch.tensor([[len(counts)]]))
            chosen = FixedStepsPolicy(torch.tensor([[steps]])).select(slots)[0]
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
    # Entropies in nats: 0.056, 0.693, 0.325, 0.500.
    confidence, probabilities = two_way(0.99, 0.5, 0.9, 0.8)
    entropy = torch.special.entr(probabilities).sum(dim=-1)[None]

    def slots(self, confidence: torch.Tensor) -> OpenSlots:
        return OpenSlots(confidence[None], self.entropy, torch.tensor([[0]]))

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
        policy = EntropyBoundPolicy(torch.tensor([[bound]]))
        assert policy.select(self.slots(self.confidence))[0].tolist() == chosen

    def test_never_takes_a_slot_that_is_not_open(self) -> None:
        confidence = self.confidence.clone()
        confidence[0] = -1.0
        chosen = EntropyBoundPolicy(torch.tensor([[1e3]])).select(self.slots(confidence))
        assert chosen[0].tolist() == [False, True, True, True]

    @pytest.mark.parametrize(("bound", "trusted"), [(0.39, True), (0.38, False)])
    def test_trusts_one_more_slot_only_within_the_same_bound(
        self, bound: float, trusted: bool
    ) -> None:
        chosen = torch.tensor([[True, False, True, False]])
        policy = EntropyBoundPolicy(torch.tensor([[bound]]))
        trusts = policy.trusts(self.slots(self.confidence), self.confidence[None], chosen)
        assert trusts[0, 3].item() is trusted

    def test_without_a_choice_yet_any_one_slot_is_within_the_bound(self) -> None:
        nothing = torch.zeros(1, 4, dtype=torch.bool)
        policy = EntropyBoundPolicy(torch.tensor([[0.0]]))
        slots = self.slots(self.confidence)
        assert policy.trusts(slots, self.confidence[None], nothing).all()


class TestFactorPolicy:
    @pytest.mark.parametrize(
        ("factor", "chosen"),
        [
            (0.0, [False, True, False, False]),
            (0.5, [False, True, False, True]),  # 1 - 0.5 / 2 = 0.75, 1 - 0.5 / 3 = 0.83, then 0.875
            (1.0, [True, True, False, True]),  # 0.5, 0.67, 0.75, then 0.8
        ],
    )
    def test_the_more_slots_at_once_the_surer_each_must_be(
        self, factor: float, chosen: list[bool]
    ) -> None:
        policy = FactorPolicy(torch.tensor([[factor]]))
        assert selected(policy, [0.8, 0.95, 0.3, 0.9]) == chosen

    def test_trusts_one_more_by_the_bound_of_one_more(self) -> None:
        slots = OpenSlots(torch.tensor([[0.9, -1.0]]), None, torch.tensor([[0]]))
        chosen = torch.tensor([[True, False]])
        for end, trusted in ((0.67, True), (0.66, False)):
            trusts = FactorPolicy(torch.tensor([[1.0]])).trusts(
                slots, torch.tensor([[0.9, end]]), chosen
            )
            assert trusts[0, 1].item() is trusted


class TestLeftToRightPolicy:
    def test_takes_the_leftmost_open_slot_however_unsure(self) -> None:
        assert selected(LeftToRightPolicy(), [-1.0, 0.0, 0.9, -1.0, 1.0]) == [
            False,
            True,
            False,
            False,
            False,
        ]

    @given(seed=st.integers(0, 999))
    def test_a_canvas_fills_one_slot_a_step_from_the_left_and_ends_at_its_first_end(
        self, seed: int
    ) -> None:
        ids, params = [MASK] * 10, CanvasParams(policy="left-to-right")
        for slot in range(10):
            _, ids = step_of(random_logits(seed + slot, 10), ids, params)
            if END in ids:
                assert ids.index(END) == slot
                assert MASK not in ids
                return
            assert (ids.index(MASK) if slot < 9 else 10) == slot + 1


class TestRemasking:
    doubting = CanvasParams(threshold=0.5, remask=0.2)

    def test_a_token_the_model_no_longer_believes_is_open_again(self) -> None:
        canvases = canvas_batch([[5, MASK, 4]], [self.doubting])
        decide(canvases, likes(3, 4, 4)[None], VOCABULARY)  # it wants 3 where 5 stands
        assert canvases.ids.tolist() == [[MASK, 4, 4]]
        assert canvases.fixed.tolist() == [[True, False, False]]

    def test_clamped_tokens_and_ends_stay_however_unlikely(self) -> None:
        canvases = canvas_batch([[5, MASK, END]], [self.doubting], fixed=[[True, False, False]])
        decide(canvases, likes(3, 4, 4)[None], VOCABULARY)
        assert canvases.ids.tolist() == [[5, 4, END]]

    @given(canvas=canvases(), seed=st.integers(0, 99), remask=st.sampled_from([0.1, 0.5, 1.0]))
    def test_every_canvas_is_done_after_two_steps_a_slot(
        self, canvas: tuple[list[int], list[int]], seed: int, remask: float
    ) -> None:
        ids, holes = canvas
        canvases = canvas_batch([ids], [CanvasParams(remask=remask)], holes=[holes])
        clamped = torch.tensor([[token not in (MASK,) for token in ids]])
        canvases.fixed = clamped
        steps = 0
        while (canvases.ids == MASK).any():
            decide(canvases, random_logits(seed + steps, len(ids))[None], VOCABULARY)
            assert_well_formed(canvases.ids[0].tolist(), holes)
            steps += 1
        assert steps <= 2 * ids.count(MASK)
        assert canvases.ids[clamped].tolist() == [token for token in ids if token != MASK]


class TestDrawing:
    def test_a_tiny_temperature_is_greedy(self) -> None:
        logits = random_logits(3, 12)[None]
        greedy = pick(logits, SamplingRows([CanvasParams()], CPU), torch.tensor([[0]]))[0]
        cold = SamplingRows([CanvasParams(temperature=1e-30, seed=5)], CPU)
        assert pick(logits, cold, torch.tensor([[0]]))[0].tolist() == greedy.tolist()

    def test_seeds_and_steps_draw_differently(self) -> None:
        logits = torch.zeros(1, 32, VOCAB)
        draws = {
            tuple(pick(logits, rows, torch.tensor([[step]]))[0][0].tolist())
            for rows in (
                SamplingRows([CanvasParams(temperature=1.0, seed=seed)], CPU) for seed in range(3)
            )
            for step in range(3)
        }
        assert len(draws) == 9

    def test_draws_each_token_as_often_as_its_tempered_probability_says(self) -> None:
        temperature, num_slots = 2.0, 40_000
        logits = torch.tensor([0.0, 1.0, 2.0, 4.0, float("-inf")]).expand(1, num_slots, 5)
        rows = SamplingRows([CanvasParams(temperature=temperature, seed=7)], CPU)
        tokens = pick(logits, rows, torch.tensor([[0]]))[0][0]
        shares = torch.bincount(tokens, minlength=5) / num_slots
        expected = (logits[0, 0] / temperature).softmax(-1)
        assert shares[4] == 0
        # Four standard deviations of the rarest share; the seed is fixed.
        torch.testing.assert_close(shares, expected, rtol=0, atol=4 * (0.25 / num_slots) ** 0.5)

    def test_top_p_leaves_the_smallest_set_that_reaches_it(self) -> None:
        logits = torch.tensor([0.5, 0.1, 0.3, 0.1]).log().expand(1, 2_000, 4)
        for top_p, drawn in ((0.4, {0}), (0.6, {0, 2}), (1.0, {0, 1, 2, 3})):
            params = CanvasParams(temperature=1.0, top_p=top_p, seed=3)
            tokens = pick(logits, SamplingRows([params], CPU), torch.tensor([[0]]))[0]
            assert set(tokens[0].tolist()) == drawn

    def test_confidence_is_the_models_own_probability(self) -> None:
        logits = random_logits(4, 6)
        confidence, after = step_of(
            logits, [MASK] * 6, CanvasParams(threshold=0.0, temperature=5.0, seed=1)
        )
        expected = logits.masked_fill(FORBIDDEN, float("-inf")).softmax(-1)
        for slot, (found, token) in enumerate(zip(confidence, after, strict=True)):
            # 1: still open, or an end that another one brought with it
            assert found == 1 or found == pytest.approx(float(expected[slot, token]))
        assert min(confidence) < 1
