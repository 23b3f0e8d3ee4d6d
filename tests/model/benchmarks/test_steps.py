"""What a measured forward is: rows behind cached tokens, each with its logits."""

from __future__ import annotations

import torch

from model.benchmarks.setting import Setting, verifying
from model.benchmarks.steps import Step, kept_bytes, rows, step_of, steps_for, weight_bytes


async def test_a_step_runs_its_rows_behind_its_cached_tokens(setting: Setting) -> None:
    completer = setting.open_completer()
    try:
        forward = verifying(completer).runner.forward
        logits = step_of(forward, Step(rows=4, cached=24), torch.device("cpu"))()
    finally:
        await completer.close()
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (4, forward.config.vocab_size)
    assert logits.isfinite().all()


async def test_the_floor_counts_what_a_row_has_to_read(setting: Setting) -> None:
    completer = setting.open_completer()
    try:
        forward = verifying(completer).runner.forward
    finally:
        await completer.close()
    matrices = {512 * 64: 1, 64 * 64: 2 * 2, 64 * 32: 2 * 2, 64 * 96: 3 * 2}  # head; q, o; k, v
    width = forward.kv_dtype.itemsize
    assert weight_bytes(forward) == width * sum(size * count for size, count in matrices.items())
    assert (
        kept_bytes(forward) == width * 2 * 2 * 2 * 16
    )  # layers, keys and values, heads, dimension


def test_only_contexts_that_the_model_reads_are_measured(setting: Setting) -> None:
    from dataclasses import replace

    steps = steps_for(replace(setting, quick=False), 4096)
    assert [step.rows for step in steps if step.cached == 1024] == [1, 2, 4, 8, 16, 32]
    assert {step.cached for step in steps} == {512, 1024, 2048}


def test_rows_are_held_against_one_row(setting: Setting) -> None:
    figures = {"runtime": "x", "ms_by_rows": {"1": 20.0, "8": 30.0}, "ms_by_cached": {"512": 19.0}}
    table = rows(figures, setting)
    assert [row.value for row in table] == [20.0, 30.0, 19.0]
    assert "1.50 x" in table[1].note
