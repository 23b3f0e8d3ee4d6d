"""How much of a canvas is masked at time t, and what a masked slot's loss then weighs.

Masked diffusion (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992): at time t in (0, 1] every slot
is masked independently with probability p(t); the negative ELBO weighs the cross-entropy of a
masked slot by p'(t) / p(t). With the linear schedule p(t) = t that weight is 1/t, whose variance
explodes near t = 0, so times are drawn from [min_time, 1]: the bounded variant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearSchedule:
    """p(t) = t on [min_time, 1]."""

    min_time: float = 0.1
    """Smallest mask rate that is trained. 0.1 of a 32-slot canvas is about three slots."""

    def __post_init__(self) -> None:
        if not 0.0 < self.min_time < 1.0:
            raise ValueError(f"min_time is {self.min_time}; it must lie strictly between 0 and 1")

    def sample_times(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Antithetic times (num,): one per equal stratum of [min_time, 1], in random order.

        Stratifying across the batch lowers the variance of the loss (VDM, arXiv 2107.00630, I.1).
        """
        offsets = torch.rand(1, generator=generator) + torch.arange(num)
        times = self.min_time + (1 - self.min_time) * (offsets / num % 1.0)
        return times[torch.randperm(num, generator=generator)]

    def mask_probability(self, times: Tensor) -> Tensor:
        """p(t), same shape as `times`."""
        return times

    def loss_weight(self, times: Tensor) -> Tensor:
        """p'(t) / p(t), same shape as `times`."""
        return 1.0 / times
