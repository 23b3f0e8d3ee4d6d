"""`python -m model.benchmarks.context_cache`: what `dual` changes and saves against `none`.

A random full-attention Transformer fills a canvas; every step's logits are computed in both ways
from the same slots. Random weights tell whether the approximation is what it should be (exact in
the first step, an error that grows with what is committed) and what it costs; how much a trained
model minds is a question for its own weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from model.engine.joint_runner import JointRunner
from model.engine.sequence import Fill, SamplingParams, Sequence
from model.families.layout import OpenLayout
from model.families.tokenizer import OpenTokenizer
from model.infill import CanvasLayout
from model.transformer import Transformer, TransformerConfig

SLOTS, CONTEXT_TOKENS = 16, 512
_TOKENIZER = """{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
"added_tokens": []}"""


@dataclass(frozen=True, slots=True)
class Step:
    """What `dual` did to one step's logits."""

    relative_error: float
    """Norm of the difference, over the norm of the logits about their mean."""
    agreement: float
    """Share of the masked slots whose likeliest token is the same."""
    seconds: tuple[float, float]
    """`none`, `dual`."""


def measure(std: float, seed: int) -> list[Step]:
    """One fill: each step commits the next slot to what `none` finds likeliest."""
    torch.manual_seed(seed)
    config = TransformerConfig(
        model_type="Dream", vocab_size=4096, hidden_size=512, num_layers=8, num_heads=8,
        num_kv_heads=2, head_dim=64, ffn_size=1536, max_positions=1024, rope_theta=1e6,
        norm_eps=1e-6, is_tied=False, shifts_logits=True, mask_id=4095,
    )  # fmt: skip
    model = Transformer(config).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.normal_(std=std)
    layout = OpenLayout(config, OpenTokenizer(_TOKENIZER, {}, config))
    runners = [JointRunner(model, layout, cache=c) for c in ("none", "dual")]
    ids = torch.randint(0, 4000, (CONTEXT_TOKENS,)).tolist()
    sequences = [_sequence(runner, ids) for runner in runners]
    steps: list[Step] = []
    for slot in range(SLOTS):
        (exact, exact_s), (dual, dual_s) = map(_timed, runners, sequences)
        masked = slice(slot, SLOTS)
        steps.append(Step(*_difference(exact[masked], dual[masked]), (exact_s, dual_s)))
        for sequence in sequences:
            sequence.canvas[slot] = int(exact[slot].argmax())
    return steps


def _sequence(runner: JointRunner, ids: list[int]) -> Sequence:
    half, layout = len(ids) // 2, runner.layout
    fill = Fill(
        prefix=layout.prefix_stream(ids[:half], "", starts_file=True),
        suffix=layout.suffix_stream(ids[half:], "", ends_file=True),
        layout=CanvasLayout((SLOTS,)),
        canvas_slots=lambda _: SLOTS,
    )
    tokenizer = layout.tokenizer
    params = SamplingParams(length=SLOTS)
    return Sequence.of(
        fill, params, mask_id=tokenizer.mask_id, end_id=tokenizer.end_id,
        max_context=runner.max_context,
    )  # fmt: skip


def _timed(runner: JointRunner, sequence: Sequence) -> tuple[Tensor, float]:
    start = time.perf_counter()
    logits = runner.denoise([sequence])[0, :SLOTS, :-1]
    return logits, time.perf_counter() - start


def _difference(exact: Tensor, dual: Tensor) -> tuple[float, float]:
    spread = (exact - exact.mean(dim=-1, keepdim=True)).norm()
    agreement = (exact.argmax(-1) == dual.argmax(-1)).float().mean()
    return ((dual - exact).norm() / spread).item(), agreement.item()


def main(argv: Items[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m model.benchmarks.context_cache")
    parser.add_argument("--fills", type=int, default=4, metavar="N", help="fills a row (4)")
    args = parser.parse_args(argv)
    print(
        "| weights' std | error in step 1 | 2 | 8 | 16 | same token, steps 2-16 | none : dual, s |"
    )
    print("|---|---|---|---|---|---|---|")
    for std in (0.02, 0.05, 0.1):
        fills = [measure(std, seed) for seed in tqdm(range(args.fills), disable=None, leave=False)]

        def mean(step: int, what: str, fills: list[list[Step]] = fills) -> float:
            return sum(getattr(fill[step - 1], what) for fill in fills) / len(fills)

        same = sum(mean(n, "agreement") for n in range(2, SLOTS + 1)) / (SLOTS - 1)
        errors = " | ".join(f"{mean(n, 'relative_error'):.1e}" for n in (1, 2, 8, 16))
        later = [step.seconds for fill in fills for step in fill[1:]]
        ratio = sum(s[0] for s in later) / sum(s[1] for s in later)
        print(f"| {std} | {errors} | {same:.0%} | {ratio:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
