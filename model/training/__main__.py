"""`mezzotint train`: local folders of code -> a checkpoint. Also `python -m model.training`."""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.api import CheckpointError
from model.checkpoint import load_checkpoint
from model.denoiser import Denoiser, DenoiserConfig
from model.tokenizer import CodeTokenizer
from model.training import distributed
from model.training.corpus import is_packed
from model.training.data import BatchShape, WindowSampler, load_documents
from model.training.trainer import Trainer, TrainingConfig

logger = logging.getLogger(__name__)

HEAD_SIZE = 64
"""Channels of an attention head; the number of heads follows from the hidden size."""
TOKENIZER_CHARS = 20_000_000
"""The tokenizer is trained on this much text of the corpus."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; defaults are those of the configs."""
    training = TrainingConfig()
    parser = argparse.ArgumentParser(
        prog="mezzotint train",
        description="Train an infill denoiser on local folders of code (or a packed corpus).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", type=Path, help="folders of code, or a packed corpus")
    parser.add_argument(
        "--out", type=Path, required=True, help="run directory; resumed if it is one"
    )
    parser.add_argument("--from", dest="start", type=Path, help="checkpoint to start from")
    parser.add_argument("--minutes", type=float, default=training.minutes, help="length of the run")
    parser.add_argument(
        "--cooldown", type=float, metavar="MINUTES",
        help="resume the run only to let its learning rate fall to zero over this long",
    )  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=training.learning_rate)
    parser.add_argument(
        "--certainty", type=float, default=training.certainty_weight, metavar="WEIGHT",
        help="of the certainty loss, to teach a trained model few-step decoding: try 0.5",
    )  # fmt: skip
    parser.add_argument("--windows", type=int, default=8, help="windows a batch")
    _add_sizes(parser)
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


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    denoiser = DenoiserConfig(vocab_size=8192)
    parser.add_argument(
        "--context-tokens", type=int, metavar="N",
        help="length of each of a window's two streams (the model's own; 384 for a new one)",
    )  # fmt: skip
    parser.add_argument("--hidden-size", type=int, default=denoiser.hidden_size)
    parser.add_argument("--layers", type=int, default=denoiser.num_layers)
    parser.add_argument("--vocab-size", type=int, default=denoiser.vocab_size)


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


def denoiser_config(
    vocab_size: int, hidden_size: int, layers: int, *, max_context: int
) -> DenoiserConfig:
    """A fresh model's sizes; all but the given ones follow from the hidden size."""
    num_heads = max(1, hidden_size // HEAD_SIZE)
    return DenoiserConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=layers,
        num_heads=num_heads,
        num_kv_heads=1 if num_heads % 2 else num_heads // 2,
        ffn_size=3 * hidden_size,
        max_context=max_context,
    )


def prepare_model(args: argparse.Namespace, texts: Sequence[str]) -> tuple[Denoiser, CodeTokenizer]:
    """The starting point: this run's own checkpoint, `--from`, or fresh weights and tokenizer."""
    tokenizer_file = args.out / "tokenizer.json"
    if (args.out / "checkpoint").is_dir():
        return load_checkpoint(args.out / "checkpoint")
    if args.start is not None:
        return load_checkpoint(args.start)
    if tokenizer_file.is_file():
        tokenizer = CodeTokenizer.from_file(tokenizer_file)
    else:
        sample, chars = [], 0
        for text in texts:
            sample.append(text)
            chars += len(text)
            if chars > TOKENIZER_CHARS:
                break
        tokenizer = CodeTokenizer.train(sample, args.vocab_size)
        args.out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(tokenizer_file)
    config = denoiser_config(
        tokenizer.vocab_size,
        args.hidden_size,
        args.layers,
        max_context=args.context_tokens or BatchShape().stream_tokens,
    )
    torch.manual_seed(0)
    return Denoiser(config), tokenizer


def train(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Run the command; returns the figures of its last line."""
    shape = BatchShape(windows=args.windows)
    config = TrainingConfig(
        minutes=args.minutes, learning_rate=args.learning_rate, certainty_weight=args.certainty
    )
    with distributed.first_alone():  # packs the corpus and trains the tokenizer once
        corpus = prepare_corpus(args)
        documents = load_documents(corpus)
        held_out = load_documents(corpus, "heldout.jsonl.gz")
        model, tokenizer = prepare_model(args, [d.text for d in documents])
    length = args.context_tokens or model.config.max_context
    shape = replace(shape, stream_tokens=length)
    model.config = replace(model.config, max_context=max(length, model.config.max_context))
    logger.info("corpus: %d files, %d held out", len(documents), len(held_out))
    trainer = Trainer(
        model,
        tokenizer,
        WindowSampler(documents, tokenizer, shape, config.seed),
        WindowSampler(held_out, tokenizer, shape, config.seed + 1),
        config,
        args.out,
        device,
        training_dtype(args.dtype, device),
    )
    if trainer.resume():
        logger.info("resuming %s at step %d", args.out, trainer.step)
    elif args.start is not None:
        trainer.save()  # the model to beat: what is kept is never worse than what it came from
    if args.cooldown is not None:
        trainer.cool_down(args.cooldown)
    best = trainer.run()
    return {
        "held_out_accuracy": round(best, 4),
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
            f"{100 * figures['held_out_accuracy']:.1f} % of held-out tokens right in one forward "
            f"after {figures['steps']} steps; "
            f"the best checkpoint is {args.out / 'checkpoint'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
