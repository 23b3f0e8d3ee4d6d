from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.engine.kv_cache import ContextCache, SlotPlan, shared_length

PREFIX, SUFFIX = 0, 1
STREAMS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def hold(cache: ContextCache, tokens: list[int], role: int = PREFIX) -> SlotPlan:
    """Have the cache hold a stream nobody uses any more."""
    plan = cache.acquire(role, tokens)
    cache.release(plan.slot)
    return plan


@dataclass
class Held:
    """One acquired stream."""

    slot: int
    role: int
    tokens: list[int]


class CacheAndMemory(RuleBasedStateMachine):
    """Follows the cache's plans in a memory of its own, as the model runner does with tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ContextCache(4)
        self.memory: list[list[tuple[int, int]]] = [[] for _ in range(4)]
        self.held: list[Held] = []

    @rule(role=st.sampled_from([PREFIX, SUFFIX]), tokens=STREAMS)
    def acquire(self, role: int, tokens: list[int]) -> None:
        pinned = {h.slot for h in self.held}
        if len(pinned) == 4 and not any(h.role == role and h.tokens == tokens for h in self.held):
            with pytest.raises(ValueError, match="all 4 slots are in use"):
                self.cache.acquire(role, tokens)
            return
        plan = self.cache.acquire(role, tokens)
        if plan.copy_from is not None:
            self.memory[plan.slot][: plan.num_cached] = self.memory[plan.copy_from][
                : plan.num_cached
            ]
        # A pair (role, token) stands for keys and values, which depend on both.
        wanted = [(role, token) for token in tokens]
        assert self.memory[plan.slot][: plan.num_cached] == wanted[: plan.num_cached]
        self.memory[plan.slot][plan.num_cached :] = wanted[plan.num_cached :]
        self.held.append(Held(plan.slot, role, tokens))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.cache.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))).slot)

    @rule(role=st.sampled_from([PREFIX, SUFFIX]), tokens=STREAMS)
    def fail_to_encode(self, role: int, tokens: list[int]) -> None:
        if len({h.slot for h in self.held}) == 4:
            return
        plan = self.cache.acquire(role, tokens)
        if plan.num_cached < len(tokens) or plan.copy_from is not None:  # there was work to do
            self.memory[plan.slot] = [(-1, -1)] * 8
            self.cache.forget(plan.slot)
        self.cache.release(plan.slot)

    @invariant()
    def books_are_in_order(self) -> None:
        self.cache.check_integrity()

    @invariant()
    def what_is_in_use_is_unchanged(self) -> None:
        for held in self.held:
            assert self.memory[held.slot][: len(held.tokens)] == [
                (held.role, token) for token in held.tokens
            ]


TestCacheAndMemory = CacheAndMemory.TestCase


@given(a=STREAMS, b=STREAMS)
def test_shared_length_is_where_two_streams_part(a: list[int], b: list[int]) -> None:
    length = shared_length(a, b)
    assert a[:length] == b[:length]
    assert length in (len(a), len(b)) or a[length] != b[length]


class TestOneStreamThatChanges:
    def test_typing_goes_on_in_place(self) -> None:
        cache = ContextCache(3)
        slot = hold(cache, [1, 2, 3]).slot
        assert cache.acquire(PREFIX, [1, 2, 3, 4]) == SlotPlan(slot, 3)

    def test_backspace_encodes_nothing(self) -> None:
        cache = ContextCache(3)
        slot = hold(cache, [1, 2, 3, 4]).slot
        assert cache.acquire(PREFIX, [1, 2, 3]) == SlotPlan(slot, 3)

    def test_an_edit_near_the_hole_keeps_what_lies_before_it(self) -> None:
        cache = ContextCache(3)
        slot = hold(cache, [1, 2, 3, 4]).slot
        assert cache.acquire(PREFIX, [1, 2, 3, 9, 9]) == SlotPlan(slot, 3)

    def test_the_same_stream_is_shared_by_its_users(self) -> None:
        cache = ContextCache(2)
        slots = {cache.acquire(PREFIX, [1, 2]).slot for _ in range(5)}
        assert len(slots) == 1
        cache.acquire(SUFFIX, [1, 2])  # the other slot is still free

    def test_of_two_slots_that_hold_it_the_one_that_needs_no_copy_is_taken(self) -> None:
        cache = ContextCache(3)
        cache.acquire(PREFIX, [1, 2, 3])  # stays in use
        exact = cache.acquire(PREFIX, [1, 2]).slot
        assert cache.acquire(PREFIX, [1, 2]) == SlotPlan(exact, 2)


class TestStreamsThatPart:
    def test_another_text_copies_what_it_shares_and_leaves_the_old_one(self) -> None:
        cache = ContextCache(3)
        old = hold(cache, [1, 2, 3, 4, 5, 6]).slot
        plan = cache.acquire(PREFIX, [1, 2, 9])
        assert plan.slot != old
        assert (plan.num_cached, plan.copy_from) == (2, old)
        assert cache.acquire(PREFIX, [1, 2, 3, 4, 5, 6]) == SlotPlan(old, 6)

    def test_a_slot_in_use_is_copied_even_to_go_on(self) -> None:
        cache = ContextCache(3)
        used = cache.acquire(PREFIX, [1, 2]).slot
        plan = cache.acquire(PREFIX, [1, 2, 3])
        assert plan.slot != used
        assert (plan.num_cached, plan.copy_from) == (2, used)

    def test_roles_share_nothing(self) -> None:
        cache = ContextCache(3)
        hold(cache, [1, 2, 3])
        assert cache.acquire(SUFFIX, [1, 2, 3]).num_cached == 0


class TestEviction:
    def test_the_least_recently_used_stream_leaves_first(self) -> None:
        cache = ContextCache(3)
        a, b, c = [1, 1], [2, 2], [3, 3]
        for stream in (a, b, c, a):
            hold(cache, stream)
        hold(cache, [4, 4])
        assert [hold(cache, s).num_cached for s in (a, c)] == [2, 2]
        assert hold(cache, b).num_cached == 0

    def test_the_source_of_a_copy_is_taken_over_when_no_other_slot_is_free(self) -> None:
        cache = ContextCache(2)
        source = hold(cache, [1, 2, 3, 4, 5]).slot
        cache.acquire(SUFFIX, [7])
        assert cache.acquire(PREFIX, [1, 8]) == SlotPlan(source, 1)

    def test_a_forgotten_slot_caches_nothing(self) -> None:
        cache = ContextCache(2)
        plan = cache.acquire(PREFIX, [1, 2])
        cache.forget(plan.slot)
        cache.release(plan.slot)
        assert cache.acquire(PREFIX, [1, 2]).num_cached == 0


class TestMisuse:
    def test_one_slot_is_too_few(self) -> None:
        with pytest.raises(ValueError, match="num_slots is 1"):
            ContextCache(1)

    def test_releasing_twice_is_an_error(self) -> None:
        cache = ContextCache(2)
        slot = hold(cache, [1]).slot
        with pytest.raises(ValueError, match=f"slot {slot} is released more often"):
            cache.release(slot)

    def test_integrity_notices_a_slot_in_use_without_contents(self) -> None:
        cache = ContextCache(2)
        cache.forget(cache.acquire(PREFIX, [1]).slot)
        with pytest.raises(AssertionError, match="in use but empty"):
            cache.check_integrity()
