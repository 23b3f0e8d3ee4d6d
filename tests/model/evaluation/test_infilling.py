from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.evaluation.__main__ import main
from model.evaluation.decoding import Fill
from model.evaluation.infilling import Score, judge, summary
from model.evaluation.problems import Problem, load_problems
from model.evaluation.sandbox import Limits, Verdict
from model.serving.completer import EngineCompleter

WriteProblems = Callable[..., Path]


@pytest.fixture
def problem(write_problems: WriteProblems, infilling: dict[str, Any]) -> Problem:
    return load_problems(write_problems(infilling))[0]


def filled(text: str, *, ms: float = 1.0, forwards: int = 2, tokens: int = 6) -> Fill:
    return Fill(
        text=text, finished=True, confidence=0.5, probabilities=(0.5,), forwards=forwards,
        tokens=tokens, ms=ms,
    )  # fmt: skip


class TestScores:
    def test_the_true_text_passes_and_is_exact(self, problem: Problem) -> None:
        (score,) = judge([(problem, filled(problem.middle))], Limits())
        assert (score.verdict.outcome, score.is_exact, score.parses) == ("passed", True, True)

    def test_another_right_text_passes_without_being_exact(self, problem: Problem) -> None:
        text = problem.middle.replace("result +=", "result = result +")
        (score,) = judge([(problem, filled(text))], Limits())
        assert (score.verdict.outcome, score.is_exact, score.parses) == ("passed", False, True)

    def test_a_fill_that_goes_on_too_long_is_not_cut_to_size(self, problem: Problem) -> None:
        (score,) = judge(
            [(problem, filled(problem.middle + " number\n        result +="))], Limits()
        )
        assert (score.verdict.outcome, score.is_exact) == ("failed", False)

    def test_a_fill_that_breaks_the_syntax_does_not_parse(self, problem: Problem) -> None:
        (score,) = judge([(problem, filled("ber in ("))], Limits())
        assert (score.verdict.outcome, score.parses) == ("failed", False)

    @pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
    def test_a_multipl_e_problem_is_judged_in_its_language(
        self, write_problems: WriteProblems, multipl_e: dict[str, Any]
    ) -> None:
        (problem,) = load_problems(write_problems(multipl_e))
        texts = ("  return numbers.reduce((a, b) => a + b, 0);\n}\n", "  return 3 + 1;\n}\n")
        right, wrong = judge([(problem, filled(text)) for text in texts], Limits())
        assert (right.verdict.outcome, right.parses) == ("passed", True)
        assert (wrong.verdict.outcome, wrong.parses) == ("failed", True)

    def test_where_no_solution_is_known_nothing_is_compared_with_it(
        self, write_problems: WriteProblems, multipl_e: dict[str, Any]
    ) -> None:
        (problem,) = load_problems(write_problems(multipl_e))
        score = Score(problem=problem, fill=filled("}"), verdict=Verdict("failed", ""))
        figures = summary([score])
        compared = ("exact_match", "longer_than_true", "shorter_than_true")
        assert [figures[name] for name in compared] == [None, None, None]
        assert figures["pass_at_1"] == 0.0
        assert score.row["exact"] is None

    def test_the_summary_has_the_shares_and_costs(self, problem: Problem) -> None:
        texts = [problem.middle, problem.middle, "", problem.middle + "("]
        fills = [filled(text, ms=10.0 * i, tokens=3 * i) for i, text in enumerate(texts)]
        figures = summary(judge([(problem, fill) for fill in fills], Limits()))
        assert figures == {
            "pass_at_1": 0.5,
            "exact_match": 0.5,
            "parse_rate": 0.5,
            "n": 4,
            "forwards_mean": 2.0,
            "tokens_per_forward": 2.25,
            "ms_p50": 15.0,
            "ms_p95": 28.5,
            "tokens_mean": 4.5,
            "longer_than_true": 0.25,
            "shorter_than_true": 0.25,
            "unfinished": 0.0,
            "outcomes": {"passed": 2, "failed": 2},
        }


class TestCommand:
    def run(self, checkpoint: Path, data: Path, *options: str) -> int:
        return main(
            ["infilling", "--data", str(data), "--model", str(checkpoint), "--device", "cpu",
             "--max-new-tokens", "12", "--json", *options]
        )  # fmt: skip

    def test_the_last_line_and_the_report_hold_the_contracts_figures(
        self,
        tmp_path: Path,
        checkpoint: Path,
        write_problems: WriteProblems,
        infilling: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "deep" / "report.json"
        assert self.run(checkpoint, write_problems(infilling), "--out", str(out)) == 0
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures.keys() >= {
            "pass_at_1", "exact_match", "parse_rate", "n", "forwards_mean", "tokens_per_forward",
            "ms_p50", "ms_p95",
        }  # fmt: skip
        report = json.loads(out.read_text())
        assert report["figures"] == figures
        (row,) = report["rows"]
        assert row["task_id"] == infilling["task_id"]
        assert row["true_text"] == infilling["canonical_solution"]
        assert report["decoding"] == "the model's own"
        assert report["circumstances"]["command"].startswith("mezzotint evaluate infilling --data")

    def test_cut_and_limit_choose_tasks_evenly(
        self,
        tmp_path: Path,
        checkpoint: Path,
        write_problems: WriteProblems,
        infilling: dict[str, Any],
    ) -> None:
        out = tmp_path / "report.json"
        options = ("--cut", "single-line", "--limit", "2", "--oracle-length", "--out", str(out))
        assert self.run(checkpoint, write_problems(infilling), *options) == 0
        rows = json.loads(out.read_text())["rows"]
        assert [row["task_id"].rpartition("/")[2] for row in rows] == ["L0", "L3"]

    def test_a_seed_changes_the_order_and_not_the_result(
        self,
        tmp_path: Path,
        checkpoint: Path,
        write_problems: WriteProblems,
        infilling: dict[str, Any],
    ) -> None:
        texts: list[list[tuple[str, str]]] = []
        for seed in ("0", "1"):
            out = tmp_path / f"{seed}.json"
            data = write_problems(infilling)
            options = ("--cut", "single-line", "--seed", seed, "--out", str(out))
            assert self.run(checkpoint, data, *options) == 0
            rows = json.loads(out.read_text())["rows"]
            texts.append([(row["task_id"], row["text"]) for row in rows])
        assert texts[0] == texts[1]

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (("--limit", "0"), "--limit is 0"),
            (("--timeout", "0"), "--timeout is 0"),
            (("--steps", "4", "--threshold", "0.5"), "at once; choose one"),
        ],
    )
    def test_a_wrong_option_is_a_wrong_command_line(
        self,
        checkpoint: Path,
        write_problems: WriteProblems,
        infilling: dict[str, Any],
        options: tuple[str, ...],
        sentence: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        arguments = ("infilling", "--data", str(write_problems(infilling)), *options)
        with pytest.raises(SystemExit) as caught:
            main([*arguments])
        assert caught.value.code == 2
        assert sentence in capsys.readouterr().err

    def test_what_cannot_be_evaluated_is_one_sentence_and_exit_status_1(
        self,
        tmp_path: Path,
        checkpoint: Path,
        write_problems: WriteProblems,
        infilling: dict[str, Any],
        multipl_e: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        cobol = {**multipl_e, "language": "cobol"}
        for data, model, sentence in (
            (tmp_path / "none.jsonl", checkpoint, "none.jsonl: No such file"),
            (write_problems({**infilling, "test": 7}), checkpoint, "'test' must be a text"),
            (write_problems(cobol, name="c.jsonl"), checkpoint, "cobol programs cannot be run"),
            (write_problems(infilling, name="i.jsonl"), tmp_path / "none", "none is no model"),
            (damaged_gzip(tmp_path), checkpoint, "damaged"),
        ):
            assert self.run(model, data) == 1
            error = capsys.readouterr().err.splitlines()[-1]
            assert error.startswith("mezzotint evaluate: ")
            assert sentence in error


def damaged_gzip(folder: Path) -> Path:
    path = folder / "damaged.jsonl.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff")
    return path


def test_ctrl_c_reports_what_is_filled_and_exits_with_130(
    checkpoint: Path,
    write_problems: WriteProblems,
    infilling: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    complete = EngineCompleter.complete
    calls: list[object] = []

    async def interrupted(self: EngineCompleter, request: Any, **options: Any) -> Any:
        calls.append(request)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return await complete(self, request, **options)

    monkeypatch.setattr(EngineCompleter, "complete", interrupted)
    status = main(
        ["infilling", "--data", str(write_problems(infilling)), "--cut", "single-line",
         "--max-new-tokens", "4", "--model", str(checkpoint), "--device", "cpu", "--json"]
    )  # fmt: skip
    assert status == 130
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["n"], figures["interrupted"]) == (1, True)


def test_a_length_that_no_solution_has_cannot_be_told(
    write_problems: WriteProblems, multipl_e: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(write_problems(multipl_e))
    assert main(["infilling", "--data", data, "--oracle-length"]) == 1
    assert "no solutions whose length" in capsys.readouterr().err
