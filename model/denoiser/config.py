"""A denoiser's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.transformer import TransformerConfig

CANVAS_SIZE = 16
NUM_TAPS = 5
LAYERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserConfig:
    """Sizes; what its layers have in common with the backbone's is the backbone's.

    Raises `ValueError` on construction for sizes that do not go together.
    """

    backbone: TransformerConfig
    num_layers: int = LAYERS
    taps: tuple[int, ...]
    """Layers of the backbone behind which it reads the hidden states of the context."""
    canvas_size: int = CANVAS_SIZE
    """The most slots of a canvas."""
    end_size: int = 256
    """Inner size of the head that tells where the middle ends."""
    follow_size: int = 256
    """Inner size of what lets a slot see the token before it."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= self.backbone.num_layers:
            raise ValueError(
                f"{self.num_layers} layers; it must be 1 to the backbone's "
                f"{self.backbone.num_layers}"
            )
        wrong = [tap for tap in self.taps if not 0 <= tap < self.backbone.num_layers]
        if wrong or not self.taps:
            raise ValueError(
                f"taps {self.taps}: some of the backbone's layers 0 to "
                f"{self.backbone.num_layers - 1} are to be read"
            )
        for name in ("canvas_size", "end_size", "follow_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    @classmethod
    def of(
        cls,
        backbone: TransformerConfig,
        *,
        num_layers: int = LAYERS,
        taps: Sequence[int] | None = None,
    ) -> DenoiserConfig:
        """The sizes that were measured to be good, for any backbone."""
        num_layers = min(num_layers, backbone.num_layers)
        return cls(
            backbone=backbone,
            num_layers=num_layers,
            taps=tuple(taps or spread_taps(backbone.num_layers, num_layers)),
        )


def spread_taps(backbone_layers: int, layers: int) -> list[int]:
    """Layers to tap: the one that the copied layers continued, the last, and some evenly below."""
    continued = max(backbone_layers - layers - 1, 0)
    below = [round(continued * share) for share in (0.15, 0.45, 0.75)][: NUM_TAPS - 2]
    return sorted({*below, continued, backbone_layers - 1})
