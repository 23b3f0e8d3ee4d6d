"""`mezzotint doctor`: it finds what is wrong, and works where things are missing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lsp_server.cli.doctor import Check, examine
from lsp_server.cli.main import main
from model import api, engines
from model.backbone.catalogue import known


class FakeCompleter:
    async def complete(self, request: api.InfillRequest, **_: Any) -> api.InfillResult:
        candidate = api.Candidate(texts=("a + b",), confidence=1.0)
        return api.InfillResult(
            candidates=(candidate,), forwards=2, tokens=3, encoded_tokens=9, ms=21.0
        )

    async def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which all is well: a fake torch and completer, a runtime directory."""
    cuda = SimpleNamespace(device_count=lambda: 0)
    torch = SimpleNamespace(cuda=cuda, get_num_threads=lambda: 6)
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    monkeypatch.setattr(engines, "load", lambda path, *, device: FakeCompleter())
    monkeypatch.setenv("MEZZOTINT_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    config = {"training": {"steps": 180, "minutes": 8.0}}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {"embed": np.zeros((1000, 20), np.float16), "norm": np.zeros(20, np.float16)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def checks(model: str | Path) -> dict[str, Check]:
    return {check.name: check for check in examine(model, "auto")}


def failed(model: str | Path) -> list[str]:
    return [name for name, check in checks(model).items() if not check.ok]


def test_all_is_well(checkpoint: Path):
    found = checks(checkpoint)
    assert failed(checkpoint) == []
    assert "torch uses 6 threads" in found["cpu"].detail
    assert "0.02 M parameters" in found["model"].detail
    assert "steps 180, minutes 8.0" in found["model"].detail
    assert found["shared engine"].detail.startswith("not running")
    assert found["test fill"].detail.startswith("'a + b' in 21 ms, 2 forwards")


def test_json_ends_with_one_object_that_holds_every_check(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["doctor", "--json", "--model", str(checkpoint)]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out.splitlines()[-1])
    assert list(told) == ["ok", "checks"]
    assert told["ok"] is True
    assert {tuple(check) for check in told["checks"]} == {("name", "ok", "detail", "fix")}
    assert "grammars" in printed.err, "people still see the table"


def test_without_torch_the_other_checks_go_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def load(*_: object, **__: object) -> api.Completer:
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(engines, "load", load)
    assert failed(checkpoint) == ["torch", "cuda", "test fill"]
    assert main(["doctor", "--model", str(checkpoint)]) == 1
    table = capsys.readouterr().out
    assert "FAIL torch" in table
    assert "→ run `pip install" in table
    assert "ok   model" in table


@pytest.mark.parametrize(
    ("library", "importer", "expected"),
    [
        ("tree_sitter", "lsp_server.check.syntax", ["grammars"]),
        (
            "platformdirs",
            "lsp_server.engine_link.engine_process",
            ["runtime folder", "shared engine"],
        ),
    ],
)
def test_without_another_library_its_checks_fail_and_the_rest_go_on(
    library: str,
    importer: str,
    expected: list[str],
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delitem(sys.modules, importer, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    assert failed(checkpoint) == expected


def test_a_grammar_that_does_not_load_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tree_sitter_rust", None)
    grammars = checks(checkpoint)["grammars"]
    assert not grammars.ok
    assert "rust" in grammars.detail
    assert "python" not in grammars.detail


def test_every_cuda_device_is_named(checkpoint: Path):
    cuda = sys.modules["torch"].cuda
    cuda.device_count = lambda: 2
    cuda.get_device_name = lambda index: f"H{index}00"
    assert checks(checkpoint)["cuda"].detail == "cuda:0 is H000, cuda:1 is H100"


def test_the_default_model_is_told_with_its_digest_and_licence(
    default_model: Path, checkpoint: Path
) -> None:
    default_model.write_bytes(b"GGUF")
    os.truncate(default_model, known("").num_bytes)
    model = checks("")["model"]
    assert model.ok
    assert f"{default_model}: Qwen2.5-Coder-0.5B-Instruct" in model.detail
    assert "digest checked, 491 MB; licence: Apache-2.0" in model.detail


def test_a_default_model_that_is_not_here_is_told_with_the_command_that_gets_it(
    default_model: Path, checkpoint: Path
) -> None:
    default_model.unlink()
    model = checks("")["model"]
    assert not model.ok
    assert "491 MB; licence: Apache-2.0 is not on this machine" in model.detail
    assert "`mezzotint download` gets the default one" in model.fix
    assert failed("") == ["model", "test fill"]


def test_a_gguf_file_is_known_by_its_first_bytes(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.gguf"
    file.write_bytes(b"GGUF" + bytes(2_000_000))
    assert checks(file)["model"].detail == f"{file}: a GGUF file, 2 MB"
    file.write_bytes(b"PK\x03\x04")
    assert checks(file)["model"].detail == f"{file} is no GGUF file"


def test_the_files_of_a_large_checkpoint_are_counted_together(checkpoint: Path) -> None:
    first = checkpoint / "model.safetensors"
    (checkpoint / "model-00002-of-00002.safetensors").write_bytes(first.read_bytes())
    assert "0.04 M parameters" in checks(checkpoint)["model"].detail


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "config.json is missing"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("config.json", b"{", "damaged"),
        ("config.json", b"[]", "damaged"),
        ("model.safetensors", b"\xff" * 7, "cut short"),
        ("model.safetensors", b"\x02" + b"\0" * 7 + b"[]", "damaged"),
    ],
)
def test_a_missing_or_damaged_checkpoint_is_described(
    file: str, content: bytes | None, said: str, checkpoint: Path
):
    if content is None:
        (checkpoint / file).unlink()
    else:
        (checkpoint / file).write_bytes(content)
    model = checks(checkpoint)["model"]
    assert not model.ok
    assert said in model.detail
    assert "`mezzotint download` gets the default one" in model.fix


def test_weights_that_end_too_early_are_noticed(checkpoint: Path):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    model = checks(checkpoint)["model"]
    assert not model.ok
    assert "model.safetensors is cut short" in model.detail


def test_a_fill_that_fails_is_told_in_the_engines_own_words(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(*_: object, **__: object) -> api.Completer:
        raise api.CheckpointError("the tokenizer is another model's")

    monkeypatch.setattr(engines, "load", load)
    fill = checks(checkpoint)["test fill"]
    assert (fill.ok, fill.detail) == (False, "the tokenizer is another model's")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
def test_a_runtime_directory_that_others_can_open_is_a_problem(checkpoint: Path, tmp_path: Path):
    assert checks(checkpoint)["runtime folder"].ok
    assert (tmp_path / "runtime").stat().st_mode & 0o777 == 0o700
    (tmp_path / "runtime").chmod(0o750)
    folder = checks(checkpoint)["runtime folder"]
    assert not folder.ok
    assert "050" in folder.detail
    assert "chmod 700" in folder.fix


@pytest.mark.parametrize(
    ("outcome", "ok", "said"),
    [
        (
            api.EngineHealth(state="ready", message="serving /m; no kernels", model="/m"),
            True,
            f"process {os.getpid()} is ready: serving /m; no kernels",
        ),
        (api.EngineHealth(state="failed", message="no memory"), False, "has failed: no memory"),
        (api.EngineUnavailableError("refused"), True, "does not answer"),
        (api.InvalidRequestError("wrong token"), False, "wrong token"),
    ],
)
def test_the_shared_engine_is_asked_how_it_is(
    outcome: api.EngineHealth | Exception,
    ok: bool,
    said: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    class Connection:
        closed = False

        async def health(self) -> api.EngineHealth:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def close(self) -> None:
            self.closed = True

    connection = Connection()
    addresses: list[tuple[str, str]] = []
    monkeypatch.setattr(engines, "connect", lambda *where: addresses.append(where) or connection)
    (tmp_path / "runtime").mkdir(mode=0o700)
    description = {"socket": "unix:/s", "token": "t", "pid": os.getpid()}
    (tmp_path / "runtime" / "engine-1.json").write_text(json.dumps(description))
    engine = checks(checkpoint)["shared engine"]
    assert (engine.ok, addresses, connection.closed) == (ok, [("unix:/s", "t")], True)
    assert said in engine.detail


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}'])
def test_a_descriptor_that_cannot_be_read_is_no_problem_as_the_next_engine_replaces_it(
    content: str, checkpoint: Path, tmp_path: Path
):
    (tmp_path / "runtime").mkdir(mode=0o700)
    (tmp_path / "runtime" / "engine-1.json").write_text(content)
    engine = checks(checkpoint)["shared engine"]
    assert engine.ok
    assert "describes no engine" in engine.detail
