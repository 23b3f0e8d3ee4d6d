from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from model.engine.canvas.decoder import CanvasDecoder
from model.engine.canvas.layout import CanvasLayout
from model.engine.canvas.length import (
    ExpandDelete,
    LengthPolicy,
    LengthSearch,
    expected_confidence,
    mean_log_probability,
)
from model.engine.canvas.sampler import Vocabulary
from model.engine.canvas.sequence import CanvasFill as CanvasFill
from model.engine.canvas.sequence import CanvasParams
from model.engine.canvas.sequence import CanvasSequence as CanvasSequence
from model.engine.engine import Engine
from model.engine.fill import FilledHoles

V, MASK, END, DELETE, EXPAND = 20, 19, 18, 17, 16
TIMEOUT_S = 60
LAYOUT = CanvasLayout((16,))
Wanted = dict[int, tuple[int, float]]
"""Of a slot: the token it wants, and how much (logits above the others)."""


@dataclass
class ScriptedRunner:
    """A runner whose canvases want what a script says of each step."""

    script: Callable[[CanvasSequence], Wanted]
    max_context: int = 64
    vocab_size: int = V
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache_bytes: int = 0
    canvases: list[list[int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def denoise(self, batch: list[CanvasSequence]) -> Tensor:
        logits = torch.zeros(len(batch), max(len(s.canvas) for s in batch), V)
        for row, sequence in enumerate(batch):
            self.canvases.append([i for i in sequence.canvas if i != END])
            for slot, (token, strength) in self.script(sequence).items():
                if slot < len(sequence.canvas):
                    logits[row, slot, token] = strength
        return logits

    def close_context(self, sequence: CanvasSequence) -> None: ...
    def check_integrity(self) -> None: ...
    def drop_cache(self) -> None: ...

    def next_logits(self, batch: list[CanvasSequence]) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def run() -> Iterator[Callable[..., tuple[list[FilledHoles], ScriptedRunner, CanvasFill]]]:
    engines: list[Engine] = []

    def fill_with(
        policy: LengthPolicy,
        script: Callable[[CanvasSequence], Wanted],
        *params: CanvasParams,
        max_new_tokens: int = 12,
        typed: tuple[int, ...] = (),
        between: tuple[tuple[int, ...], ...] = (),
        num_wanted: int | None = 1,
        deadline: float | None = None,
        min_confidence: float = 0.0,
    ) -> tuple[list[FilledHoles], ScriptedRunner, CanvasFill]:
        runner = ScriptedRunner(script)
        forbidden = torch.zeros(V, dtype=torch.bool)
        forbidden[MASK] = True
        if not isinstance(policy, ExpandDelete):
            forbidden[[EXPAND, DELETE]] = True
        words = Vocabulary(
            mask_id=MASK,
            end_id=END,
            special_ids=frozenset((MASK, END, DELETE, EXPAND)),
            forbidden=forbidden,
        )
        engines.append(engine := Engine(CanvasDecoder(runner, words, policy)))  # type: ignore[arg-type]
        layout = CanvasLayout.for_holes(max_new_tokens, between, typed=len(typed))
        fill = CanvasFill(
            prefix=[0, 1],
            suffix=[0, 2],
            layout=layout,
            typed=typed,
            params=policy.candidates(
                params or (CanvasParams(at_least="surest"),), layout, max_new_tokens, follows=True
            ),
            canvas_slots=lambda _: 128,
            num_wanted=num_wanted,
            max_new_tokens=max_new_tokens,
            deadline=deadline,
            min_confidence=min_confidence,
        )
        return engine.submit(fill).result(TIMEOUT_S), runner, fill

    yield fill_with
    for engine in engines:
        engine.close()


def by_step(*steps: Wanted) -> Callable[[CanvasSequence], Wanted]:
    return lambda sequence: steps[min(sequence.step, len(steps) - 1)]


class TestExpandDelete:
    def test_a_mask_splits_and_both_halves_are_filled(self, run: Callable[..., tuple]) -> None:
        script = by_step({1: (EXPAND, 30.0)}, {i: (i + 3, 30.0) for i in range(4)})
        (output,), runner, _ = run(ExpandDelete(EXPAND, DELETE, start=3), script)
        assert runner.canvases == [[MASK] * 3, [MASK] * 4]
        assert output.holes == ((3, 4, 5, 6),)
        assert output.finished

    def test_a_deleted_mask_goes_and_takes_the_masks_to_its_right_along(
        self, run: Callable[..., tuple]
    ) -> None:
        script = by_step(
            {3: (7, 30.0)},  # a token far right stays
            {1: (DELETE, 30.0)},  # masks: 0, 1, 2, 4 -> 0
            {0: (5, 30.0)},
        )
        (output,), runner, _ = run(ExpandDelete(EXPAND, DELETE, start=5), script)
        assert runner.canvases == [[MASK] * 5, [MASK, MASK, MASK, 7, MASK], [MASK, 7]]
        assert output.holes == ((5, 7),)

    def test_a_hole_can_turn_out_empty(self, run: Callable[..., tuple]) -> None:
        script = by_step({0: (DELETE, 30.0)})
        (output,), _, fill = run(ExpandDelete(EXPAND, DELETE), script)
        assert output.holes == ((),)
        assert output.finished
        assert output.confidence > 0.9  # in the deletion
        assert fill.forwards == 1

    def test_an_unsure_deletion_says_nothing_of_what_is_still_open_before_it(
        self, run: Callable[..., tuple]
    ) -> None:
        script = by_step({3: (DELETE, 2.0)}, {slot: (5 + slot, 30.0) for slot in range(3)})
        policy = ExpandDelete(EXPAND, DELETE, start=5)
        (output,), _, fill = run(policy, script, min_confidence=0.5)
        assert fill.forwards == 2
        assert output.holes == ((5, 6, 7),)
        assert output.finished
        assert output.probabilities == pytest.approx((1.0, 1.0, 1.0, 0.303), abs=1e-3)

    def test_it_starts_long_and_never_longer_than_allowed(self, run: Callable[..., tuple]) -> None:
        policy = ExpandDelete(EXPAND, DELETE)
        assert policy.candidates((CanvasParams(),), LAYOUT, 500, follows=True)[0].length == 64
        script = by_step({i: (EXPAND, 30.0) for i in range(12)})
        (output,), runner, _ = run(policy, script, max_new_tokens=12)
        assert len(output.holes[0]) == 12
        assert max(map(len, runner.canvases)) == 12

    def test_splitting_ends_when_its_budget_does(self, run: Callable[..., tuple]) -> None:
        """Splitting and deleting for ever would never fill the hole."""
        script = lambda s: {0: (EXPAND, 30.0)} if s.step % 2 else {1: (DELETE, 30.0)}  # noqa: E731
        (output,), _, fill = run(ExpandDelete(EXPAND, DELETE, start=2), script, max_new_tokens=6)
        assert output.finished
        assert max(s.num_expansions for s in fill.sequences) <= 6

    @pytest.mark.parametrize("seed", range(12))
    def test_whatever_the_model_wants_the_hole_is_filled(
        self, run: Callable[..., tuple], seed: int
    ) -> None:
        noise = torch.Generator().manual_seed(seed)

        def script(sequence: CanvasSequence) -> Wanted:
            tokens = torch.randint(0, V - 1, (len(sequence.canvas),), generator=noise).tolist()
            tokens = [EXPAND if t > 13 else DELETE if t > 11 else t for t in tokens]
            return {slot: (token, 5.0) for slot, token in enumerate(tokens)}

        params = CanvasParams(steps=seed) if seed else CanvasParams()
        (output,), _, _ = run(
            ExpandDelete(EXPAND, DELETE, start=7), script, params, typed=(3, 4, 5)
        )
        assert output.finished
        assert output.holes[0][:3] == (3, 4, 5)
        assert len(output.holes[0]) <= 3 + 12
        assert not {MASK, END, EXPAND, DELETE} & set(output.holes[0])

    def test_several_holes_grow_and_shrink_each_for_itself(self, run: Callable[..., tuple]) -> None:
        script = by_step(
            {0: (EXPAND, 30.0), 4: (DELETE, 30.0)},  # M M | 9 | M M -> M M M | 9 |
            {slot: (3 + slot, 30.0) for slot in range(3)},
        )
        policy = ExpandDelete(EXPAND, DELETE, start=2)
        (output,), runner, _ = run(policy, script, typed=(8,), between=((9, 10),))
        assert runner.canvases == [[MASK, MASK, 9, 10, MASK, MASK], [MASK, MASK, MASK, 9, 10]]
        assert output.holes == ((8, 3, 4, 5), ())
        assert output.finished

    def test_a_canvas_grows_no_larger_than_there_are_slots(self, run: Callable[..., tuple]) -> None:
        script = by_step({i: (EXPAND, 30.0) for i in range(128)})
        policy = ExpandDelete(EXPAND, DELETE)
        (output,), runner, _ = run(policy, script, max_new_tokens=500)
        assert len(output.holes[0]) == 128
        assert max(map(len, runner.canvases)) == 128

    def test_a_given_length_stays_as_it_is(self, run: Callable[..., tuple]) -> None:
        script = by_step({i: (EXPAND if i % 2 else DELETE, 30.0) for i in range(9)})
        (output,), _, _ = run(ExpandDelete(EXPAND, DELETE), script, CanvasParams(length=5))
        assert len(output.holes[0]) == 5
        assert not {EXPAND, DELETE} & set(output.holes[0])


class TestLengthSearch:
    def test_the_length_whose_first_step_is_surest_wins(self, run: Callable[..., tuple]) -> None:
        def script(sequence: CanvasSequence) -> Wanted:
            strength = 30.0 if sequence.params.length == 4 else 3.0
            return {slot: (slot, strength) for slot in range(len(sequence.canvas))}

        (output,), _, fill = run(LengthSearch(), script)
        assert output.holes == ((0, 1, 2, 3),)
        assert output.score == mean_log_probability(output)
        assert [s.params.length for s in fill.sequences] == [1, 2, 4, 6, 8, 12]

    def test_several_holes_are_tried_at_one_length_each(self, run: Callable[..., tuple]) -> None:
        def script(sequence: CanvasSequence) -> Wanted:
            strength = 30.0 if sequence.params.length == 2 else 3.0
            return {slot: (slot % 16, strength) for slot in range(len(sequence.canvas))}

        (output,), _, fill = run(LengthSearch(), script, typed=(8,), between=((9, 10),))
        assert output.holes == ((8, 0, 1), (4, 5))
        assert output.finished
        assert all(9 in s.canvas for s in fill.sequences)

    def test_only_the_most_promising_get_a_second_step(self, run: Callable[..., tuple]) -> None:
        script = lambda s: {slot: (slot, 1.0) for slot in range(len(s.canvas))}  # noqa: E731
        _, _, fill = run(LengthSearch(lengths=(5, 6, 7, 8, 9, 10), num_kept=2), script)
        steps = sorted(s.step for s in fill.sequences)
        assert steps[:4] == [1, 1, 1, 1]
        assert steps[4] > 1

    def test_all_that_are_wanted_come_back(self, run: Callable[..., tuple]) -> None:
        script = lambda s: {slot: (slot, 1.0) for slot in range(len(s.canvas))}  # noqa: E731
        outputs, _, _ = run(
            LengthSearch(num_kept=1), script, CanvasParams(), CanvasParams(seed=1), num_wanted=2
        )
        assert len({len(output.holes[0]) for output in outputs}) == 2
        assert outputs[0].score >= outputs[1].score

    def test_a_length_is_judged_against_what_is_usual_for_it(self) -> None:
        """CAL's B(L) falls with the length: any text is surer of few slots than of many."""
        values = [expected_confidence(n) for n in (1, 2, 8, 64)]
        assert values == sorted(values, reverse=True)
        assert expected_confidence(1) == pytest.approx(0.170 + 0.527 + 0.24, abs=1e-3)

    def test_when_time_is_up_the_most_promising_length_answers(
        self, run: Callable[..., tuple]
    ) -> None:
        def script(sequence: CanvasSequence) -> Wanted:
            time.sleep(0.02)
            strength = 2.0 if sequence.params.length == 6 else 1.0
            return {slot: (slot, strength) for slot in range(len(sequence.canvas))}

        deadline = time.monotonic() + 0.3
        (output,), _, fill = run(LengthSearch(lengths=(5, 6, 7)), script, deadline=deadline)
        scores = {s.params.length: s.length_score for s in fill.sequences}
        if None not in scores.values() and not output.finished:  # a slow machine got less far
            assert max(scores, key=lambda n: scores[n] or 0.0) == 6

    def test_a_length_that_is_asked_for_is_tried_beside_them(
        self, run: Callable[..., tuple]
    ) -> None:
        script = lambda s: {slot: (slot, 1.0) for slot in range(len(s.canvas))}  # noqa: E731
        outputs, _, _ = run(
            LengthSearch(), script, CanvasParams(), CanvasParams(length=3), num_wanted=None
        )
        assert 3 in {len(output.holes[0]) for output in outputs}

    def test_where_nothing_follows_the_model_writes_its_end(self) -> None:
        params = (CanvasParams(),)
        assert LengthSearch().candidates(params, LAYOUT, 64, follows=False) == params
