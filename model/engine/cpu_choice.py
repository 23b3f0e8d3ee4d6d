"""How a denoiser is run on this CPU: its weights' layout, threads and runtime, measured at load.

What is measured is one step of the model itself. Busy cores count: where other programs use them,
torch is often faster on one thread, since each of its products waits for the slowest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from model.attention import KeyValue
from model.denoiser import Denoiser
from model.engine.model_runner import BatchContext, ModelRunner

MAX_THREADS = 8
"""More threads than that share a canvas's small products only wait on each other."""
RUNS = 2
"""Timed runs of a step; the shortest counts."""
BUDGET_S = 0.3
"""For trying numbers of threads."""
FAR_SLOWER = 2.0
"""OpenVINO, where it is installed, is left aside only if it takes so many times as long as torch:
other programs disturb so short a measurement by nearly as much."""
TOLERANCE = 1e-4
"""By how much OpenVINO's logits may differ from torch's, absolutely and relatively."""


def cpu_runner(model: Denoiser, *, cache_bytes: int | None = None) -> ModelRunner:
    """The runner that is fastest here. Changes the layout of the model's weights, and torch's
    number of threads to fewer where that is faster. Raises `ValueError` like `ModelRunner`."""
    lay_out_for_products(model)
    most = min(torch.get_num_threads(), MAX_THREADS)
    plain = ModelRunner(model, cache_bytes=cache_bytes)
    if plain.dtype != torch.float32:
        torch.set_num_threads(most)
        return plain
    ids, context = _sample(model)
    with torch.inference_mode():
        threads, _ = fastest_threads(lambda: plain.canvas_logits(ids, context), most)
        torch.set_num_threads(threads)
        if find_spec("openvino") is None:
            return plain
        try:
            from model.engine.openvino_runner import OpenVinoRunner

            compiled = OpenVinoRunner(model, cache_bytes=cache_bytes)
            torch.testing.assert_close(
                compiled.canvas_logits(ids, context),
                plain.canvas_logits(ids, context),
                rtol=TOLERANCE,
                atol=TOLERANCE,
            )
        except Exception as error:  # an optional runtime, of any release, must not be in the way
            why = " ".join(str(error).split())
            plain.problems.append(f"OpenVINO is installed, but fails here: {why}")
            return plain
        seconds = [
            shortest_s(lambda runner=runner: runner.canvas_logits(ids, context))
            for runner in (compiled, plain)
        ]
    return plain if seconds[0] > FAR_SLOWER * seconds[1] else compiled


def lay_out_for_products(model: nn.Module) -> None:
    """Store weights column by column: for few rows, as a canvas has, the same product is faster so
    (by an eighth of a step), with the same result. Shapes and values stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):  # the embedding is the head
            module.weight.data = module.weight.data.t().contiguous().t()


def fastest_threads(
    run: Callable[[], object],
    most: int,
    *,
    set_threads: Callable[[int], None] = torch.set_num_threads,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, float]:
    """How many threads, 1, 2, 4 … `most`, make `run` shortest, and how long it then takes (s).

    Stops where more threads no longer help, and when the time for it is up. Leaves the number set
    that it tried last.
    """
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n < most] + [most]
    end = clock() + BUDGET_S
    best, best_s = counts[0], float("inf")
    for count in counts:
        if clock() > end:
            break
        set_threads(count)
        needed = shortest_s(run, end=end, clock=clock)
        if needed >= best_s:
            break
        best, best_s = count, needed
    return best, best_s


def shortest_s(
    run: Callable[[], object],
    *,
    end: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The shortest of a few runs, in seconds; of one, where the clock has passed `end` by then."""
    run()  # makes what only a first run makes
    shortest = float("inf")
    for _ in range(RUNS):
        start = clock()
        run()
        shortest = min(shortest, clock() - start)
        if clock() > end:
            break
    return shortest


def _sample(model: Denoiser) -> tuple[Tensor, BatchContext]:
    """A canvas of the usual size against random streams, as long as they may be or 256 tokens."""
    config, size = model.config, 32
    draw = torch.Generator().manual_seed(0)
    length = min(256, config.max_context, config.max_positions - size)

    def stream() -> list[KeyValue]:
        shape = (1, config.num_kv_heads, length, config.head_dim)
        return [
            (torch.randn(shape, generator=draw), torch.randn(shape, generator=draw))
            for _ in range(config.num_layers)
        ]

    ids = torch.randint(config.vocab_size, (1, size), generator=draw)
    positions = torch.arange(length, length + size)[None]
    context = BatchContext(
        ids[:, :1], positions, torch.full_like(positions, length), stream(), stream(),
        prefix_mask=None, suffix_mask=None, canvas_mask=None,
    )  # fmt: skip
    return ids, context
