from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.api import InfillRequest, InfillResult
from model.engines import load
from model.evaluation.report import (
    beside,
    circumstances,
    digest,
    make_room,
    percentile,
    share,
    write_report,
)


def arguments(model: Path, *, engine: str | None = None) -> argparse.Namespace:
    argv = ["infilling", "--out", "a b"]
    return argparse.Namespace(argv=argv, device="cpu", engine=engine, model=model)


async def test_a_report_names_command_machine_versions_and_checkpoint(checkpoint: Path) -> None:
    completer = load(checkpoint, device="cpu")
    await completer.close()
    told = circumstances(arguments(checkpoint), completer)
    assert told["command"] == "mezzotint evaluate infilling --out 'a b'"
    assert told["device"]
    assert re.fullmatch(r"[0-9a-f]{40}\+?", told["commit"] or "0" * 40)
    assert told["runtime"] == completer.runtime  # type: ignore[attr-defined]
    assert told["model"] == checkpoint.name
    weights = (checkpoint / "model.safetensors").read_bytes()
    assert told["model_sha256"] == digest(checkpoint) == hashlib.sha256(weights).hexdigest()


def test_a_file_is_known_by_its_own_digest(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert digest(tmp_path / "a.gguf") == hashlib.sha256(b"GGUF").hexdigest()


class Elsewhere:
    """A completer that is no engine of ours."""

    async def complete(self, request: InfillRequest, *, on_frame: Any = None) -> InfillResult:
        raise NotImplementedError

    async def close(self) -> None: ...


def test_a_remote_engine_is_named_instead_of_a_checkpoint(tmp_path: Path) -> None:
    told = circumstances(arguments(tmp_path, engine="http://127.0.0.1:1"), Elsewhere())
    assert told["engine"] == "http://127.0.0.1:1"
    assert not told.keys() & {"model_sha256", "device", "torch"}  # those would be ours


def test_rows_are_written_a_line_each(tmp_path: Path) -> None:
    report = {"figures": {"n": 2}, "rows": [{"text": "a\nb"}, {"text": "c"}]}
    write_report(tmp_path / "r.json", dict(report))
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == report
    assert text.splitlines()[-4:-2] == ['    {"text": "a\\nb"},', '    {"text": "c"}']


def test_shares_and_percentiles_of_nothing_are_no_error() -> None:
    assert share(0, 0) is None
    assert percentile([], 50) is None


def test_a_dot_in_a_stem_is_no_extension() -> None:
    assert beside(Path("docs/sweep-0.9"), ".json") == Path("docs/sweep-0.9.json")


def test_a_report_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("kept")
    make_room(tmp_path / "old.json")
    make_room(tmp_path / "new" / "report.json")
    assert (tmp_path / "old.json").read_text() == "kept"
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OSError, match="directory"):
        make_room(tmp_path)
