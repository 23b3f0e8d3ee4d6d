from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.corpus import Document, is_packed, read_shard, write_shard
from model.training.corpus.shards import FORMAT

DOCUMENTS = [
    Document("a\n\u2028b\t'\"\\ 🎉\r", "python", "x", ((0, 3), (0, 9), (4, 5))),
    Document("", "go", "y"),
]


def rewritten(shard: Path, lines: list[object]) -> Path:
    with gzip.open(shard, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return shard


def test_a_shard_gives_back_its_documents(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.jsonl.gz", DOCUMENTS)
    assert read_shard(tmp_path / "s.jsonl.gz") == DOCUMENTS


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 90))))
def test_spans_survive_their_encoding(pairs: list[tuple[int, int]]) -> None:
    spans = tuple(sorted((start, start + length) for start, length in pairs))
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder, "s.gz"), [Document("x", "go", "y", spans)])
        assert read_shard(Path(folder, "s.gz"))[0].spans == spans


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.gz", "two.gz"):
        write_shard(tmp_path / name, DOCUMENTS)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_shard_cut_short_is_named_with_what_to_do(tmp_path: Path, kept: int) -> None:
    shard = tmp_path / "train-000.jsonl.gz"
    write_shard(shard, DOCUMENTS)
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train-000.jsonl.gz is no readable shard .*pack the"):
        read_shard(shard)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    shard = tmp_path / "train-000.jsonl.gz"
    write_shard(shard, DOCUMENTS)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"train-000.jsonl.gz is no readable shard"):
        read_shard(shard)


ROW = {"text": "x", "language": "go", "source": "y", "spans": [0, 1]}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([{"text": "x", "language": "go", "source": "y"}], "not of format 2"),  # the first format
        ([{"format": FORMAT + 1, "files": 0}], "not of format 2"),
        ([[1]], "not of format 2"),
        ([], "not of format 2"),
        ([{"format": FORMAT, "files": 2}, ROW], "holds 1 of its 2 files"),
        ([{"format": FORMAT, "files": 1}, {**ROW, "spans": [0]}], "shorter|longer"),
        ([{"format": FORMAT, "files": 1}, {**ROW, "spans": None}], "spans must be a list"),
        ([{"format": FORMAT, "files": 1}, {**ROW, "text": 1}], "must be strings"),
        ([{"format": FORMAT, "files": 1}, {"text": "x"}], "language"),
    ],
)
def test_what_is_no_shard_of_this_format_is_refused(
    tmp_path: Path, lines: list[object], why: str
) -> None:
    with pytest.raises(ValueError, match=rf"s.jsonl.gz is no readable shard .*({why})"):
        read_shard(rewritten(tmp_path / "s.jsonl.gz", lines))


def test_only_shards_with_a_manifest_are_a_packed_corpus(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000.jsonl.gz", DOCUMENTS)
    assert not is_packed(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert is_packed(tmp_path)


def test_training_needs_nothing_that_packing_needs() -> None:
    program = (
        "import sys, model.training.__main__, model.training.windows;"
        "print(sorted({'tree_sitter', 'rensa', 'license_expression'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
