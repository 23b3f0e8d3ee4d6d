"""How much is what a document repeats worth, and how strongly should it weigh?

Holes are cut into files that the model was not trained on. At a few places of each, everything left
of the place decided as it truly was, the report compares the chance that the denoiser gives the
true token with the chance after the document's n-grams have corrected it (`model.engine.n_grams`).
The strengths that make the true tokens likeliest are fitted on half of the files and tried on the
other half; `--save` writes them into the checkpoint, which uses them from then on. (The engine
never lets n-grams speak against a hole's end; here they may, so ends look worse than they are.)
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.api import SHIPPED_WEIGHTS
from model.evaluation.holes import Hole, add_hole_arguments, check_hole_arguments, cut_holes
from model.evaluation.report import Figures, circumstances, make_room, write_report
from model.evaluation.sources import load_sources

if TYPE_CHECKING:
    from model.engine.n_grams import NGrams
    from model.engine.runner import Runner
    from model.infill import StreamLayout

ORDERS = (1, 2, 4)
"""More of them, or others, gained less than 0.01 nats (docs/experiments.md)."""
START = (10.0, 4.0, 2.0)
"""Strengths that the fit sets out from."""
BOUNDS = (-6.0, 14.0)
"""Of the strengths' logarithms: beyond them a context decides alone, or says nothing."""
PLACES = 4
"""Places at most that are looked at in a hole."""
MAX_SLOTS = 31

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """A slot whose true token is known, and what speaks for that."""

    file: str
    is_first: bool
    """Whether it is the hole's first slot, cut at the cursor."""
    is_end: bool
    """Whether the hole ends there."""
    chance: float
    """The denoiser's, of the true token, or of the hole's end where it ends."""
    counts: tuple[tuple[float, int, int], ...]
    """For each order: occurrences before the true token, all of them, different tokens."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mezzotint evaluate n-grams`."""
    add_hole_arguments(parser, limit=1000)
    parser.add_argument(
        "--model", type=Path, default=SHIPPED_WEIGHTS, metavar="PATH",
        help="checkpoint directory (the shipped one)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (%(default)s)")
    parser.add_argument(
        "--save", action="store_true", help="write the strengths into the checkpoint"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/n_grams.json"), metavar="FILE",
        help="the report (%(default)s)",
    )  # fmt: skip
    parser.set_defaults(engine=None)


def check_arguments(args: argparse.Namespace) -> None:
    """Check what no single option can tell. Raises `ValueError`."""
    check_hole_arguments(args)


def run(args: argparse.Namespace) -> Figures:
    """Measure, fit, write the report; returns the figures. Raises `OSError`, `ValueError`,
    `CompletionError`."""
    holes = cut_holes(load_sources(args.data), args.limit, args.seed)
    make_room(args.out)
    places = find_places(args.model, args.device, holes, args.seed)
    files = sorted({place.file for place in places})
    if len(files) < 2:
        raise ValueError("the holes are all in one file; name more files, half are for the fit")
    random.Random(args.seed).shuffle(files)
    for_fit = set(files[::2])
    fitting = [place for place in places if place.file in for_fit]
    rest = [place for place in places if place.file not in for_fit]
    strengths = fitted_strengths(fitting)
    figures: Figures = {
        "strengths": {str(k): round(s, 2) for k, s in zip(ORDERS, strengths, strict=True)},
        "fitted on": _compared(fitting, strengths),
        "tried on": _compared(rest, strengths),
        "of these the first behind the cursor": _compared(
            [place for place in rest if place.is_first], strengths
        ),
        "of these the ends": _compared([place for place in rest if place.is_end], strengths),
    }
    write_report(args.out, {"figures": figures, "circumstances": circumstances(args)})
    if args.save:
        from model.checkpoint import save_n_gram_strengths

        save_n_gram_strengths(args.model, zip(ORDERS, strengths, strict=True))
    return figures


def _compared(places: Sequence[Place], strengths: Sequence[float]) -> Figures:
    if not places:
        return {"tokens": 0}
    return {
        "tokens": len(places),
        "nats without": round(-float(np.log(_chances(places, ())).mean()), 3),
        "nats with": round(-float(np.log(_chances(places, strengths)).mean()), 3),
    }


# --- The fit --------------------------------------------------------------------------------


def fitted_strengths(places: Sequence[Place]) -> list[float]:
    """The strengths, one an order, that make the true tokens of `places` likeliest."""
    logs = np.log(START)
    step = 1.0
    best = _loss(places, logs)
    while step > 0.02:  # one coordinate at a time: three numbers, and the loss is smooth
        improved = False
        for index in range(len(logs)):
            for change in (step, -step):
                tried = logs.copy()
                tried[index] += change
                loss = _loss(places, tried)
                if loss < best - 1e-9:  # not by rounding
                    logs, best, improved = tried, loss, True
        if not improved:
            step /= 2
    return [float(strength) for strength in np.exp(np.clip(logs, *BOUNDS))]


def _loss(places: Sequence[Place], logs: Floats) -> float:
    return -float(np.log(_chances(places, np.exp(np.clip(logs, *BOUNDS)))).mean())


def _chances(places: Sequence[Place], strengths: Sequence[float] | Floats) -> Floats:
    """The chance (N,) of each true token, corrected with these strengths; none corrects nothing."""
    chances = np.array([max(place.chance, 1e-12) for place in places])
    counts = np.array([place.counts for place in places], dtype=float)  # (N, orders, 3)
    for index, strength in enumerate(strengths):
        of_token, total, distinct = counts[:, index].T
        weight = strength * np.maximum(distinct, 1)
        chances = (of_token + weight * chances) / (total + weight)
    return chances


# --- What speaks for the true tokens --------------------------------------------------------


def find_places(model: Path, device: str, holes: Sequence[Hole], seed: int) -> list[Place]:
    """A few slots of each hole that fits a canvas. Raises `CheckpointError`."""
    from model.checkpoint import load_checkpoint
    from model.engine.model_runner import ModelRunner
    from model.engine.n_grams import NGrams, Strength
    from model.engine.sampler import Vocabulary
    from model.infill import StreamLayout

    denoiser, tokenizer = load_checkpoint(model, device=device)
    vocabulary = Vocabulary.of(
        tokenizer, denoiser.config.vocab_size, denoiser.embedding.weight.device
    )
    start = [Strength(*each) for each in zip(ORDERS, START, strict=True)]
    n_grams = NGrams(tokenizer, vocabulary, start)
    runner, layout = ModelRunner(denoiser), StreamLayout(tokenizer)
    draw, places = random.Random(seed), list[Place]()
    for hole in tqdm(holes, desc="reading", unit="hole", smoothing=0.1):
        places += _places_of(hole, runner, n_grams, layout, draw)
    return places


def _places_of(
    hole: Hole, runner: Runner, n_grams: NGrams, layout: StreamLayout, draw: random.Random
) -> list[Place]:
    from model.engine.sequence import Fill, SamplingParams, Sequence
    from model.infill import CanvasLayout

    encode, vocabulary = layout.tokenizer.encode, n_grams.vocabulary
    before, truth, after = encode(hole.prefix), encode(hole.middle), encode(hole.suffix)
    if not 0 < len(truth) <= MAX_SLOTS:
        return []
    language = hole.source.language
    fill = Fill(
        prefix=layout.prefix_stream(before, language, starts_file=hole.starts_file),
        suffix=layout.suffix_stream(after, language, ends_file=hole.ends_file),
        layout=CanvasLayout.for_holes(MAX_SLOTS),
        document=(
            n_grams.text(before, precedes_hole=True),
            n_grams.text(after, precedes_hole=False),
        ),
    )
    targets = [*truth, vocabulary.end_id]
    chosen = draw.sample(range(len(targets)), min(len(targets), PLACES))
    batch = [
        Sequence.of(
            fill,
            SamplingParams(),
            mask_id=vocabulary.mask_id,
            end_id=vocabulary.end_id,
            max_context=runner.max_context,
        )
        for _ in chosen
    ]
    for sequence, slot in zip(batch, chosen, strict=True):
        sequence.canvas[:slot] = truth[:slot]
    opened = runner.open_contexts(batch)
    logits = runner.denoise(opened)
    places: list[Place] = []
    slot_of = {id(sequence): slot for sequence, slot in zip(batch, chosen, strict=True)}
    for sequence, logits_CV in zip(opened, logits, strict=True):
        slot = slot_of[id(sequence)]
        following = n_grams.following(sequence, sequence.layout.holes()[0])
        denoiser_V = n_grams.posterior(logits_CV[slot], (), following, may_end=True)
        found = [
            (n_grams.shared(c, denoiser_V, following).get(targets[slot], 0.0), c.total(), len(c))
            for c in n_grams.counts_at(sequence, slot)
        ]
        places.append(
            Place(
                file=hole.source.name,
                is_first=slot == 0,
                is_end=slot == len(truth),
                chance=denoiser_V[targets[slot]].item(),
                counts=tuple(found) + ((0, 0, 0),) * (len(ORDERS) - len(found)),
            )
        )
        runner.close_context(sequence)
    return places
