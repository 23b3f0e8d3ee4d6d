"""Which model a stretch of GPU time trains best: `python -m model.training.plan`.

For each candidate shape, what its file weighs, what a trained token costs, how many tokens a run
then sees, and, measured here, how long one denoising step takes on two threads of this CPU. The
throughput of a GPU is not measured but assumed: a share of its peak ("MFU"), stated in the heading.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from tqdm import tqdm

from model.attention import KeyValue
from model.denoiser import Denoiser, DenoiserConfig
from model.training.__main__ import denoiser_config
from model.training.data import BatchShape

H100_PEAK = 989e12
"""Dense bf16 FLOP a second of one H100 SXM, by its data sheet."""
FILE_BAR_MB, STEP_BAR_MS = 64.0, 20.0
"""What a shipped checkpoint may weigh, and what a step of it may take on two CPU threads."""
SHAPES = (
    (256, 6), (256, 12), (320, 12), (384, 8), (384, 10), (384, 12), (448, 8), (448, 10),
    (512, 6), (512, 8), (576, 6), (640, 6),
)  # fmt: skip
"""Candidates: hidden size and layers."""
VOCAB_SIZES = (8192, 16384)
STEP_CONTEXT, STEP_SLOTS, STEP_SECONDS = (512, 256), 32, 0.4
"""The measured step: prefix and suffix tokens in the cache, slots of the canvas, how long it is
repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What training one shape costs. FLOP count a multiplication and an addition as two."""

    parameters: int
    context_flop: float
    """To train one context token: forward, and backward at twice its price (arXiv 2001.08361)."""
    canvas_flop: float
    """To train one canvas slot, which sees a whole window (prefix and suffix together)."""
    token_flop: float
    """Mean over the tokens of a batch."""

    @property
    def file_mb(self) -> float:
        """Of `model.safetensors`, in bf16."""
        return 2 * self.parameters / 1e6


def costs_of(config: DenoiserConfig, shape: BatchShape) -> Costs:
    """Count one model's parameters and the arithmetic of its training tokens."""
    with torch.device("meta"):
        model = Denoiser(config)
    in_blocks = (p for block in model.blocks for p in block.parameters())
    matrices = sum(p.numel() for p in in_blocks if p.ndim == 2)
    head = config.vocab_size * config.hidden_size

    def flop(keys: float) -> float:  # scores and mixing are 2·E·keys each, a layer
        return 3 * (2 * (matrices + head) + 4 * config.hidden_size * keys * config.num_layers)

    length, size = shape.stream_tokens, mean(shape.canvas_sizes)
    context, canvas = flop(length / 2), flop(length + size)
    num_context, num_canvas = 2 * length, shape.canvases * size
    return Costs(
        parameters=sum(p.numel() for p in model.parameters()),
        context_flop=context,
        canvas_flop=canvas,
        token_flop=(num_context * context + num_canvas * canvas) / (num_context + num_canvas),
    )


@torch.inference_mode()
def step_ms(config: DenoiserConfig, dtype: torch.dtype) -> float:
    """Milliseconds of one denoising step against a cached context, logits included.

    The fastest one: what else runs on the machine only ever adds to it.
    """
    model = Denoiser(config).to(dtype).eval()
    prefix, suffix = (_random_cache(config, length, dtype) for length in STEP_CONTEXT)
    ids = torch.zeros(1, STEP_SLOTS, dtype=torch.int64)
    left = STEP_CONTEXT[0] + torch.arange(STEP_SLOTS)[None]
    right = torch.full_like(ids, STEP_CONTEXT[1])
    timings: list[float] = []
    while sum(timings) < STEP_SECONDS:
        started = time.perf_counter()
        hidden = model.denoise(ids, ids[:, :1], left, right, prefix, suffix, canvas_size=STEP_SLOTS)
        model.logits(hidden)
        timings.append(time.perf_counter() - started)
    return 1e3 * min(timings)


def _random_cache(config: DenoiserConfig, length: int, dtype: torch.dtype) -> list[KeyValue]:
    size = (1, config.num_kv_heads, length, config.head_dim)
    return [
        (torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype))
        for _ in range(config.num_layers)
    ]


def row_of(config: DenoiserConfig, shape: BatchShape, total_flop: float) -> str:
    """One line of the table, measured on this CPU."""
    costs = costs_of(config, shape)
    tokens = total_flop / costs.token_flop
    steps = [step_ms(config, dtype) for dtype in (torch.float32, torch.bfloat16)]
    fits = costs.file_mb <= FILE_BAR_MB and min(steps) <= STEP_BAR_MS
    cells = (
        f"{config.hidden_size} x {config.num_layers}",
        f"{config.vocab_size:,}",
        f"{costs.parameters / 1e6:.1f}",
        f"{costs.file_mb:.1f}",
        f"{costs.context_flop / 1e6:.0f}",
        f"{costs.canvas_flop / 1e6:.0f}",
        f"{tokens / 1e6:,.0f}",
        f"{tokens / costs.parameters:.0f}",
        f"{steps[0]:.1f}",
        f"{steps[1]:.1f}",
        "yes" if fits else "no",
    )
    return f"| {' | '.join(cells)} |"


HEADER = """\
| hidden x layers | vocabulary | M parameters | MB, bf16 | MFLOP a context token | a canvas slot \
| M tokens | tokens a parameter | step, fp32 (ms) | bf16 (ms) | fits |
|---|---|---|---|---|---|---|---|---|---|---|"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m model.training.plan",
        description="Tabulate what candidate models cost to train on one H100 and to run here.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="of training on one H100")
    parser.add_argument("--mfu", type=float, default=0.3, help="assumed share of the GPU's peak")
    parser.add_argument("--context-tokens", type=int, default=1024, help="of each stream")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; prints a Markdown table and returns the exit code."""
    args = parse_args(argv)
    torch.set_num_threads(2)
    shape = BatchShape(stream_tokens=args.context_tokens)
    total_flop = 60 * args.minutes * args.mfu * H100_PEAK
    print(
        f"{args.minutes:g} minutes at an assumed {100 * args.mfu:g} % of {H100_PEAK / 1e12:.0f} "
        f"TFLOP/s, streams of {args.context_tokens} tokens; a step is {STEP_SLOTS} slots over "
        f"{sum(STEP_CONTEXT)} cached tokens on two threads; "
        f"it fits with at most {FILE_BAR_MB:g} MB and {STEP_BAR_MS:g} ms in the faster dtype\n"
    )
    print(HEADER)
    candidates = [(hidden, layers, v) for v in VOCAB_SIZES for hidden, layers in SHAPES]
    for hidden, layers, vocab in tqdm(candidates, desc="shapes", leave=False):
        config = denoiser_config(vocab, hidden, layers, max_context=args.context_tokens)
        tqdm.write(row_of(config, shape, total_flop), file=sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
