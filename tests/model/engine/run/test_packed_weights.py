"""The packed file: what it holds, and what happens to one that is not what it should be."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backbones import some_ids, tiny

from model.engine.run.packed_weights import (
    FILE,
    PackedError,
    PackedWeights,
    open_packed,
    pack,
    packed_folder,
    scale_of,
)
from model.transformer import Transformer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pack(tiny(), tmp_path / FILE, "digest")
    return tmp_path / FILE


def not_called() -> Transformer:
    raise AssertionError("the weights were read again")


def test_rows_are_within_half_a_step_of_the_weights(path: Path) -> None:
    model, weights = tiny(), PackedWeights(path, "digest")
    assert weights.config == model.config
    layer = model.layers[1]
    rows = torch.tensor(weights.array("layers.1.qkv")).float()
    scale = torch.tensor(weights.array(scale_of("layers.1.qkv")))
    expected = torch.cat([p.weight for p in (layer.q_proj, layer.k_proj, layer.v_proj)])
    assert ((rows * scale - expected).abs() <= 0.5001 * scale).all()
    norm = torch.tensor(weights.array("layers.1.ffn_norm"))
    assert torch.equal(norm, layer.ffn_norm.weight)


def test_an_embedding_of_its_own_is_kept_and_the_heads_serves_otherwise(tmp_path: Path) -> None:
    for tied in (False, True):
        model, ids = tiny(is_tied=tied), some_ids(2, 9)
        pack(model, tmp_path / FILE, "digest")
        weights = PackedWeights(tmp_path / FILE)
        assert ("embedding" in weights) is not tied
        found, expected = weights.embedded(ids), model.embedding(ids)
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_pages_that_were_given_back_are_read_again(path: Path) -> None:
    weights = PackedWeights(path)
    before = weights.array("head").copy()
    weights.forget_pages()
    assert (weights.array("head") == before).all()


def test_what_is_there_is_not_made_again(path: Path) -> None:
    made = path.stat().st_mtime_ns
    open_packed(path.parent, "digest", not_called)
    assert path.stat().st_mtime_ns == made


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _no_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 4096)


def _of_another_format(path: Path) -> None:
    _with_header(path, lambda header: header["__metadata__"].update(format="another 0"))


def _of_another_checkpoint(path: Path) -> None:
    _with_header(path, lambda header: header["__metadata__"].update(digest="another"))


def _without_a_tensor(path: Path) -> None:
    _with_header(path, lambda header: header.pop("layers.2.down"))


def _of_wrong_sizes(path: Path) -> None:
    _with_header(path, lambda header: header["head"].update(shape=[320, 65]))


def _with_header(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + size])
    change(header)
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + size :])


@pytest.mark.parametrize(
    "damage",
    [
        _cut, _emptied, _no_header, _of_another_format, _of_another_checkpoint, _without_a_tensor,
        _of_wrong_sizes,
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_refused_and_made_again(
    path: Path, damage: Callable[[Path], None]
) -> None:
    names = ("head", "layers.2.down", "layers.2.down.scale", "final_norm")
    good = {name: PackedWeights(path).array(name).copy() for name in names}
    damage(path)
    with pytest.raises(PackedError, match=str(path)):
        PackedWeights(path, "digest")
    told = list[float]()
    again = open_packed(path.parent, "digest", tiny, told.append)
    for name in names:
        assert (again.array(name) == good[name]).all()
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_break_leaves_what_was_there(path: Path) -> None:
    good = path.read_bytes()

    def stop(done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tiny(seed=1), path, "other", stop)
    assert path.read_bytes() == good
    assert [each.name for each in path.parent.iterdir()] == [FILE]


_TWO = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
from backbones import tiny
from model.engine.run.packed_weights import open_packed

def load():
    print("made")
    return tiny()

open_packed(Path(sys.argv[1]), "digest", load)
"""


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TWO, str(tmp_path), str(Path(__file__).parent)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "".join(said) == "made\n"
    PackedWeights(tmp_path / FILE, "digest")


def test_where_nobody_may_write_the_users_cache_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "model.gguf"
    assert packed_folder(weights, "abc") == tmp_path / "model.gguf.packed"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert packed_folder(weights, "abc").parts[-2:] == ("packed", "abc")
