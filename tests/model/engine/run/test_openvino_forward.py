"""The backbone by OpenVINO against torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbones import causal, positions, some_ids, tiny

from model.engine.run.openvino_forward import OpenVinoForward
from model.engine.run.openvino_request import BFLOAT16, FLOAT32, INT8, INT8_FLOAT_KEYS
from model.engine.run.packed_weights import PackedWeights, pack
from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny()


@pytest.fixture(scope="module")
def plain(model: Transformer) -> TorchForward:
    return TorchForward(model)


@pytest.fixture(scope="module")
def exact(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> PackedWeights:
    """Weights that nothing was taken from."""
    path = tmp_path_factory.mktemp("exact") / "weights"
    pack(model, path, "digest", keeps_float=True)
    return PackedWeights(path)


@pytest.fixture(scope="module")
def packed(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> PackedWeights:
    path = tmp_path_factory.mktemp("packed") / "weights"
    pack(model, path, "digest")
    return PackedWeights(path)


@pytest.fixture(scope="module")
def forward(exact: PackedWeights) -> OpenVinoForward:
    return OpenVinoForward(exact, FLOAT32)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 9), (1, 1), (13, 8), (64, 33)])
def test_in_float32_it_computes_what_torch_does(
    plain: TorchForward, forward: OpenVinoForward, past: int, new: int
) -> None:
    ids = some_ids(2, past + new)
    kept = None
    if past:
        kept = plain.rows(ids[:, :past], positions(2, 0, past), None, causal(2, 0, past)).kv
    given = ids[:, past:], positions(2, past, new), kept, causal(2, past, new)
    expected, found = plain.rows(*given), forward.rows(*given)
    close(found.hidden, expected.hidden)
    close(found.kv, expected.kv)
    assert found.taps is None
    close(forward.logits(found.hidden[0]), plain.logits(expected.hidden[0]))


def test_a_row_kept_by_it_serves_the_next(forward: OpenVinoForward) -> None:
    ids = some_ids(1, 20)
    whole = forward.rows(ids, positions(1, 0, 20), None, causal(1, 0, 20))
    first = forward.rows(ids[:, :15], positions(1, 0, 15), None, causal(1, 0, 15))
    rest = forward.rows(ids[:, 15:], positions(1, 15, 5), first.kv, causal(1, 15, 5))
    torch.testing.assert_close(rest.hidden, whole.hidden[:, 15:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.kv, whole.kv[..., :15, :], rtol=1e-4, atol=1e-4)


def test_padding_on_either_side_changes_nothing(forward: OpenVinoForward) -> None:
    """Two streams of 12 and 5 kept tokens, 3 and 2 new ones, in a room of 16."""
    ids, room, size = some_ids(2, 15), 16, 3
    kept = torch.full((3, 2, 2, 2, room, 16), 50.0)
    visible = torch.zeros(2, size, room + size, dtype=torch.bool)
    visible[:, :, room:] = torch.eye(size, dtype=torch.bool)
    given, places = torch.zeros(2, size, dtype=torch.long), torch.zeros(2, size, dtype=torch.long)
    alone = list[torch.Tensor]()
    for row, (past, new) in enumerate([(12, 3), (5, 2)]):
        own = ids[row : row + 1, : past + new]
        first = forward.rows(own[:, :past], positions(1, 0, past), None, causal(1, 0, past))
        kept[:, :, row, :, :past] = first.kv[:, :, 0]
        rest = forward.rows(own[:, past:], positions(1, past, new), first.kv, causal(1, past, new))
        alone.append(rest.hidden[0])
        given[row, :new], places[row, :new] = own[0, past:], torch.arange(past, past + new)
        visible[row, :new, :past] = True
        visible[row, :new, room : room + new] = torch.ones(new, new, dtype=torch.bool).tril()
    together = forward.rows(given, places, kept, visible).hidden
    for row, expected in enumerate(alone):
        torch.testing.assert_close(together[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_branches_of_a_tree_do_not_see_each_other(
    plain: TorchForward, forward: OpenVinoForward
) -> None:
    r"""0 - 1 - 2 and 0 - 3: each branch as if it were alone."""
    ids = some_ids(1, 10)
    kept = plain.rows(ids[:, :6], positions(1, 0, 6), None, causal(1, 0, 6)).kv
    new, depth = ids[:, 6:], torch.tensor([[6, 7, 8, 7]])
    sees = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    visible = torch.cat((torch.ones(4, 6, dtype=torch.bool), sees), dim=1)[None]
    found = forward.rows(new, depth, kept, visible).hidden
    for branch in ([0, 1, 2], [0, 3]):
        count = len(branch)
        alone = plain.rows(new[:, branch], positions(1, 6, count), kept, causal(1, 6, count))
        close(found[:, branch], alone.hidden)


def test_taps_and_others_layers_are_as_torchs(model: Transformer, exact: PackedWeights) -> None:
    wanted = {"tapped_layers": (2, 0), "num_kv_layers": 5}
    forward, plain = OpenVinoForward(exact, FLOAT32, **wanted), TorchForward(model, **wanted)
    first = plain.rows(some_ids(1, 4), positions(1, 0, 4), None, causal(1, 0, 4))
    first.kv[3:] = 7.0
    given = some_ids(1, 3), positions(1, 4, 3), first.kv, causal(1, 4, 3)
    expected, found = plain.rows(*given), forward.rows(*given)
    assert found.taps is not None
    assert expected.taps is not None
    close(found.taps, expected.taps)
    close(found.kv, expected.kv)
    assert found.kv.shape[0] == 5
    with pytest.raises(ValueError, match="layers 0 to 2 to tap, not 3"):
        OpenVinoForward(exact, tapped_layers=(3,))


def test_what_is_returned_outlives_the_next_call(forward: OpenVinoForward) -> None:
    given = some_ids(1, 4), positions(1, 0, 4), None, causal(1, 0, 4)
    rows = forward.rows(*given)
    logits = forward.logits(rows.hidden[0])
    copies = rows.hidden.clone(), rows.kv.clone(), logits.clone()
    other = forward.rows(some_ids(1, 4, seed=1), *given[1:])
    forward.logits(other.hidden[0])
    assert torch.equal(rows.hidden, copies[0])
    assert torch.equal(rows.kv, copies[1])
    assert torch.equal(logits, copies[2])


@pytest.mark.parametrize("arithmetic", [INT8, INT8_FLOAT_KEYS, BFLOAT16], ids=lambda a: a.name)
def test_int8_stays_near_the_model(
    plain: TorchForward, packed: PackedWeights, arithmetic: object
) -> None:
    """Random weights, on which 8 bits are hard: 3 % of the hidden states' length, at most."""
    forward = OpenVinoForward(packed, arithmetic)  # type: ignore[arg-type]
    ids = some_ids(1, 24)
    kept = plain.rows(ids[:, :16], positions(1, 0, 16), None, causal(1, 0, 16)).kv
    expected = plain.rows(ids[:, 16:], positions(1, 16, 8), kept, causal(1, 16, 8))
    found = forward.rows(
        ids[:, 16:], positions(1, 16, 8), kept.to(forward.kv_dtype), causal(1, 16, 8)
    )
    assert found.kv.dtype == forward.kv_dtype
    for one, other in ((found.hidden, expected.hidden), (found.kv.float(), expected.kv)):
        assert (one - other).norm() < 0.03 * other.norm()
    logits = forward.logits(found.hidden[0])
    assert (logits - plain.logits(expected.hidden[0])).norm() < 0.03 * logits.norm()


def test_heads_with_norms_and_without_biases(tmp_path: Path) -> None:
    model = tiny(qk_norm=True, qkv_bias=False, num_heads=2, is_tied=True, model_type="llama")
    pack(model, tmp_path / "weights", "digest", keeps_float=True)
    forward = OpenVinoForward(PackedWeights(tmp_path / "weights"), FLOAT32)
    given = some_ids(1, 7), positions(1, 0, 7), None, causal(1, 0, 7)
    close(forward.rows(*given).hidden, TorchForward(model).rows(*given).hidden)


# Tells every attempt to look up or reach a host, and what of the telemetry package was loaded.
_WATCHED = """
import sys, threading
calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event.startswith("socket.") else None)
import model.engine.run.openvino_forward
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(5)
print(calls, [name for name in sys.modules if name.startswith("openvino_telemetry.")])
"""


def test_nobody_is_told_that_openvino_is_used(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", _WATCHED],
        env={**environment, **home},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[] []"
    assert list(tmp_path.iterdir()) == []


# A thread that loads a model, another that lets it go, and signals to the first.
_SIGNALLED = """
import signal, sys, threading
from pathlib import Path
from model.engine.run.openvino_forward import OpenVinoForward
from model.engine.run.packed_weights import PackedWeights

def load():
    return [OpenVinoForward(PackedWeights(Path(sys.argv[1])))]

signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
forwards = load()
for act in (forwards.clear, load):
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs the signals of POSIX")
def test_signals_are_handled_after_a_model_is_let_go_by_another_thread(
    model: Transformer, tmp_path: Path
) -> None:
    pack(model, tmp_path / "weights", "digest")
    run = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, str(tmp_path / "weights")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "handled\nhandled\n"), run.stderr
