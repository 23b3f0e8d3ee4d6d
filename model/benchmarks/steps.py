"""How long a forward of the backbone takes: by its rows, and by the tokens that are cached.

What drafting is worth hangs on the first, and how long a context may be on the second. On a GPU the
lone row is held against the time to read the weights and the cache once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from tqdm import tqdm

from model.benchmarks.setting import Setting, shuffled_rounds, verifying
from model.benchmarks.table import Goal, Row
from model.engine.run.forward import Forward
from model.evaluation.report import Figures

TITLE = "A forward, by its rows and by what is cached"

ROWS = (1, 2, 4, 8, 16, 32)
"""New tokens, each with its logits, behind `CACHED` others."""
CACHED = 1024
CONTEXTS = (512, 2048, 8192)
"""Cached tokens before one new one."""
QUICK_ROWS, QUICK_CACHED = (1, 4), 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """New tokens, and cached ones before them."""

    rows: int
    cached: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.cached}"


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    setting.require_backbone()
    completer = setting.open_completer()
    try:
        forward = verifying(completer).runner.forward
        times = step_times_ms(setting, forward, steps_for(setting, forward.config.max_positions))
        cached = QUICK_CACHED if setting.quick else CACHED
        return {
            "runtime": forward.runtime,
            "ms_by_rows": {str(s.rows): ms for s, ms in times.items() if s.cached == cached},
            "ms_by_cached": {str(s.cached): ms for s, ms in times.items() if s.rows == 1},
            **(_floor(setting, forward, cached) if setting.on_cuda else {}),
        }
    finally:
        await completer.close()


def steps_for(setting: Setting, max_positions: int) -> list[Step]:
    """What to measure, of what the model can read."""
    if setting.quick:
        return [Step(rows=rows, cached=QUICK_CACHED) for rows in QUICK_ROWS]
    contexts = [Step(rows=1, cached=cached) for cached in CONTEXTS if cached < max_positions]
    return [*(Step(rows=rows, cached=CACHED) for rows in ROWS), *contexts]


@torch.inference_mode()
def step_times_ms(setting: Setting, forward: Forward, steps: Sequence[Step]) -> dict[Step, float]:
    """Median milliseconds of each step, by turns."""
    by_name = {str(step): step for step in steps}
    works = {name: step_of(forward, step, setting.torch_device) for name, step in by_name.items()}
    for work in works.values():
        work()  # compiles, and records what is replayed
    times: dict[str, list[float]] = {name: [] for name in works}
    rounds = setting.size(full=9, gpu=21, quick=1)
    for name in tqdm(shuffled_rounds(list(works), rounds, setting.seed), desc=TITLE, unit="step"):
        times[name].append(_ms(setting, works[name]))
    return {step: round(median(times[name]), 3) for name, step in by_name.items()}


def step_of(forward: Forward, step: Step, device: torch.device) -> Callable[[], object]:
    """A forward of new tokens that all see each other's past, with their logits."""
    config, new, kept = forward.config, step.rows, step.cached
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, new), generator=draw).to(device)
    positions = torch.arange(kept, kept + new, device=device)[None]
    shape = (forward.num_kv_layers, 2, 1, config.num_kv_heads, kept, config.head_dim)
    # Not zeros, which a processor multiplies with less power, so at a higher clock.
    past = torch.randn(shape, generator=draw).to(device, forward.kv_dtype)
    seen = torch.ones(new, new, dtype=torch.bool, device=device).tril()
    before = torch.ones(new, kept, dtype=torch.bool, device=device)
    visible = torch.cat([before, seen], dim=1)[None]

    def run() -> object:
        return forward.logits(forward.rows(ids, positions, past, visible).hidden[0])

    return run


def _ms(setting: Setting, work: Callable[[], object]) -> float:
    if setting.on_cuda:
        torch.cuda.synchronize(setting.torch_device)
    started = time.perf_counter()
    work()
    if setting.on_cuda:
        torch.cuda.synchronize(setting.torch_device)
    return 1000 * (time.perf_counter() - started)


# ---- the floor -------------------------------------------------------------------------------


def _floor(setting: Setting, forward: Forward, cached: int) -> Figures:
    """The time to read once what a step of one row has to read."""
    bandwidth = bandwidth_bytes_per_s(setting)
    num_bytes = weight_bytes(forward) + cached * kept_bytes(forward)
    return {
        "bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
        "floor_ms": round(1000 * num_bytes / bandwidth, 4),
    }


def weight_bytes(forward: Forward) -> int:
    """Of the weights that every token goes through, as wide as what is cached: in eight bits they
    would be fewer."""
    config = forward.config
    heads = config.num_heads + 2 * config.num_kv_heads + config.num_heads
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.ffn_size)
    parameters = config.num_layers * layer + config.vocab_size * config.hidden_size
    return parameters * forward.kv_dtype.itemsize


def kept_bytes(forward: Forward) -> int:
    """Of the keys and values of a cached token."""
    config = forward.config
    numbers = forward.num_kv_layers * 2 * config.num_kv_heads * config.head_dim
    return numbers * forward.kv_dtype.itemsize


def bandwidth_bytes_per_s(setting: Setting) -> float:
    """The device's memory bandwidth: the best of summing up and of copying a large tensor."""
    source = torch.ones(2**28, dtype=torch.float32, device=setting.torch_device)
    target = torch.empty_like(source)
    num_bytes = source.numel() * source.element_size()

    def seconds(work: Callable[[], object]) -> float:
        return median(_ms(setting, work) for _ in range(9)) / 1000

    return max(
        num_bytes / seconds(source.sum), 2 * num_bytes / seconds(lambda: target.copy_(source))
    )


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    by_rows: dict[str, float] = figures["ms_by_rows"]
    one = by_rows["1"]
    table: list[Row] = []
    for rows, ms in by_rows.items():
        note = figures["runtime"] if rows == "1" else f"{ms / one:.2f} x one row"
        table.append(Row(f"{rows} rows", ms, "ms", note=note))
    for cached, ms in figures["ms_by_cached"].items():
        table.append(Row(f"1 row, {int(cached):,} tokens cached", ms, "ms"))
    if "floor_ms" in figures:
        note = f"{figures['bandwidth_gb_per_s']:,.0f} GB/s"
        table.append(Row("floor of 1 row", figures["floor_ms"], "ms", note=note))
        ratio = round(one / figures["floor_ms"], 2)
        table.append(Row("1 row / floor", ratio, "x", Goal("at most", 1.5)))
    return table
