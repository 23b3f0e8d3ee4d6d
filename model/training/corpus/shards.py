"""A shard: gzipped JSON lines, a header and then one file of code a line.

Text compresses better than token ids, and holes are cut at characters, so tokenising is left to
the reader. The header says the format's version and how many files follow.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

FORMAT = 2
"""Version of the shards; a packing of another version is refused."""


@dataclass(frozen=True, slots=True)
class Document:
    """One source file; its lines end in `\\n`."""

    text: str
    language: str
    source: str
    spans: tuple[tuple[int, int], ...] = ()
    """Characters [start, end) that a syntax tree suggests as holes, sorted by their start."""


def write_shard(path: Path, documents: Sequence[Document]) -> None:
    """Write one shard; the same documents give the same bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for row in ({"format": FORMAT, "files": len(documents)}, *map(_row, documents)):
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def read_shard(path: Path) -> list[Document]:
    """Read one shard back. Raises `ValueError` for one that is damaged, cut short, or of another
    version."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            header = json.loads(file.readline() or "null")
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}")
            documents = [_document(json.loads(line)) for line in file]
        if len(documents) != header["files"]:
            raise ValueError(f"it holds {len(documents)} of its {header['files']} files")
    except (ValueError, TypeError, KeyError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is no readable shard ({error}); pack the corpus again, "
            "or copy it again if it came from another machine"
        ) from error
    return documents


def is_packed(path: Path) -> bool:
    """Whether a folder is a packed corpus rather than code."""
    return (path / "manifest.json").is_file() and any(path.glob("train-*.jsonl.gz"))


def _row(document: Document) -> dict[str, object]:
    starts = [start for start, _ in document.spans]
    steps = (a - b for a, b in zip(starts, [0, *starts], strict=False))
    lengths = (end - start for start, end in document.spans)
    return {
        "text": document.text,
        "language": document.language,
        "source": document.source,
        # Each span as its distance from the one before and its length: half the bytes.
        "spans": [number for pair in zip(steps, lengths, strict=True) for number in pair],
    }


def _document(row: dict[str, object]) -> Document:
    text, language, source, flat = (row[k] for k in ("text", "language", "source", "spans"))
    if not (isinstance(text, str) and isinstance(language, str) and isinstance(source, str)):
        raise TypeError("a file's text, language and source must be strings")
    return Document(text, language, source, _spans(flat))


def _spans(flat: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(flat, list):
        raise TypeError("spans must be a list")
    starts: Iterable[int] = accumulate(flat[::2])
    return tuple((start, start + n) for start, n in zip(starts, flat[1::2], strict=True))
