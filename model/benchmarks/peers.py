"""`mezzotint bench peers`: our engine and llama.cpp, the same file on the same machine, by turns.

Both are servers in processes of their own, asked over HTTP as editors ask them: ours by our own
protocol, llama.cpp by `/infill` as its VS Code extension does. Both read the same text, what our
prompt layout takes of the document, and both may write up to `KEY_TOKENS` tokens; ours has no
deadline. Nobody keeps answers on the client's side, so that each event really asks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from model.api import EngineConnection, InfillRequest
from model.backbone.prompt import Prompt
from model.backbone.tokenizer import BackboneTokenizer
from model.benchmarks.child import Child
from model.benchmarks.http_engine import http_engine
from model.benchmarks.llama_server import LlamaServer, llama_server
from model.benchmarks.session import Event, EventKind, events
from model.benchmarks.setting import Setting
from model.benchmarks.table import Goal, Row
from model.evaluation.report import Figures, percentile, share

TITLE = "Mezzotint and llama.cpp, the same model file"

OURS, PEER = "mezzotint", "llama.cpp"
KEY_TOKENS = 16
"""The most tokens of an answer to a key."""
PROMPT_TOKENS = 512
LONG_ANSWER_TOKENS = 64
REGION_LINES = 3
"""Of the places that are typed: short ones, so that a short session has everything in it."""
PREFIX_TOKENS, SUFFIX_TOKENS = 768, 128
KEYS: tuple[EventKind, ...] = ("type", "erase")
"""What counts as a typed key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A place in a document, and the text around it that is read."""

    prefix: str
    suffix: str = ""
    before: str = ""
    """The rest of the document. No model reads it; our engine drafts what it repeats."""
    after: str = ""
    document: str = ""
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a side made of a question."""

    text: str
    tokens: int
    forwards: int
    """Passes of the model that wrote them."""
    encoded: int
    """Tokens of the prompt that no cache held."""


class Side(Protocol):
    """One of those that are compared."""

    process: Child
    about: Figures
    """What it is, for the report."""

    async def read(self, text: str) -> Answer:
        """Read a prompt, and write a token."""
        ...

    async def infill(self, question: Question, tokens: int) -> Answer:
        """Write up to so many tokens."""
        ...


class Mezzotint:
    """Ours."""

    def __init__(self, engine: EngineConnection, process: Child) -> None:
        self.process, self._engine = process, engine
        self.about: Figures = {}

    async def read(self, text: str) -> Answer:
        """See `Side.read`."""
        return await self.infill(Question(prefix=text), 1)

    async def infill(self, question: Question, tokens: int) -> Answer:
        """See `Side.infill`."""
        request = InfillRequest(
            prefix=question.prefix,
            suffix=question.suffix,
            before=question.before,
            after=question.after,
            language=question.language,
            document=question.document,
            client="bench",
            max_new_tokens=tokens,
            prefix_tokens=PREFIX_TOKENS,
            suffix_tokens=SUFFIX_TOKENS,
        )
        result = await self._engine.complete(request)
        return Answer(
            text=result.candidates[0].text,
            tokens=result.tokens,
            forwards=result.forwards,
            encoded=result.encoded_tokens,
        )


class LlamaCpp:
    """llama.cpp, asked as llama.vscode asks it."""

    def __init__(self, server: LlamaServer, build: str) -> None:
        self.process, self._server = server.process, server
        self.about: Figures = {"build": build}

    async def read(self, text: str) -> Answer:
        """See `Side.read`."""
        return _answer(
            await self._server.ask(
                "/completion", {"prompt": text, "n_predict": 1, "cache_prompt": True}
            )
        )

    async def infill(self, question: Question, tokens: int) -> Answer:
        """See `Side.infill`."""
        before, newline, line = question.prefix.rpartition("\n")
        body: dict[str, object] = {
            "input_prefix": before + newline,
            "input_suffix": question.suffix,
            "input_extra": [],
            "prompt": line,
            "n_predict": tokens,
            "top_k": 40,
            "top_p": 0.99,
            "stream": False,
            "samplers": ["top_k", "top_p", "infill"],
            "cache_prompt": True,
            "t_max_prompt_ms": 500,
            "t_max_predict_ms": 500,
        }
        if indent := len(line) - len(line.lstrip()):
            body["n_indent"] = indent
        return _answer(await self._server.ask("/infill", body))


def _answer(reply: dict[str, object]) -> Answer:
    timings = reply["timings"]
    assert isinstance(timings, dict)
    tokens = int(timings["predicted_n"])
    return Answer(
        text=str(reply["content"]),
        tokens=tokens,
        forwards=tokens - int(timings.get("draft_n_accepted", 0)),
        encoded=int(timings["prompt_n"]),
    )


# ---- measuring -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """An answer, and how long it took."""

    answer: Answer
    ms: float


@dataclass(frozen=True, slots=True)
class Record:
    """All that a side was asked."""

    read: list[Timed] = field(default_factory=list[Timed])
    written: list[Timed] = field(default_factory=list[Timed])
    session: list[tuple[Event, Timed]] = field(default_factory=list[tuple[Event, Timed]])


async def measure(setting: Setting, num_events: int, program: Path | None) -> Figures:
    """Ask both by turns. Raises `CompletionError`, `OSError` and `ValueError`."""
    setting.require_backbone()
    threads = num_threads()
    async with contextlib.AsyncExitStack() as opened:
        # One after the other: they would slow each other's start.
        sides: dict[str, Side] = {}
        sides[OURS] = Mezzotint(*await opened.enter_async_context(http_engine(setting)))
        server = await opened.enter_async_context(
            llama_server(setting.model, program, threads=threads)
        )
        sides[PEER] = LlamaCpp(server, await server.build())
        records = await compare(setting, sides, num_events)
        figures = {name: summary(records[name], side) for name, side in sides.items()}
    return {"threads": threads, **figures, **ratios(figures)}


def num_threads() -> int:
    """The processors that we may use: what both work with."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


async def compare(setting: Setting, sides: dict[str, Side], num_events: int) -> dict[str, Record]:
    """Ask all sides the same, by turns."""
    turns = _Turns(sides)
    records = {name: Record() for name in sides}
    session = events(setting.sources, num_events, setting.seed, region_lines=REGION_LINES)
    for event in tqdm(session, desc="a session", unit="key"):
        for name, timed in await turns.infill(question_at(event, setting.tokenizer), KEY_TOKENS):
            records[name].session.append((event, timed))
    rounds = setting.size(full=6, gpu=12, quick=1)
    for text in tqdm(setting.fresh_texts(rounds, PROMPT_TOKENS), desc="prompts", unit="text"):
        for name, timed in await turns.read(text):
            records[name].read.append(timed)
    for prompt in tqdm(setting.prompts(rounds), desc="long answers", unit="hole"):
        question = Question(
            prefix=_last_lines(prompt.request.prefix), suffix=_first_lines(prompt.request.suffix)
        )
        await turns.infill(question, 1)  # reads it
        for name, timed in await turns.infill(question, LONG_ANSWER_TOKENS):
            records[name].written.append(timed)
    return records


class _Turns:
    """Whose turn it is: another one begins each time."""

    def __init__(self, sides: dict[str, Side]) -> None:
        self._sides = sides
        self._order = list(sides)

    async def infill(self, question: Question, tokens: int) -> list[tuple[str, Timed]]:
        """`Side.infill` of all of them."""
        return await self._ask(lambda side: side.infill(question, tokens))

    async def read(self, text: str) -> list[tuple[str, Timed]]:
        """`Side.read` of all of them."""
        return await self._ask(lambda side: side.read(text))

    async def _ask(self, work: Callable[[Side], Awaitable[Answer]]) -> list[tuple[str, Timed]]:
        """One after the other, each when nobody is at work any more."""
        self._order = [*self._order[1:], self._order[0]]
        timed: list[tuple[str, Timed]] = []
        for name in self._order:
            for side in self._sides.values():
                await side.process.until_idle()
            started = time.perf_counter()
            answer = await work(self._sides[name])
            timed.append((name, Timed(answer=answer, ms=1000 * (time.perf_counter() - started))))
        return timed


def question_at(event: Event, tokenizer: BackboneTokenizer) -> Question:
    """What is asked at an event: the text that our prompt layout reads there."""
    before, after = event.text[: event.cursor], event.text[event.cursor :]
    prompt = Prompt.of(
        tokenizer,
        before,
        after,
        prefix_tokens=PREFIX_TOKENS,
        suffix_tokens=SUFFIX_TOKENS,
    )
    ids = (*prompt.far, *prompt.near)
    prefix = b"".join(map(tokenizer.token_bytes, ids)) + prompt.heal
    suffix = b"".join(map(tokenizer.token_bytes, prompt.suffix))
    num_before, num_after = (len(text.decode("utf-8", "ignore")) for text in (prefix, suffix))
    return Question(
        prefix=before[len(before) - num_before :],
        suffix=after[:num_after],
        before=before[: len(before) - num_before],
        after=after[num_after:],
        document=event.document,
        language=event.language,
    )


_LINES_BEFORE, _LINES_AFTER = 48, 12


def _last_lines(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[-_LINES_BEFORE:])


def _first_lines(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:_LINES_AFTER])


# ---- figures ---------------------------------------------------------------------------------


def summary(record: Record, side: Side) -> Figures:
    """The figures of one side."""
    keys = [timed for event, timed in record.session if event.kind in KEYS]
    times = [timed.ms for timed in keys]
    answers = [timed.answer for timed in keys]
    peak = side.process.peak_bytes()
    return {
        **side.about,
        "prompt_tokens_per_s": _rate(record.read, lambda answer: answer.encoded),
        "tokens_per_s": _rate(record.written, lambda answer: answer.tokens),
        "tokens_per_forward": share(
            sum(timed.answer.tokens for timed in record.written),
            sum(timed.answer.forwards for timed in record.written),
        ),
        "key_ms_p50": percentile(times, 50),
        "key_ms_p95": percentile(times, 95),
        "encoded_tokens_a_key": share(sum(a.encoded for a in answers), len(answers)),
        "tokens_an_answer": share(sum(a.tokens for a in answers), len(answers)),
        "right_characters": _right_characters(record.session),
        "memory_mb": None if peak is None else round(peak / 1e6, 1),
        "events": by_kind(record.session),
    }


def _rate(timed: Sequence[Timed], count: Callable[[Answer], int]) -> float | None:
    """So many a second."""
    return share(sum(count(one.answer) for one in timed), sum(one.ms for one in timed) / 1000)


def _right_characters(session: Sequence[tuple[Event, Timed]]) -> float | None:
    """How many characters of what the person typed next the answers begin with, on average."""
    right = [_agreeing(timed.answer.text, event.ahead) for event, timed in session if event.ahead]
    return share(sum(right), len(right))


def _agreeing(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def by_kind(session: Sequence[tuple[Event, Timed]]) -> dict[str, Figures]:
    """Milliseconds, and tokens encoded, of each kind of event."""
    kinds: dict[str, list[Timed]] = {}
    for event, timed in session:
        kinds.setdefault(event.kind, []).append(timed)
    return {
        kind: {
            "count": len(group),
            "ms_p50": percentile([timed.ms for timed in group], 50),
            "ms_p95": percentile([timed.ms for timed in group], 95),
            "encoded": share(sum(timed.answer.encoded for timed in group), len(group)),
        }
        for kind, group in sorted(kinds.items())
    }


def ratios(figures: dict[str, Figures]) -> Figures:
    """How many times as fast as llama.cpp we are."""
    ours, peer = figures[OURS], figures[PEER]
    return {
        "ratio_key_p50": _ratio(peer["key_ms_p50"], ours["key_ms_p50"]),
        "ratio_tokens_per_s": _ratio(ours["tokens_per_s"], peer["tokens_per_s"]),
        "ratio_prompt_tokens_per_s": _ratio(
            ours["prompt_tokens_per_s"], peer["prompt_tokens_per_s"]
        ),
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 2) if one and other else None


_SHOWN = (
    ("typed key, median", "key_ms_p50", "ms"),
    ("typed key, 95 % within", "key_ms_p95", "ms"),
    ("tokens encoded a key", "encoded_tokens_a_key", ""),
    ("tokens an answer", "tokens_an_answer", ""),
    ("characters right", "right_characters", ""),
    ("prompt", "prompt_tokens_per_s", "tokens/s"),
    ("writing", "tokens_per_s", "tokens/s"),
    ("tokens a forward", "tokens_per_forward", ""),
    ("peak memory", "memory_mb", "MB"),
)


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    table: list[Row] = []
    for title, key, unit in _SHOWN:
        for name in (OURS, PEER):
            one = figures[name]
            note = one.get("build", "") if key == "key_ms_p50" else ""
            table.append(Row(f"{title}: {name}", one[key], unit, note=note))
    on_cpu = not setting.on_cuda
    for title, key, limit in (
        ("a key sooner", "ratio_key_p50", 6),
        ("prompt tokens/s", "ratio_prompt_tokens_per_s", 3),
        ("tokens/s", "ratio_tokens_per_s", 1.7),
    ):
        goal = Goal("at least", limit) if on_cpu else None
        table.append(Row(title, figures[key], "x", goal))
    return table
