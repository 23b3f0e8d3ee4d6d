from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoint import save_checkpoint
from model.denoiser import Denoiser, DenoiserConfig
from model.tokenizer import CodeTokenizer
from model.training import plan
from model.training.data import BatchShape
from model.training.plan import costs_of, main, step_ms

CONFIG = DenoiserConfig(vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, ffn_size=96)
SHAPE = BatchShape(stream_tokens=20, canvases=3, canvas_sizes=(4, 8))


def counted_flop(num_prefix: int, num_suffix: int, slots: int) -> int:
    """Of one forward over a canvas, logits included, as torch counts it."""
    model = Denoiser(CONFIG)
    caches = [
        [(torch.zeros(1, 2, length, 8), torch.zeros(1, 2, length, 8))] * CONFIG.num_layers
        for length in (num_prefix, num_suffix)
    ]
    ids = torch.zeros(1, slots, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        places = ids + num_prefix
        model.logits(model.denoise(ids, ids[:, :1], places, places, *caches, canvas_size=slots))
    return counter.get_total_flops()


def test_a_slots_arithmetic_is_what_torch_counts() -> None:
    costs = costs_of(CONFIG, SHAPE)
    forward = counted_flop(num_prefix=12, num_suffix=8, slots=6) / 6
    assert costs.canvas_flop == pytest.approx(3 * forward)


def test_a_context_token_costs_a_slot_less_the_keys_it_does_not_see() -> None:
    costs = costs_of(CONFIG, SHAPE)
    keys = 20 + 6 - 10  # a slot sees a window and its canvas, a stream token half a stream
    assert costs.canvas_flop - costs.context_flop == 3 * 4 * 32 * keys * 2


def test_the_mean_weighs_both_kinds_by_their_number() -> None:
    costs = costs_of(CONFIG, SHAPE)
    expected = (40 * costs.context_flop + 18 * costs.canvas_flop) / 58
    assert costs.token_flop == pytest.approx(expected)


def test_the_file_weighs_what_it_is_said_to(tokenizer: CodeTokenizer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", Denoiser(CONFIG), tokenizer)
    header = 4096  # names and offsets, at most
    size = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    assert 0 < size - 1e6 * costs_of(CONFIG, SHAPE).file_mb < header


def test_a_larger_model_takes_longer_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "STEP_SECONDS", 0.05)
    small, large = (
        DenoiserConfig(vocab_size=400, hidden_size=size, num_layers=layers, ffn_size=3 * size)
        for size, layers in ((32, 1), (256, 6))
    )
    assert 0 < step_ms(small, torch.float32) < step_ms(large, torch.float32)


def test_the_table_has_a_row_for_each_candidate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "STEP_SECONDS", 0.001)
    monkeypatch.setattr(plan, "SHAPES", ((64, 1), (128, 2)))
    monkeypatch.setattr(plan, "VOCAB_SIZES", (300,))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of this whole process
    assert main(["--minutes", "1", "--mfu", "0.5", "--context-tokens", "64"]) == 0
    heading, _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert "1 minutes at an assumed 50 % of 989 TFLOP/s, streams of 64 tokens" in heading
    assert [row.split("|")[1].strip() for row in rows] == ["64 x 1", "128 x 2"]
    assert all(row.count("|") == header.count("|") for row in rows)
    one = costs_of(plan.denoiser_config(300, 64, 1, max_context=64), BatchShape(stream_tokens=64))
    tokens = 60 * 0.5 * 989e12 / one.token_flop / 1e6
    assert f"| {tokens:,.0f} |" in rows[0]
