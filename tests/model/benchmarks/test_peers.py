"""The comparison with llama.cpp: the same questions, by turns, and what comes of them."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.benchmarks import __main__ as command
from model.benchmarks.peers import (
    KEY_TOKENS,
    OURS,
    PEER,
    Answer,
    LlamaCpp,
    Question,
    Record,
    Timed,
    compare,
    question_at,
    ratios,
    summary,
)
from model.benchmarks.session import Event, events
from model.benchmarks.setting import Setting

sys.path.append(str(Path(__file__).parents[1] / "backbone"))


class FakeProcess:
    async def until_idle(self) -> None: ...

    def peak_bytes(self) -> int:
        return 700_000_000


class FakeSide:
    """Keeps a diary that all sides share."""

    def __init__(self, name: str, diary: list[tuple[str, str, Any]]) -> None:
        self.process, self.about = FakeProcess(), {"build": "b1"}
        self._name, self._diary = name, diary

    async def read(self, text: str) -> Answer:
        self._diary.append((self._name, "read", text))
        return Answer(text="", tokens=1, forwards=1, encoded=10)

    async def infill(self, question: Question, tokens: int) -> Answer:
        self._diary.append((self._name, "infill", (question, tokens)))
        return Answer(text="x", tokens=tokens, forwards=1, encoded=1)


async def test_both_are_asked_the_same_and_another_one_first_each_time(setting: Setting) -> None:
    diary: list[tuple[str, str, Any]] = []
    sides: Any = {name: FakeSide(name, diary) for name in (OURS, PEER)}
    records = await compare(setting, sides, 6)
    by_name = {name: [entry[1:] for entry in diary if entry[0] == name] for name in sides}
    assert by_name[OURS] == by_name[PEER]
    firsts = [name for name, _, _ in diary[::2]]
    assert all(one != next_one for one, next_one in pairwise(firsts))
    assert all(tokens == KEY_TOKENS for _, _, (_, tokens) in diary[:12])
    assert [len(record.session) for record in records.values()] == [6, 6]
    assert all(record.read and record.written for record in records.values())


def test_what_is_asked_is_the_document_and_the_prompt_s_part_of_it(setting: Setting) -> None:
    for event in events(setting.sources, 40, seed=0, region_lines=3):
        question = question_at(event, setting.tokenizer)
        assert question.before + question.prefix == event.text[: event.cursor]
        assert question.suffix + question.after == event.text[event.cursor :]
        assert len(setting.tokenizer.encode(question.suffix)) <= 128


@pytest.mark.parametrize(
    ("prefix", "prompt", "indent"),
    [("a\n    b", "    b", 4), ("a\n", "", None), ("top", "top", None)],
)
async def test_llama_cpp_is_asked_as_its_extension_asks(
    prefix: str, prompt: str, indent: int | None
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    async def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append((path, body))
        timings = {"predicted_n": 6, "draft_n_accepted": 2, "prompt_n": 40}
        return {"content": "c", "timings": timings}

    server: Any = SimpleNamespace(process=FakeProcess(), ask=ask)
    answer = await LlamaCpp(server, "b1").infill(Question(prefix=prefix, suffix="\nz"), 16)
    ((path, body),) = asked
    assert path == "/infill"
    assert body["input_prefix"] + body["prompt"] == prefix
    assert (body["prompt"], body.get("n_indent"), body["n_predict"]) == (prompt, indent, 16)
    assert (answer.tokens, answer.forwards, answer.encoded) == (6, 4, 40)


def record(key_ms: float, tokens_ms: float, *, answer: str = "return x") -> Record:
    """Ten keys and a few other events, one prompt and one long answer."""

    def timed(ms: float, tokens: int = 4, encoded: int = 2) -> Timed:
        return Timed(answer=Answer(text=answer, tokens=tokens, forwards=2, encoded=encoded), ms=ms)

    def at(kind: Any) -> Event:
        return Event(kind=kind, document="a", language="", text="", cursor=0, ahead="return y")

    return Record(
        read=[timed(1000.0, encoded=500)],
        written=[timed(tokens_ms, tokens=20)],
        session=[(at("open"), timed(9999.0)), *[(at("type"), timed(key_ms))] * 10],
    )


def test_the_figures_of_a_side_are_of_its_keys_prompts_and_long_answers() -> None:
    side: Any = FakeSide(OURS, [])
    figures = summary(record(100.0, 500.0), side)
    assert figures["key_ms_p50"] == figures["key_ms_p95"] == 100.0  # opening is no key
    assert figures["prompt_tokens_per_s"] == 500.0
    assert figures["tokens_per_s"] == 40.0
    assert figures["tokens_per_forward"] == 10.0
    assert figures["encoded_tokens_a_key"] == 2.0
    assert figures["right_characters"] == len("return ")
    assert figures["memory_mb"] == 700.0
    assert figures["events"]["open"]["ms_p50"] == 9999.0


def test_ratios_say_how_many_times_as_fast_we_are() -> None:
    side: Any = FakeSide(OURS, [])
    figures = {
        OURS: summary(record(100.0, 500.0), side),
        PEER: summary(record(600.0, 1000.0), side),
    }
    found = ratios(figures)
    assert (found["ratio_key_p50"], found["ratio_tokens_per_s"]) == (6.0, 2.0)
    assert found["ratio_prompt_tokens_per_s"] == 1.0


def test_a_build_that_is_not_there_is_named(
    checkpoint: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["peers", str(source), "--model", str(checkpoint), "--device", "cpu", "--quick"]
    assert command.main([*argv, "--llama-server", str(tmp_path / "none")]) == 1
    assert "cannot be started" in capsys.readouterr().err


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("xllamacpp", "gguf", "transformers")),
    reason="llama.cpp is not installed: pip install xllamacpp gguf",
)
def test_a_real_llama_cpp_and_ours_answer_with_the_same_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_backbones import FULL, make_model, make_tokenizer, metadata, tensors, write_gguf

    kind = "qwen2"
    entries = metadata(kind, make_tokenizer(kind)) | {f"{kind}.context_length": 4096}
    stored = {name: (data, FULL) for name, data in tensors(kind, make_model(kind)).items()}
    path = write_gguf(tmp_path / "tiny.gguf", kind, entries, stored)
    argv = ["peers", str(source), "--model", str(path), "--device", "cpu", "--quick"]
    argv += ["--events", "4", "--out", str(tmp_path), "--json"]
    assert command.main(argv) == 0
    figures = json.loads(capsys.readouterr().out.rstrip().rpartition("\n")[2])
    for name in (OURS, PEER):
        assert figures[name]["prompt_tokens_per_s"] > 0
        assert figures[name]["key_ms_p50"] <= figures[name]["key_ms_p95"]
    assert figures[PEER]["build"].startswith("xllamacpp")
    assert figures["ratio_prompt_tokens_per_s"] > 0
    report = json.loads((tmp_path / "peers-cpu.json").read_text())
    assert report["circumstances"]["command"].startswith("mezzotint bench peers")
    if find_spec("matplotlib") is not None:
        assert (tmp_path / "peers-cpu.png").read_bytes().startswith(b"\x89PNG")
