"""How a backbone is run on this CPU: arithmetic and threads by measurement at the first load,
remembered beside the packed weights.

What is measured is the backbone itself, against as many kept tokens as a prompt usually has. Busy
cores count: what the machine has left is what there is to choose by.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from model.engine.run.forward import Forward
from model.engine.run.huge_pages import use_huge_pages
from model.engine.run.packed_weights import (
    FORMAT,
    PackedWeights,
    Progress,
    open_packed,
    packed_folder,
)
from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer

FILE = "cpu.json"
ROWS = (1, 2, 4, 8, 16, 32)
"""Numbers of rows whose cost is measured, logits of all of them included."""
CHUNK = 64
"""Rows of a chunk of a prompt, which wants no logits."""
KEPT = 768
"""Tokens kept from before, in a measurement."""
RUNS = 3
"""Timed runs; the shortest counts."""
BUDGET_S = 3.0
"""No further way is tried once the trials after the first have taken so long."""
MAX_THREADS = 16
"""More threads than that share a layer's products only wait on each other."""
AGREEMENT = 0.97
"""Cosine between the hidden states of two ways to compute them, from which they are the same."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The way that was fastest here, and what it takes."""

    arithmetic: str
    threads: int
    costs: dict[int, float]
    """Milliseconds by rows."""
    chunk_ms: float
    """Milliseconds of a chunk of a prompt."""

    @property
    def score(self) -> float:
        """Milliseconds of a usual mixture: a token, short and long drafts, a bit of prompt."""
        return self.costs[1] + 2 * self.costs[8] + self.costs[16] + self.chunk_ms / 2


def cpu_forward(
    path: Path,
    digest: str,
    load: Callable[[], Transformer],
    *,
    tapped_layers: Sequence[int] = (),
    num_kv_layers: int | None = None,
    progress: Progress = lambda _: None,
) -> Forward:
    """What runs a checkpoint fastest on this CPU.

    `path`, `digest`: the checkpoint; what is made of it is kept beside. `load` reads its weights,
    in float32; it is called only where they are not packed yet, and where OpenVINO does not run:
    then torch does, and `problems` says why. Raises what `load` raises.
    """
    loaded: list[Transformer] = []

    def load_once() -> Transformer:
        if not loaded:
            loaded.append(load())
        return loaded[0]

    wanted: dict[str, Any] = {"tapped_layers": tapped_layers, "num_kv_layers": num_kv_layers}
    try:
        folder = packed_folder(path, digest)
        weights = open_packed(folder, digest, load_once, progress)
        forward = _by_openvino(weights, folder, digest, wanted)
        if loaded and not _agree(forward, TorchForward(loaded[0])):
            raise RuntimeError("it computes something else than torch")
    except Exception as error:  # a runtime, of any release, must not be in the way
        why = " ".join(str(error).split())
        plain = TorchForward(load_once(), **wanted)
        plain.problems.append(f"OpenVINO does not run this model here, so torch does: {why}")
        return plain
    return forward


def _by_openvino(
    weights: PackedWeights, folder: Path, digest: str, wanted: dict[str, Any]
) -> Forward:
    # Only here: where it is not installed, torch runs.
    from model.engine.openvino_api import cpu_has, cpu_name, openvino
    from model.engine.run.openvino_forward import (
        BFLOAT16,
        INT8,
        INT8_FLOAT_KEYS,
        OpenVinoForward,
    )

    stamp = {
        "format": FORMAT,
        "digest": digest,
        "openvino": openvino.__version__,
        "cpu": cpu_name(),
        "cpus": torch.get_num_threads(),
    }
    ways = {
        each.name: each for each in ((INT8, BFLOAT16) if cpu_has("BF16") else (INT8_FLOAT_KEYS,))
    }
    remembered = read_choice(folder / FILE, stamp)
    if remembered is not None and remembered.arithmetic in ways:
        forward = OpenVinoForward(
            weights, ways[remembered.arithmetic], threads=remembered.threads, **wanted
        )
        forward.costs = remembered.costs
        # Takes a second, in which it can run already.
        threading.Thread(target=use_huge_pages, name="huge pages", daemon=True).start()
        return forward

    def make(arithmetic: str, threads: int) -> OpenVinoForward:
        made = OpenVinoForward(weights, ways[arithmetic], threads=threads, **wanted)
        use_huge_pages()
        return made

    most = min(torch.get_num_threads(), MAX_THREADS)
    forward, choice = fastest(make, list(ways), most)
    write_choice(folder / FILE, choice, stamp)
    forward.costs = choice.costs
    return forward


def fastest(
    make: Callable[[str, int], Any],
    ways: Sequence[str],
    threads: int,
    *,
    measure: Callable[[Any], tuple[dict[int, float], float]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Any, Choice]:
    """The fastest of several ways on so many threads, and then on half as many. Of what was tried
    only the fastest is kept."""
    measure = measured if measure is None else measure
    tried = [(way, threads) for way in ways]
    forward = make(*tried[0])
    best = Choice(*tried[0], *measure(forward))
    end = clock() + BUDGET_S
    for way, count in tried[1:]:
        forward, best = _faster(forward, best, make(way, count), way, count, measure)
    if threads > 1 and clock() < end:
        way, count = best.arithmetic, threads // 2
        forward, best = _faster(forward, best, make(way, count), way, count, measure)
    return forward, best


def _faster(
    forward: Any,
    best: Choice,
    other: Any,
    way: str,
    threads: int,
    measure: Callable[[Any], tuple[dict[int, float], float]],
) -> tuple[Any, Choice]:
    choice = Choice(way, threads, *measure(other))
    return (other, choice) if choice.score < best.score else (forward, best)


@torch.inference_mode()
def measured(forward: Forward) -> tuple[dict[int, float], float]:
    """Milliseconds by rows, and of a chunk of a prompt."""
    config = forward.config
    kept = max(1, min(KEPT, config.max_positions - CHUNK))
    draw = torch.Generator().manual_seed(0)
    size = (forward.num_kv_layers, 2, 1, config.num_kv_heads, kept, config.head_dim)
    past = torch.randn(size, generator=draw).to(forward.kv_dtype)

    def run(num: int, has_logits: bool) -> None:
        ids = torch.randint(config.vocab_size, (1, num), generator=draw)
        positions = (torch.arange(kept, kept + num) % config.max_positions)[None]
        visible = torch.ones(1, num, kept + num, dtype=torch.bool).tril(kept)
        rows = forward.rows(ids, positions, past, visible)
        if has_logits:
            forward.logits(rows.hidden[0])

    costs = {num: _shortest_ms(lambda num=num: run(num, True)) for num in ROWS}
    return costs, _shortest_ms(lambda: run(CHUNK, False))


def _shortest_ms(run: Callable[[], None]) -> float:
    run()  # makes what only a first run makes
    shortest = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - start)
    return round(shortest * 1e3, 2)


@torch.inference_mode()
def _agree(forward: Forward, plain: Forward) -> bool:
    """Whether both have the same hidden states of a few tokens, but for rounding."""
    num = min(8, forward.config.max_positions)
    ids = (torch.arange(num)[None] * 97 + 11) % forward.config.vocab_size
    positions, visible = torch.arange(num)[None], torch.ones(1, num, num, dtype=torch.bool).tril()
    hidden = [each.rows(ids, positions, None, visible).hidden for each in (forward, plain)]
    worst = F.cosine_similarity(hidden[0].float(), hidden[1].float(), dim=-1).min()
    return worst.item() > AGREEMENT


def read_choice(path: Path, stamp: dict[str, Any]) -> Choice | None:
    """What was chosen with this stamp, if anything was."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("stamp") != stamp:
            return None
        costs = {int(rows): float(ms) for rows, ms in found.pop("costs").items()}
        return Choice(**found, costs=costs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_choice(path: Path, choice: Choice, stamp: dict[str, Any]) -> None:
    """Remember a choice; where that fails, the next load measures again."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"stamp": stamp, **asdict(choice)}, file, indent=1)
        os.replace(temporary, path)
    except OSError:
        return
