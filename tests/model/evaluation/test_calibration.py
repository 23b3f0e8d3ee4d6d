from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.__main__ import main
from model.evaluation.calibration import SCORES, auroc, reliability, shown_curve, thresholds


class TestReliability:
    def test_confidences_that_are_true_have_no_calibration_error(self) -> None:
        confidence = np.repeat([0.15, 0.55, 0.95], 100)
        exact = np.concatenate([np.arange(100) < n for n in (15, 55, 95)])
        rated = reliability(confidence, exact)
        assert rated.ece == pytest.approx(0)
        assert np.array(rated.bins) == pytest.approx(
            np.array([(0.15, 0.15, 100), (0.55, 0.55, 100), (0.95, 0.95, 100)])
        )
        assert rated.brier == pytest.approx((0.15 * 0.85 + 0.55 * 0.45 + 0.95 * 0.05) / 3)

    def test_sure_and_always_wrong_is_the_worst(self) -> None:
        rated = reliability(np.ones(10), np.zeros(10, dtype=bool))
        assert (rated.ece, rated.brier, rated.auroc) == (1.0, 1.0, None)

    def test_a_bin_weighs_as_much_as_it_holds(self) -> None:
        confidence = np.array([0.95] * 9 + [0.25])
        exact = np.array([True] * 9 + [True])
        assert reliability(confidence, exact).ece == pytest.approx(0.9 * 0.05 + 0.1 * 0.75)


class TestAuroc:
    def test_equals_the_share_of_pairs_in_order(self) -> None:
        draw = random.Random(5)
        confidence = np.array([draw.choice([0.1, 0.2, 0.5, 0.9]) for _ in range(60)])
        exact = np.array([draw.random() < c for c in confidence])
        pairs = [
            1.0 if right > wrong else 0.5 if right == wrong else 0.0
            for right in confidence[exact]
            for wrong in confidence[~exact]
        ]
        assert auroc(confidence, exact) == pytest.approx(sum(pairs) / len(pairs))

    def test_of_one_kind_only_there_is_none(self) -> None:
        assert auroc(np.array([0.5]), np.array([True])) is None


class TestShownCurve:
    confidence = np.array([0.9, 0.8, 0.8, 0.4, 0.99])
    exact = np.array([True, True, False, False, True])
    has_text = np.array([True, True, True, True, False])

    def test_equal_confidences_are_shown_together_and_empty_fills_never(self) -> None:
        curve = shown_curve(self.confidence, self.exact, self.has_text)
        assert curve.threshold.tolist() == [0.9, 0.8, 0.4]
        assert curve.shown.tolist() == [0.2, 0.6, 0.8]
        assert curve.precision.tolist() == pytest.approx([1, 2 / 3, 2 / 4])

    def test_the_table_tells_what_a_threshold_shows(self) -> None:
        table = thresholds(shown_curve(self.confidence, self.exact, self.has_text))
        at = {row["min_confidence"]: (row["shown"], row["precision"]) for row in table}
        assert at[0.0] == (0.8, 0.5)
        assert at[0.5] == (0.6, 0.6667)
        assert at[0.95] == (0.0, None)

    def test_without_any_text_nothing_is_shown(self) -> None:
        curve = shown_curve(self.confidence, self.exact, np.zeros(5, dtype=bool))
        assert {row["shown"] for row in thresholds(curve)} == {0.0}


def test_scores_of_one_number_are_that_number() -> None:
    assert {name: score([0.3]) for name, score in SCORES.items()} == pytest.approx(
        dict.fromkeys(SCORES, 0.3)
    )
    assert SCORES["product"]([0.5, 0.5, 0.4]) == pytest.approx(0.1)


def test_the_command_writes_report_and_plot(
    tmp_path: Path, checkpoint: Path, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.py").write_text(code)
    stem = tmp_path / "out" / "calibration"
    status = main(
        ["calibration", "--data", str(tmp_path), "--limit", "12", "--model", str(checkpoint),
         "--device", "cpu", "--max-new-tokens", "16", "--out", str(stem), "--json"]
    )  # fmt: skip
    assert status == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["n"] == 12
    assert 0 <= figures["ece"] <= 1
    report = json.loads(stem.with_suffix(".json").read_text())
    assert report["figures"] == figures
    assert set(report["scores"]) == set(SCORES)
    assert len(report["rows"]) == 12
    assert report["circumstances"]["model_sha256"]
    for row in report["rows"]:
        assert row["confidence"] == pytest.approx(np.prod(row["probabilities"]), abs=2e-3)
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
