"""A replay's person, figures and editor, on scripted suggestions: the figures are known by hand."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from default_model import put_default_model

from model.backbone.catalogue import default_backbone
from model.evaluation import replay
from model.evaluation.replay_curve import (
    confidence_curve,
    replay_survey,
    survey_region,
)
from model.evaluation.replay_editor import Editor, ServerError
from model.evaluation.replay_plot import plot_curve
from model.evaluation.replay_typist import (
    TYPED_ON,
    Answer,
    Region,
    RegionLog,
    acceptance,
    keystroke_starts,
    pick_regions,
    summarise,
    type_region,
)

SCRIPTED_SERVER = Path(__file__).with_name("scripted_server.py")


def region(
    truth: str, *, head: str = "", tail: str = "\n", then: str = "", name: str = "/a.py"
) -> Region:
    """`truth` is typed; with `then`, the file goes on with that and has nothing below yet."""
    return Region(
        path=Path(name),
        language="python",
        head=head,
        truth=truth + then,
        length=len(truth),
        tail="" if then else tail,
    )


def typed(place: Region, suggestions: dict[int, str], *, by_words: bool = False) -> RegionLog:
    """Type a region while there are `suggestions` at some offsets."""

    async def ask(offset: int) -> Answer:
        return Answer(text=suggestions.get(offset), ms=10.0, reason="nothing")

    log = RegionLog(place)
    asyncio.run(type_region(log, ask, by_words=by_words))
    return log


# Keystrokes


@pytest.mark.parametrize(
    ("truth", "starts"),
    [
        ("ab", [0, 1]),
        ("a\n    b", [0, 1, 6]),  # Enter brings the indentation along
        ("a\r\n\tb", [0, 1, 4]),
        ("a\n\n  b", [0, 1, 2, 5]),
        ("a  b", [0, 1, 2, 3]),
        ("😀\r😀", [0, 1, 2]),
    ],
)
def test_a_line_end_and_the_indentation_after_it_are_one_keystroke(truth, starts):
    assert keystroke_starts(truth, 0, len(truth)) == starts


def test_what_is_left_of_an_indentation_is_one_keystroke():
    assert keystroke_starts("a\n      b", 4, 9) == [4, 8]


# Accepting


def test_a_right_suggestion_saves_all_its_keystrokes_but_one():
    log = typed(region("total = add(a, b)\n    return total"), {8: "add(a, b)\n    return"})
    # 8 typed, 1 to accept 9 + 1 + 6 keystrokes, 6 typed.
    assert (log.keystrokes, log.pressed) == (30, 15)
    figures = summarise([log])
    assert figures["keystrokes_saved"] == 0.5
    assert (figures["accepted"], figures["accepted_chars"]) == (1, 20)
    assert (figures["requests"], figures["shown"]) == (15, round(1 / 15, 4))
    assert figures["precision"] == figures["edit_similarity"] == 1.0
    assert (figures["ms_p50"], figures["ms_p95"], figures["engine_ms_p50"]) == (10.0, 10.0, None)
    assert figures["nothing_shown"] == {"nothing": 14}


@pytest.mark.parametrize("suggestion", ["mul(a)", "add(a, b) + 1", "add(a, b)\n"])
def test_a_suggestion_that_is_not_right_to_its_end_is_not_accepted(suggestion):
    log = typed(region("total = add(a, b)"), {8: suggestion})
    assert (log.pressed, log.keystrokes, log.accepted) == (17, 17, [])
    assert summarise([log])["precision"] == 0.0


def test_the_first_line_of_a_suggestion_may_be_right_alone():
    log = typed(region("f(x)\ny = 2"), {0: "f(x)\nz", 6: "= 3"})
    assert summarise([log])["first_line_precision"] == 0.5


def test_a_suggestion_that_stays_on_counts_once():
    log = typed(region("abcdef"), {0: "abcX", 1: "bcX", 2: "cX", 4: "efg", 5: "ff"})
    figures = summarise([log])
    assert (figures["suggestions"], figures["precision"]) == (3, 0.0)
    assert figures["shown"] == round(5 / 6, 4)


def test_edit_similarity_compares_as_many_characters_as_are_shown():
    log = typed(region("abcdef"), {0: "abXd"})
    # Of 8 characters, 2 have to go: the X and the c.
    assert summarise([log])["edit_similarity"] == 0.75


def test_past_a_files_end_a_suggestion_may_go_on_as_the_file_does():
    over = {2: "(x)\n\ndef g"}
    log = typed(region("f = f(x)", then="\n\ndef g(): ..."), {5: "(x)\n\ndef g"})
    assert (log.pressed, log.keystrokes) == (6, 15)
    inside = typed(region("f = f(x)", tail="\n\ndef g(): ..."), over)
    assert (inside.pressed, inside.accepted) == (8, [])


def test_leading_words_cost_a_key_each_and_count_apart():
    log = typed(region("total = add(a, b)"), {3: "al = mul(a)"}, by_words=True)
    # t, o, t; "al" and " =" with a key each; the rest.
    assert (log.pressed, log.keystrokes) == (3 + 2 + 10, 17)
    figures = summarise([log])
    assert figures["keystrokes_saved"] == figures["keystrokes_saved_by_words"] == round(2 / 17, 4)
    assert (figures["accepted"], figures["accepted_words"]) == (0, 2)
    assert figures["precision"] == 0.0


@pytest.mark.parametrize("text", ["(x))", "a.b", "zz"])
def test_leading_words_that_save_no_key_are_not_accepted(text):
    assert acceptance("(a.c", 0 if text[0] == "(" else 1, text, by_words=True) is None


def test_the_rest_of_an_indentation_saves_nothing_that_enter_had_not_brought():
    log = typed(region("a\n        b"), {1: "\n  "})
    # a, Enter's suggestion, Tab, b: one key more than without help.
    assert (log.keystrokes, log.pressed) == (3, 4)
    assert summarise([log])["keystrokes_saved"] == round(-1 / 3, 4)


def test_a_share_of_nothing_is_none():
    figures = summarise([])
    shares = ("keystrokes_saved", "shown", "precision", "edit_similarity", "ms_p50")
    assert [figures[share] for share in shares] == [None] * 5


# Regions

SOURCE = "".join(
    f"def function_{n}(argument):\n    value = argument + {n}\n    return value\n\n\n"
    for n in range(40)
)


def pick(text: str = SOURCE, number: int = 8, seed: int = 0) -> list[Region]:
    return pick_regions(Path("/a.py"), text, "python", number=number, rng=random.Random(seed))


def test_a_region_is_the_files_text_without_its_first_indentation_and_last_line_end():
    for one in pick():
        begin = len(one.head)
        assert SOURCE.startswith(one.head + one.truth)
        assert one.truth[0].strip()
        assert SOURCE[begin + one.length] == "\n"
        if one.at_end:
            assert one.head + one.truth == SOURCE
        else:
            assert one.head + one.truth + one.tail == SOURCE
            assert len(one.truth) == one.length


def test_regions_are_the_same_for_the_same_seed_and_do_not_overlap():
    assert pick() == pick() != pick(seed=1)
    spans = sorted((len(one.head), len(one.head) + one.length) for one in pick())
    assert len(spans) == 8
    assert all(end < begin for (_, end), (begin, _) in pairwise(spans))


def test_some_regions_have_nothing_below():
    at_end = [one.at_end for one in pick(number=20)]
    assert 0 < sum(at_end) < 10


def test_a_block_takes_its_closing_line_along():
    text = "\n\nvoid f(int x) {\n\n  call_something(x);\n\n}\n\n\nint variable_of_the_file;\n"
    (block, *_) = pick(text, number=1)
    assert block.truth[: block.length] == "void f(int x) {\n\n  call_something(x);\n\n}"


@pytest.mark.parametrize("text", ["", "\n\n\n", "x = 1\n", "x" * 500 + "\n" + "y" * 500])
def test_a_file_without_anything_a_person_would_type_has_no_region(text):
    assert pick(text) == []


# Over the real server

HEAD = "# 😀 á\ndef f(a, b):\n    "
TOTAL = region("total = add(a, b)\n    return total", head=HEAD, tail="\n\nprint(f(1, 2))\n")
SCRIPT = [
    {"after": "tot", "text": "al = mul(a)", "confidence": 0.9},
    {"after": "add(a, b)", "text": "\n    return total", "confidence": 0.8},
    {"after": "add(", "text": "a, b)", "confidence": 0.6},
]
QUICK = {"debounceMs": 0, "syntaxCheck": "off", "deadlineMs": {"auto": 60_000}}

Server = Callable[[Sequence[dict[str, Any]]], list[str]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The command of a server that follows a script, on a machine that has the default model."""
    monkeypatch.setenv("MEZZOTINT_MODELS", str(tmp_path / "models"))
    put_default_model(tmp_path / "models")

    def command(script: Sequence[dict[str, Any]]) -> list[str]:
        (tmp_path / "script.json").write_text(json.dumps(script), "utf-8")
        return [sys.executable, str(SCRIPTED_SERVER), str(tmp_path / "script.json")]

    return command


async def live(
    command: list[str], place: Region, *, by_words: bool = False, **how: Any
) -> RegionLog:
    settings = {**QUICK, **how.pop("settings", {})}
    log = RegionLog(place)
    async with Editor(command, settings, **how) as editor:
        await editor.wait_for_engine("python")
        editor.open(place)
        await type_region(log, editor.ask, by_words=by_words)
    return log


async def test_the_real_server_makes_the_figures_known_by_hand(server: Server):
    figures = summarise([await live(server(SCRIPT), TOTAL)])
    # "total = add(" is typed; two suggestions are accepted.
    assert figures["keystrokes_saved"] == round(1 - 14 / 30, 4)
    # The wrong one is on from "tot" to "total = ".
    assert (figures["requests"], figures["shown"]) == (14, round(8 / 14, 4))
    assert (figures["suggestions"], figures["precision"]) == (3, round(2 / 3, 4))
    assert figures["nothing_shown"] == {"the model has nothing to add here": 6}
    assert figures["engine_ms_p50"] == 1.5


async def test_hidden_suggestions_are_reported_with_their_reason(server: Server):
    log = await live(server(SCRIPT), TOTAL, settings={"minConfidence": 0.7})
    figures = summarise([log])
    assert figures["keystrokes_saved"] == round(1 - 18 / 30, 4)
    assert figures["nothing_shown"]["no candidate reached the confidence of 0.7"] == 1
    assert [one.confidence for one in log.shown.values()] == [0.9, 0.8]


@pytest.mark.parametrize(("by_words", "thresholds"), [(False, (0.0, 0.7)), (True, (0.85,))])
async def test_a_survey_knows_what_typing_comes_to_at_any_confidence(
    server: Server, by_words: bool, thresholds: tuple[float, ...]
):
    settings = {**QUICK, "minConfidence": 0}
    async with Editor(server(SCRIPT), settings) as editor:
        await editor.wait_for_engine("python")
        editor.open(TOTAL, offset=TOTAL.length)
        surveyed = [await survey_region(TOTAL, editor.ask, lambda: None)]
    timeless = ("keystrokes_saved", "keystrokes_saved_by_words", "shown", "precision",
                "edit_similarity", "requests", "suggestions", "nothing_shown")  # fmt: skip
    for threshold in thresholds:
        (simulated,) = await replay_survey(surveyed, threshold, by_words=by_words)
        really = await live(
            server(SCRIPT), TOTAL, by_words=by_words, settings={"minConfidence": threshold}
        )
        for figure in timeless:
            assert summarise([simulated])[figure] == summarise([really])[figure], figure
    curve = await confidence_curve(surveyed, by_words=by_words)
    shown = [point["suggestions"] for point in curve]
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (3, 0)
    assert curve[-1]["precision"] is None


@pytest.mark.parametrize(("encoding", "eol"), [("utf-16", "\r\n"), ("utf-8", "\n")])
async def test_the_server_sees_what_is_typed_in_any_position_encoding(
    server: Server, tmp_path: Path, encoding: str, eol: str
):
    truth = f"x = 'á😀é'{eol}    y😀"
    place = region(truth, head=HEAD.replace("\n", eol), tail=f"{eol}z = 1{eol}")
    await live(server([]), place, encodings=(encoding,))
    lines = (tmp_path / "script.json.journal").read_text("utf-8").splitlines()
    seen = [json.loads(line) for line in lines]
    starts = keystroke_starts(truth, 0, len(truth))
    expected = [(place.head + truth[:start]).replace(eol, "\n") for start in starts]
    assert seen[-len(expected) :] == expected


async def test_who_types_faster_than_the_server_answers_supersedes_it(server: Server):
    slow = [{"after": "tot", "text": "SLEEP", "confidence": 0.9}]
    log = await live(server(slow), TOTAL, chars_per_s=20)
    figures = summarise([log])
    assert figures["nothing_shown"][TYPED_ON] == figures["superseded"] >= 1
    assert (figures["requests"], figures["keystrokes_saved"]) == (30, 0.0)


async def test_a_server_that_ends_says_how():
    command = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    with pytest.raises(ServerError, match="ended with status 1: no such luck"):
        await live(command, TOTAL)


async def test_a_server_that_cannot_be_started_is_named():
    with pytest.raises(ServerError, match="cannot start /nowhere/mezzotint: No such file"):
        await live(["/nowhere/mezzotint"], TOTAL)


# The command


FILES = {
    "a.py": "def add_them(a, b):\n    return a + b + a * b\n",
    "b.py": "def die_of_it(a):\n    return a ** a ** a ** a\n",
    "c.go": "func double(a int) int {\n\treturn a + a + a - a\n}\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    code.mkdir()
    for name, text in FILES.items():
        (code / name).write_text(text, "utf-8")
    return code


def arguments(command: list[str], *more: object) -> list[str]:
    settings = ("--set", "debounceMs=0", "--set", "deadlineMs.auto=60000")
    return [*map(str, more), *settings, "--server", shlex.join(command)]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_ends_with_its_figures_and_writes_a_report(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    script = [{"after": "return a", "text": " + b + a * b", "confidence": 0.5}]
    out = tmp_path / "reports" / "replay.json"
    assert replay.main(arguments(server(script), folder, "--out", out, "--json")) == 0
    figures = last_line(capsys)
    total = sum(len(keystroke_starts(text, 0, len(text.strip()))) for text in FILES.values())
    assert figures["keystrokes"] == total
    assert figures["keystrokes_saved"] == round(11 / total, 4)
    report = json.loads(out.read_text("utf-8"))
    assert report["figures"]["all"] == figures
    rows = {Path(row["file"]).name: row["keystrokes_saved"] > 0 for row in report["rows"]}
    assert rows == {"a.py": True, "b.py": False, "c.go": False}
    assert report["figures"]["python"]["regions"] == 2
    assert report["figures"]["go"]["keystrokes_saved"] == 0.0
    assert report["settings"] == {"debounceMs": 0, "deadlineMs": {"auto": 60000}}
    assert report["cpu"]
    assert report["mezzotint"]


def test_files_of_the_same_folder_and_language_are_open_beside_the_typed_one(
    server: Server, folder: Path, tmp_path: Path
):
    command = server([])
    reads = ("--set", "context.openFiles=true", "--open-beside", 3)
    out = tmp_path / "replay.json"
    assert replay.main(arguments(command, folder, *reads, "--out", out)) == 0
    journal = (tmp_path / "script.json.journal").read_text("utf-8").splitlines()
    asked = {json.loads(line) for line in journal}
    assert f"# b.py\n{FILES['b.py']}\n# a.py\ndef add_them(a" in asked
    assert f"# a.py\n{FILES['a.py']}\n# b.py\ndef die_of_it(a" in asked
    assert "func double(a" in asked  # no other file is in its language
    assert json.loads(out.read_text("utf-8"))["open_beside"] == 3


def test_a_lost_server_costs_its_region_only(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    script = [{"after": "def die", "text": "DIE", "confidence": 1.0}]
    out = tmp_path / "replay.json"
    assert replay.main(arguments(server(script), folder, "--out", out)) == 0
    report = json.loads(out.read_text("utf-8"))
    assert report["lost_servers"] == ["the language server ended with status 7: the script says so"]
    assert report["figures"]["all"]["regions"] == 3
    assert "lost a language server" in capsys.readouterr().err


def test_servers_that_keep_dying_end_the_run_with_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    command = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    assert replay.main(arguments(command, folder)) == 1
    assert "gave up: the language server ended with status 1" in capsys.readouterr().err


def test_an_engine_that_cannot_load_ends_the_run_with_its_reason(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = server([])
    (tmp_path / "script.json").unlink()
    assert replay.main(arguments(command, folder)) == 1
    err = capsys.readouterr().err
    assert "gave up: there is no checkpoint" in err
    assert err.count("lost a language server") == 1


def test_a_curve_is_drawn_and_reported(server: Server, folder: Path, tmp_path: Path):
    script = [{"after": "return a", "text": " + b + a * b", "confidence": 0.5}]
    out, plot = tmp_path / "replay.json", tmp_path / "curve.png"
    more = (folder / "a.py", "--curve", plot, "--min-confidence", 0.6, "--out", out)
    assert replay.main(arguments(server(script), *more)) == 0
    report = json.loads(out.read_text("utf-8"))
    saved = {point["min_confidence"]: point["keystrokes_saved"] for point in report["curve"]}
    assert saved[0.5] > 0 == saved[0.55]
    assert report["figures"]["all"]["keystrokes_saved"] == 0.0  # at the setting in force
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a child")
def test_ctrl_c_still_reports_what_was_typed(server: Server, folder: Path, tmp_path: Path):
    script = [{"after": "return", "text": "SLEEP", "confidence": 1.0}]
    out, journal = tmp_path / "replay.json", tmp_path / "script.json.journal"
    command = [sys.executable, "-m", "model.evaluation.replay"]
    more = arguments(server(script), folder, "--out", out)
    with subprocess.Popen([*command, *more], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not journal.exists() or 'return"' not in journal.read_text("utf-8"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    report = json.loads(out.read_text("utf-8"))
    assert report["interrupted"] is True
    assert report["figures"]["all"]["keystrokes"] > 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--set", "minConfidance=0.5"], "did you mean minConfidence"),
        (["--min-confidence", "7"], "must be a number, 0 to 1"),
        (["--set", "model.path=x", "--set", "model.path.y=1"], "lies within path"),
        (
            ["--set", "model.path=some/model"],
            "the folder that `mezzotint download some/model` names",
        ),
        (["--curve", "c.png", "--typing-speed", "5"], "leave out --typing-speed"),
    ],
)
def test_settings_that_are_none_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
):
    assert replay.main([str(folder), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_files_that_cannot_be_typed_are_named_and_left_out(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "binary.py").write_bytes(b"x = 1\0\n" * 9)
    (folder / "latin.py").write_bytes("ä = 1\n".encode("latin-1"))
    (folder / "large.py").write_text("value = 'value'\n" * 200, "utf-8")
    (folder / ".env.py").write_text("key = 'secret value'\nkey = key + key\n", "utf-8")
    assert replay.main(arguments(server([]), folder, "--set", "maxFileKB=1", "--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["regions"] == 3
    for reason in ("holds NUL bytes", "is not UTF-8 text", "is larger than 1 kB", "is excluded"):
        assert reason in captured.err


@pytest.mark.parametrize(
    ("path", "sentence"), [("nowhere", "does not exist"), (".", "nothing to type")]
)
def test_a_path_with_nothing_to_type_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, sentence: str
):
    assert replay.main([str(tmp_path / path)]) == 1
    assert sentence in capsys.readouterr().err


def test_each_file_gives_a_region_before_any_gives_a_second(tmp_path: Path):
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text(SOURCE + f"# {name}\n", "utf-8")
    settings = replay.Settings()
    regions = replay.plan([tmp_path], settings, 4, 0, [])
    assert len({one.path for one in regions[:3]}) == 3
    assert len(regions) == 4


def test_a_plot_with_nothing_shown_anywhere_is_still_a_plot(tmp_path: Path):
    point = {"precision": None, "shown": 0.0, "keystrokes_saved": 0.0}
    curve = [{"min_confidence": x / 4, **point} for x in range(4)]
    plot_curve(curve, tmp_path / "plot.png", 0.3, {"regions": 1, "keystrokes": 1000})
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.skipif(default_backbone() is None, reason="`mezzotint download` fetches the model")
async def test_the_default_model_answers_a_persons_keystrokes(tmp_path: Path):
    place = region("return width", head="def area(width, height):\n    ", then=" * height\n")
    settings = {"maxNewTokens": 8}
    log = await live(
        list(replay.OWN_SERVER),
        place,
        settings=settings,
        environment={**replay.os.environ, "MEZZOTINT_RUNTIME_DIR": str(tmp_path)},
    )
    figures = summarise([log])
    assert log.keystrokes >= 12
    assert figures["engine_ms_p50"] > 0
    assert not {"internal error: see the log", TYPED_ON} & figures["nothing_shown"].keys()
