from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.api import EngineOverloadedError
from model.engine.canvas.layout import CanvasLayout
from model.engine.canvas.sequence import CanvasFill, CanvasParams, CanvasSequence
from model.engine.fill import Fill, FilledHoles, Sequence
from model.engine.scheduler import RECOVERY_STEPS, Scheduler

GREEDY = CanvasParams()
DONE = FilledHoles(((),), (1.0,), True)


def fill(
    size: int = 16,
    *,
    num_candidates: int = 1,
    params: CanvasParams = GREEDY,
    client: str = "",
    urgent: bool = False,
    replaces: tuple[str, str] | None = None,
    deadline: float | None = None,
) -> Fill:
    layout = CanvasLayout((size,))
    new = CanvasFill(
        prefix=[1],
        suffix=[1],
        layout=layout,
        params=(params,) * num_candidates,
        client=client,
        urgent=urgent,
        replaces=replaces,
        deadline=deadline,
    )
    new.sequences = [
        CanvasSequence(
            fill=new,
            params=params,
            prefix=[1],
            suffix=[1],
            layout=layout,
            canvas=[0] * size,
            clamped=[False] * size,
            fixed=[False] * size,
            confidences=[1.0] * size,
        )
        for _ in new.params
    ]
    return new


def fills_of(batch: list[Sequence]) -> list[Fill]:
    return [sequence.fill for sequence in batch]


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

    def test_a_small_canvas_rides_along_with_a_large_one_but_two_have_their_own_batch(self) -> None:
        large, small, small_too = fill(128), fill(16), fill(16)
        scheduler = scheduler_with(large, small)
        assert fills_of(scheduler.schedule()) == [large, small]
        scheduler = scheduler_with(small, small_too, large)
        assert fills_of(scheduler.schedule()) == [small, small_too]
        scheduler.remove(small)
        assert fills_of(scheduler.schedule()) == [small_too, large]

    def test_an_automatic_fill_does_not_widen_an_urgent_ones_batch(self) -> None:
        asked, larger, asked_larger = fill(16, urgent=True), fill(32), fill(32, urgent=True)
        assert fills_of(scheduler_with(asked, larger).schedule()) == [asked]
        assert fills_of(scheduler_with(asked, asked_larger).schedule()) == [asked, asked_larger]

    def test_sequences_without_a_canvas_join_whatever_the_canvases(self) -> None:
        canvas, stream = fill(128), fill(0)
        assert fills_of(scheduler_with(canvas, stream).schedule()) == [canvas, stream]
        assert fills_of(scheduler_with(stream, canvas).schedule()) == [stream, canvas]

    def test_clients_take_turns(self) -> None:
        greedy = fill(num_candidates=16, client="a")
        more, modest = fill(client="a"), fill(client="b", num_candidates=2)
        batch = scheduler_with(greedy, more, modest).schedule()
        assert batch == [
            greedy.sequences[0], modest.sequences[0], greedy.sequences[1], modest.sequences[1]
        ]  # fmt: skip

    def test_urgent_fills_do_not_cost_their_client_its_turn(self) -> None:
        asked, typing, other = fill(client="a", urgent=True), fill(client="a"), fill(client="b")
        batch = scheduler_with(asked, typing, other).schedule()
        assert fills_of(batch) == [asked, typing, other]

    def test_leaves_out_what_is_done(self) -> None:
        half_done = fill(num_candidates=2)
        half_done.sequences[0].output = DONE
        assert scheduler_with(half_done).schedule() == half_done.sequences[1:]

    @given(
        specs=st.lists(
            st.tuples(
                st.sampled_from([16, 32, 128]), st.integers(1, 3), st.booleans(), st.booleans()
            )
        ),
        max_batch=st.integers(1, 5),
    )
    def test_every_fill_is_done_after_enough_batches_that_are_half_real(
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
            sizes = [len(s.canvas) for s in batch]
            assert len(sizes) * max(sizes) <= 2 * sum(sizes)
            for sequence in batch:
                waiting.remove(sequence)
                sequence.output = DONE
        assert not waiting

    def test_needs_room_for_one(self) -> None:
        with pytest.raises(ValueError, match="max_batch is 0"):
            Scheduler(0)
        with pytest.raises(ValueError, match="max_fills is 0"):
            Scheduler(1, max_fills=0)


class TestMemory:
    def test_running_out_of_it_halves_the_batch_until_one_is_left(self) -> None:
        scheduler = scheduler_with(fill(num_candidates=9), max_batch=8)
        sizes = []
        while scheduler.shrink(len(scheduler.schedule())):
            sizes.append(len(scheduler.schedule()))
        assert sizes == [4, 2, 1]

    def test_a_batch_below_the_limit_lowers_it_below_itself(self) -> None:
        scheduler = scheduler_with(fill(num_candidates=4), max_batch=16)
        assert scheduler.shrink(4)
        assert len(scheduler.schedule()) == 2

    def test_it_grows_by_one_after_many_good_steps(self) -> None:
        scheduler = scheduler_with(fill(num_candidates=9), max_batch=4)
        scheduler.shrink(4)
        sizes = []
        for _ in range(3 * RECOVERY_STEPS):
            scheduler.recover()
            sizes.append(len(scheduler.schedule()))
        assert sizes[RECOVERY_STEPS - 2 : RECOVERY_STEPS] == [2, 3]
        assert sizes[-1] == 4


class TestFills:
    def test_no_more_may_wait_than_the_limit_and_a_newer_one_of_a_document_always_may(self) -> None:
        scheduler = Scheduler(4, max_fills=2)
        scheduler.add(fill(replaces=("a", "x.py")))
        scheduler.add(fill())
        with pytest.raises(EngineOverloadedError, match="2 requests are waiting already"):
            scheduler.add(fill())
        scheduler.add(fill(replaces=("a", "x.py")))
        assert len(scheduler.fills) == 2

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
    imports = "import sys, model.engine.scheduler, model.engine.cache.page_tree"
    code = f"{imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
