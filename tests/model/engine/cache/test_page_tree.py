from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.engine.cache.page_tree import PAGE_SIZE, PageTable, PageTree, shared_length

NUM_PAGES = 8
LONG = list(range(100, 100 + 3 * PAGE_SIZE))
"""Exactly three pages."""

# Streams that part at all kinds of places: runs of few values, up to three pages and a bit.
STREAMS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 20)), min_size=1, max_size=4).map(
    lambda runs: [token for token, count in runs for _ in range(count)][:56]
)


def opened(tree: PageTree, tokens: list[int]) -> tuple[PageTable, int]:
    """Open a stream as the runner does: its table, and how many tokens had to be encoded."""
    reservation = tree.reserve(tokens)
    assert reservation is not None
    return tree.commit(reservation), len(tokens) - reservation.cached.length


def encoded(tree: PageTree, tokens: list[int], held: Iterable[PageTable] = ()) -> int:
    """Tokens that had to be encoded for a stream that is closed again, while others are `held`."""
    table, count = opened(tree, tokens)
    tree.release(table)
    tree.check_integrity(held)
    return count


@dataclass
class Held:
    """One open stream."""

    table: PageTable
    tokens: list[int]


class TreeAndMemory(RuleBasedStateMachine):
    """Follows the tree's plans in a memory of its own, as the model runner does with tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PageTree(NUM_PAGES)
        self.memory: list[list[int | None]] = [[None] * PAGE_SIZE for _ in range(NUM_PAGES)]
        self.held: list[Held] = []

    def read(self, table: PageTable) -> list[int | None]:
        return [place for page in table.pages for place in self.memory[page]][: table.length]

    @rule(tokens=STREAMS, fails=st.booleans())
    def open(self, tokens: list[int], fails: bool) -> None:
        in_use = {page for held in self.held for page in held.table.pages}
        reservation = self.tree.reserve(tokens)
        if reservation is None:
            assert len(in_use) + -(-len(tokens) // PAGE_SIZE) > NUM_PAGES
            return
        assert in_use.isdisjoint(reservation.new_pages)  # eviction never takes a page in use
        wanted = list(tokens)
        start = reservation.cached.length
        assert self.read(reservation.cached) == wanted[:start]
        if fails:
            self.tree.cancel(reservation)
            return
        contents = [*wanted, *[None] * PAGE_SIZE]
        for index in range(start // PAGE_SIZE, len(reservation.table.pages)):
            page = contents[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            if start < len(tokens):
                self.memory[reservation.table.pages[index]] = list(page)
        self.held.append(Held(self.tree.commit(reservation), tokens))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.tree.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))).table)

    @invariant()
    def books_are_in_order(self) -> None:
        self.tree.check_integrity(held.table for held in self.held)
        assert self.tree.num_filled <= NUM_PAGES

    @invariant()
    def what_is_in_use_is_unchanged(self) -> None:
        for held in self.held:
            assert self.read(held.table) == held.tokens


TestTreeAndMemory = TreeAndMemory.TestCase


@given(a=STREAMS, b=STREAMS)
def test_shared_length_is_where_two_streams_part(a: list[int], b: list[int]) -> None:
    length = shared_length(a, b)
    assert a[:length] == b[:length]
    assert length in (len(a), len(b)) or a[length] != b[length]


@given(a=STREAMS, b=STREAMS)
def test_what_two_streams_share_is_encoded_once(a: list[int], b: list[int]) -> None:
    tree = PageTree(NUM_PAGES)
    assert encoded(tree, a) == len(a)
    assert encoded(tree, b) == len(b) - shared_length(a, b)
    assert encoded(tree, a) == 0


class TestOneStreamThatChanges:
    @pytest.mark.parametrize("length", [1, PAGE_SIZE - 1, PAGE_SIZE, 2 * PAGE_SIZE - 3])
    @pytest.mark.parametrize("typed", [1, 5, PAGE_SIZE + 1])
    def test_typing_n_tokens_encodes_n(self, length: int, typed: int) -> None:
        tree = PageTree(NUM_PAGES)
        encoded(tree, LONG[:length])
        assert encoded(tree, LONG[: length + typed]) == typed
        assert tree.num_filled == -(-(length + typed) // PAGE_SIZE)

    @pytest.mark.parametrize("length", [1, PAGE_SIZE, PAGE_SIZE + 5])
    def test_backspace_encodes_nothing_and_takes_no_page(self, length: int) -> None:
        tree = PageTree(NUM_PAGES)
        encoded(tree, LONG)
        assert encoded(tree, LONG[:length]) == 0
        assert tree.num_filled == 3

    def test_an_edit_inside_a_page_copies_its_first_tokens(self) -> None:
        tree = PageTree(NUM_PAGES)
        old, _ = opened(tree, LONG)
        reservation = tree.reserve([*LONG[:20], 7, 8])
        assert reservation is not None
        assert reservation.cached == PageTable(old.pages[:2], 20)
        assert reservation.table.pages[0] == old.pages[0]
        assert reservation.new_pages == reservation.table.pages[1:]
        assert reservation.new_pages[0] not in old.pages
        tree.commit(reservation)
        both = [old, reservation.table]
        assert encoded(tree, LONG, held=both) == 0  # the old text is still there

    def test_a_page_goes_on_in_place_while_others_read_it(self) -> None:
        tree = PageTree(NUM_PAGES)
        short, _ = opened(tree, LONG[:5])
        long, count = opened(tree, LONG[:9])
        assert (short.pages, count) == (long.pages, 4)
        tree.check_integrity([short, long])

    def test_the_same_stream_is_shared_by_its_users(self) -> None:
        tree = PageTree(3)
        tables = {opened(tree, LONG)[0] for _ in range(5)}
        assert len(tables) == 1


class TestEviction:
    def test_the_least_recently_used_stream_leaves_first(self) -> None:
        tree = PageTree(3)
        for first in (1, 2, 3, 1):
            encoded(tree, [first] * PAGE_SIZE)
        encoded(tree, [4] * PAGE_SIZE)
        assert [encoded(tree, [first] * PAGE_SIZE) for first in (1, 3)] == [0, 0]
        assert encoded(tree, [2] * PAGE_SIZE) == PAGE_SIZE

    def test_the_far_end_of_a_stream_stays_longest(self) -> None:
        tree = PageTree(4)
        encoded(tree, LONG)
        encoded(tree, [1] * 2 * PAGE_SIZE)  # takes one page of the long stream
        tree.check_integrity([])
        assert encoded(tree, LONG[: 2 * PAGE_SIZE]) == 0

    def test_switching_files_and_back_encodes_nothing_while_there_is_room(self) -> None:
        tree = PageTree(6)
        other = [-token for token in LONG]
        encoded(tree, LONG)
        encoded(tree, other)
        assert [encoded(tree, LONG), encoded(tree, other)] == [0, 0]

    def test_a_stream_that_does_not_fit_changes_nothing(self) -> None:
        tree = PageTree(5)
        held, _ = opened(tree, LONG)
        encoded(tree, [1, 2, 3], held=[held])
        assert tree.reserve([9] * 3 * PAGE_SIZE) is None
        tree.check_integrity([held])
        assert encoded(tree, [1, 2, 3], held=[held]) == 0

    def test_the_source_of_a_copy_is_taken_when_no_other_page_is_left(self) -> None:
        tree = PageTree(4)
        held, _ = opened(tree, LONG)
        encoded(tree, [1, 2, 3], held=[held])
        table, count = opened(tree, [1, 9])
        assert count == 2
        tree.check_integrity([held, table])

    def test_a_cancelled_stream_leaves_what_was_there(self) -> None:
        tree = PageTree(3)
        encoded(tree, LONG[:20])
        reservation = tree.reserve(LONG)
        assert reservation is not None
        tree.cancel(reservation)
        tree.check_integrity([])
        assert encoded(tree, LONG[:20]) == 0
        assert encoded(tree, LONG) == len(LONG) - 20


class TestMisuse:
    def test_one_page_is_too_few(self) -> None:
        with pytest.raises(ValueError, match="num_pages is 1"):
            PageTree(1)

    def test_an_empty_stream_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="at least one token"):
            PageTree(2).reserve([])

    def test_releasing_twice_is_an_error(self) -> None:
        tree = PageTree(2)
        table, _ = opened(tree, [1])
        tree.release(table)
        with pytest.raises(ValueError, match="released more often"):
            tree.release(table)


class TestIntegrity:
    """Each kind of damage is seen."""

    def tree(self) -> tuple[PageTree, PageTable]:
        tree = PageTree(NUM_PAGES)
        table, _ = opened(tree, LONG)
        tree.check_integrity([table])
        return tree, table

    def test_a_stream_nobody_counted(self) -> None:
        tree, table = self.tree()
        with pytest.raises(AssertionError, match="1 users"):
            tree.check_integrity([table, table])

    def test_a_lost_page(self) -> None:
        tree, table = self.tree()
        tree._free.pop()
        with pytest.raises(AssertionError, match="lost or held twice"):
            tree.check_integrity([table])

    def test_a_page_that_goes_before_its_continuation(self) -> None:
        tree, table = self.tree()
        tree._nodes.move_to_end(table.pages[0], last=False)
        with pytest.raises(AssertionError, match="older than what follows"):
            tree.check_integrity([table])

    def test_a_gap_in_the_middle_of_a_stream(self) -> None:
        tree, table = self.tree()
        tree._nodes[table.pages[0]].tokens.pop()
        with pytest.raises(AssertionError, match="not full but continued"):
            tree.check_integrity([table])

    def test_two_pages_for_one_text(self) -> None:
        tree, table = self.tree()
        other, _ = opened(tree, [*LONG[:20], 7])
        tree._nodes[other.pages[-1]].tokens.pop()
        with pytest.raises(AssertionError, match="two pages after page"):
            tree.check_integrity([table, other])
