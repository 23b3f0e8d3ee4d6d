"""Throughput and latency of many clients at once, each typing in a document of its own.

Clients are coroutines that ask again as soon as they are answered, each time one character further
into its file. They share the engine's process; one number of them also asks an engine over HTTP, as
editors do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from statistics import median

from tqdm import tqdm

from model.api import Completer, InfillRequest
from model.benchmarks.http_engine import http_engine, missing_packages
from model.benchmarks.setting import Setting, shuffled_rounds
from model.benchmarks.table import Row
from model.evaluation.report import Figures, percentile

TITLE = "Clients at once"

CLIENTS = (1, 4, 16, 64)
QUICK_CLIENTS = (1, 4)
HTTP_CLIENTS = 4
OVER_HTTP = f"{HTTP_CLIENTS} over HTTP"
ROUNDS = 3
CONTEXT_CHARS = 2048
"""On either side of a client's cursor."""
MAX_NEW_TOKENS = 32


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    counts = QUICK_CLIENTS if setting.quick else CLIENTS
    lacking = missing_packages()
    async with contextlib.AsyncExitStack() as opened:
        completer = setting.open_completer()
        opened.push_async_callback(completer.close)
        # Each name: whom to ask, and by how many.
        ways: dict[str, tuple[Completer, int]] = {str(n): (completer, n) for n in counts}
        if not lacking:
            engine, _ = await opened.enter_async_context(http_engine(setting))
            ways[OVER_HTTP] = (engine, HTTP_CLIENTS)
        rounds = await _run_rounds(setting, ways)
    return {
        "clients": {name: _medians(of_one) for name, of_one in rounds.items()},
        "http_unmeasured": f"needs {', '.join(lacking)}" if lacking else None,
    }


async def _run_rounds(
    setting: Setting, ways: Mapping[str, tuple[Completer, int]]
) -> dict[str, list[Figures]]:
    """Figures of every round of each way to ask, in turns."""
    seconds = 0.2 if setting.quick else 3.0
    text = long_text(setting)
    rounds: dict[str, list[Figures]] = {name: [] for name in ways}
    plan = shuffled_rounds(list(ways), 1 if setting.quick else ROUNDS, setting.seed)
    first = 0
    for name in tqdm(plan, desc=TITLE, unit="round"):
        completer, count = ways[name]
        # A new place in the text for every client of every round: no one finds it cached.
        typists = [Typist(text, first + index) for index in range(count)]
        first += count
        await asyncio.gather(*(typist.ask(completer) for typist in typists))
        rounds[name].append(await run_clients(completer, typists, seconds))
    return rounds


def long_text(setting: Setting) -> str:
    """What clients type in."""
    return setting.text(setting.size(full=200_000, gpu=1_000_000, quick=20_000))


class Typist:
    """A client: a cursor that moves through a document."""

    def __init__(self, text: str, number: int) -> None:
        spread = 7919 * CONTEXT_CHARS  # coprime to nearly every length: places all over the text
        self._start = CONTEXT_CHARS + number * spread % max(1, len(text) - 4 * CONTEXT_CHARS)
        self._text = text
        self._name = f"document {number}"
        self._typed = 0

    def request(self) -> InfillRequest:
        """The request at the cursor."""
        cursor = self._start + self._typed
        return InfillRequest(
            max_new_tokens=MAX_NEW_TOKENS,
            prefix=self._text[self._start - CONTEXT_CHARS : cursor],
            suffix=self._text[cursor + 80 : self._start + 80 + CONTEXT_CHARS],
            language="python",
            document=self._name,
            client=self._name,
        )

    async def ask(self, completer: Completer) -> tuple[float, int]:
        """Ask at the cursor, then type a character; (milliseconds, tokens)."""
        request = self.request()
        self._typed += 1
        started = time.perf_counter()
        result = await completer.complete(request)
        return 1000 * (time.perf_counter() - started), result.tokens


async def run_clients(completer: Completer, typists: Sequence[Typist], seconds: float) -> Figures:
    """Let clients ask for some time; what was begun then is finished, and counts."""
    started = time.perf_counter()
    answers: list[tuple[float, int]] = []

    async def work(typist: Typist) -> None:
        while True:
            answers.append(await typist.ask(completer))
            if time.perf_counter() - started >= seconds:
                return

    await asyncio.gather(*map(work, typists))
    elapsed = time.perf_counter() - started
    times = [ms for ms, _ in answers]
    return {
        "requests_per_s": len(answers) / elapsed,
        "tokens_per_s": sum(tokens for _, tokens in answers) / elapsed,
        "ms_p50": percentile(times, 50),
        "ms_p95": percentile(times, 95),
    }


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {key: round(median(one[key] for one in rounds), 2) for key in rounds[0]}


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    table = [
        Row(
            f"clients: {name}",
            one["requests_per_s"],
            "requests/s",
            note=f"{one['tokens_per_s']:,.0f} tokens/s; "
            f"{one['ms_p50']:.1f} ms, 95 % within {one['ms_p95']:.1f} ms",
        )
        for name, one in figures["clients"].items()
    ]
    if figures["http_unmeasured"]:
        table.append(Row(f"clients: {OVER_HTTP}", None, note=figures["http_unmeasured"]))
    return table
