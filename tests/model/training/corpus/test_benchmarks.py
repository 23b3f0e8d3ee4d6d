from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from model.training.corpus.benchmarks import benchmark_ngrams, word_ngrams

SOLUTION = "    best = None\n    for one in many: best = one if best is None else max(best, one)\n"


def benchmark(path: Path, **fields: str) -> Path:
    row = {"prompt": "def most(many):\n", "canonical_solution": SOLUTION, "suffix": "", **fields}
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize("name", ["bench.jsonl", "bench.jsonl.gz"])
def test_a_bare_solution_shares_runs_of_words_with_its_problem(tmp_path: Path, name: str) -> None:
    (ngrams,) = benchmark_ngrams([benchmark(tmp_path / name)]).values()
    assert word_ngrams(SOLUTION.replace("    ", "\t")) <= ngrams
    assert word_ngrams(SOLUTION)


def test_a_solution_is_recognised_across_the_edges_of_its_hole(tmp_path: Path) -> None:
    program = "def most(many):\n" + SOLUTION
    parts = {"prompt": program[:30], "canonical_solution": program[30:60], "suffix": program[60:]}
    assert sum(len(word_ngrams(part)) for part in parts.values()) < len(word_ngrams(program)) - 9
    file = benchmark(tmp_path / "b.jsonl", **parts)
    assert benchmark_ngrams([file]) == {"b.jsonl": word_ngrams(program)}


def test_nine_words_are_no_run() -> None:
    words = "best is None else max best one def most"
    assert word_ngrams(words) == set()
    assert len(word_ngrams(words + " many")) == 1


def test_numbers_alone_are_no_text() -> None:
    assert word_ngrams("[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]") == set()
    assert len(word_ngrams("[0, 1, 2, 3, 4, 5, 6, 7, 8, x]")) == 1


def test_two_files_of_one_name_both_count(tmp_path: Path) -> None:
    for folder, prompt in (("a", "def one():\n"), ("b", "def two():\n")):
        (tmp_path / folder).mkdir()
        benchmark(tmp_path / folder / "bench.jsonl", prompt=prompt)
    files = [tmp_path / folder / "bench.jsonl" for folder in ("a", "b")]
    expected = word_ngrams("def one():\n" + SOLUTION) | word_ngrams("def two():\n" + SOLUTION)
    assert benchmark_ngrams(files) == {"bench.jsonl": expected}


@pytest.mark.parametrize("content", [b"not json\n", b'{"text": "x"}\n', b"[1]\n", b"null\n"])
@pytest.mark.parametrize("name", ["bench.jsonl", "bench.jsonl.gz"])
def test_a_file_that_is_no_benchmark_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no benchmark"):
        benchmark_ngrams([tmp_path / name])
