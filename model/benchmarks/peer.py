"""Against `transformers`, generating greedily from our own weights, as a user would set it up.

The peer is `model.export`'s Qwen3ForCausalLM in the same dtype on the same device, and writes as
many tokens as the hole truly has. It sees the prefix only. Two comparisons, interleaved:

* `cold`: a first fill in a file, where either has to encode the context (ours both sides of it);
* `warm`: decoding alone. Ours finds the context in its cache; of the peer's time, that of its
  first token is taken off, which is nearly all prompt.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from model.api import Completer
from model.benchmarks.setting import Prompt, Setting, shuffled_rounds
from model.benchmarks.table import Row
from model.checkpoint import load_checkpoint
from model.evaluation.report import Figures, share
from model.export import export
from model.infill import fitted, prefix_stream

TITLE = "Against transformers, generating from the exported checkpoint"

REPEATS = 3
UNMEASURED = "transformers is not installed; pip install 'mezzotint[bench]'"

Timed = dict[str, tuple[float, int]]
"""Milliseconds and tokens of each way to fill holes."""


async def measure(setting: Setting) -> Figures:
    """The figures of this part. Raises `CompletionError`, `OSError` and `ValueError`."""
    if find_spec("transformers") is None:
        return {"unmeasured": UNMEASURED}
    prompts = setting.prompts(setting.size(full=16, gpu=40, quick=2))
    generate = load_peer(setting)
    completer = setting.open_completer()
    done: list[Timed] = []
    try:
        for index, prompt in enumerate(tqdm(prompts, desc=TITLE, unit="hole")):
            done.append(await time_prompt(setting, completer, generate, prompt, index))
    finally:
        await completer.close()
    return summary(done)


Generate = Callable[[list[int], int], None]
"""Generate that many tokens after a prompt's ids, and wait for them."""


def load_peer(setting: Setting) -> Generate:
    """The exported checkpoint in `transformers`, on the engine's device, in its dtype."""
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), *load_checkpoint(setting.model))
        peer: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=setting.torch_dtype
        )
    peer.to(setting.torch_device).eval()

    def generate(ids: list[int], num_tokens: int) -> None:
        prompt = torch.tensor([ids], device=setting.torch_device)
        written = peer.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=setting.tokenizer.end_id,
        )
        assert written.shape[1] == len(ids) + num_tokens

    return generate


async def time_prompt(
    setting: Setting, completer: Completer, generate: Generate, prompt: Prompt, index: int
) -> Timed:
    """Median times of one hole, filled by us and by the peer in turn."""
    request = replace(prompt.request, length_of=prompt.middle)
    ids = prefix_stream(
        setting.tokenizer,
        setting.tokenizer.encode(request.prefix),
        request.language,
        starts_file=request.starts_file,
    )
    ids = fitted(ids, setting.shape.max_context)
    num_tokens = len(setting.tokenizer.encode(prompt.middle))
    times: dict[str, list[float]] = {name: [] for name in ("ours", "ours cold", "peer", "first")}
    await completer.complete(request)
    generate(ids, 2)
    for turn, name in enumerate(shuffled_rounds(list(times), REPEATS, setting.seed + index)):
        started = time.perf_counter()
        if name == "ours":
            await completer.complete(request)
        elif name == "ours cold":
            # Streams are cached from their far edges on: other text there, and nothing is known.
            note = f"# {setting.seed} {index} {turn}\n"
            await completer.complete(
                replace(request, prefix=note + request.prefix, suffix=request.suffix + note)
            )
        else:
            generate(ids, num_tokens if name == "peer" else 1)
        times[name].append(1000 * (time.perf_counter() - started))
    ms = {name: median(of_one) for name, of_one in times.items()}
    return {
        "mezzotint, warm": (ms["ours"], num_tokens),
        "transformers, warm": (ms["peer"] - ms["first"], num_tokens - 1),
        "mezzotint, cold": (ms["ours cold"], num_tokens),
        "transformers, cold": (ms["peer"], num_tokens),
    }


def summary(done: list[Timed]) -> Figures:
    """Tokens a second over all prompts, and how many times the peer's that is."""
    speed = {
        name: share(1000 * sum(one[name][1] for one in done), sum(one[name][0] for one in done))
        for name in done[0]
    }
    return {
        "holes": len(done),
        "tokens_per_s": speed,
        "speed_up": {
            state: share(
                speed[f"mezzotint, {state}"] or 0.0, speed[f"transformers, {state}"] or 0.0
            )
            for state in ("warm", "cold")
        },
    }


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    if "unmeasured" in figures:
        return [Row("speed-up", None, note=figures["unmeasured"])]
    speed = figures["tokens_per_s"].items()
    ratios = figures["speed_up"].items()
    return [Row(name, value, "tokens/s") for name, value in speed] + [
        Row(f"speed-up, {state}", value, "x", note="prefix and suffix against prefix alone")
        for state, value in ratios
    ]
