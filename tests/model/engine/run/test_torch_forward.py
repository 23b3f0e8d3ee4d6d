"""Rows against kept keys and values, by torch: what every other forward is compared with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backbones import causal, positions, some_ids, tiny

from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny()


@pytest.fixture(scope="module")
def forward(model: Transformer) -> TorchForward:
    return TorchForward(model)


def test_all_at_once_it_is_the_model_itself(model: Transformer, forward: TorchForward) -> None:
    ids = some_ids(2, 12)
    expected, caches = model.hidden(ids, positions(2, 0, 12), causal(2, 0, 12))
    rows = forward.rows(ids, positions(2, 0, 12), None, causal(2, 0, 12))
    torch.testing.assert_close(rows.hidden, expected)
    for layer, (keys, values) in enumerate(caches):
        torch.testing.assert_close(rows.kv[layer, 0], keys)
        torch.testing.assert_close(rows.kv[layer, 1], values)
    torch.testing.assert_close(forward.logits(rows.hidden[0]), model.logits(expected)[0])


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_kept_tokens_change_nothing(forward: TorchForward, cut: int) -> None:
    ids, size = some_ids(1, 20), 20
    whole = forward.rows(ids, positions(1, 0, size), None, causal(1, 0, size))
    first = forward.rows(ids[:, :cut], positions(1, 0, cut), None, causal(1, 0, cut))
    rest = forward.rows(
        ids[:, cut:], positions(1, cut, size - cut), first.kv, causal(1, cut, size - cut)
    )
    torch.testing.assert_close(rest.hidden, whole.hidden[:, cut:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rest.kv, whole.kv[..., cut:, :], rtol=1e-4, atol=1e-4)


def test_taps_are_normalised_states_behind_layers(model: Transformer) -> None:
    ids, size = some_ids(1, 6), 6
    rows = TorchForward(model, tapped_layers=(2, 0)).rows(
        ids, positions(1, 0, size), None, causal(1, 0, size)
    )
    assert rows.taps is not None
    last, first = rows.taps.chunk(2, dim=-1)
    # Behind the last layer only the final norm's weight is missing.
    torch.testing.assert_close(last * model.final_norm.weight, rows.hidden)
    torch.testing.assert_close(first.square().mean(-1), torch.ones(1, size), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(first, last)
    x, _ = model.layers[0](
        model.embedding(ids),
        (model.cos[:size], model.sin[:size]),
        causal(1, 0, size)[:, None],
        None,
    )
    torch.testing.assert_close(first, F.rms_norm(x, x.shape[-1:], eps=1e-6))


def test_layers_of_others_are_left_to_them(model: Transformer) -> None:
    forward = TorchForward(model, num_kv_layers=5)
    first = forward.rows(some_ids(1, 4), positions(1, 0, 4), None, causal(1, 0, 4))
    assert first.kv.shape == (5, 2, 1, 2, 4, 16)
    assert not first.kv[3:].any()
    first.kv[3:] = 7.0
    rest = forward.rows(some_ids(1, 2), positions(1, 4, 2), first.kv, causal(1, 4, 2))
    alone = TorchForward(model).rows(
        some_ids(1, 2), positions(1, 4, 2), first.kv[:3].contiguous(), causal(1, 4, 2)
    )
    torch.testing.assert_close(rest.hidden, alone.hidden)


def test_what_the_model_does_not_have_is_refused(model: Transformer) -> None:
    with pytest.raises(ValueError, match="layers 0 to 2 to tap, not 3"):
        TorchForward(model, tapped_layers=(3,))
    with pytest.raises(ValueError, match="2 layers; the backbone itself has 3"):
        TorchForward(model, num_kv_layers=2)
