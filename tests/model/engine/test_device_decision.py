"""A batch's decisions on the device against the sampler's, canvas by canvas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.device_decision import POLICIES, Canvases, can_decide
from model.engine.kernels.reference import head
from model.engine.sampler import CanvasBatch, SamplingRows, Vocabulary, decide
from model.engine.sequence import SamplingParams

MASK, END, OTHER_SPECIAL, VOCAB = 0, 1, 2, 9
FORBIDDEN = torch.tensor([i in (MASK, OTHER_SPECIAL) for i in range(VOCAB)])
RULES = Vocabulary(
    mask_id=MASK,
    end_id=END,
    special_ids=frozenset({MASK, END, OTHER_SPECIAL}),
    forbidden=FORBIDDEN,
)
PARAMS = [
    SamplingParams(threshold=0.4),
    SamplingParams(threshold=0.0),
    SamplingParams(policy="entropy", entropy_bound=1.5),
    SamplingParams(policy="left-to-right"),
]


def canvas(seed: int, size: int) -> tuple[list[int], list[int]]:
    """(ids, holes) of a half-decided canvas of up to three holes."""
    generator = torch.Generator().manual_seed(seed)
    holes = torch.randint(-1, 3, (size,), generator=generator).sort().values.tolist()
    ids = torch.randint(3, VOCAB, (size,), generator=generator)
    masked = torch.rand(size, generator=generator) < 0.7
    for slot, hole in enumerate(holes):
        if hole >= 0 and masked[slot]:
            ids[slot] = MASK
    return ids.tolist(), holes


def state(rows: list[tuple[list[int], list[int]]], params: list[SamplingParams], never_ends: bool):
    """The rows, padded to one size as a runner does."""
    slots = max(len(ids) for ids, _ in rows)
    bounds = [p.entropy_bound if p.policy == "entropy" else p.threshold for p in params]
    return Canvases(
        torch.tensor([[*ids, *[0] * (slots - len(ids))] for ids, _ in rows]),
        torch.ones(len(rows), slots),
        torch.tensor(
            [[*holes, *[-1] * (slots - len(holes))] for _, holes in rows], dtype=torch.int32
        ),
        torch.tensor([POLICIES.index(p.policy) for p in params]),
        torch.tensor(bounds),
        torch.full((len(rows),), never_ends),
        torch.zeros(len(rows), dtype=torch.int32),
        torch.zeros(len(rows), dtype=torch.bool),
    )


def step(canvases: Canvases, logits_BCV: torch.Tensor) -> None:
    beliefs = head(
        logits_BCV.flatten(0, 1),
        torch.eye(VOCAB),
        canvases.open_slots(MASK).flatten(),
        canvases.endless_slots(MASK, END).flatten(),
        FORBIDDEN,
        END,
    )
    canvases.commit(beliefs, MASK, END)


def of_the_sampler(canvases: Canvases, params: list[SamplingParams]) -> CanvasBatch:
    """The same canvases as the sampler takes them."""
    hole = canvases.hole_BC
    order = torch.arange(hole.shape[1])
    return CanvasBatch(
        ids=canvases.ids_BC.masked_fill(hole < 0, 5),
        confidence=canvases.confidences_BC.clone(),
        fixed=canvases.ids_BC != MASK,
        after=(hole[:, :, None] == hole[:, None, :]) & (order[None, :] > order[:, None]),
        step=torch.zeros(len(params), 1, dtype=torch.int64),
        no_end=canvases.never_ends_B[:, None],
        rows=SamplingRows(params, torch.device("cpu")),
    )


@given(
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    strength=st.sampled_from([0.3, 3.0, 30.0]),
    params=st.lists(st.sampled_from(PARAMS), min_size=4, max_size=4),
    never_ends=st.booleans(),
)
def test_every_step_of_a_batch_decides_as_the_sampler_does(
    seed: int, sizes: list[int], strength: float, params: list[SamplingParams], never_ends: bool
) -> None:
    rows = [canvas(seed + row, size) for row, size in enumerate(sizes)]
    params = params[: len(rows)]
    found = state(rows, params, never_ends)
    expected = of_the_sampler(found, params)
    in_a_hole = found.hole_BC >= 0
    steps = torch.zeros(len(rows), dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed)
    slots = found.ids_BC.shape[1]
    for _ in range(slots):
        logits = torch.randn(len(rows), slots, VOCAB, generator=generator) * strength
        logits[..., END] += strength  # ends are what most rules are about
        steps += found.open_slots(MASK).any(1)
        step(found, logits)
        decide(expected, logits, RULES)
        assert found.ids_BC[in_a_hole].tolist() == expected.ids[in_a_hole].tolist()
        torch.testing.assert_close(found.confidences_BC[in_a_hole], expected.confidence[in_a_hole])
    assert found.steps_B.tolist() == steps.tolist()
    assert not found.open_slots(MASK).any()


def test_a_broken_row_stays_as_it_is_and_leaves_the_others_alone() -> None:
    rows = [([MASK] * 3, [0] * 3), ([MASK] * 3, [0] * 3)]
    canvases = state(rows, [SamplingParams()] * 2, never_ends=False)
    logits = torch.zeros(2, 3, VOCAB)
    logits[..., 5] = 9.0
    logits[0, 1] = float("nan")
    for _ in range(2):
        step(canvases, logits)
    assert canvases.is_broken_B.tolist() == [True, False]
    assert canvases.ids_BC.tolist() == [[MASK] * 3, [5] * 3]


@pytest.mark.parametrize("params", [
    SamplingParams(steps=4), SamplingParams(temperature=0.5), SamplingParams(remask=0.1),
    SamplingParams(policy="factor"), SamplingParams(at_least="surest"),
])  # fmt: skip
def test_what_needs_the_logits_is_left_to_the_sampler(params: SamplingParams) -> None:
    assert not can_decide(params)
    assert all(can_decide(p) for p in PARAMS)
