"""A tiny checkpoint on disk, and problem files of the public formats."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HUMAN_EVAL: dict[str, Any] = {
    "task_id": "HumanEval/7",
    "entry_point": "total",
    "prompt": """\
from typing import List


def total(numbers: List[int]) -> int:
    '''Their sum.

    >>> total([1, 2])
    3
    '''
""",
    "canonical_solution": """\
    result = 0

    for number in numbers:
        result += number
    return result
""",
    "test": """

def check(candidate):
    assert candidate([1, 2]) == 3
    assert candidate([]) == 0
""",
}
INFILLING: dict[str, Any] = {
    **HUMAN_EVAL,
    "task_id": "RandomSpanInfilling/HumanEval/7/1",
    "prompt": HUMAN_EVAL["prompt"] + "    result = 0\n\n    for num",
    "canonical_solution": "ber in numbers:\n        result +=",
    "suffix": " number\n    return result\n",
}
MULTIPL_E: dict[str, Any] = {
    "name": "HumanEval_7_total",
    "language": "js",
    "prompt": "//Their sum.\nfunction total(numbers){\n",
    "tests": "const assert = require('node:assert');\nassert.deepEqual(total([1, 2]), 3);\n",
    "stop_tokens": ["\nfunction ", "\n/*", "\n//", "\nconsole.log"],
}

WriteProblems = Callable[..., Path]


@pytest.fixture
def human_eval() -> dict[str, Any]:
    return dict(HUMAN_EVAL)


@pytest.fixture
def infilling() -> dict[str, Any]:
    return dict(INFILLING)


@pytest.fixture
def multipl_e() -> dict[str, Any]:
    return dict(MULTIPL_E)


@pytest.fixture
def write_problems(tmp_path: Path) -> WriteProblems:
    """`write_problems(record, …)`: a JSON-lines file of the records."""

    def write(*records: object, name: str = "problems.jsonl.gz") -> Path:
        file = tmp_path / name
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return file

    return write


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A completer sets the threads of the whole process, which other tests share."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
