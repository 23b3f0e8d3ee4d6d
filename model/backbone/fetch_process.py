"""`python -m model.backbone.fetch_process NAME`: fetches a model for a process that wants to ask
its user first, to watch, and to be able to stop it. NAME is a backbone of the catalogue (empty for
the default), or a checkpoint's hub id.

Says in lines of JSON on stdout

    {"cached": PATH or null}       at once, without asking anybody; ends with a path
    {"offer": {"title": …, "missing_bytes": N, "licence": …, "is_under_way": BOOL}}
                                   what is to be fetched; goes on when a line comes on stdin.
                                   What another process fetches already is waited for
    {"bytes": N}                   so many have come, of `missing_bytes`
    {"path": PATH}                 it is there, as a whole
    {"error": SENTENCE}            in place of any of these

and ends when stdin does, so that no download outlives who wanted it. A process of its own, because
a download cannot be stopped in the middle from another thread.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from model.api import CheckpointError, hub_id
from model.backbone import download as backbones
from model.backbone.catalogue import Known, known

_REPORT_S = 0.2


def main(name: str) -> int:
    """Fetch the model `name`; the exit status."""
    agreed = threading.Event()
    leave = _leave if hub_id(name) is None else _leave_hub
    threading.Thread(target=_read_stdin, args=(agreed, leave), daemon=True).start()
    try:
        if hub_id(name) is None:
            _fetch_known(known(name), agreed)
        else:
            _fetch_from_hub(name, agreed)
    except CheckpointError as error:
        _say(error=str(error))
        return 1
    return 0


def _fetch_known(wanted: Known, agreed: threading.Event) -> None:
    """Raises `CheckpointError`."""
    is_here = backbones.is_here(wanted)
    _say(cached=str(wanted.path) if is_here else None)
    if is_here:
        return
    is_under_way = backbones.is_under_way(wanted)
    missing = backbones.missing_bytes(wanted)
    if not is_under_way:
        backbones.require_room(wanted)
    _offer(wanted.title, missing, wanted.licence, is_under_way=is_under_way)
    agreed.wait()
    report = _Report()
    before = wanted.num_bytes - missing

    def on_progress(progress: backbones.Progress) -> None:
        report(max(progress.num_bytes - before, 0))

    if is_under_way:
        # Whoever has it fetched may stop it; nobody has agreed to its being fetched here.
        backbones.wait_for_other(wanted, on_progress=on_progress)
    else:
        backbones.download(wanted, on_progress=on_progress, on_note=_note)
    report.close()
    _say(path=str(wanted.path))


def _fetch_from_hub(name: str, agreed: threading.Event) -> None:
    """Raises `CheckpointError`."""
    from model.families import hub  # takes a while to import

    found = hub.cached(name)
    _say(cached=None if found is None else str(found))
    if found is not None:
        return
    offered = hub.offer(name)
    _offer(name, offered.missing_bytes, offered.licence, is_under_way=False)
    agreed.wait()
    report = _Report()
    directory: Path = hub.fetch(offered, report)
    report.close()
    _say(path=str(directory))


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


def _read_stdin(agreed: threading.Event, leave: Callable[[], NoReturn]) -> None:
    for _ in sys.stdin:
        agreed.set()
    leave()  # whoever started this is gone, or wants it no more


def _leave() -> NoReturn:
    os._exit(130)  # what has come is kept


def _leave_hub() -> NoReturn:
    from model.families import hub

    hub.abandon()


def _offer(title: str, missing_bytes: int, licence: str, *, is_under_way: bool) -> None:
    fields = {"title": title, "missing_bytes": missing_bytes, "licence": licence}
    _say(offer={**fields, "is_under_way": is_under_way})


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
