"""Optimizers over fp32 master weights, and the learning-rate schedule.

The model may compute in bf16 (half the memory traffic); its updates are smaller than bf16 can add,
so they are applied to fp32 masters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.training import distributed

WARMUP_SHARE, DECAY_SHARE = 0.02, 0.3
"""Of a run's minutes."""
EMBEDDING_RATE = 0.2
"""Rate of embeddings and norms as a share of the matrices'."""


class MasterOptimizer:
    """Muon (Keller Jordan, 2024) for matrices, AdamW for embeddings and norms, both on masters.

    Muon's updates are scaled to AdamW's (Moonlight, arXiv 2502.16982). Embeddings are tied to the
    head, where a step moves every logit at once: they learn at a fraction of the matrices' rate.
    """

    def __init__(self, model: nn.Module, *, learning_rate: float, weight_decay: float) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RuntimeError(f"training needs torch 2.9 or later, found {torch.__version__}")
        self._parameters = dict(model.named_parameters())
        self.masters = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        matrices = [t for name, t in self.masters.items() if _is_matrix(name, t)]
        others = [t for name, t in self.masters.items() if not _is_matrix(name, t)]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices,
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                others, lr=learning_rate * EMBEDDING_RATE, betas=(0.9, 0.95), weight_decay=0.0
            ),
        ]
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

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
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate_factor
            optimizer.step()
        self.write_to_model()
        return float(norm)

    @torch.no_grad()
    def write_to_model(self) -> None:
        """Round the masters into the model's own weights."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.masters[name])

    def state_dict(self) -> dict[str, Any]:
        """Masters and the optimizers' moments."""
        return {
            "masters": self.masters,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state["masters"][name])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.write_to_model()


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and "embedding" not in name


def rate_factor(minute: float, minutes: float, cooldown: float | None = None) -> float:
    """Warm-up, stable, linear decay to zero (WSD, arXiv 2404.06395) of a run of `minutes`.

    The stable part has no memory of the run's length: a run may be prolonged from it, or cooled
    down at any time by a new, nearer end. `cooldown` is the decay's length in minutes; None is
    30 % of the run.
    """
    warmup = WARMUP_SHARE * minutes
    if minute < warmup:
        return max(minute / warmup, 0.05)
    decay = DECAY_SHARE * minutes if cooldown is None else cooldown
    return min(1.0, max(0.0, (minutes - minute) / decay))
