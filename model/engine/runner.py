"""What the engine needs of whatever runs a model: contexts opened and closed, forwards in between.

Imports no torch at run time. Such runners are `model_runner` (cached streams), two on top of it,
`openvino_runner` and `graphed_runner` (CUDA), and `joint_runner` (open checkpoints).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from model.engine.sequence import Sequence

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DecidedCanvas:
    """A canvas after steps whose decisions the runner made itself."""

    ids: list[int]
    confidences: list[float]
    """As `Sequence.confidences`."""
    num_steps: int
    """Steps that had something to decide."""
    is_broken: bool
    """Whether its logits were not finite; no slot was decided from then on."""


class Runner(Protocol):
    """A model on a device. Its methods are called from one thread, the engine's.

    Shape letters: B sequences, C slots of the largest canvas, V vocabulary.
    """

    @property
    def device(self) -> torch.device:
        """Where its logits are."""
        ...

    @property
    def max_context(self) -> int:
        """Tokens that a stream may have."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of the contexts that it keeps."""
        ...

    @property
    def runtime(self) -> str:
        """What computes its forwards, with its version."""
        ...

    @property
    def problems(self) -> list[str]:
        """Why steps are slower than they should be on this device."""
        ...

    def open_contexts(self, batch: Items[Sequence]) -> list[Sequence]:
        """Make a batch ready for forwards; returns those that can take part in this step. The
        first always can. Raises `EngineOverloadedError` where it cannot all the same."""
        ...

    def close_context(self, sequence: Sequence) -> None:
        """A sequence is done, or its streams change. Idempotent."""
        ...

    def denoise(self, batch: Items[Sequence]) -> torch.Tensor:
        """Logits (B, C, V) of open canvases; what lies behind a smaller one means nothing. They
        hold until the next forward."""
        ...

    def next_logits(self, batch: Items[Sequence]) -> torch.Tensor:
        """Logits (B, V) of the token after each open prefix stream: causal decoding."""
        ...

    def causal_log_probs(
        self, sequence: Sequence, continuations: Items[Items[int]]
    ) -> list[list[float]]:
        """Log-probability (nats) of each token of each continuation of the prefix stream."""
        ...

    def decides(self, sequence: Sequence) -> bool:
        """Whether `decide` takes such a sequence; the others go through `denoise` and sampler."""
        ...

    def decide(self, batch: Items[Sequence], num_steps: int) -> list[DecidedCanvas]:
        """Take so many steps, with the sampler's decisions, before anybody looks. The contexts are
        open, and the sequences stay as they were."""
        ...

    def check_integrity(self) -> None:
        """Raise `AssertionError` when what is cached contradicts itself."""
        ...

    def drop_cache(self) -> None:
        """Forget every context, whatever state the books are in."""
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch or a shorter window might have worked."""
    # torch's own error is a RuntimeError of this name, and not only CUDA raises it.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )
