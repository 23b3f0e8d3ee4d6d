"""`python -m model.training.corpus`: pack folders of code without training on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.api import CheckpointError
from model.backbone.checkpoint import load_backbone
from model.training.corpus.packing import pack
from model.training.corpus.sources import find_source


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m model.training.corpus", description="Pack folders of code into a corpus."
    )
    parser.add_argument("sources", nargs="+", type=Path, help="folders; each is one source")
    parser.add_argument("--out", type=Path, required=True, help="folder of the packed corpus")
    parser.add_argument(
        "--decontaminate", nargs="*", type=Path, default=[], metavar="FILE",
        help="benchmark files (.jsonl[.gz]) whose text must not be trained on",
    )  # fmt: skip
    parser.add_argument(
        "--any-licence", action="store_true", help="take all sources: for code of your own"
    )
    parser.add_argument(
        "--hold-out", nargs="*", default=[], metavar="NAME",
        help="sources to keep out of training; without any, one file in a hundred",
    )  # fmt: skip
    parser.add_argument("--backbone", type=Path, help="model whose tokenizer counts the tokens")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_args(argv)
    try:
        missing = [str(source) for source in args.sources if not source.is_dir()]
        if missing:
            raise ValueError(f"not a folder: {', '.join(missing)}")
        manifest = pack(
            [find_source(folder) for folder in args.sources],
            args.out,
            args.decontaminate,
            any_licence=args.any_licence,
            held_out=args.hold_out,
            tokenizer=load_backbone(args.backbone).tokenizer if args.backbone else None,
        )
    except (ValueError, OSError, CheckpointError) as error:
        print(f"packing: {error}", file=sys.stderr)
        return 1
    print(f"{manifest['files']} files, {manifest['tokens']} tokens in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
