from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.engine.scheduler import Scheduler
from model.engine.sequence import Fill, FilledHoles, SamplingParams, Sequence
from model.infill import CanvasLayout

DONE = FilledHoles(((),), 1.0, True)


def fill(
    size: int = 16,
    *,
    num_candidates: int = 1,
    urgent: bool = False,
    replaces: tuple[str, str] | None = None,
    deadline: float | None = None,
) -> Fill:
    layout = CanvasLayout((size,))
    params = (SamplingParams(),) * num_candidates
    new = Fill(
        prefix=[1],
        suffix=[1],
        layout=layout,
        params=params,
        urgent=urgent,
        replaces=replaces,
        deadline=deadline,
    )
    new.sequences = [
        Sequence(
            fill=new,
            params=param,
            prefix=[1],
            suffix=[1],
            layout=layout,
            canvas=[0] * size,
            clamped=[False] * size,
            confidences=[1.0] * size,
        )
        for param in params
    ]
    return new


def scheduler_with(*fills: Fill, max_batch: int = 4) -> Scheduler:
    scheduler = Scheduler(max_batch)
    for each in fills:
        scheduler.add(each)
    return scheduler


class TestSchedule:
    def test_is_empty_without_work(self) -> None:
        assert Scheduler(4).schedule() == []

    def test_takes_sequences_in_the_order_of_arrival(self) -> None:
        first, second = fill(num_candidates=2), fill()
        assert scheduler_with(first, second).schedule() == [*first.sequences, *second.sequences]

    def test_takes_what_a_person_asked_for_first(self) -> None:
        typing, asked, asked_later = fill(), fill(urgent=True), fill(urgent=True)
        batch = scheduler_with(typing, asked, asked_later).schedule()
        assert [s.fill for s in batch] == [asked, asked_later, typing]

    def test_batches_only_canvases_as_large_as_the_first(self) -> None:
        small, large, small_too = fill(16), fill(32), fill(16)
        scheduler = scheduler_with(small, large, small_too)
        assert [s.fill for s in scheduler.schedule()] == [small, small_too]
        scheduler.remove(small)
        assert [s.fill for s in scheduler.schedule()] == [large]

    def test_leaves_out_what_is_done(self) -> None:
        half_done = fill(num_candidates=2)
        half_done.sequences[0].output = DONE
        assert scheduler_with(half_done).schedule() == half_done.sequences[1:]

    @given(
        specs=st.lists(
            st.tuples(st.sampled_from([16, 32]), st.integers(1, 3), st.booleans(), st.booleans())
        ),
        max_batch=st.integers(1, 5),
    )
    def test_every_fill_is_done_after_enough_batches_of_one_size(
        self, specs: list[tuple[int, int, bool, bool]], max_batch: int
    ) -> None:
        scheduler = Scheduler(max_batch)
        for size, num_candidates, urgent, is_done in specs:
            new = fill(size, num_candidates=num_candidates, urgent=urgent)
            if is_done:
                new.sequences[0].output = DONE
            scheduler.add(new)
        waiting = [s for f in scheduler.fills for s in f.sequences if not s.is_done]
        while batch := scheduler.schedule():
            assert len(batch) <= max_batch
            assert len({len(s.canvas) for s in batch}) == 1
            for sequence in batch:
                waiting.remove(sequence)
                sequence.output = DONE
        assert not waiting

    def test_needs_room_for_one(self) -> None:
        with pytest.raises(ValueError, match="max_batch is 0"):
            Scheduler(0)


class TestFills:
    def test_a_newer_fill_takes_the_place_of_one_with_its_key(self) -> None:
        old, other = fill(replaces=("a", "x.py")), fill(replaces=("b", "x.py"))
        scheduler = scheduler_with(old, other)
        new = fill(replaces=("a", "x.py"))
        assert scheduler.add(new) is old
        assert scheduler.fills == [other, new]

    def test_fills_without_a_key_replace_nothing(self) -> None:
        scheduler = scheduler_with(fill())
        assert scheduler.add(fill()) is None
        assert len(scheduler.fills) == 2

    def test_removal_says_whether_it_was_there(self) -> None:
        one = fill()
        scheduler = scheduler_with(one)
        assert scheduler.remove(one)
        assert not scheduler.remove(one)
        assert scheduler.fills == []

    def test_overdue_are_those_whose_deadline_has_come(self) -> None:
        past, now, later, never = (fill(deadline=d) for d in (1.0, 2.0, 3.0, None))
        assert scheduler_with(past, now, later, never).overdue(2.0) == [past, now]


def test_the_book_keeping_imports_no_torch() -> None:
    imports = "import sys, model.engine.scheduler, model.engine.kv_cache"
    code = f"{imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
