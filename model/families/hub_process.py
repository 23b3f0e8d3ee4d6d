"""`python -m model.families.hub_process ID`: fetches a checkpoint for a process that wants to ask
its user first, to watch, and to be able to stop it.

Says in lines of JSON on stdout

    {"cached": DIRECTORY or null}            at once, without asking anybody; ends with a directory
    {"offer": {…}}                           the fields of `hub.Offer`: what is to be fetched;
                                             goes on when a line comes on stdin
    {"bytes": N}                             so many have come, of `missing_bytes`
    {"directory": DIRECTORY}                 it is there, as a whole
    {"error": SENTENCE}                      in place of any of these

and ends when stdin does, so that no download outlives who wanted it. A process of its own, because
the hub's client cannot be stopped in the middle of a file, and waits for its threads.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from dataclasses import asdict

from model.api import CheckpointError
from model.families import hub

_REPORT_S = 0.2


def main(name: str) -> int:
    """Fetch the checkpoint of the hub id `name`; the exit status."""
    agreed = threading.Event()
    threading.Thread(target=_read_stdin, args=(agreed,), daemon=True).start()
    try:
        found = hub.cached(name)
        _say(cached=None if found is None else str(found))
        if found is not None:
            return 0
        offered = hub.offer(name)
        _say(offer=asdict(offered))
        agreed.wait()
        report = _Report()
        directory = hub.fetch(offered, report)
        report.close()
        _say(directory=str(directory))
    except CheckpointError as error:
        _say(error=str(error))
        return 1
    return 0


class _Report:
    """Tells how many bytes have come, not too often and never fewer than before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._most = -1
        self._next = 0.0

    def __call__(self, num_bytes: int) -> None:
        with self._lock:
            now = time.monotonic()
            if num_bytes > self._most and now >= self._next:
                self._most, self._next = num_bytes, now + _REPORT_S
                _say(bytes=num_bytes)

    def close(self) -> None:
        """Say nothing more; the client's bars speak up once again when they are disposed of."""
        with self._lock:
            self._next = math.inf


def _read_stdin(agreed: threading.Event) -> None:
    for _ in sys.stdin:
        agreed.set()
    hub.abandon()  # whoever started this is gone, or wants it no more


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
