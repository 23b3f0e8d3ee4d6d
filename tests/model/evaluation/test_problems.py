from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.problems import (
    load_problems,
    multi_lines,
    single_lines,
    whole_functions,
)

WriteProblems = Callable[..., Path]
Record = dict[str, Any]


class TestLoading:
    @pytest.mark.parametrize("name", ["problems.jsonl", "problems.jsonl.gz"])
    def test_a_human_eval_problem_is_a_hole_at_the_end_of_its_file(
        self, write_problems: WriteProblems, human_eval: Record, name: str
    ) -> None:
        (problem,) = load_problems(write_problems(human_eval, name=name))
        assert (problem.task_id, problem.language) == ("HumanEval/7", "python")
        assert problem.prefix == human_eval["prompt"]
        assert problem.middle == human_eval["canonical_solution"]
        assert problem.suffix == ""

    def test_an_infilling_problem_keeps_its_raw_texts_and_checks_its_function(
        self, write_problems: WriteProblems, infilling: Record
    ) -> None:
        (problem,) = load_problems(write_problems(infilling))
        assert problem.prefix.endswith("for num")
        assert problem.middle == "ber in numbers:\n        result +="
        assert problem.program("X").startswith(f"{infilling['prompt']}X{infilling['suffix']}")
        assert problem.program("").endswith("\ncheck(total)\n")

    def test_a_multipl_e_problem_has_no_solution_and_its_own_ends(
        self, write_problems: WriteProblems, multipl_e: Record
    ) -> None:
        (problem,) = load_problems(write_problems(multipl_e))
        assert (problem.task_id, problem.language) == ("HumanEval_7_total", "javascript")
        assert (problem.middle, problem.suffix) == ("", "")
        assert problem.stop_tokens == tuple(multipl_e["stop_tokens"])
        assert problem.program("}").endswith(multipl_e["tests"] + "\n")

    @pytest.mark.parametrize(
        "field", ["task_id", "entry_point", "prompt", "canonical_solution", "test"]
    )
    def test_a_missing_field_is_named_with_its_line(
        self, write_problems: WriteProblems, human_eval: Record, infilling: Record, field: str
    ) -> None:
        del infilling[field]
        with pytest.raises(ValueError, match=rf"line 2: the field '{field}' is missing"):
            load_problems(write_problems(human_eval, infilling))

    @pytest.mark.parametrize("field", ["name", "language", "prompt", "tests"])
    def test_a_missing_field_of_multipl_e_is_named_with_its_line(
        self, write_problems: WriteProblems, multipl_e: Record, field: str
    ) -> None:
        del multipl_e[field]
        with pytest.raises(ValueError, match=rf"line 1: the field '{field}' is missing"):
            load_problems(write_problems(multipl_e))

    @pytest.mark.parametrize(
        ("record", "sentence"),
        [
            ([1], "line 1: not a JSON object but list"),
            ({"question": "?"}, "line 1: neither a HumanEval problem"),
            ({"task_id": 7, "entry_point": "f"}, "line 1: the field 'task_id' must be a text"),
            (
                {"name": "x", "language": "js", "prompt": "", "tests": "", "stop_tokens": "\n"},
                "'stop_tokens' must be an array",
            ),
        ],
    )
    def test_a_record_of_another_kind_is_refused(
        self, write_problems: WriteProblems, record: object, sentence: str
    ) -> None:
        with pytest.raises(ValueError, match=sentence):
            load_problems(write_problems(record))

    def test_a_task_given_twice_is_refused(
        self, write_problems: WriteProblems, human_eval: Record
    ) -> None:
        with pytest.raises(ValueError, match="line 2: the task 'HumanEval/7' is there a second"):
            load_problems(write_problems(human_eval, human_eval))

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("a.jsonl", b'{"task_id": ', "line 1: not JSON"),
            ("a.jsonl", b"\n\n", "holds no problems"),
            ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ],
    )
    def test_a_file_that_holds_no_json_lines_is_refused(
        self, tmp_path: Path, name: str, content: bytes, sentence: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            load_problems(tmp_path / name)

    def test_a_compressed_file_cut_short_is_refused(
        self, write_problems: WriteProblems, human_eval: Record
    ) -> None:
        file = write_problems(human_eval)
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(ValueError, match="ends in the middle"):
            load_problems(file)

    def test_a_text_file_named_gz_is_refused_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl.gz").write_text("{}")
        with pytest.raises(ValueError, match="is no gzip file"):
            load_problems(tmp_path / "a.jsonl.gz")


class TestSingleLines:
    """The rule of the official single-line split, which these texts were taken over from: run on
    the official files, the cut gives the official 1,033 tasks to the character."""

    def test_each_line_that_is_not_blank_is_a_task(
        self, write_problems: WriteProblems, human_eval: Record
    ) -> None:
        tasks = single_lines(load_problems(write_problems(human_eval)))
        head = human_eval["prompt"]
        assert [(t.task_id.rpartition("/")[2], t.middle) for t in tasks] == [
            ("L0", "    result = 0\n"),
            ("L2", "    for number in numbers:\n"),
            ("L3", "        result += number\n"),
            ("L4", "    return result\n"),
        ]
        assert tasks[0].task_id == "SingleLineInfilling/HumanEval/7/L0"
        assert tasks[0].prefix == head + "\n"  # an empty line, here only
        assert tasks[0].suffix == human_eval["canonical_solution"].removeprefix(tasks[0].middle)
        assert tasks[1].prefix == head + "    result = 0\n\n"
        assert tasks[1].suffix == "        result += number\n    return result\n"
        assert tasks[-1].suffix == ""

    def test_the_function_is_the_same_whatever_it_was_cut_into(
        self, write_problems: WriteProblems, human_eval: Record, infilling: Record
    ) -> None:
        expected = single_lines(load_problems(write_problems(human_eval)))
        another = {**infilling, "task_id": "RandomSpanInfilling/HumanEval/7/2"}
        assert single_lines(load_problems(write_problems(infilling, another))) == expected
        official = [
            {
                **human_eval,
                "task_id": task.task_id,
                "prompt": task.prefix,
                "canonical_solution": task.middle,
                "suffix": task.suffix,
            }
            for task in expected
        ]
        assert single_lines(load_problems(write_problems(*official))) == expected

    def test_the_light_splits_line_break_in_front_is_left_out(
        self, write_problems: WriteProblems, human_eval: Record, infilling: Record
    ) -> None:
        light = {
            **infilling,
            "task_id": "RandomSpanInfillingLight/HumanEval/7/1",
            "prompt": "\n" + infilling["prompt"],
        }
        first = single_lines(load_problems(write_problems(light)))[0]
        assert first.prefix == human_eval["prompt"] + "\n"

    def test_a_docstring_behind_an_import_belongs_to_the_prompt(
        self, write_problems: WriteProblems, human_eval: Record
    ) -> None:
        human_eval["prompt"] = 'def total(numbers):\n    import math\n    """Sum."""\n'
        tasks = single_lines(load_problems(write_problems(human_eval)))
        assert tasks[0].middle == "    result = 0\n"

    def test_a_function_without_a_docstring_begins_with_its_first_line(
        self, write_problems: WriteProblems, human_eval: Record
    ) -> None:
        human_eval["prompt"] = "def total(numbers):\n"
        tasks = single_lines(load_problems(write_problems(human_eval)))
        assert tasks[0].middle == "    result = 0\n"

    def test_what_is_no_human_eval_function_is_refused(
        self, write_problems: WriteProblems, human_eval: Record, multipl_e: Record
    ) -> None:
        for change, sentence in (
            ({"entry_point": "average"}, "defines no function 'average'"),
            ({"prompt": "def total(:\n"}, "does not parse whole"),
            ({"task_id": "MBPP/3"}, "'MBPP/3' names no HumanEval function"),
        ):
            with pytest.raises(ValueError, match=sentence):
                single_lines(load_problems(write_problems({**human_eval, **change})))
        with pytest.raises(ValueError, match="only HumanEval's functions"):
            single_lines(load_problems(write_problems(multipl_e)))


def test_whole_functions_have_no_suffix_and_hide_their_body(
    write_problems: WriteProblems, human_eval: Record, infilling: Record
) -> None:
    (task,) = whole_functions(load_problems(write_problems(infilling)))
    assert task.task_id == "HumanEval/7"
    assert task.prefix == human_eval["prompt"]
    assert task.middle == human_eval["canonical_solution"]
    assert task.suffix == ""


class TestMultiLines:
    """The rule of the official multi-line split: on HumanEval's functions it gives 5,815 tasks,
    as many as there are."""

    def test_each_run_of_lines_between_two_that_are_not_blank_is_a_task(
        self, write_problems: WriteProblems, human_eval: Record
    ) -> None:
        tasks = multi_lines(load_problems(write_problems(human_eval)))
        names = [task.task_id.rpartition("/")[2] for task in tasks]
        assert names == [
            "L0_L0", "L0_L2", "L0_L3", "L0_L4", "L2_L2", "L2_L3", "L2_L4", "L3_L3", "L3_L4",
            "L4_L4",
        ]  # fmt: skip
        assert tasks[0].task_id == "MultiLineInfilling/HumanEval/7/L0_L0"
        by_name = dict(zip(names, tasks, strict=True))
        over_a_blank = by_name["L0_L2"]
        assert over_a_blank.middle == "    result = 0\n\n    for number in numbers:\n"
        assert over_a_blank.prefix == human_eval["prompt"] + "\n"  # as for a single line
        assert over_a_blank.suffix == "        result += number\n    return result\n"

    def test_a_run_of_one_line_is_the_single_line_task(
        self, write_problems: WriteProblems, human_eval: Record
    ) -> None:
        problems = load_problems(write_problems(human_eval))
        runs = {(t.prefix, t.middle, t.suffix) for t in multi_lines(problems)}
        assert {(t.prefix, t.middle, t.suffix) for t in single_lines(problems)} <= runs
