"""`mezzotint download ID`: fetch an open checkpoint from the hub, and say where it lies."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from model.api import CheckpointError
from model.families.hub import abandon, local_directory


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the checkpoint that `argv` names; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mezzotint download",
        description="Fetch an open checkpoint from the Hugging Face hub into its shared cache. "
        "Commit, size and licence are said first. Ctrl-C interrupts; files that are whole by then "
        "need not come again.",
    )
    parser.add_argument("model", metavar="ID", help="owner/name or owner/name@revision")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, lambda *_: abandon())
    try:
        print(local_directory(args.model))
    except CheckpointError as error:
        print(f"mezzotint download: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
