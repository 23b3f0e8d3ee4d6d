from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lsp_server.document.context import DocumentError
from model.evaluation.sources import SourceText, load_sources, of_languages


def test_files_folders_and_packed_corpora_are_read(tmp_path: Path) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "a.py").write_text("x = 1\n")
    (tmp_path / "src" / "deep" / "b.ts").write_text("let y = 2;\n")
    (tmp_path / "src" / "notes.txt").write_text("no code\n")
    packed = tmp_path / "heldout.jsonl.gz"
    record = {"text": "fn main() {}\n", "language": "rust", "source": "crate"}
    header = {"format": 2, "files": 1}
    lines = f"{json.dumps(header)}\n{json.dumps(record)}\n"
    packed.write_bytes(gzip.compress(lines.encode()))
    sources = load_sources([tmp_path / "src" / "a.py", tmp_path / "src", packed])
    assert [(s.language, s.text) for s in sources] == [
        ("python", "x = 1\n"),
        ("python", "x = 1\n"),
        ("typescript", "let y = 2;\n"),
        ("rust", "fn main() {}\n"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"language": "python"}', "line 1: the field 'text' is missing"),
        ("a.jsonl", b'{"text": "x"}', "line 1: the field 'language' is missing"),
        ("a.py", b"\xff", "a.py is not UTF-8 text"),
        ("a.py", b" \n", "there is no source text in"),
    ],
)
def test_what_holds_no_source_text_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, DocumentError), match=sentence):
        load_sources([tmp_path / name])


def test_a_folders_unreadable_and_hidden_files_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "lib.py").write_text("hidden = 1\n")
    (tmp_path / "bad.py").write_bytes(b"\xff")
    (tmp_path / "good.py").write_bytes(b"x = 1\r\n")
    assert [source.text for source in load_sources([tmp_path])] == ["x = 1\n"]
    assert "bad.py is not UTF-8 text" in caplog.text


def test_sources_are_chosen_by_language_and_a_missing_one_is_named() -> None:
    go, rust = SourceText("a.go", "go", "package a"), SourceText("b.rs", "rust", "fn b() {}")
    assert of_languages([go, rust], ["go"]) == [go]
    with pytest.raises(ValueError, match="no file is in java; there are go, rust"):
        of_languages([go, rust], ["go", "java"])
