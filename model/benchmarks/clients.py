"""Throughput and latency of many clients at once, each typing in a document of its own.

Clients are coroutines that ask again as soon as they are answered, each time one character further
into its file. They share the engine's process; what HTTP adds is measured with one count of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import median

from tqdm import tqdm

from model.api import Completer, InfillRequest
from model.benchmarks.setting import Setting, shuffled_rounds
from model.benchmarks.table import Row
from model.evaluation.report import Figures, percentile

TITLE = "Clients at once"

CLIENTS = (1, 4, 16, 64)
QUICK_CLIENTS = (1, 4)
ROUNDS = 3
CONTEXT_CHARS = 2048
"""On either side of a client's cursor."""


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    counts = QUICK_CLIENTS if setting.quick else CLIENTS
    seconds = 0.2 if setting.quick else 3.0
    completer = setting.open_completer()
    text = setting.text_of(setting.size(full=60_000, gpu=60_000, quick=2000))
    rounds: dict[str, list[Figures]] = {str(count): [] for count in counts}
    try:
        plan = shuffled_rounds(list(rounds), 1 if setting.quick else ROUNDS, setting.seed)
        for number, name in enumerate(tqdm(plan, desc=TITLE, unit="round")):
            # A new place in the text for every client of every round: no one finds it cached.
            first = sum(int(before) for before in plan[:number])
            typists = [Typist(text, first + index) for index in range(int(name))]
            await asyncio.gather(*(typist.ask(completer) for typist in typists))
            rounds[name].append(await run_clients(completer, typists, seconds))
    finally:
        await completer.close()
    return {"clients": {name: _medians(of_count) for name, of_count in rounds.items()}}


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
            prefix=self._text[self._start - CONTEXT_CHARS : cursor],
            suffix=self._text[cursor + 80 : self._start + 80 + CONTEXT_CHARS],
            starts_file=False,
            ends_file=False,
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
    return [
        Row(
            f"{name} client{'s' if name != '1' else ''}",
            one["requests_per_s"],
            "requests/s",
            note=f"{one['tokens_per_s']:,.0f} tokens/s; "
            f"{one['ms_p50']:.1f} ms, 95 % within {one['ms_p95']:.1f} ms",
        )
        for name, one in figures["clients"].items()
    ]
