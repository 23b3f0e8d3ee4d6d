"""A denoising step against its floor: the time to read weights and cached context once.

The floor is bytes over measured bandwidth. It knows no compute, so on a processor whose caches hold
the weights, or which multiplies slowly, a step may be well away from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from model.benchmarks.context import requests_of
from model.benchmarks.setting import Setting
from model.benchmarks.steps import step_times_ms
from model.benchmarks.table import Goal, Row
from model.denoiser import DenoiserConfig
from model.engine.model_runner import ModelRunner
from model.evaluation.report import Figures
from model.serving.completer import EngineCompleter

TITLE = "Step time against the floor of memory bandwidth"

LARGE_BYTES = 24 * 2**30
"""Free memory that measuring the 7B shape takes."""
CONTEXT_TOKENS = 512


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    bandwidth = bandwidth_bytes_per_s(setting)
    shape = large_shape(setting.tokenizer.vocab_size)
    reason = _no_room(setting)
    return {
        "bandwidth_gb_per_s": round(bandwidth / 1e9, 4),
        "checkpoint": await _against_floor(setting, setting.open_completer(), bandwidth),
        "7b": None
        if reason
        else await _against_floor(setting, setting.open_random(shape), bandwidth),
        "7b_unmeasured": reason,
    }


def large_shape(vocab_size: int) -> DenoiserConfig:
    """The shape of a 7B model: Mistral 7B's, with our vocabulary."""
    return DenoiserConfig(
        vocab_size=vocab_size,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        ffn_size=14_336,
        max_positions=4096,
        max_context=2048,
    )


def _no_room(setting: Setting) -> str | None:
    """Why a 7B model cannot be measured here; None where it can."""
    if not setting.on_cuda:
        return "needs a CUDA device"
    free, _ = torch.cuda.mem_get_info(setting.torch_device)
    if free < LARGE_BYTES:
        return f"needs {LARGE_BYTES / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free"
    return None


async def _against_floor(setting: Setting, completer: EngineCompleter, bandwidth: float) -> Figures:
    """A step's time and its floor; closes the completer."""
    (request,) = requests_of(setting, [CONTEXT_TOKENS]).values()
    try:
        times = await step_times_ms(
            {"step": (completer, request)},
            rounds=setting.size(full=9, gpu=15, quick=1),
            seed=setting.seed,
            desc=TITLE,
        )
        weights, context = bytes_of_step(completer, CONTEXT_TOKENS)
    finally:
        await completer.close()
    floor_ms = 1000 * (weights + context) / bandwidth
    return {
        "step_ms": times["step"],
        "floor_ms": round(floor_ms, 4),
        "times_floor": round(times["step"] / floor_ms, 3),
        "weight_bytes": weights,
        "context_bytes": context,
    }


def bytes_of_step(completer: EngineCompleter, context_tokens: int) -> tuple[int, int]:
    """Bytes of the weights, and of the keys and values of a context: a step reads both once."""
    runner = completer.engine.runner
    assert isinstance(runner, ModelRunner), "the floor is that of cached streams"
    config = runner.model.config
    weights = sum(p.numel() * p.element_size() for p in runner.model.parameters())
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return weights, context_tokens * per_token * runner.dtype.itemsize


# ---- bandwidth -------------------------------------------------------------------------------


def bandwidth_bytes_per_s(setting: Setting) -> float:
    """The device's memory bandwidth: the best of summing up and of copying a large tensor."""
    size = 2**22 if setting.quick else 2**28 if setting.on_cuda else 2**26
    source = torch.ones(size, dtype=torch.float32, device=setting.torch_device)
    target = torch.empty_like(source)
    num_bytes = source.numel() * source.element_size()
    read = num_bytes / _median_s(setting, source.sum)
    copied = 2 * num_bytes / _median_s(setting, lambda: target.copy_(source))
    return max(read, copied)


def _median_s(setting: Setting, work: Callable[[], object], repeats: int = 9) -> float:
    """Median time of a piece of work on the device, after one that does not count."""
    times: list[float] = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if setting.on_cuda:
            torch.cuda.synchronize(setting.torch_device)
        times.append(time.perf_counter() - started)
    return median(times[1:])


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    bandwidth: float = figures["bandwidth_gb_per_s"]
    table = [Row("memory bandwidth", bandwidth, "GB/s")]
    for key, name, goal in (
        ("checkpoint", "checkpoint", None),
        ("7b", "7B shape, random", Goal("at most", 1.3)),
    ):
        measured = figures[key]
        if measured is None:
            table.append(Row(f"{name}: step", None, goal=goal, note=figures[f"{key}_unmeasured"]))
            continue
        megabytes = (measured["weight_bytes"] + measured["context_bytes"]) / 1e6
        note = f"{megabytes:,.1f} MB take {measured['floor_ms']:.3f} ms"
        table.append(Row(f"{name}: step", measured["step_ms"], "ms", note=note))
        table.append(Row(f"{name}: step / floor", measured["times_floor"], "x", goal))
    return table
