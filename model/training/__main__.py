"""`mezzotint train`: local folders of code -> a denoiser. Also `python -m model.training`."""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from model.api import CheckpointError
from model.backbone.checkpoint import Backbone, load_backbone
from model.denoiser import Denoiser, DenoiserConfig, load_denoiser
from model.training import distributed
from model.training.corpus import Document, is_packed
from model.training.progress import HELD_OUT_SHAPE
from model.training.trainer import Trainer, TrainingConfig, draft_vocabulary, read_state
from model.training.windows import WindowSampler, WindowShape, load_documents

logger = logging.getLogger(__name__)

DRAFT_VOCABULARY = 24_576


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; defaults are those of the configs."""
    training, shape = TrainingConfig(), WindowShape()
    parser = argparse.ArgumentParser(
        prog="mezzotint train",
        description="Train a denoiser over a backbone on local folders of code (or a packed "
        "corpus).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", type=Path, help="folders of code, or a packed corpus")
    parser.add_argument("--backbone", type=Path, required=True, help="GGUF file or folder")
    parser.add_argument(
        "--out", type=Path, required=True, help="run directory; resumed if it is one"
    )
    parser.add_argument("--from", dest="start", type=Path, help="denoiser to start from")
    parser.add_argument("--minutes", type=float, default=training.minutes, help="length of the run")
    parser.add_argument(
        "--cooldown", type=float, metavar="MINUTES",
        help="resume the run only to let its learning rate fall to zero over this long",
    )  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=training.learning_rate)
    parser.add_argument("--windows", type=int, default=training.windows, help="windows a step")
    parser.add_argument("--canvases", type=int, default=shape.canvases, help="canvases a window")
    parser.add_argument(
        "--passes", type=int, default=2,
        help="times that a text is come back to, with other canvases",
    )  # fmt: skip
    parser.add_argument("--slots", type=int, default=shape.slots, help="slots of most canvases")
    parser.add_argument(
        "--teacher", type=float, default=training.teacher_share, metavar="SHARE",
        help="of the backbone's distribution in the target; the rest is the true token",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, default=3, help="of a new denoiser")
    parser.add_argument(
        "--draft-vocabulary", type=int, default=DRAFT_VOCABULARY, metavar="TOKENS",
        help="of a new denoiser: the tokens that code uses most",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="to compute in")
    parser.add_argument(
        "--decontaminate", nargs="*", type=Path, default=[], metavar="FILE",
        help="benchmark files (.jsonl[.gz]) whose text must not be trained on",
    )  # fmt: skip
    parser.add_argument(
        "--any-licence", action="store_true", help="train on all sources: for code of your own"
    )
    parser.add_argument("--json", action="store_true", help="end with a JSON line")
    return parser.parse_args(argv)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in; `auto` is bf16 on a GPU, on a CPU what it multiplies faster.

    Not every processor with bf16 instructions gains by them (docs/training.md).
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    fp32_wins = _seconds_to_multiply(torch.float32) < _seconds_to_multiply(torch.bfloat16)
    (agreed,) = distributed.largest(fp32_wins, device=device)
    return torch.float32 if agreed else torch.bfloat16


def _seconds_to_multiply(dtype: torch.dtype) -> float:
    a, b = torch.randn(2048, 256, dtype=dtype), torch.randn(256, 768, dtype=dtype)
    timings: list[float] = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, b)
        timings.append(time.perf_counter() - started)
    return min(timings)


def training_device(name: str) -> torch.device:
    """`auto` is the first GPU, or this process's own one under `torchrun`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here; train with --device cpu")
    if name == "cuda":
        name = f"cuda:{distributed.local_rank() % torch.cuda.device_count()}"
    return torch.device(name)


def prepare_corpus(args: argparse.Namespace) -> Path:
    """The packed corpus to train on; packs folders of code into the run directory once."""
    missing = [str(source) for source in args.sources if not source.is_dir()]
    if missing:
        raise ValueError(f"not a folder: {', '.join(missing)}")
    if len(args.sources) == 1 and is_packed(args.sources[0]):
        return args.sources[0]
    corpus = args.out / "corpus"
    if not is_packed(corpus):
        # What packing needs (tree-sitter, MinHash) is not asked of a machine that only trains.
        from model.training.corpus.packing import pack
        from model.training.corpus.sources import find_source

        sources = [find_source(folder) for folder in args.sources]
        pack(sources, corpus, args.decontaminate, any_licence=args.any_licence)
    return corpus


def prepare_model(
    args: argparse.Namespace,
    backbone: Backbone,
    documents: Sequence[Document],
    device: torch.device,
    dtype: torch.dtype,
) -> Denoiser:
    """The starting point: the sizes of this run's own state, `--from`, or a new denoiser that
    begins as the backbone's last layers."""
    torch.manual_seed(0)
    state = read_state(args.out, backbone)
    if state is None and args.start is not None:
        model = load_denoiser(
            args.start, backbone.digest, backbone.model, device=device, dtype=dtype
        )
        return model.requires_grad_(True).train()
    if state is not None:
        draft_ids = state["draft_ids"]
    else:
        draft_ids = draft_vocabulary(documents, backbone.tokenizer, args.draft_vocabulary)
    config = DenoiserConfig.of(backbone.model.config, num_layers=args.layers)
    model = Denoiser.of(config, backbone.model, draft_ids)
    model.start_from(backbone.model)
    return model.to(device=device, dtype=dtype)


def train(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Run the command; returns the figures of its last line."""
    config = TrainingConfig(
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        windows=args.windows,
        teacher_share=args.teacher,
    )
    shape = WindowShape(canvases=args.canvases, slots=args.slots, passes=args.passes)
    dtype = training_dtype(args.dtype, device)
    backbone = load_backbone(args.backbone, device=device, dtype=dtype)
    backbone.model.requires_grad_(False)
    with distributed.first_alone():  # packs the corpus once
        corpus = prepare_corpus(args)
    documents = load_documents(corpus)
    held_out = load_documents(corpus, "heldout.jsonl.gz")
    logger.info("corpus: %d files, %d held out", len(documents), len(held_out))
    model = prepare_model(args, backbone, documents, device, dtype)
    tokenizer = backbone.tokenizer
    trainer = Trainer(
        model,
        backbone,
        WindowSampler(documents, tokenizer, shape, config.seed),
        WindowSampler(held_out, tokenizer, HELD_OUT_SHAPE, config.seed + 1, draft_only=True),
        config,
        args.out,
        device,
    )
    if trainer.resume():
        logger.info("resuming %s at step %d", args.out, trainer.step)
    elif args.start is not None:
        trainer.save()  # the model to beat: what is kept is never worse than what it came from
    if args.cooldown is not None:
        trainer.cool_down(args.cooldown)
    best = trainer.run()
    return {
        "held_out_tokens_per_forward": round(best, 4),
        "steps": trainer.step,
        "minutes": round(trainer.seconds / 60, 2),
    }


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of returning it to the kernel after every operation.

    A step on a CPU allocates and frees gigabytes, and faulting them in again costs more than the
    arithmetic (docs/experiments.md has the figures). Does nothing where there is no glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names and numbers of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 * 2**20)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = parse_args(argv)
    try:
        device = training_device(args.device)
        with distributed.joined(device):
            figures = train(args, device)
            if distributed.rank() > 0:
                return 0
    except (ValueError, OSError, CheckpointError, RuntimeError, FloatingPointError) as error:
        print(f"mezzotint train: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(figures))
    else:
        print(
            f"{figures['held_out_tokens_per_forward']:.2f} held-out tokens a verify forward after "
            f"{figures['steps']} steps; the best checkpoint is {args.out / 'checkpoint'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
