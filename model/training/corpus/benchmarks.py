"""Keeping benchmarks out of training: a file that shares a run of words with one is left out."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

NGRAM_WORDS = 10
"""A file that shares this many consecutive words with a benchmark is left out."""


def word_ngrams(text: str) -> set[int]:
    """Hashes of every run of `NGRAM_WORDS` words, equal within one process.

    Runs of nothing but numbers are no text: 0, 1, 2, ... stands in every other test.
    """
    words = re.findall(r"\w+", text)
    shifted = (words[i:] for i in range(NGRAM_WORDS))
    runs = zip(*shifted, strict=False)
    return {hash(run) for run in runs if not (run[0].isdigit() and all(map(str.isdigit, run)))}


def benchmark_ngrams(files: Sequence[Path]) -> dict[str, set[int]]:
    """The n-grams of each HumanEval or HumanEval-Infilling file (.jsonl or .jsonl.gz), by name.

    Raises `ValueError` for a file without their fields: it would protect from nothing.
    """
    ngrams: defaultdict[str, set[int]] = defaultdict(set)
    for file in files:
        ngrams[file.name] |= _file_ngrams(file)
    return dict(ngrams)


def _file_ngrams(file: Path) -> set[int]:
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            # A hole's parts are joined: a solution is recognised only as a whole, and is then
            # the same for all holes of its task.
            solutions = {
                row["prompt"] + row["canonical_solution"] + row.get("suffix", "")
                for row in map(json.loads, lines)
            }
    except (ValueError, TypeError, KeyError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{file} is no benchmark: its lines must be JSON with prompt and canonical_solution"
        ) from error
    return set().union(*map(word_ngrams, solutions))
