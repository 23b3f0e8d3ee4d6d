"""What the user does not want downloaded is remembered, and a broken memory does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsp_server.window.declined import DeclinedModels


def test_a_no_outlives_the_server_until_it_is_taken_back(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    assert "" not in DeclinedModels(directory)
    DeclinedModels(directory).add("")
    DeclinedModels(directory).add("someone/model")
    assert "" in DeclinedModels(directory)
    DeclinedModels(directory).discard("")
    DeclinedModels(directory).discard("never/declined")
    assert "" not in DeclinedModels(directory)
    assert "someone/model" in DeclinedModels(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{}", b"[1, null]"])
def test_a_file_that_says_nothing_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "declined-models.json").write_bytes(content)
    declined = DeclinedModels(tmp_path)
    assert "" not in declined
    declined.add("")
    assert "" in declined


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    declined = DeclinedModels(tmp_path / "file")
    declined.add("")
    assert "" not in declined
