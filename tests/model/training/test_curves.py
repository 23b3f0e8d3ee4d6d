from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from model.training.curves import main, read_log, series, smoothed

REPORT = {"diffusion": 5.0, "context": 6.0, "tokens_per_second": 1000, "rate_factor": 0.5}
SAVE = {
    "held_out_diffusion": 4.5,
    "held_out_context": 5.5,
    "held_out_accuracy": 0.25,
    "held_out_exact": 0.125,
    "samples": [{"before": "a = ", "true": "1", "filled": "1"}],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [
        {"step": 10, "seconds": 60.0, **REPORT},
        {"step": 10, "seconds": 60.0, **SAVE},
        {"step": 20, "seconds": 180.0, **REPORT, "diffusion": 3.0},
        {"step": 20, "seconds": 180.0, **SAVE, "held_out_accuracy": 0.5},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_figure_is_read_from_the_lines_that_hold_it(run: Path) -> None:
    rows = read_log(run)
    assert series(rows, "diffusion") == ([1.0, 3.0], [5.0, 3.0])
    assert series(rows, "held_out_accuracy") == ([1.0, 3.0], [0.25, 0.5])
    assert series(rows, "nothing") == ([], [])


def test_smoothing_is_a_running_mean_that_starts_at_the_first_value() -> None:
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    assert smoothed([4.0, 1.0], keep=0.5) == pytest.approx([4.0, (0.5 * 4 + 1) / 1.5])


def test_the_figure_says_what_it_shows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run / "figure.svg"
    assert main([str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    written = re.findall(r"<!-- (.+?) -->", out.read_text())  # every text, in matplotlib's SVG
    for label in (
        f"{run.name}: 20 steps, 3 minutes, 1,000 tokens/s",
        *("canvas loss (nats a slot)", "next-token loss (nats a token)"),
        *("held out, one forward (%)", "tokens right", "holes exact"),
        *("learning rate (share of full)", "minutes trained"),
    ):
        assert label in written


def test_without_a_name_the_figure_lies_in_the_run(run: Path) -> None:
    assert main([str(run)]) == 0
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (None, "there is no"),
        ("", "is empty: the run has not reported yet"),
        ('{"step": 1, "seconds": 1.0}\n{"step', "line 2 is no line of a log"),
        ('{"step": 1}\n', "line 1 is no line of a log: 'seconds'"),
        ("[1]\n", "line 1 is no line of a log"),
    ],
)
def test_a_log_that_cannot_be_drawn_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log: str | None, message: str
) -> None:
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("curves: ")
    assert message in error
    assert str(tmp_path / "log.jsonl") in error


def test_a_missing_matplotlib_is_named_with_what_installs_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(run)]) == 1
    assert "pip install 'mezzotint[evaluation]'" in capsys.readouterr().err
