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
from torch import Tensor

from model.engine.run.forward import Forward
from model.engine.run.huge_pages import give_back_memory, use_huge_pages
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
"""Fewer threads are not tried once the other trials have taken so long."""
CLEARLY = 1.15
"""By how much another way must be faster than one before it: other programs disturb so short a
measurement by nearly as much."""
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
    expected: list[Tensor] = []

    def load_and_try() -> Transformer:
        model = load()
        expected.append(_sample(TorchForward(model)))
        return model

    wanted: dict[str, Any] = {"tapped_layers": tapped_layers, "num_kv_layers": num_kv_layers}
    try:
        folder = packed_folder(path, digest)
        weights = open_packed(folder, digest, load_and_try, progress)
        forward = _by_openvino(weights, folder, digest, wanted)
        if expected and not _agree(_sample(forward), expected[0]):
            raise RuntimeError("it computes something else than torch")
    except Exception as error:  # a runtime, of any release, must not be in the way
        why = " ".join(str(error).split())
        plain = TorchForward(load(), **wanted)
        plain.problems.append(f"OpenVINO does not run this model here, so torch does: {why}")
        return plain
    return forward


def _by_openvino(
    weights: PackedWeights, folder: Path, digest: str, wanted: dict[str, Any]
) -> Forward:
    # Only here: where it is not installed, torch runs.
    from model.engine.openvino_api import cpu_has, cpu_name, openvino
    from model.engine.run.openvino_forward import OpenVinoForward
    from model.engine.run.openvino_request import BFLOAT16, INT8, INT8_FLOAT_KEYS

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
    give_back_memory()
    write_choice(folder / FILE, choice, stamp)
    forward.costs = choice.costs
    return forward


Measure = Callable[[Sequence[Any]], list[tuple[dict[int, float], float]]]
"""Of several forwards, the milliseconds by rows, and those of a chunk of a prompt."""


def fastest(
    make: Callable[[str, int], Any],
    ways: Sequence[str],
    threads: int,
    *,
    measure: Measure | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Any, Choice]:
    """The fastest of several ways on so many threads, and then on half as many. The first one stays
    unless another is clearly faster. Of what was tried only the fastest is kept."""
    measure = measure or measured
    start = clock()
    forward, choice = _faster([(way, threads) for way in ways], make, measure)
    if threads > 1 and clock() - start < BUDGET_S:
        tried = [(choice.arithmetic, threads), (choice.arithmetic, threads // 2)]
        made = {tried[0]: forward}
        return _faster(tried, lambda *way: made.get(way) or make(*way), measure)
    return forward, choice


def _faster(
    tried: Sequence[tuple[str, int]], make: Callable[[str, int], Any], measure: Measure
) -> tuple[Any, Choice]:
    forwards = [make(*each) for each in tried]
    found = [Choice(*t, *ms) for t, ms in zip(tried, measure(forwards), strict=True)]
    best = 0
    for index, choice in enumerate(found):
        if choice.score * CLEARLY < found[best].score:
            best = index
    return forwards[best], found[best]


@torch.inference_mode()
def measured(forwards: Sequence[Forward]) -> list[tuple[dict[int, float], float]]:
    """See `Measure`. They take turns, so that what else the machine does disturbs all alike."""
    runs = [(rows, True) for rows in ROWS] + [(CHUNK, False)]
    sample = [_Sample(forward) for forward in forwards]
    shortest = [dict.fromkeys(runs, float("inf")) for _ in forwards]
    for turn in range(1 + RUNS):
        for run in runs:
            for each, ms in zip(sample, shortest, strict=True):
                start = time.perf_counter()
                each.run(*run)
                if turn:  # the first run makes what only a first run makes
                    taken = (time.perf_counter() - start) * 1e3
                    ms[run] = min(ms[run], round(taken, 2))
    return [({rows: ms[rows, True] for rows in ROWS}, ms[CHUNK, False]) for ms in shortest]


class _Sample:
    """Rows to run, and what is kept before them."""

    def __init__(self, forward: Forward) -> None:
        config = forward.config
        self._forward, self._kept = forward, max(1, min(KEPT, config.max_positions - CHUNK))
        size = (forward.num_kv_layers, 2, 1, config.num_kv_heads, self._kept, config.head_dim)
        draw = torch.Generator().manual_seed(0)
        self._past = torch.randn(size, generator=draw).to(forward.kv_dtype)

    def run(self, num: int, has_logits: bool) -> None:
        kept, config = self._kept, self._forward.config
        ids = (torch.arange(num)[None] * 97) % config.vocab_size
        positions = (torch.arange(kept, kept + num) % config.max_positions)[None]
        visible = torch.ones(1, num, kept + num, dtype=torch.bool).tril(kept)
        rows = self._forward.rows(ids, positions, self._past, visible)
        if has_logits:
            self._forward.logits(rows.hidden[0])


@torch.inference_mode()
def _sample(forward: Forward) -> Tensor:
    """Hidden states of a few tokens (N, E)."""
    num = min(8, forward.config.max_positions)
    ids = (torch.arange(num)[None] * 97 + 11) % forward.config.vocab_size
    visible = torch.ones(1, num, num, dtype=torch.bool).tril()
    return forward.rows(ids, torch.arange(num)[None], None, visible).hidden[0].float()


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether hidden states are the same but for rounding."""
    return F.cosine_similarity(one, other, dim=-1).min().item() > AGREEMENT


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
