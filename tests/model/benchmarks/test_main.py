"""The command: every part runs end to end, and its figures hold together."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.benchmarks import __main__ as command
from model.benchmarks import context
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


def test_decoding_compares_all_ways_on_the_same_holes(bench: Bench) -> None:
    status, figures, table = bench("--parts", "decoding")
    assert status == 0
    ways = figures["decoding"]["decodings"]
    assert {"diffusion 0.9", "left-to-right"} <= set(ways)
    assert all(way["tokens_per_s"] >= 0 and way["forwards_mean"] >= 1 for way in ways.values())
    assert "speed-up over left-to-right" in table


def test_floor_is_bytes_over_bandwidth_and_a_missing_gpu_is_said(bench: Bench) -> None:
    _, figures, table = bench("--parts", "floor")
    floor = figures["floor"]
    measured = floor["checkpoint"]
    num_bytes = measured["weight_bytes"] + measured["context_bytes"]
    expected_ms = num_bytes / floor["bandwidth_gb_per_s"] / 1e6
    assert measured["floor_ms"] == pytest.approx(expected_ms, rel=0.02, abs=1e-4)
    assert measured["step_ms"] > 0
    assert floor["7b"] is None
    assert "needs a CUDA device" in table
    assert figures["goals"][0]["verdict"] == "unmeasured"


def test_context_measures_each_length(bench: Bench) -> None:
    _, figures, _ = bench("--parts", "context")
    assert list(figures["context"]["step_ms"]) == [str(n) for n in context.QUICK_CONTEXTS]
    assert all(ms > 0 for ms in figures["context"]["step_ms"].values())


def test_clients_and_memory_report_in_the_order_of_the_parts(bench: Bench) -> None:
    _, figures, table = bench("--parts", "memory,clients")
    assert set(figures["clients"]["clients"]) == {"1", "4", "4 over HTTP"}
    memory = figures["memory"]
    assert 0 < memory["rss_imported"] <= memory["rss_loaded"] <= memory["rss_16_clients"]
    assert table.index("Clients at once") < table.index("Peak memory")


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers (extra `bench`)")
def test_transformers_generates_from_the_exported_checkpoint(bench: Bench) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        _, figures, _ = bench("--parts", "transformers")
    speed, speed_up = figures["transformers"]["tokens_per_s"], figures["transformers"]["speed_up"]
    assert speed["mezzotint, cold"] / speed["transformers, cold"] == pytest.approx(
        speed_up["cold"], rel=0.01
    )


def test_without_transformers_its_part_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.benchmarks.peer.find_spec", lambda _: None)
    status, figures, table = bench("--parts", "transformers")
    assert status == 0
    assert "pip install" in figures["transformers"]["unmeasured"]
    assert "pip install" in table


def test_keystrokes_ends_with_the_contract_s_keys(bench: Bench, tmp_path: Path) -> None:
    status, figures, _ = bench("keystrokes", "--events", "20", "--out", str(tmp_path))
    assert status == 0
    keys = {"tokens_per_keystroke", "cache_hit_rate", "cache_bytes", "ms_p50", "ms_p95"}
    assert keys <= set(figures)
    report = json.loads((tmp_path / "keystrokes-cpu.json").read_text())
    assert report["circumstances"]["command"].startswith("mezzotint bench keystrokes")


def test_a_report_and_a_plot_are_written(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `evaluation`)")
    _, figures, _ = bench("--parts", "context", "--out", str(tmp_path / "new"))
    report = json.loads((tmp_path / "new" / "bench-cpu.json").read_text())
    assert report["context"] == figures["context"]
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
    assert "there is no checkpoint directory" in capsys.readouterr().err
