"""A denoiser on held-out projects: tokens a verify forward, and the end.

`python -m model.training.progress CHECKPOINT --backbone B --corpus C` scores one that is trained,
on more windows than a run in progress does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.api import CheckpointError
from model.backbone.checkpoint import load_backbone
from model.denoiser import Denoiser, load_denoiser, save_denoiser
from model.denoiser.checkpoint import read_config
from model.engine.run.torch_forward import TorchForward
from model.training import distributed
from model.training.loss import Encoded, canvases, encode
from model.training.windows import Window, WindowSampler, WindowShape, load_documents

HELD_OUT_SHAPE = WindowShape(canvases=40, branches=4)
"""Of the windows that score: the same whatever trains, so that runs can be compared."""
HOLE_TOKENS = 24
"""How many tokens a hole has, for its end to be looked for in, where there are so many."""


@dataclass(frozen=True, slots=True)
class EndScores:
    """Of one way to tell the end: where its threshold does best, and how well."""

    threshold: float
    """A probability."""
    precision: float
    recall: float
    exact: float
    """Share of the holes whose first token above the threshold is their last one."""

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Over the held-out windows of all processes."""

    tokens_per_forward: float
    """What a verify forward commits on the mean: the longest run of drafted slots that equal the
    backbone's own choice, and the token that it decides itself. The score that the best checkpoint
    is kept by."""
    parallel: float
    """The same, if no slot were told the token before it."""
    end: EndScores
    """From the backbone's hidden states."""
    canvas_end: EndScores
    """From the first slot of a canvas."""


@dataclass(frozen=True, slots=True)
class HeldOutWindow:
    """A window, and what the frozen backbone says of it once and for all."""

    window: Window
    encoded: Encoded
    own: Tensor
    """(K, C) the backbone's own choice for each slot, given the true text before it."""
    goes_on: Tensor
    """(K,) its choice for each canvas's first slot."""


def prepare(backbone: TorchForward, window: Window) -> HeldOutWindow:
    """Run the backbone over a window that was made with `draft_only`."""
    encoded = encode(backbone, window)

    def choice(rows: Tensor) -> Tensor:
        chosen = [backbone.logits(part).argmax(dim=-1) for part in encoded.hidden[rows].split(64)]
        return torch.cat(chosen)

    rows = window.sources.clamp(min=0)
    own = choice(rows.flatten()).view_as(rows)
    return HeldOutWindow(window, encoded, own, choice(window.anchors))


@torch.no_grad()
def held_out_scores(model: Denoiser, windows: Sequence[HeldOutWindow]) -> HeldOutScores:
    """Scores of all windows. Every process passes its own share."""
    device = model.mask.device
    runs = torch.zeros(2, dtype=torch.float64, device=device)
    count = 0
    ends: list[tuple[Tensor, Tensor]] = []
    canvas_ends: list[tuple[Tensor, Tensor]] = []  # one hole's each: where it could end, and does
    for held in windows:
        window, goes_on = held.window, held.goes_on
        shown = window.targets.clone()
        shown[window.at_end, 0] = goes_on[window.at_end]
        hidden = canvases(model, window, held.encoded, shown, window.known)
        drafting = ~window.at_end
        for index, follows in enumerate((True, False)):
            drafted = draft(model, hidden, shown[:, 0], follows=follows)
            agreed = (drafted == held.own)[drafting, 1:]
            runs[index] += agreed.int().cumprod(dim=1).sum()
        count += int(drafting.sum())
        logits = model.end_logits(held.encoded.taps[None])[0]
        canvas_logits = model.canvas_end_logits(hidden)
        is_own = window.at_end | (window.targets[:, 0] == goes_on)
        for end in (window.may_end == 1).nonzero()[:, 0].tolist():
            hole = torch.arange(max(0, end + 1 - HOLE_TOKENS), end + 1, device=device)
            hole = hole[window.branch[hole] == window.branch[end]]
            hole = hole[window.may_end[hole] >= 0]
            ends.append((logits[hole], window.may_end[hole] == 1))
            mine = is_own & (window.branch[window.anchors] == window.branch[end])
            canvas_ends.append((canvas_logits[mine], window.at_end[mine]))
    with_follow, parallel, total = distributed.total(*runs.tolist(), count, device=device)
    total = max(total, 1)
    return HeldOutScores(
        1 + with_follow / total,
        1 + parallel / total,
        end_scores(ends),
        end_scores(canvas_ends),
    )


@torch.no_grad()
def draft(model: Denoiser, hidden_KCE: Tensor, first_K: Tensor, *, follows: bool) -> Tensor:
    """(K, C): the likeliest token of each slot but the first, which is given; with `follows`, each
    is told the one before it."""
    if not follows:
        rest = model.draft_ids[model.logits(hidden_KCE[:, 1:]).argmax(dim=-1)]
        return torch.cat((first_K[:, None], rest), dim=1)
    drafted = [first_K]
    for slot in range(1, hidden_KCE.shape[1]):
        state = model.follow(hidden_KCE[:, slot], drafted[-1])
        drafted.append(model.draft_ids[model.logits(state).argmax(dim=-1)])
    return torch.stack(drafted, dim=1)


def end_scores(holes: Sequence[tuple[Tensor, Tensor]]) -> EndScores:
    """The threshold (a probability) with the best F1, and what it gives. Of each hole the logits of
    its tokens, and which of them is the last one."""
    if not holes:
        return EndScores(1.0, 0.0, 0.0, 0.0)
    logits, is_end = (torch.cat(parts) for parts in zip(*holes, strict=True))
    order = logits.argsort(descending=True)
    hits = is_end[order].cumsum(0).double()
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    recall = hits / hits[-1]
    best = int((2 * precision * recall / (precision + recall).clamp(min=1e-9)).argmax())
    threshold = float(logits[order[best]])
    # The first above it is the last of the hole: nothing before it is.
    exact = sum(bool((found >= threshold).equal(last)) for found, last in holes) / len(holes)
    return EndScores(
        torch.tensor(threshold).sigmoid().item(),
        float(precision[best]),
        float(recall[best]),
        exact,
    )


def thresholds(scores: HeldOutScores) -> dict[str, float]:
    """What a checkpoint says of its two ways to tell the end."""
    return {"end": scores.end.threshold, "canvas_end": scores.canvas_end.threshold}


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures for people."""
    return {k: rounded(v) if isinstance(v, dict) else round(v, 4) for k, v in figures.items()}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m model.training.progress", description="Score a denoiser on held-out files."
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--backbone", type=Path, required=True, help="GGUF file or folder")
    parser.add_argument("--corpus", type=Path, required=True, help="a packed corpus")
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--save", action="store_true", help="keep the thresholds that it finds")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a JSON object of the scores; returns the exit code."""
    args = parse_args(argv)
    try:
        backbone = load_backbone(args.backbone, dtype=torch.bfloat16)
        model = load_denoiser(
            args.checkpoint, backbone.digest, backbone.model, dtype=torch.bfloat16
        )
        documents = load_documents(args.corpus, "heldout.jsonl.gz")
        # Other windows than those that a run keeps its best by.
        sampler = WindowSampler(documents, backbone.tokenizer, HELD_OUT_SHAPE, 2, draft_only=True)
        forward = TorchForward(backbone.model, tapped_layers=model.config.taps)
        numbers = tqdm(range(args.windows), desc="scoring", unit="window")
        scores = held_out_scores(model, [prepare(forward, sampler.window(i)) for i in numbers])
        if args.save:
            facts = read_config(args.checkpoint)["training"]
            save_denoiser(
                args.checkpoint, model, backbone, thresholds=thresholds(scores), training=facts
            )
    except (ValueError, OSError, CheckpointError) as error:
        print(f"scoring: {error}", file=sys.stderr)
        return 1
    print(json.dumps(rounded(asdict(scores))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
