"""The optimizer over fp32 master weights, and the learning-rate schedule.

The model may compute in bf16 (half the memory traffic); its updates are smaller than bf16 can add,
so they are applied to fp32 masters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.training import distributed

DECAY_SHARE = 0.3
"""Of a run's minutes."""
WARMUP_STEPS = 30
VECTOR_RATE = 3.0
"""Rate of norms, biases and embeddings as a share of the matrices'."""


class MasterOptimizer:
    """AdamW on masters; what is no matrix learns at a higher rate and does not decay."""

    def __init__(self, model: nn.Module, *, learning_rate: float, weight_decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        matrices = [t for t in self.masters.values() if t.ndim == 2]
        vectors = [t for t in self.masters.values() if t.ndim != 2]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay},
                {"params": vectors, "lr": learning_rate * VECTOR_RATE, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        )
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def step(self, rate_factor: float, max_grad_norm: float = 1.0) -> float:
        """Apply the model's gradients, averaged over all processes, at `rate_factor` times the
        full rates, and clear them.

        Returns the gradient's norm before clipping. Raises `FloatingPointError`, and changes
        nothing, when it is not finite.
        """
        grads: list[Tensor] = []
        for name, parameter in self._parameters.items():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            grads.append(grad.float())
            self.masters[name].grad = grads[-1]
            parameter.grad = None
        distributed.average(grads)
        norm = nn.utils.clip_grad_norm_(list(self.masters.values()), max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm.item()}")
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor
        self._optimizer.step()
        self.write_to_model()
        return float(norm)

    @torch.no_grad()
    def write_to_model(self) -> None:
        """Round the masters into the model's own weights."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.masters[name])

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments."""
        return {"masters": self.masters, "moments": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, at this optimizer's own rates."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
        self._optimizer.load_state_dict(state["moments"])
        self.write_to_model()


def rate_factor(step: int, minute: float, minutes: float, cooldown: float | None = None) -> float:
    """Warm-up, stable, linear decay to zero (WSD, arXiv 2404.06395) of a run of `minutes`.

    The stable part has no memory of the run's length: a run may be prolonged from it, or cooled
    down at any time by a new, nearer end. `cooldown` is the decay's length in minutes; None is
    30 % of the run.
    """
    decay = DECAY_SHARE * minutes if cooldown is None else cooldown
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (minutes - minute) / decay))
