"""Drafts: what a document repeats, what a request guesses, and the tree they make."""

from __future__ import annotations

import pytest
import torch

from model.engine.draft.choice import BackboneVocabulary, Place, chosen, uniform
from model.engine.draft.drafters import GuessDrafter, RepetitionDrafter, with_odds
from model.engine.draft.repeated_text import IndexedText, RepeatedText
from model.engine.draft.stream import BackboneFill, Stream
from model.engine.draft.tree import Draft, DraftTree, least_odds
from model.engine.fill import SamplingParams
from model.engine.run.backbone_runner import ancestors

GREEDY = SamplingParams(policy="verified")


def stream_of(*tokens: int, **options: object) -> Stream:
    fill = BackboneFill(prompt=(1,), **options)  # type: ignore[arg-type]
    return Stream(fill=fill, params=GREEDY, ids=[1, *tokens], num_prompt=1, rest=b"")


def tokens_of(drafts: list[list[Draft]]) -> list[list[list[int]]]:
    return [[[token for token, _ in draft] for draft in each] for each in drafts]


class TestRepetitions:
    def test_the_longest_match_leads_and_is_trusted_further(self) -> None:
        before = IndexedText([5, 6, 7, 8, 9, 10, 11, 12, 0, 6, 7, 20, 21, 22, 23, 24, 5, 6, 7])
        found = RepeatedText([before], []).continuations([], 8)
        assert found == [[8, 9, 10, 11, 12, 0], [20, 21, 22, 23]]

    def test_of_equal_matches_the_nearest_leads(self) -> None:
        before = IndexedText([6, 7, 30, 0, 6, 7, 31, 0, 6, 7])
        after = IndexedText([6, 7, 32, 9, 6, 7, 33])
        found = RepeatedText([before], [after]).continuations([], 1)
        assert found == [[31], [30], [32], [33]]

    def test_what_is_written_counts_as_what_comes_before(self) -> None:
        text = RepeatedText([IndexedText([1, 2, 3, 4, 5])], [])
        assert text.continuations([2, 3], 2) == [[4, 5]]
        assert text.continuations([9, 9], 2) == []

    def test_far_texts_are_looked_at_too(self) -> None:
        near, far = IndexedText([1, 2]), IndexedText([7, 1, 2, 8])
        assert RepeatedText([near, far], []).continuations([], 3) == [[8]]

    @pytest.mark.parametrize("ids", [[], [1]])
    def test_a_short_text_repeats_nothing(self, ids: list[int]) -> None:
        assert RepeatedText([IndexedText(ids)], []).continuations([], 4) == []


class TestDrafters:
    def test_a_guess_holds_as_long_as_it_comes_true(self) -> None:
        streams = [
            stream_of(guess=(3, 4, 5)),
            stream_of(3, guess=(3, 4, 5)),
            stream_of(9, guess=(3,)),
        ]
        assert tokens_of(GuessDrafter().draft(streams, 2)) == [[[3, 4]], [[4, 5]], []]

    def test_a_fill_without_a_document_repeats_nothing(self) -> None:
        text = RepeatedText([IndexedText([1, 2, 3])], [])
        streams = [stream_of(1, 2), stream_of(1, 2, document=text)]
        assert tokens_of(RepetitionDrafter().draft(streams, 4)) == [[], [[3]]]


class TestTree:
    def test_what_drafts_begin_with_in_common_stands_once(self) -> None:
        drafts = [with_odds(d, 1.0, 1.0) for d in ([1, 2, 3], [1, 2, 4, 5], [6])]
        tree = DraftTree.of(drafts, [0.0] * 9)
        assert tree.tokens == [1, 2, 3, 4, 5, 6]
        assert tree.parents == [-1, 0, 1, 1, 3, -1]
        assert tree.child(1, 4) == 3
        assert tree.child(2, 4) is None
        assert tree.longest() == (1, 2, 4, 5)

    def test_it_has_no_more_than_there_is_room_for(self) -> None:
        drafts = [with_odds(d, 1.0, 1.0) for d in ([1, 2, 3], [4])]
        assert DraftTree.of(drafts, [0.0] * 2).tokens == [1, 2]
        assert DraftTree.of(drafts, []).tokens == []

    def test_the_likeliest_tokens_come_first_whichever_draft_they_are_of(self) -> None:
        drafts = [
            with_odds([1, 2, 3], 0.5, 0.5),
            with_odds([4, 5], 0.4, 0.9),
            with_odds([1], 0.9, 1),
        ]
        tree = DraftTree.of(drafts, [0.0] * 4)
        assert tree.tokens == [1, 4, 5, 2]
        assert tree.parents == [-1, -1, 1, 0]

    def test_a_token_comes_only_where_it_is_likely_enough_for_one_more(self) -> None:
        drafts = [with_odds([1, 2, 3, 4], 0.8, 0.5)]  # 0.8, 0.4, 0.2, 0.1
        assert DraftTree.of(drafts, [0.1, 0.3, 0.3]).tokens == [1, 2]
        assert DraftTree.of(drafts, [0.9, 0.1]).tokens == []

    def test_a_row_sees_its_own_branch_and_nothing_else(self) -> None:
        seen = ancestors([-1, 0, 1, 1, 3, -1])
        assert [row.nonzero().flatten().tolist() for row in seen] == [
            [0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5],
        ]  # fmt: skip


class TestChoice:
    VOCABULARY = BackboneVocabulary(end_ids=frozenset({8, 9}), forbidden=torch.tensor([7]))

    def rows(self, **logits: float) -> torch.Tensor:
        row = torch.zeros(10)
        for name, value in logits.items():
            row[int(name[1:])] = value
        return row[None]

    def test_all_ends_count_as_one(self) -> None:
        ((token, probability),) = chosen(  # type: ignore[misc]
            self.rows(t3=2.0, t8=1.8, t9=1.8), [Place(GREEDY, 0)], self.VOCABULARY
        )
        assert token == 8
        weights = [torch.e**2, 6.0, 2 * torch.e**1.8]
        assert probability == pytest.approx(weights[2] / sum(weights), rel=1e-5)

    @pytest.mark.parametrize(
        ("place", "token"),
        [
            (Place(GREEDY, 0), 7 - 1),
            (Place(GREEDY, 0, allowed=[2, 5]), 5),
            (Place(GREEDY, 0, refused=[6]), 5),
            (Place(GREEDY, 0, allowed=[8]), 8),
            (Place(GREEDY, 0, allowed=[2, 8], may_end=False), 2),
        ],
    )
    def test_only_what_may_be_chosen_is(self, place: Place, token: int) -> None:
        logits = self.rows(t7=9.0, t6=5.0, t5=4.0, t8=1.0)
        (choice,) = chosen(logits, [place], self.VOCABULARY)
        assert choice is not None
        assert choice[0] == token

    def test_where_there_is_no_choice_the_probability_is_one(self) -> None:
        (choice,) = chosen(self.rows(), [Place(GREEDY, 0, allowed=[2])], self.VOCABULARY)
        assert choice == (2, 1.0)

    def test_logits_that_are_not_finite_give_nothing(self) -> None:
        found = chosen(self.rows(t3=float("nan")), [Place(GREEDY, 0)], self.VOCABULARY)
        assert found == [None]

    def test_top_p_leaves_only_the_likeliest(self) -> None:
        logits = self.rows(t1=3.0, t2=2.5)
        drawn = set()
        for seed in range(60):
            params = SamplingParams(policy="verified", temperature=1.0, top_p=0.6, seed=seed)
            (choice,) = chosen(logits.clone(), [Place(params, seed)], self.VOCABULARY)
            assert choice is not None
            drawn.add(choice[0])
        assert drawn == {1, 2}

    def test_the_numbers_that_draw_are_even(self) -> None:
        numbers = [uniform(seed, place) for seed in range(40) for place in range(25)]
        assert len(set(numbers)) == 1000
        assert all(0 <= number < 1 for number in numbers)
        assert sum(numbers) / 1000 == pytest.approx(0.5, abs=0.04)


def test_a_row_has_to_be_as_likely_as_it_is_dear() -> None:
    cheap = least_odds({1: 20.0, 2: 22.0, 4: 30.0, 8: 50.0}, 16)
    assert cheap == pytest.approx([0.1, 0.2, 0.2, 0.25, 0.25, 0.25, 0.25])
    assert least_odds({1: 20.0, 2: 22.0, 4: 30.0, 8: 50.0}, 2) == pytest.approx([0.1, 0.2])
    after_a_dear_one = least_odds({1: 20.0, 2: 36.0, 4: 37.0}, 16)
    assert after_a_dear_one == pytest.approx([0.8, 0.8, 0.8])
    free = least_odds({1: 20.0, 2: 19.0}, 16)
    assert len(free) == 1
    assert 0 < free[0] < 0.1
    assert len(least_odds({}, 5)) == 5
