"""What all parts of a benchmark share: the model, the device, the text to measure with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from model.api import InfillRequest
from model.backbone import gguf_model
from model.backbone.checkpoint import is_backbone
from model.backbone.gguf_file import GgufFile
from model.backbone.tokenizer import BackboneTokenizer
from model.engine.draft.verify import VerifyingDecoder
from model.evaluation.holes import cut_holes
from model.evaluation.problems import load_problems
from model.evaluation.sources import SourceText, load_sources
from model.families.configs import read_causal_config
from model.serving.completer import EngineCompleter
from model.serving.loading import load_completer

OWN_FILES = Path(__file__).parents[1]
"""Our own code: what is measured with by default."""


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

    model: Path
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

    # ---- the model -----------------------------------------------------------------------

    def open_completer(self) -> EngineCompleter:
        """The model, loaded. Raises `CheckpointError`."""
        return load_completer(self.model, device=self.device, dtype=self.dtype)

    def require_backbone(self) -> None:
        """Raise `ValueError` for a model that drafts nothing and verifies nothing."""
        if self.model.exists() and not is_backbone(self.model):
            raise ValueError(f"{self.model} is no backbone; measure it with --parts clients,memory")

    @cached_property
    def tokenizer(self) -> BackboneTokenizer:
        """The backbone's tokenizer, without its weights. Raises `CheckpointError`."""
        if self.model.is_dir():
            return BackboneTokenizer.from_directory(self.model, read_causal_config(self.model))
        file = GgufFile(self.model)
        return BackboneTokenizer.from_gguf(file, gguf_model.read_config(file))

    # ---- text ----------------------------------------------------------------------------

    @cached_property
    def sources(self) -> list[SourceText]:
        """The files to measure with. Raises `OSError`, `DocumentError` and `ValueError`."""
        return load_sources(self.paths or (OWN_FILES,))

    def text(self, num_chars: int) -> str:
        """Source text, the files one after the other, again and again."""
        whole = "\n".join(source.text for source in self.sources)
        return (whole * (num_chars // len(whole) + 1))[:num_chars]

    def fresh_texts(self, count: int, num_tokens: int) -> list[str]:
        """Texts of about so many tokens, no two of which begin alike, so that none finds another
        one in a cache."""
        draw = random.Random(self.seed)
        ids = self.tokenizer.encode(self.text(16 * (num_tokens + count)))
        starts = draw.sample(range(max(len(ids) - num_tokens, count)), count)
        return [
            f"# {number}\n" + self.tokenizer.decode(ids[start : start + num_tokens - 4])
            for number, start in enumerate(starts)
        ]

    def prompts(self, count: int) -> list[Prompt]:
        """Holes with their truth, the same ones for the same seed."""
        if self.data is None:
            return [
                Prompt(
                    request=InfillRequest(
                        prefix=hole.prefix,
                        suffix=hole.suffix,
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


def verifying(completer: EngineCompleter) -> VerifyingDecoder:
    """What decodes in a completer of a backbone."""
    decoder = completer.engine.decoder
    assert isinstance(decoder, VerifyingDecoder), "no backbone"
    return decoder


def shuffled_rounds(names: Sequence[str], rounds: int, seed: int) -> list[str]:
    """Every name once a round, each round in an order of its own: so that what is compared shares
    the machine's moods."""
    draw = random.Random(seed)
    return [name for _ in range(rounds) for name in draw.sample(names, len(names))]
