"""The command: every part runs end to end, and its figures hold together."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.benchmarks import __main__ as command
from model.benchmarks.table import Row

Bench = Any


@pytest.fixture
def bench(checkpoint: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    """`bench(*argv)`: run it quickly with the tiny checkpoint; (exit code, figures, table)."""

    def run(*argv: str) -> tuple[int, dict[str, Any], str]:
        common = [str(source), "--model", str(checkpoint), "--device", "cpu", "--quick", "--json"]
        status = command.main([*argv, *common])
        out = capsys.readouterr().out
        table, _, last = out.rstrip("\n").rpartition("\n")
        return status, json.loads(last), table

    return run


def test_decoding_and_steps_say_what_they_measured(bench: Bench) -> None:
    status, figures, table = bench("--parts", "steps,decoding")
    assert status == 0
    assert figures["decoding"]["same_text"] == 1.0
    assert set(figures["decoding"]["ways"]) == {"drafted", "alone"}
    assert list(figures["steps"]["ms_by_rows"]) == ["1", "4"]
    assert table.index("Drafting against") < table.index("A forward, by its rows")


def test_clients_and_memory_report_in_the_order_of_the_parts(bench: Bench) -> None:
    _, figures, table = bench("--parts", "memory,clients")
    assert set(figures["clients"]["clients"]) == {"1", "4", "4 over HTTP"}
    memory = figures["memory"]
    assert 0 < memory["rss_imported"] <= memory["rss_loaded"] <= memory["rss_16_clients"]
    assert table.index("Clients at once") < table.index("Peak memory")


def test_keystrokes_ends_with_the_contract_s_keys(bench: Bench, tmp_path: Path) -> None:
    status, figures, _ = bench("keystrokes", "--events", "20", "--out", str(tmp_path))
    assert status == 0
    keys = {"tokens_per_keystroke", "cache_hit_rate", "cache_bytes", "ms_p50", "ms_p95"}
    assert keys <= set(figures)
    report = json.loads((tmp_path / "keystrokes-cpu.json").read_text())
    assert report["circumstances"]["command"].startswith("mezzotint bench keystrokes")


def test_a_report_and_a_plot_are_written(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `evaluation`)")
    _, figures, _ = bench("--parts", "steps", "--out", str(tmp_path / "new"))
    report = json.loads((tmp_path / "new" / "bench-cpu.json").read_text())
    assert report["steps"] == figures["steps"]
    assert {"device", "commit", "torch", "model_sha256"} <= set(report["circumstances"])
    assert (tmp_path / "new" / "bench-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_reports_the_parts_that_were_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one(_: object) -> dict[str, int]:
        return {"value": 1}

    async def interrupted(_: object) -> dict[str, int]:
        raise KeyboardInterrupt

    def part(measure: object) -> SimpleNamespace:
        return SimpleNamespace(TITLE="A part", measure=measure, rows=lambda *_: [Row("value", 1)])

    monkeypatch.setattr(command, "PARTS", {"done": part(one), "cut": part(interrupted)})
    status, figures, _ = bench("--parts", "done,cut")
    assert status == 130
    assert figures["done"] == {"value": 1}
    assert "cut" not in figures


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--parts", "speed"], "there is no part 'speed'"),
        (["keystrokes", "--events", "0"], "--events is 0"),
    ],
)
def test_a_wrong_command_line_is_named(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--parts", "decoding", "--model", str(tmp_path / "none")]) == 1
    assert "is no model" in capsys.readouterr().err
