"""What it is worth that a document stays with a replica, and what a killed replica costs.

    python -m model.benchmarks.replicas --replicas 2 --documents 8 --keystrokes 24

People type in documents, one request a keystroke. First each document stays with its replica, then
any replica may answer; and then one is killed under load. Needs the extra `ray`. Prints a table,
and JSON as the last line. Counts only: no time is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from model import engines
from model.api import CompletionError, FrameListener, InfillRequest, InfillResult
from model.serving.ray_app import REPLICA_GONE, Cluster, RayCompleter, deploy, join_cluster

_SOURCES = Path(__file__).parents[1]
_WINDOW_CHARS = 3000
_CHARS_A_KEYSTROKE = 3
_WARM_TOKENS = 32
"""A request that encodes at most so many tokens has found its context in a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What one round of typing came to."""

    round: str
    requests: int
    lost: int
    """Answered with an error."""
    asked_again: int
    """Asked at another replica, since theirs had died."""
    warm: int
    """Found their context in a cache, but for what had been typed."""
    encoded_tokens: int
    """Context tokens that no cache held, in all requests together."""
    replicas_a_document: float


class _WithPid:
    """A completer that tells in a candidate's place which process it is in."""

    def __init__(self) -> None:
        self._completer = engines.load(device="cpu")

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        result = await self._completer.complete(request)
        told = replace(result.candidates[0], texts=(str(os.getpid()),))
        return replace(result, candidates=(told,))

    async def close(self) -> None:
        await self._completer.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the three rounds; returns the exit status."""
    parser = argparse.ArgumentParser(description="What a document's own replica is worth.")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--keystrokes", type=int, default=24)
    args = parser.parse_args(argv)
    cluster = Cluster(replicas=args.replicas, cpus=0)
    join_cluster(cluster)
    affine = deploy(cluster, _WithPid)
    rounds = asyncio.run(_rounds(affine, args.documents, args.keystrokes))
    for counted in rounds:
        print(", ".join(f"{name} {value}" for name, value in asdict(counted).items()))
    print(json.dumps([asdict(counted) for counted in rounds]))
    return 0


async def _rounds(affine: RayCompleter, documents: int, keystrokes: int) -> list[Counted]:
    """Each round types elsewhere, so that none finds what another left in the caches."""
    anywhere = RayCompleter(affine.handle, affine.died, affine=False)
    type_all = partial(_typed, documents=documents, keystrokes=keystrokes)
    return [
        await type_all("a document stays", affine, place=0),
        await type_all("any replica", anywhere, place=1),
        await type_all("one is killed", affine, place=2, kill_after=documents * keystrokes // 3),
    ]


async def _typed(
    name: str,
    completer: RayCompleter,
    *,
    documents: int,
    keystrokes: int,
    place: int,
    kill_after: int | None = None,
) -> Counted:
    """Type in all documents at once; after `kill_after` answers, kill the replica of the last."""
    results, lost, pids = list[InfillResult](), list[CompletionError](), list[set[str]]()

    async def type_in(source: Path) -> None:
        seen = set[str]()
        pids.append(seen)
        for request in _requests(source, keystrokes, place):
            try:
                result = await completer.complete(request)
            except CompletionError as error:
                lost.append(error)
                continue
            results.append(result)
            seen.add(result.candidates[0].text)
            if len(results) == kill_after:
                os.kill(int(result.candidates[0].text), signal.SIGKILL)

    with _DeadReplicas() as gone:
        await asyncio.gather(*map(type_in, _sources(documents)))
    return Counted(
        round=name,
        requests=len(results) + len(lost),
        lost=len(lost),
        asked_again=len(gone.records),
        warm=sum(result.encoded_tokens <= _WARM_TOKENS for result in results),
        encoded_tokens=sum(result.encoded_tokens for result in results),
        replicas_a_document=round(sum(map(len, pids)) / len(pids), 2),
    )


def _sources(count: int) -> list[Path]:
    """The longest files of this package."""
    files = sorted(_SOURCES.rglob("*.py"), key=lambda path: path.stat().st_size)
    return files[-count:]


def _requests(source: Path, keystrokes: int, place: int) -> Iterator[InfillRequest]:
    text = source.read_text("utf-8")
    start = _WINDOW_CHARS + place * len(text) // 5
    begins = start - _WINDOW_CHARS  # the window stays where it is while somebody types in it
    after = text[start + keystrokes * _CHARS_A_KEYSTROKE :][: _WINDOW_CHARS // 3]
    for stroke in range(keystrokes):
        cursor = start + stroke * _CHARS_A_KEYSTROKE
        yield InfillRequest(
            prefix=text[begins:cursor],
            suffix=after,
            starts_file=begins == 0,
            ends_file=False,
            language="python",
            document=f"{source}:{place}",
            client="benchmark",
            max_new_tokens=16,
        )


class _DeadReplicas(logging.Handler):
    """Collects, while it is open, what the gateway says of dead replicas."""

    def __init__(self) -> None:
        super().__init__()
        self.records = list[logging.LogRecord]()

    def emit(self, record: logging.LogRecord) -> None:
        if REPLICA_GONE in record.getMessage():
            self.records.append(record)

    def __enter__(self) -> _DeadReplicas:
        logging.getLogger("model.serving.ray_app").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("model.serving.ray_app").removeHandler(self)


if __name__ == "__main__":
    raise SystemExit(main())
