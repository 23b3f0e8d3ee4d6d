from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.api import InvalidRequestError
from model.engine.canvas.layout import (
    CANVAS_SIZES,
    MIN_CONTEXT_CHUNK,
    CanvasLayout,
    fitted,
    tokens_to_drop,
)

MASK, END = -1, -2  # not ids of any text
TOKENS = st.lists(st.integers(0, 999), max_size=12)


@st.composite
def layouts(draw: st.DrawFn) -> CanvasLayout:
    slots = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    between = [tuple(draw(TOKENS)) for _ in slots[1:]]
    return CanvasLayout(tuple(slots), tuple(between))


class TestDropping:
    @given(num=st.integers(0, 5000), limit=st.integers(1, 2000))
    def test_what_is_kept_fits_and_is_at_least_half_the_limit(self, num: int, limit: int) -> None:
        kept = num - tokens_to_drop(num, limit)
        assert min(num, limit // 2) <= kept <= limit

    @given(num=st.integers(0, 5000), limit=st.integers(2 * MIN_CONTEXT_CHUNK, 2000))
    def test_the_far_edge_moves_once_in_a_chunk_of_keystrokes(self, num: int, limit: int) -> None:
        drops = [tokens_to_drop(n, limit) for n in range(num, num + MIN_CONTEXT_CHUNK)]
        assert drops == sorted(drops)
        assert len(set(drops)) <= 2

    @given(num=st.integers(1, 600), limit=st.integers(2, 500))
    def test_a_fitted_stream_keeps_its_language_and_the_tokens_beside_the_hole(
        self, num: int, limit: int
    ) -> None:
        stream = list(range(num))
        kept = fitted(stream, limit)
        assert len(kept) <= limit
        assert kept[0] == 0
        assert kept[1:] == stream[num - len(kept) + 1 :]


class TestCanvasLayout:
    @given(layout=layouts())
    def test_holes_and_the_texts_between_them_partition_the_canvas(
        self, layout: CanvasLayout
    ) -> None:
        ids, clamped = layout.blank(MASK)
        assert len(ids) == len(clamped) == layout.size
        in_holes = [slot for hole in layout.holes() for slot in hole]
        assert in_holes == [slot for slot in range(layout.size) if not clamped[slot]]
        assert [len(hole) for hole in layout.holes()] == list(layout.slots)
        between = [i for text in layout.between for i in text]
        assert [i for i, c in zip(ids, clamped, strict=True) if c] == between
        assert all(ids[slot] == MASK for slot in in_holes)

    def test_typed_tokens_are_clamped_at_the_start_of_the_first_hole(self) -> None:
        layout = CanvasLayout((3, 2), ((9,),))
        ids, clamped = layout.blank(MASK, typed=[5, 6])
        assert ids == [5, 6, MASK, 9, MASK, MASK]
        assert clamped == [True, True, False, True, False, False]

    def test_typed_tokens_that_leave_no_free_slot_are_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="3 typed tokens do not fit a hole of 3"):
            CanvasLayout((3,)).blank(MASK, typed=[1, 2, 3])

    def test_holes_need_one_text_fewer_between_them(self) -> None:
        with pytest.raises(InvalidRequestError, match="2 holes need 1 texts between them, not 0"):
            CanvasLayout((4, 4))


class TestForHoles:
    @given(
        max_tokens=st.integers(1, 200),
        between=st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=3),
        typed=st.integers(0, 40),
    )
    def test_holds_what_was_asked_for_in_the_smallest_canvas_or_the_largest_there_is(
        self, max_tokens: int, between: list[list[int]], typed: int
    ) -> None:
        try:
            layout = CanvasLayout.for_holes(max_tokens, between, typed)
        except InvalidRequestError:
            assert between
            needed = min(max_tokens, 2) * (len(between) + 1) + sum(map(len, between)) + typed
            assert needed > CANVAS_SIZES[-1]
            return
        assert layout.size in CANVAS_SIZES
        free = [layout.slots[0] - typed, *layout.slots[1:]]
        if layout.size < CANVAS_SIZES[-1]:
            assert min(free) >= max_tokens
        smaller = [size for size in CANVAS_SIZES if size < layout.size]
        wanted = len(free) * max_tokens + sum(map(len, between)) + typed
        assert all(size < wanted for size in smaller)
        assert max(free) - min(free) <= len(free)  # shared evenly

    def test_a_lone_hole_longer_than_any_canvas_gets_the_largest(self) -> None:
        assert CanvasLayout.for_holes(4096).slots == (CANVAS_SIZES[-1],)

    def test_a_long_typed_start_takes_no_slots_from_the_other_holes(self) -> None:
        layout = CanvasLayout.for_holes(5, [[1, 1]], typed=20)
        assert layout.size == 32
        layout.blank(MASK, typed=[0] * 20)  # fits
        assert layout.slots[1] >= 5

    def test_holes_too_far_apart_are_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="2 holes with 126 tokens between them"):
            CanvasLayout.for_holes(4, [[1] * 126])
