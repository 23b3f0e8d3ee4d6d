"""Layers' products with weights in eight bits, which take half the room of bf16 and a quarter of
fp32.

* int8: one scale a row of the weight (LLM.int8(), arXiv 2208.07339, without its outliers), on any
  device. Rows become the dtype of the input on the way, so this saves room, not time.
* float8: `float8`, on cards that multiply it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.engine.run.float8 import Float8Weight
from model.engine.run.float8 import linear as float8_linear


class Int8Linear(nn.Module):
    """A product with a weight of int8 rows; inputs and bias keep their dtype."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows = linear.weight.detach().float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (rows / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        # Up to 127 is exact in every dtype; the scale stays float32.
        product = (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)
        return product if self.bias is None else product + self.bias


class Float8Linear(nn.Module):
    """A product with a float8 weight; inputs and bias keep their dtype."""

    def __init__(self, linear: nn.Linear, rows: Float8Weight | None = None) -> None:
        """`rows`: the weight, where it is float8 already. Raises `ValueError` for sizes that do not
        divide by 16."""
        super().__init__()
        self.rows = Float8Weight.of(linear.weight) if rows is None else rows
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        product = float8_linear(x, self.rows)
        return product if self.bias is None else product + self.bias
