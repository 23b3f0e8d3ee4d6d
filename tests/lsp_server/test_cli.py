"""The command line: what it accepts, what it prints where, and its exit codes."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsp_server import launch
from lsp_server.cli.main import main, parse_args
from lsp_server.cli.screen import Film, Screen, in_place
from model import api, engines


class FakeCompleter:
    """Answers with the same texts and frames always; remembers the requests."""

    def __init__(self, *texts: str, frames: tuple[api.Frame, ...] = ()) -> None:
        self.texts = texts
        self.frames = frames
        self.requests: list[api.InfillRequest] = []
        self.closed = False

    async def complete(
        self, request: api.InfillRequest, *, on_frame: api.FrameListener | None = None
    ) -> api.InfillResult:
        self.requests.append(request)
        if on_frame is not None:
            for frame in self.frames:
                on_frame(frame)
        candidates = tuple(
            api.Candidate(texts=(text,), confidence=0.75 - index / 4)
            for index, text in enumerate(self.texts)
            if text.startswith(request.typed) and not request.between
            if text != request.typed  # it knows no repair for its own texts
        )
        return api.InfillResult(
            candidates=candidates,
            forwards=3,
            tokens=7,
            encoded_tokens=9,
            ms=12.3456,
            verified=True,
        )

    async def close(self) -> None:
        self.closed = True


FRAMES = (
    api.Frame(step=1, slots=("a", None, None)),
    api.Frame(step=2, slots=("a", "\n\t+", None)),
    api.Frame(step=3, slots=("a", "\n\t+", "")),
)

InstallCompleter = Callable[..., FakeCompleter]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> InstallCompleter:
    """`install("text", ...)` makes `engines.load` give a fake that answers so."""

    def install(*texts: str, frames: tuple[api.Frame, ...] = ()) -> FakeCompleter:
        completer = FakeCompleter(*texts, frames=frames)
        monkeypatch.setattr(engines, "load", lambda path, *, device: completer)
        return completer

    return install


def written(tmp_path: Path, content: str | bytes, name: str = "a.py") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# The arguments


@pytest.mark.parametrize(
    ("argument", "path", "line", "column"),
    [
        ("a.py:3:4", "a.py", 3, 4),
        (r"C:\x.py:3:4", r"C:\x.py", 3, 4),
        ("odd:1:2:name:3:4", "odd:1:2:name", 3, 4),
    ],
)
def test_only_the_last_two_colons_of_a_place_count(
    argument: str, path: str, line: int, column: int
):
    place = parse_args(["complete", argument]).place
    assert (str(place.path), place.line, place.column) == (path, line, column)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "COMMAND"),
        (["compelte"], "compelte"),
        (["complete"], "FILE:LINE:COL"),
        (["complete", "a.py"], "'a.py' is no place"),
        (["complete", "a.py:1"], "'a.py:1' is no place"),
        (["complete", "a.py:-1:2"], "'a.py:-1:2' is no place"),
        (["complete", "a.py:1:٣"], "is no place"),
        (["complete", f"a.py:1:{'9' * 5000}"], "is no place"),
        (["complete", "a.py:3:4", "--until", "x"], "'x' is no position"),
        (["complete", "a.py:3:4", "--until", "3:3"], "--until lies before the cursor"),
        (["complete", "a.py:3:4", "--candidates", "0"], "candidates is 0"),
        (["complete", "a.py:3:4", "--steps", "5000"], "steps is 5000"),
        (["lsp", "--tcp", "2087"], "'2087' is no address"),
        (["lsp", "--tcp", "127.0.0.1:99999"], "is no address"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_what_was_wrong(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exited:
        main(argv)
    assert exited.value.code == 2
    assert named in capsys.readouterr().err


# complete


def test_one_completion_goes_to_stdout_exactly(
    tmp_path: Path, install: InstallCompleter, capsys: pytest.CaptureFixture[str]
):
    completer = install("a + b\n    # é")
    path = written(tmp_path, "def add(a, b):\n    return \n\nprint(add)\n")
    assert main(["complete", f"{path}:2:12"]) == 0
    assert capsys.readouterr() == ("a + b\n    # é", "")
    (request,) = completer.requests
    assert (request.prefix, request.suffix) == (
        "def add(a, b):\n    return ",
        "\n\nprint(add)\n",
    )
    assert (request.language, request.priority, request.candidates) == ("python", "manual", 1)
    assert request.deadline_ms == 3_600_000, "nobody at a command line waits with a stopwatch"
    assert completer.closed


def test_the_columns_are_characters_and_the_line_ends_the_documents_own(
    tmp_path: Path, install: InstallCompleter, capsys: pytest.CaptureFixture[str]
):
    completer = install("1\ny = 2")
    path = written(tmp_path, "s = '🙂'\r\nx = \r\n")
    assert main(["complete", f"{path}:2:5"]) == 0
    assert capsys.readouterr().out == "1\r\ny = 2"
    assert main(["complete", f"{path}:1:7"]) == 0
    assert completer.requests[1].prefix == "s = '🙂"


def test_until_leaves_the_span_it_replaces_out_of_the_request(
    tmp_path: Path, install: InstallCompleter
):
    completer = install("a + b")
    path = written(tmp_path, "x = (\n  wrong\n)\n")
    assert main(["complete", f"{path}:1:5", "--until", "3:2", "--steps", "5"]) == 0
    (request,) = completer.requests
    assert (request.prefix, request.suffix, request.steps) == ("x = ", "\n", 5)


def test_several_candidates_are_numbered_and_those_that_break_the_syntax_come_last(
    tmp_path: Path, install: InstallCompleter, capsys: pytest.CaptureFixture[str]
):
    completer = install("f(", "g()")
    path = written(tmp_path, "x = \n")
    assert main(["complete", f"{path}:1:5", "--candidates", "2"]) == 0
    assert completer.requests[0].candidates == 2
    assert capsys.readouterr().out == (
        "[1] confidence 0.50\ng()\n[2] confidence 0.75, adds 1 syntax error\nf(\n"
    )


def test_json_is_the_only_line_on_stdout_even_with_a_film(
    tmp_path: Path, install: InstallCompleter, capsys: pytest.CaptureFixture[str]
):
    install("é(", frames=FRAMES)
    path = written(tmp_path, "x = \n")
    assert main(["complete", f"{path}:1:5", "--json", "--film"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.out.isascii()
    answer = json.loads(printed.out)
    assert answer.pop("model").endswith(".gguf")
    assert answer == {
        "candidates": [{"text": "é(", "confidence": 0.75, "new_syntax_errors": 1}],
        "verified": True,
        "forwards": 3,
        "tokens": 7,
        "tokens_per_forward": 2.33,
        "ms": 12.35,
    }
    assert "░" in printed.err
    assert "⟦é(⟧" in printed.err


def test_a_file_that_no_grammar_knows_completes_unchecked(
    tmp_path: Path, install: InstallCompleter, capsys: pytest.CaptureFixture[str]
):
    install("((")
    path = written(tmp_path, "x = \n", name="a.unknown")
    assert main(["complete", f"{path}:1:5", "--json"]) == 0
    (candidate,) = json.loads(capsys.readouterr().out)["candidates"]
    assert candidate["new_syntax_errors"] is None


def test_no_candidate_exits_with_1_and_says_why(
    tmp_path: Path, install: InstallCompleter, capsys: pytest.CaptureFixture[str]
):
    install("")
    path = written(tmp_path, "x = \n")
    assert main(["complete", f"{path}:1:5", "--film"]) == 1
    assert capsys.readouterr() == ("", "mezzotint: the model has nothing to add here\n")
    assert main(["complete", f"{path}:1:5", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["candidates"] == []


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        (None, "1:1", "does not exist"),
        ("x\n", "9:1", "line 9 is outside the document"),
        ("x\n", "1:0", "column 0 is outside line 1"),
        ("x\n", "1:3", "column 3 is outside line 1"),
        (b"\x7fELF\0\0", "1:1", "binary"),
        (b"caf\xe9", "1:1", "not UTF-8"),
        (b"x" * (2**20 + 1), "1:1", "larger than 1024 kB"),
    ],
)
def test_a_bad_document_exits_with_1_and_one_sentence_before_any_model_is_loaded(
    content: str | bytes | None,
    place: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(engines, "load", lambda *_, **__: pytest.fail("loaded a model"))
    path = tmp_path / "a.py" if content is None else written(tmp_path, content)
    assert main(["complete", f"{path}:{place}"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert reason in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (api.CheckpointError("config.json is missing"), "config.json is missing"),
        (ModuleNotFoundError("No module named 'torch'"), "`mezzotint doctor`"),
    ],
)
def test_a_model_that_cannot_be_loaded_exits_with_1_and_one_sentence(
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def load(path: Path, *, device: str) -> api.Completer:
        assert (path, device) == (tmp_path, "cpu")
        raise error

    monkeypatch.setattr(engines, "load", load)
    path = written(tmp_path, "x = \n")
    argv = ["complete", f"{path}:1:5", "--model", str(tmp_path), "--device", "cpu"]
    assert main(argv) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_ctrl_c_while_denoising_exits_with_130_quietly_and_closes_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Interrupted(FakeCompleter):
        async def complete(self, request: api.InfillRequest, **_: Any) -> api.InfillResult:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
            raise AssertionError("Ctrl-C had no effect")

    completer = Interrupted()
    monkeypatch.setattr(engines, "load", lambda *_, **__: completer)
    path = written(tmp_path, "x = \n")
    assert main(["complete", f"{path}:1:5"]) == 130
    assert capsys.readouterr() == ("", "")
    assert completer.closed


def test_a_model_completes_a_real_file(tiny_backbone_folder: Path):
    """The whole way: a new process, torch, a checkpoint; it is random, and so is what it says."""
    source = Path(__file__).parents[2] / "lsp_server" / "cli" / "main.py"
    line = source.read_text("utf-8").splitlines().index("from __future__ import annotations") + 1
    command = [sys.executable, "-m", "lsp_server", "complete", f"{source}:{line}:6"]
    command += ["--model", str(tiny_backbone_folder)]
    done = subprocess.run(
        [*command, "--until", f"{line}:16", "--json", "--film"],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "model", "candidates", "verified", "forwards", "tokens", "tokens_per_forward", "ms"
    ]  # fmt: skip
    assert (answer["model"], answer["verified"]) == (str(tiny_backbone_folder), True)
    assert answer["forwards"] >= 1
    assert done.returncode == (0 if answer["candidates"] else 1), done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_model_the_command_that_gets_one_is_told(
    tmp_path: Path, default_model: Path, capsys: pytest.CaptureFixture[str]
):
    default_model.unlink()
    path = written(tmp_path, "x = \n")
    assert main(["complete", f"{path}:1:5"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("mezzotint: Qwen2.5-Coder-0.5B-Instruct (Q4_K_M), 491 MB; licence: ")
    assert said.endswith(" is not on this machine; `mezzotint download` gets it\n")


# The film and the result in its place


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_each_frame_is_a_line_that_shows_masks_line_ends_and_tabs():
    stream = io.StringIO()
    film = Film(Screen(stream))
    for frame in FRAMES:
        film(frame)
    assert stream.getvalue().splitlines() == ["   1  a░░", "   2  a⏎⇥+░", "   3  a⏎⇥+"]


def test_on_a_terminal_the_film_colours_what_a_step_committed_and_fits_the_width(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WT_SESSION", "on")
    monkeypatch.setenv("COLUMNS", "9")
    monkeypatch.delenv("NO_COLOR", raising=False)
    film = Film(Screen(stream := Terminal()))
    film(api.Frame(step=1, slots=("a", None)))
    film(api.Frame(step=2, slots=("a", "b", "long")))
    assert stream.getvalue().splitlines() == [
        "   1  \x1b[32ma\x1b[0m\x1b[2m░\x1b[0m",
        "   2  a\x1b[32mb\x1b[0m…",
    ]


DRAFTED = (
    api.Frame(step=1, slots=(), accepted=0, text="return"),
    api.Frame(step=2, slots=(" total", "(", "x"), accepted=2, text="return total(numbers"),
    api.Frame(step=3, slots=(")", "\n"), accepted=2, text="return total(numbers)\n\n"),
    api.Frame(step=4, slots=(), accepted=0, text="return total(numbers)\n\n"),
)


def test_of_a_draft_it_shows_what_was_verified_written_and_refused():
    film = Film(Screen(stream := io.StringIO()))
    for frame in DRAFTED:
        film(frame)
    assert stream.getvalue().splitlines() == [
        "   1  return",
        "   2  ⟦ total(⟧numbers~x~",
        "   3  ⟦)⏎⟧⏎",
    ]


def test_a_draft_that_begins_before_the_cursor_is_shown_from_there():
    film = Film(Screen(stream := io.StringIO()))
    film(api.Frame(step=1, slots=(" total", "("), accepted=2, text="al(x"))
    assert stream.getvalue() == "   1  ⟦al(⟧x\n"


def test_on_a_terminal_the_film_colours_what_was_verified(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WT_SESSION", "on")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    film = Film(Screen(stream := Terminal()))
    film(DRAFTED[1])
    assert stream.getvalue() == ("   2  return\x1b[32m total(\x1b[0mnumbers\x1b[2;9mx\x1b[0m\n")


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_there_are_no_colours_where_the_environment_says_so(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WT_SESSION", "on")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Screen(Terminal()).coloured
    monkeypatch.setenv(variable, value)
    assert not Screen(Terminal()).coloured


def test_the_result_is_shown_between_a_few_lines_of_context(
    tmp_path: Path, install: InstallCompleter, capsys: pytest.CaptureFixture[str]
):
    install("2\n6", frames=FRAMES)
    path = written(tmp_path, "a\nb\nc\nd\nx = ;\nf\ng\nh\ni\n")
    assert main(["complete", f"{path}:5:5", "--film"]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "     2 │ b",
        "     3 │ c",
        "     4 │ d",
        "     5 │ x = ⟦2",
        "     6 │ 6⟧;",
        "     7 │ f",
        "     8 │ g",
        "     9 │ h",
    ]


LETTERS = st.text("ab \n", max_size=30)


@settings(deadline=None)
@given(before=LETTERS, replaced=LETTERS, after=LETTERS, new=LETTERS)
def test_what_is_shown_in_place_is_the_document_with_the_new_text_in_it(
    before: str, replaced: str, after: str, new: str
):
    text, start, end = before + replaced + after, len(before), len(before + replaced)
    rows = in_place(text, start, end, new, Screen(io.StringIO()))
    document = f"{before}⟦{new}⟧{after}".split("\n")
    numbers = [int(row.partition(" │ ")[0]) for row in rows]
    assert [row.partition(" │ ")[2] for row in rows] == [document[n - 1] for n in numbers]
    first, last = before.count("\n") + 1, before.count("\n") + new.count("\n") + 1
    assert numbers == list(range(max(1, first - 3), min(len(document), last + 3) + 1))


def test_a_line_of_any_length_is_shown_in_part():
    text = "x" * 5000 + "\n" + "y" * 5000
    rows = in_place(text, 5000, 5000, "new", Screen(io.StringIO()))
    assert all(len(row) < 250 for row in rows)
    assert "x⟦new⟧" in rows[0]


def test_a_document_cannot_command_the_terminal():
    rows = in_place("\x1b[2J\n\x9b2J", 5, 5, "\x07", Screen(io.StringIO()))
    Film(Screen(stream := io.StringIO()))(api.Frame(step=1, slots=("\x1b]0;title\x07",)))
    assert not set("".join(rows) + stream.getvalue()) & set("\x1b\x9b\x07")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_utf_8_gets_stand_ins(
    encoding: str,
    tmp_path: Path,
    install: InstallCompleter,
    monkeypatch: pytest.MonkeyPatch,
):
    install("π\n", "日", frames=FRAMES)
    path = written(tmp_path, "x = \n")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert main(["complete", f"{path}:1:5", "--film", "--candidates", "2"]) == 0
    sys.stdout.flush()
    shown = sys.stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "   2  a\\n\\t+?" in shown
    assert "     1 | x = [[\\u03c0]]" in shown


# lsp, serve, train, bench


def test_importing_the_command_line_is_cheap():
    program = (
        "import sys, lsp_server.cli.main;"
        "print(sorted({'torch', 'numpy', 'pygls', 'tree_sitter', 'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("argv", [["lsp"], ["lsp", "--stdio"]])
def test_lsp_serves_on_stdio(argv: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "run_stdio", lambda: 7)
    assert main(argv) == 7


@pytest.mark.parametrize(
    ("address", "host", "port"), [("127.0.0.1:2087", "127.0.0.1", 2087), ("[::1]:1", "::1", 1)]
)
def test_lsp_serves_on_tcp(address: str, host: str, port: int, monkeypatch: pytest.MonkeyPatch):
    served: list[tuple[str, int]] = []
    monkeypatch.setattr(launch, "run_tcp", lambda *where: served.append(where) or 0)
    assert main(["lsp", "--tcp", address]) == 0
    assert served == [(host, port)]


def test_lsp_says_that_a_port_is_taken(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["lsp", "--tcp", f"127.0.0.1:{port}"]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("serve", "model.serving.__main__"),
        ("download", "model.backbone.__main__"),
        ("train", "model.training.__main__"),
        ("bench", "model.benchmarks.__main__"),
    ],
)
def test_some_commands_read_their_own_command_lines(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch
):
    seen: list[list[str]] = []
    fake = SimpleNamespace(main=lambda argv: seen.append(argv) or 3)
    monkeypatch.setitem(sys.modules, module, fake)  # type: ignore[arg-type]
    assert main([command, "--help", "--port", "0"]) == 3
    assert seen == [["--help", "--port", "0"]]


def test_the_help_of_serve_is_the_engines_own(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exited:
        main(["serve", "--help"])
    assert exited.value.code == 0
    assert "--port" in capsys.readouterr().out


def test_the_readmes_first_command_stands_at_the_place_it_speaks_of() -> None:
    repository = Path(__file__).parents[2]
    makefile = (repository / "Makefile").read_text()
    found = re.search(r"^TRY \?= (\S+?):(\d+):(\d+) --until (\d+):(\d+)$", makefile, re.MULTILINE)
    assert found is not None
    file, line, start, last_line, end = found.groups()
    assert line == last_line
    text = (repository / file).read_text().splitlines()[int(line) - 1]
    replaced = text[int(start) - 1 : int(end) - 1]
    assert len(replaced) == int(end) - int(start)
    assert text.endswith(replaced)  # nothing is left of the line behind it
    assert re.match(r"\w|[,(]", replaced)
    place = f"{file}:{line}:{start} --until {line}:{end}"
    assert place in (repository / "README.md").read_text()
