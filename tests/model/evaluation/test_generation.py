from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.__main__ import main
from model.evaluation.decoding import Decoding, Fill
from model.evaluation.generation import (
    Conversation,
    first_function,
    function_request,
    without_suffix,
)
from model.evaluation.problems import load_problems
from model.serving.v1.chat_template import ChatTemplate

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


@pytest.fixture
def conversation(checkpoint: Path) -> Conversation:
    template = ChatTemplate.of_checkpoint(checkpoint)
    assert template is not None
    return Conversation(template)


class TestConversation:
    def test_the_answer_is_begun_with_the_problem(
        self, write_problems: WriteProblems, human_eval: dict[str, Any], conversation: Conversation
    ) -> None:
        (problem,) = load_problems(write_problems(human_eval))
        request = conversation.request(problem, Decoding(max_new_tokens=9))
        assert request.prefix.startswith("<|im_start|>user\nComplete this python code")
        assert request.prefix.count(human_eval["prompt"].rstrip()) == 2
        asked, _, begun = request.prefix.partition("```<|im_end|>\n<|im_start|>assistant\n")
        assert asked.endswith(human_eval["prompt"])
        assert begun == f"```python\n{human_eval['prompt']}"
        assert request.special_tokens_in_prefix
        assert request.must_fit
        assert (request.suffix, request.max_new_tokens) == ("", 9)

    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("    return 1\n```\nIt returns 1.", "    return 1\n"),
            ("    return 1\n\n\ndef g(): pass\n```\n", "    return 1\n\n\n"),
            ("    return 1", "    return 1"),
        ],
    )
    def test_the_function_ends_with_its_code(
        self, write_problems: WriteProblems, human_eval: dict[str, Any],
        conversation: Conversation, text: str, kept: str,
    ) -> None:  # fmt: skip
        (problem,) = load_problems(write_problems(human_eval))
        assert conversation.function(problem, filled(text)).text == kept

    def test_other_languages_end_with_their_code_too(
        self, write_problems: WriteProblems, multipl_e: dict[str, Any], conversation: Conversation
    ) -> None:
        (problem,) = load_problems(write_problems(multipl_e))
        text = "  return 1;\n}\n```\nDone."
        assert conversation.function(problem, filled(text)).text == "  return 1;\n}\n"


def test_for_python_nothing_at_column_0_is_waited_for(
    write_problems: WriteProblems, human_eval: dict[str, Any], multipl_e: dict[str, Any]
) -> None:
    problems = load_problems(write_problems(human_eval, multipl_e))
    assert [function_request(p, Decoding()).min_indent for p in problems] == [1, None]


@pytest.mark.parametrize("options", [(), ("--plain",)])
def test_the_command_evaluates_whole_functions(
    tmp_path: Path, checkpoint: Path, write_problems: WriteProblems, infilling: dict[str, Any],
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...],
) -> None:  # fmt: skip
    out = tmp_path / "report.json"
    status = main(
        ["generation", "--data", str(write_problems(infilling)), "--model", str(checkpoint),
         "--device", "cpu", "--max-new-tokens", "16", "--out", str(out), "--json", *options]
    )  # fmt: skip
    assert status == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["n"] == 1
    assert figures["tokens_per_forward"] > 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["task_id"] == "HumanEval/7"


def test_the_template_of_an_engine_elsewhere_is_not_known(
    write_problems: WriteProblems, infilling: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generation", "--data", str(write_problems(infilling)), "--engine", "http://x"])
    assert caught.value.code == 2
    assert "use --plain" in capsys.readouterr().err
