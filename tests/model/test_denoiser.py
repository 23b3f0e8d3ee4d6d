"""The invariants that the engine's cache and the trainer's shared windows stand on.

In float64, so that "equal" means equal up to the last digits and no tolerance can hide a leak.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.attention import KeyValue
from model.denoiser import Denoiser, DenoiserConfig, Role

VOCAB = 40
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def model(make_denoiser: Callable[..., Denoiser]) -> Denoiser:
    return make_denoiser(VOCAB).requires_grad_(False)


def encode(model: Denoiser, ids: list[int], role: Role) -> list[KeyValue]:
    return model.encode(torch.tensor([ids]), role)[1]


def denoise(model: Denoiser, prefix: list[int], canvas: list[int], suffix: list[int]) -> Tensor:
    """Hidden states (C, E) of one canvas between two whole streams: what an engine computes."""
    slots = torch.arange(len(canvas))[None]
    return model.denoise(
        torch.tensor([canvas]),
        torch.tensor([prefix[-1:]]),
        len(prefix) + slots,
        torch.full_like(slots, len(suffix)),
        encode(model, prefix, Role.PREFIX),
        encode(model, suffix, Role.SUFFIX),
        canvas_size=len(canvas),
    )[0]


def assert_same_cache(a: list[KeyValue], b: list[KeyValue], **tolerance: float) -> None:
    for pair_a, pair_b in zip(a, b, strict=True):
        for one, other in zip(pair_a, pair_b, strict=True):
            torch.testing.assert_close(one, other, **tolerance)


@given(ids=IDS, more=IDS, role=st.sampled_from([Role.PREFIX, Role.SUFFIX]))
def test_encoding_in_two_pieces_equals_encoding_at_once(
    model: Denoiser, ids: list[int], more: list[int], role: Role
) -> None:
    whole_hidden, whole = model.encode(torch.tensor([ids + more]), role)
    first_hidden, past = model.encode(torch.tensor([ids]), role)
    second_hidden, both = model.encode(torch.tensor([more]), role, past)
    assert_same_cache(both, whole)
    torch.testing.assert_close(torch.cat((first_hidden, second_hidden), dim=1), whole_hidden)


@given(ids=IDS, more=IDS)
def test_appending_to_a_stream_keeps_the_keys_and_values_it_had(
    model: Denoiser, ids: list[int], more: list[int]
) -> None:
    past = encode(model, ids, Role.PREFIX)
    before = [(k.clone(), v.clone()) for k, v in past]
    _, longer = model.encode(torch.tensor([more]), Role.PREFIX, past)
    assert_same_cache(past, before, rtol=0, atol=0)  # the caller's cache is not written to
    kept = [(k[:, :, : len(ids)], v[:, :, : len(ids)]) for k, v in longer]
    assert_same_cache(kept, before, rtol=0, atol=0)


@given(prefix=IDS, suffix=IDS, edited=IDS)
def test_an_edit_of_one_stream_leaves_the_other_streams_cache_untouched(
    model: Denoiser, prefix: list[int], suffix: list[int], edited: list[int]
) -> None:
    """In one batch, as the trainer encodes them: rows 0 and 1 are a window's two streams."""
    length = min(len(prefix), len(suffix), len(edited))
    roles = torch.tensor([[Role.PREFIX], [Role.SUFFIX]])

    def both(first: list[int], second: list[int]) -> list[KeyValue]:
        return model.encode(torch.tensor([first[:length], second[:length]]), roles)[1]

    def row(cache: list[KeyValue], index: int) -> list[KeyValue]:
        return [(k[index], v[index]) for k, v in cache]

    original = both(prefix, suffix)
    exact = {"rtol": 0, "atol": 0}
    assert_same_cache(row(both(edited, suffix), 1), row(original, 1), **exact)
    assert_same_cache(row(both(prefix, edited), 0), row(original, 0), **exact)


@given(prefix=IDS, suffix=IDS, canvas=IDS)
def test_denoising_changes_no_cache(
    model: Denoiser, prefix: list[int], suffix: list[int], canvas: list[int]
) -> None:
    caches = [encode(model, prefix, Role.PREFIX), encode(model, suffix, Role.SUFFIX)]
    before = [[(k.clone(), v.clone()) for k, v in cache] for cache in caches]
    slots = torch.arange(len(canvas))[None]
    model.denoise(
        torch.tensor([canvas]),
        torch.tensor([prefix[-1:]]),
        len(prefix) + slots,
        torch.full_like(slots, len(suffix)),
        *caches,
        canvas_size=len(canvas),
    )
    for cache, old in zip(caches, before, strict=True):
        assert_same_cache(cache, old, rtol=0, atol=0)


def test_every_slot_sees_both_streams_and_the_whole_canvas(model: Denoiser) -> None:
    prefix, canvas, suffix = [1, 2, 3], [0, 0, 5, 0], [7, 8]
    original = denoise(model, prefix, canvas, suffix)
    for changed in (
        denoise(model, [9, 2, 3], canvas, suffix),
        denoise(model, prefix, canvas, [9, 8]),
        denoise(model, prefix, [0, 0, 6, 0], suffix),
    ):
        assert ((changed - original).abs().amax(dim=-1) > 1e-4).all()


@given(
    data=st.data(),
    size=st.integers(1, 4),
    seen=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
)
def test_canvases_that_share_a_window_equal_each_canvas_alone(
    model: Denoiser, data: st.DataObject, size: int, seen: list[tuple[int, int]]
) -> None:
    """The trainer's layout, K canvases masked to their share of two streams, against the
    engine's: one canvas between streams that hold nothing else."""
    token = st.integers(0, VOCAB - 1)
    forward, backward = (data.draw(st.lists(token, min_size=9, max_size=9)) for _ in range(2))
    canvases = [data.draw(st.lists(token, min_size=size, max_size=size)) for _ in seen]

    def mask(counts: list[int]) -> Tensor:
        rows = [[0.0 if i < n else float("-inf") for i in range(9)] for n in counts]
        return torch.tensor(rows, dtype=torch.float64).repeat_interleave(size, 0)[None, None]

    together = model.denoise(
        torch.tensor([[i for canvas in canvases for i in canvas]]),
        torch.tensor([[forward[p - 1] for p, _ in seen]]),
        torch.tensor([[p + i for p, _ in seen for i in range(size)]]),
        torch.tensor([[s for _, s in seen for _ in range(size)]]),
        encode(model, forward, Role.PREFIX),
        encode(model, backward, Role.SUFFIX),
        canvas_size=size,
        prefix_mask=mask([p for p, _ in seen]),
        suffix_mask=mask([s for _, s in seen]),
    )[0]
    for k, (num_prefix, num_suffix) in enumerate(seen):
        alone = denoise(model, forward[:num_prefix], canvases[k], backward[:num_suffix])
        torch.testing.assert_close(together[k * size : (k + 1) * size], alone)


def test_bf16_is_close_to_fp32(make_denoiser: Callable[..., Denoiser]) -> None:
    prefix, canvas, suffix = [1, 2, 3, 4], [0, 0, 5, 0], [7, 8, 9]
    sizes = {"hidden_size": 64, "ffn_size": 128}
    exact = denoise(make_denoiser(VOCAB, dtype=torch.float32, **sizes), prefix, canvas, suffix)
    half = denoise(make_denoiser(VOCAB, dtype=torch.bfloat16, **sizes), prefix, canvas, suffix)
    error = (half.float() - exact).norm() / exact.norm()
    assert error < 0.03


def test_the_three_roles_are_told_apart(model: Denoiser) -> None:
    prefix, suffix = (encode(model, [1, 2, 3], role) for role in (Role.PREFIX, Role.SUFFIX))
    assert not torch.allclose(prefix[0][0], suffix[0][0])


def test_logits_use_the_embedding_as_the_head(model: Denoiser) -> None:
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embedding.weight.T)
    assert {name for name, _ in model.named_parameters() if "head" in name} == set()


def test_a_fresh_model_starts_from_nearly_uniform_predictions() -> None:
    torch.manual_seed(0)
    fresh = Denoiser(DenoiserConfig(vocab_size=VOCAB))
    hidden, _ = fresh.encode(torch.arange(VOCAB)[None], Role.PREFIX)
    # A token's own embedding is what it finds first; among the others there is no favourite.
    others = fresh.logits(hidden)[0].masked_select(~torch.eye(VOCAB, dtype=torch.bool))
    assert others.abs().mean() < 1.5


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 30}, "must divide by num_heads"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads 3"),
        ({"hidden_size": 12, "num_heads": 4}, "head dimension 3 must be even"),
        ({"num_layers": 0}, "num_layers is 0; it must be a whole number above 0"),
        ({"num_kv_heads": -1}, "num_kv_heads is -1"),
        ({"ffn_size": "96"}, "ffn_size is '96'"),
        ({"max_positions": 0.5}, r"max_positions is 0\.5"),
        ({"max_context": 64, "max_positions": 64}, "max_context 64 leaves no position"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoiserConfig(vocab_size=VOCAB, **sizes)
