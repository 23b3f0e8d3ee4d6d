"""Programming problems with tests, out of JSON-lines files of three public formats.

    HumanEval             task_id, entry_point, prompt, canonical_solution, test
    HumanEval-Infilling   the same and `suffix`; canonical_solution is the middle
    MultiPL-E             name, language, prompt, tests, stop_tokens

`single_lines`, `multi_lines` and `whole_functions` cut tasks of another shape out of HumanEval's
functions.
"""

from __future__ import annotations

import ast
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

LANGUAGE_OF_MULTIPL_E = {
    "cpp": "cpp", "cs": "csharp", "go": "go", "go_test.go": "go", "java": "java",
    "js": "javascript", "lua": "lua", "php": "php", "pl": "perl", "py": "python", "rb": "ruby",
    "rs": "rust", "sh": "shellscript", "ts": "typescript",
}  # fmt: skip
"""MultiPL-E's names of languages as LSP ids; others are taken as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A hole in a program, and the tests that tell whether what fills it is right."""

    task_id: str
    language: str
    """LSP id."""
    prefix: str
    middle: str
    """What the file has in the hole; empty where it has no solution (MultiPL-E)."""
    suffix: str
    test: str
    """Follows the suffix and fails (or does not finish) if the program is wrong."""
    entry_point: str = ""
    """The function under test, where the format names it."""
    stop_tokens: tuple[str, ...] = ()
    """Texts that no solution holds, where the format names them: what follows is another topic."""

    def program(self, fill: str) -> str:
        """The program to run with `fill` in the hole."""
        return f"{self.prefix}{fill}{self.suffix}{self.test}"


def load_problems(path: Path) -> list[Problem]:
    """Read a `.jsonl` or `.jsonl.gz` file of one of the three formats.

    Raises `OSError`, and `ValueError` naming the line and what is wrong with it.
    """
    problems: dict[str, Problem] = {}
    for where, record in read_records(path):
        problem = _problem(record, where)
        if problem.task_id in problems:
            raise ValueError(f"{where}: the task {problem.task_id!r} is there a second time")
        problems[problem.task_id] = problem
    if not problems:
        raise ValueError(f"{path} holds no problems")
    return list(problems.values())


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a JSON-lines file, each with its place for messages.

    Raises `OSError`, and `ValueError` for what is no such file.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"{where}: not a JSON object but {type(record).__name__}")
                yield where, record
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason})") from None
    except EOFError:
        raise ValueError(f"{path} ends in the middle; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error):
        raise ValueError(f"{path} is no gzip file, or a damaged one; fetch it again") from None


def _problem(record: dict[str, Any], where: str) -> Problem:
    if "tests" in record or "name" in record:
        return _multipl_e(record, where)
    if not record.keys() & {"task_id", "entry_point", "canonical_solution", "test"}:
        raise ValueError(
            f"{where}: neither a HumanEval problem (task_id, entry_point, prompt, "
            "canonical_solution, test) nor a MultiPL-E one (name, language, prompt, tests)"
        )
    entry_point = _text(record, "entry_point", where)
    return Problem(
        task_id=_text(record, "task_id", where),
        language="python",
        prefix=_text(record, "prompt", where),
        middle=_text(record, "canonical_solution", where),
        suffix=_text(record, "suffix", where) if "suffix" in record else "",
        test=f"\n{_text(record, 'test', where)}\ncheck({entry_point})\n",
        entry_point=entry_point,
    )


def _multipl_e(record: dict[str, Any], where: str) -> Problem:
    language = _text(record, "language", where)
    stops = record.get("stop_tokens", [])
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"{where}: the field 'stop_tokens' must be an array of texts")
    return Problem(
        task_id=_text(record, "name", where),
        language=LANGUAGE_OF_MULTIPL_E.get(language, language),
        prefix=_text(record, "prompt", where),
        middle="",
        suffix="",
        test=f"\n{_text(record, 'tests', where)}\n",
        stop_tokens=tuple(stops),
    )


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise ValueError(f"{where}: the field {field!r} is missing")
    if not isinstance(record[field], str):
        raise ValueError(f"{where}: the field {field!r} must be a text")
    return record[field]


# --- Cutting --------------------------------------------------------------------------------


def single_lines(problems: Iterable[Problem]) -> list[Problem]:
    """A task for each line of a function's body that is not blank, as the official split has it:
    the hole is the line with its indentation and its line end.

    The split puts an empty line between the docstring and the body's first line, but only in
    front of the task that asks for that line.
    """
    return [
        _lines_cut(head, lines, problem, (number, number), f"SingleLineInfilling/{{}}/L{number}")
        for head, lines, problem in _bodies(problems)
        for number in _written(lines)
    ]


def multi_lines(problems: Iterable[Problem]) -> list[Problem]:
    """A task for each run of lines of a function's body that begins and ends with one that is not
    blank, as the official split has it: the hole is these lines, as in `single_lines`."""
    return [
        _lines_cut(head, lines, problem, (first, last), f"MultiLineInfilling/{{}}/L{first}_L{last}")
        for head, lines, problem in _bodies(problems)
        for first in _written(lines)
        for last in _written(lines)
        if first <= last
    ]


def _bodies(problems: Iterable[Problem]) -> Iterator[tuple[str, list[str], Problem]]:
    for head, body, problem in _functions(problems):
        yield head, body.split("\n"), problem


def _written(lines: Iterable[str]) -> list[int]:
    """Indices of the lines that are not blank."""
    return [number for number, line in enumerate(lines) if line.strip()]


def _lines_cut(
    head: str, lines: list[str], problem: Problem, span: tuple[int, int], name: str
) -> Problem:
    """The task whose hole is the lines from the first to the last of `span`."""
    first, last = span
    return replace(
        problem,
        task_id=name.format(problem.task_id),
        prefix=head + "\n".join(lines[:first]) + "\n",
        middle="\n".join(lines[first : last + 1]) + "\n",
        suffix="\n".join(lines[last + 1 :]),
    )


def whole_functions(problems: Iterable[Problem]) -> list[Problem]:
    """A task for each function: everything behind its signature and docstring, and no suffix."""
    return [
        replace(problem, prefix=head, middle=body, suffix="")
        for head, body, problem in _functions(problems)
    ]


def _functions(problems: Iterable[Problem]) -> Iterator[tuple[str, str, Problem]]:
    """(text up to the body, body, problem) of each function, once however often it was cut.

    The problem's task id is the function's own. Raises `ValueError` where there is none.
    """
    functions: dict[str, tuple[str, Problem]] = {}
    for problem in problems:
        if not problem.entry_point:
            raise ValueError(f"{problem.task_id}: only HumanEval's functions can be cut anew")
        whole = problem.prefix + problem.middle + problem.suffix
        if problem.task_id.startswith("RandomSpanInfillingLight/"):
            whole = whole.removeprefix("\n")  # this split has one more than all others
        elif _asks_for_first_line(problem.task_id):
            whole = problem.prefix.removesuffix("\n") + problem.middle + problem.suffix
        functions.setdefault(_function_id(problem.task_id), (whole, problem))
    for name, (whole, problem) in functions.items():
        body = _body_line(whole, problem)
        lines = whole.splitlines(keepends=True)
        text = "".join(lines[body:])
        yield "".join(lines[:body]), text, replace(problem, task_id=name)


def _function_id(task_id: str) -> str:
    """`HumanEval/7` out of `RandomSpanInfillingLight/HumanEval/7/1` and `HumanEval/7`."""
    parts = task_id.split("/")
    if "HumanEval" not in parts[:-1]:
        raise ValueError(f"{task_id!r} names no HumanEval function")
    start = parts.index("HumanEval")
    return "/".join(parts[start : start + 2])


def _asks_for_first_line(task_id: str) -> bool:
    """Whether the official single-line and multi-line splits have an empty line of their own in
    the task's prefix: see `single_lines`."""
    return task_id.rpartition("/")[2].split("_")[0] == "L0"


def _body_line(whole: str, problem: Problem) -> int:
    """0-based line where the body begins, behind the docstring and the blank lines after it."""
    try:
        tree = ast.parse(whole)
    except SyntaxError as error:
        raise ValueError(f"{problem.task_id} does not parse whole: {error}") from None
    functions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point
    ]
    if not functions:
        raise ValueError(f"{problem.task_id} defines no function {problem.entry_point!r}")
    function = functions[-1]
    # One of them has an import before its docstring.
    docstrings = [
        node.end_lineno
        for node in function.body[:-1]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    return docstrings[-1] or 0 if docstrings else function.body[0].lineno - 1
