from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.api import Candidate, InfillRequest, InfillResult, InvalidRequestError
from model.evaluation.__main__ import main
from model.evaluation.decoding import Decoding, Fill
from model.evaluation.problems import load_problems, single_lines
from model.evaluation.sweep import collected, interleaved, possible

DECODINGS = [Decoding(), Decoding(policy="fixed", steps=2), Decoding(policy="left-to-right")]
WriteProblems = Callable[..., Path]


class TestInterleaving:
    def test_every_task_is_warmed_once_and_filled_by_every_decoding(
        self, write_problems: WriteProblems, human_eval: dict[str, Any]
    ) -> None:
        problems = single_lines(load_problems(write_problems(human_eval)))
        plan = interleaved(problems, DECODINGS, 0)
        rounds = [plan[i : i + 4] for i in range(0, len(plan), 4)]
        assert {turns[0][1].problem.task_id for turns in rounds} == {p.task_id for p in problems}
        orders = set()
        for turns in rounds:
            assert len({turn.problem.task_id for _, turn in turns}) == 1
            assert turns[0][1].decoding is None
            order = [turn.decoding for _, turn in turns[1:]]
            assert sorted(order, key=str) == [0, 1, 2]
            orders.add(tuple(order))
        assert len(orders) > 1  # no decoding always comes first

    def test_an_interrupted_plan_gives_what_it_has(
        self, write_problems: WriteProblems, human_eval: dict[str, Any]
    ) -> None:
        problems = single_lines(load_problems(write_problems(human_eval)))
        plan = interleaved(problems, DECODINGS, 0)
        fills = [
            Fill(text=str(i), finished=True, confidence=1.0, probabilities=(), forwards=1, tokens=1,
                 ms=1.0)
            for i in range(6)
        ]  # fmt: skip
        done = collected(plan, fills, len(DECODINGS))
        assert sorted(map(len, done)) in ([1, 1, 2],)
        assert len({pairs[0][0].task_id for pairs in done}) == 1  # the same task first for all


class Canvases:
    """A model that fills canvases, and refuses what a backbone does."""

    def __init__(self, *refused: str | None) -> None:
        self._refused = refused

    async def complete(self, request: InfillRequest, *, on_frame: Any = None) -> InfillResult:
        if request.policy in self._refused:
            raise InvalidRequestError(f"no {request.policy} here")
        made = (Candidate(texts=("1",), confidence=0.5),)
        return InfillResult(candidates=made, forwards=1, tokens=1, encoded_tokens=0, ms=1.0)

    async def close(self) -> None: ...


class TestPossible:
    DECODINGS = (
        Decoding(policy="verified"), Decoding(policy="fixed", steps=2),
        Decoding(policy="left-to-right"),
    )  # fmt: skip

    async def test_what_a_model_refuses_is_left_out(self) -> None:
        assert await possible(Canvases(), self.DECODINGS) == list(self.DECODINGS)
        kept = await possible(Canvases("verified"), self.DECODINGS)
        assert kept == list(self.DECODINGS[1:])

    async def test_a_model_that_refuses_all_says_why(self) -> None:
        with pytest.raises(InvalidRequestError, match="no left-to-right here"):
            await possible(Canvases("verified", None, "left-to-right"), self.DECODINGS)


def test_the_command_writes_report_and_plot(
    tmp_path: Path,
    checkpoint: Path,
    write_problems: WriteProblems,
    human_eval: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stem = tmp_path / "out" / "sweep"
    status = main(
        ["sweep", "--data", str(write_problems(human_eval)), "--cut", "single-line", "--limit", "2",
         "--model", str(checkpoint), "--device", "cpu", "--max-new-tokens", "12", "--out",
         str(stem), "--json"]
    )  # fmt: skip
    assert status == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    # A backbone without a denoiser fills no canvases.
    assert [point["decoding"] for point in figures["points"]] == ["verified", "autoregressive"]
    assert figures["n"] == 2
    assert figures["points"][1]["tokens_per_forward"] <= 1  # an end is no token
    report = json.loads(stem.with_suffix(".json").read_text())
    assert report["points"] == figures["points"]
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_of_canvases_draws_every_policy(
    tmp_path: Path,
    write_problems: WriteProblems,
    human_eval: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    canvases = Canvases("verified", "autoregressive")
    monkeypatch.setattr("model.evaluation.sweep.open_completer", lambda args: canvases)
    stem = tmp_path / "sweep"
    status = main(
        ["sweep", "--data", str(write_problems(human_eval)), "--cut", "single-line", "--limit", "1",
         "--steps", "1", "4", "--thresholds", "0.2", "--entropy-bounds", "--factors", "1",
         "--engine", "http://x", "--out", str(stem), "--json"]
    )  # fmt: skip
    assert status == 0
    points = json.loads(capsys.readouterr().out.splitlines()[-1])["points"]
    assert [point["decoding"] for point in points] == [
        "fixed 1", "fixed 4", "threshold 0.2", "factor 1", "left-to-right",
    ]  # fmt: skip
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_decoding_out_of_range_is_a_wrong_command_line(
    write_problems: WriteProblems, human_eval: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sweep", "--data", str(write_problems(human_eval)), "--steps", "0"])
    assert caught.value.code == 2
    assert "steps is 0" in capsys.readouterr().err
