"""What all parts of a benchmark share: the model, the device, the text to measure with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from model.api import SHIPPED_WEIGHTS, InfillRequest
from model.checkpoint import load_checkpoint
from model.denoiser import Denoiser, DenoiserConfig
from model.evaluation.holes import cut_holes
from model.evaluation.problems import load_problems
from model.evaluation.sources import SourceText, load_sources
from model.serving.completer import EngineCompleter
from model.serving.loading import completer_of, load_completer
from model.tokenizer import CodeTokenizer

OWN_FILES = SHIPPED_WEIGHTS.parent
"""Our own code, which no checkpoint of ours was trained on: what is measured with by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A hole and what truly was in it."""

    request: InfillRequest
    middle: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and with what a benchmark runs. `quick` makes everything small enough for a test.

    Raises `ValueError` for values that do not go together.
    """

    model: Path = SHIPPED_WEIGHTS
    device: str = "auto"
    dtype: str = "auto"
    paths: tuple[Path, ...] = ()
    data: Path | None = None
    """HumanEval-Infilling file to take prompts from, instead of holes in files."""
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        if self.data is not None and self.paths:
            raise ValueError("prompts come from --data or from PATHS; give one of them")

    @cached_property
    def torch_device(self) -> torch.device:
        """The device, also where `auto` means it. Raises `ValueError` for one that is not there."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"device {self.device!r} is not known; use auto, cpu or cuda"
            ) from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {self.device!r} is not there; use auto or cpu")
        return device

    @property
    def on_cuda(self) -> bool:
        """Whether it is a GPU's figures that we measure."""
        return self.torch_device.type == "cuda"

    def size(self, *, full: int, gpu: int, quick: int) -> int:
        """How many of something to measure: on a CPU, on a GPU, and where it only has to run."""
        return quick if self.quick else gpu if self.on_cuda else full

    # ---- models --------------------------------------------------------------------------

    def open_completer(self) -> EngineCompleter:
        """The checkpoint, loaded. Raises `CheckpointError`."""
        return load_completer(self.model, device=self.device, dtype=self.dtype)

    @cached_property
    def tokenizer(self) -> CodeTokenizer:
        """The checkpoint's tokenizer."""
        return load_checkpoint(self.model)[1]

    @cached_property
    def shape(self) -> DenoiserConfig:
        """The checkpoint's sizes."""
        return load_checkpoint(self.model)[0].config

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of random models: the engine's usual one for the device."""
        if self.dtype == "auto":
            return torch.bfloat16 if self.on_cuda else torch.float32
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def open_random(self, shape: DenoiserConfig) -> EngineCompleter:
        """A completer around a model of a shape, with random weights made on the device."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.torch_dtype)
        try:
            with torch.device(self.torch_device):
                torch.manual_seed(self.seed)
                model = Denoiser(shape)
        finally:
            torch.set_default_dtype(before)
        for parameter in model.parameters():
            # Nor zeros, which a processor multiplies with less power, so at a higher clock.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        return completer_of(model.requires_grad_(False).eval(), self.tokenizer)

    # ---- text ----------------------------------------------------------------------------

    @cached_property
    def sources(self) -> list[SourceText]:
        """The files to measure with. Raises `OSError`, `DocumentError` and `ValueError`."""
        return load_sources(self.paths or (OWN_FILES,))

    def text_of(self, num_tokens: int) -> str:
        """Source text of about so many tokens."""
        return self.tokenizer.decode(self.tokens_of(num_tokens))

    def tokens_of(self, num_tokens: int) -> list[int]:
        """Tokens of source text, the files one after the other, again and again."""
        ids: list[int] = []
        while len(ids) < num_tokens:
            for source in self.sources:
                ids += self.tokenizer.encode(source.text)
                if len(ids) >= num_tokens:
                    break
        return ids[:num_tokens]

    def prompts(self, count: int) -> list[Prompt]:
        """Holes with their truth, the same ones for the same seed."""
        if self.data is None:
            return [
                Prompt(
                    request=InfillRequest(
                        prefix=hole.prefix,
                        suffix=hole.suffix,
                        starts_file=hole.starts_file,
                        ends_file=hole.ends_file,
                        language=hole.source.language,
                    ),
                    middle=hole.middle,
                )
                for hole in cut_holes(self.sources, count, self.seed)
            ]
        problems = [problem for problem in load_problems(self.data) if problem.middle]
        if not problems:
            raise ValueError(f"{self.data} holds no solutions to compare fills with")
        drawn = random.Random(self.seed).sample(problems, min(count, len(problems)))
        return [
            Prompt(
                request=InfillRequest(
                    prefix=problem.prefix, suffix=problem.suffix, language=problem.language
                ),
                middle=problem.middle,
            )
            for problem in drawn
        ]


def shuffled_rounds(names: Sequence[str], rounds: int, seed: int) -> list[str]:
    """Every name once a round, each round in an order of its own: so that what is compared shares
    the machine's moods."""
    draw = random.Random(seed)
    return [name for _ in range(rounds) for name in draw.sample(names, len(names))]
