"""Weights in eight bits (e4m3) for cards that multiply them: half the bytes of bf16 to read, which
is what a forward over few rows waits for.

Each row of a weight, and each row of what it multiplies, has a scale of its own that maps its
largest entry to the largest float8 (Micikevicius et al., arXiv 2209.05433).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST = 1e-12
"""A row whose largest entry is below this counts as one of zeros."""
MIN_CAPABILITY = (8, 9)

Quantise = Callable[[Tensor], tuple[Tensor, Tensor]]


def is_supported(device: torch.device) -> bool:
    """Whether the device multiplies float8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as float8 (same shape), and their float32 scales (…, 1): x is about their product."""
    largest = x.abs().amax(dim=-1, keepdim=True).float()
    scale = largest.clamp(min=SMALLEST) / LARGEST
    return (x / scale).to(FLOAT8), scale


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """A weight (out, in), both multiples of 16, for `linear`."""

    rows: Tensor
    scale: Tensor
    """(out, 1)."""

    @classmethod
    def of(cls, weight: Tensor) -> Float8Weight:
        """Quantise a weight. Raises `ValueError` for a size that the card cannot multiply."""
        cls.check_size(weight)
        return cls(*quantised(weight.detach()))

    @staticmethod
    def check_size(weight: Tensor) -> None:
        """Raise `ValueError` for a size that the card cannot multiply."""
        if weight.shape[0] % 16 or weight.shape[1] % 16:
            raise ValueError(
                f"a weight of {tuple(weight.shape)} cannot be float8: sizes must divide by 16; "
                "use dtype bfloat16"
            )

    def split(self, sizes: list[int]) -> list[Float8Weight]:
        """Views of so many rows each."""
        parts = zip(self.rows.split(sizes), self.scale.split(sizes), strict=True)
        return [Float8Weight(rows, scale) for rows, scale in parts]


def linear(x: Tensor, weight: Tensor | Float8Weight, quantise: Quantise = quantised) -> Tensor:
    """(…, in) -> (…, out), in the dtype of x; `quantise` is `quantised`, maybe a faster one."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight)
    rows, scale = quantise(x.flatten(0, -2))
    if not is_supported(x.device):  # what the card would compute, for tests without one
        product = rows.float() @ weight.rows.float().T * scale * weight.scale.T
        return product.to(x.dtype).unflatten(0, x.shape[:-1])
    product = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        rows, weight.rows.T, scale_a=scale, scale_b=weight.scale.T, out_dtype=x.dtype
    )
    return product.unflatten(0, x.shape[:-1])
