from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.api import Frame
from model.serving.v1.choices import MASKED, merged, until_stop, whole_state


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abc", [], ("abc", False)),
        ("abc", ["b"], ("a", True)),
        ("abc", ["x"], ("abc", False)),
        ("abcX", ["abcX", "bc"], ("a", True)),  # the one that is complete first
        ("abc", ["abc", "bc"], ("", True)),  # at once: the longer one
        ("", ["x"], ("", False)),
    ],
)
def test_text_ends_before_the_stop_that_is_complete_first(
    text: str, stops: list[str], expected: tuple[str, bool]
) -> None:
    assert until_stop(text, stops, is_whole=True) == expected


def test_what_may_become_a_stop_waits() -> None:
    assert until_stop("code\n", ["\n\n", "end"], is_whole=False) == ("code", False)
    assert until_stop("code e", ["\n\n", "end"], is_whole=False) == ("code ", False)
    assert until_stop("code\n", ["\n\n", "end"], is_whole=True) == ("code\n", False)


@given(
    text=st.text("ab\n", max_size=12),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 12)),
)
def test_what_is_shown_of_a_growing_text_only_grows_and_ends_as_the_whole(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    whole, is_over = until_stop(text, stops, is_whole=True)
    shown = ""
    for cut in sorted(cuts):
        part, is_part_over = until_stop(text[:cut], stops, is_whole=False)
        assert part.startswith(shown)
        assert whole.startswith(part)
        assert is_over or not is_part_over
        shown = part


def test_the_whole_state_shows_open_slots_and_earlier_canvases() -> None:
    frame = Frame(step=1, slots=("c", None, "e", None, ""), text="abc")
    assert whole_state(frame) == f"abc{MASKED}e{MASKED}"


async def test_an_error_in_one_source_closes_the_others() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def failing() -> AsyncGenerator[int, None]:
        await asyncio.sleep(0)
        raise ValueError("broken")
        yield 2

    source = merged([endless(), failing()])
    assert await anext(source) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(source)
    assert closed.is_set()


async def test_closing_the_merged_source_closes_all() -> None:
    closed: list[int] = []

    async def endless(number: int) -> AsyncGenerator[int, None]:
        try:
            yield number
            await asyncio.Event().wait()
        finally:
            closed.append(number)

    source = merged([endless(1), endless(2)])
    assert {await anext(source), await anext(source)} == {1, 2}
    await source.aclose()
    assert sorted(closed) == [1, 2]
