from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.decoding import Fill
from model.evaluation.generation import first_function, without_suffix
from model.evaluation.problems import load_problems

WriteProblems = Callable[..., Path]


def filled(text: str) -> Fill:
    return Fill(
        text=text, finished=True, confidence=1.0, probabilities=(1.0,), forwards=1, tokens=1, ms=1.0
    )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("    return 1\n\n\ndef g(): pass\n", "    return 1\n\n\n"),
        ("    return 1\n# that was it\n", "    return 1\n"),
        ("    return 1\n@cached\n", "    return 1\n"),
        ("    return 1\n", "    return 1\n"),
        ("    return 1", "    return 1"),
        ("    return (\n1\n)\n", "    return (\n1\n)\n"),
        ("    return (\n    1,  # one\n)\nx\n", "    return (\n    1,  # one\n)\n"),
        (
            '    x = """\ndef g():\n"""\n    return x\nx',
            '    x = """\ndef g():\n"""\n    return x\n',
        ),
        (
            "    if x:\n        y\n\n    # and\n    z\n",
            "    if x:\n        y\n\n    # and\n    z\n",
        ),
        ("def g(): pass", ""),
        ("    return (1,\n    2\n", "    return (1,\n    2\n"),
        ("    é = '🙂'\nx = 1\n", "    é = '🙂'\n"),
    ],
)
def test_a_python_function_ends_before_the_first_line_at_column_0(
    write_problems: WriteProblems, human_eval: dict[str, Any], text: str, kept: str
) -> None:
    (problem,) = load_problems(write_problems(human_eval))
    assert first_function(problem, filled(text)).text == kept


def test_another_languages_function_ends_before_the_problems_first_stop_token(
    write_problems: WriteProblems, multipl_e: dict[str, Any]
) -> None:
    (problem,) = load_problems(write_problems(multipl_e))
    text = "  return 1;\n}\nconsole.log(2)\n// x\n"
    assert first_function(problem, filled(text)).text == "  return 1;\n}"
    assert first_function(problem, filled("  return 1;\n}\n")).text == "  return 1;\n}\n"


def test_infilling_tasks_become_whole_functions_and_others_stay(
    write_problems: WriteProblems,
    human_eval: dict[str, Any],
    infilling: dict[str, Any],
    multipl_e: dict[str, Any],
) -> None:
    (problem,) = without_suffix(load_problems(write_problems(infilling)))
    assert (problem.suffix, problem.middle) == ("", human_eval["canonical_solution"])
    for record in (human_eval, multipl_e):
        problems = load_problems(write_problems(record))
        assert without_suffix(problems) == problems
