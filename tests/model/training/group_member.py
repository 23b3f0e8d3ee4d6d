"""What each process that test_distributed.py has torchrun start does; not a test itself."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from model.training import distributed
from model.training import trainer as trainer_module
from model.training.__main__ import main
from model.training.optimizer import MasterOptimizer
from model.training.trainer import Trainer

CPU = torch.device("cpu")


def small_model() -> nn.Module:
    """A matrix, a norm and an embedding, always the same."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "linear": nn.Linear(4, 8, bias=False),
            "norm": nn.RMSNorm(4),
            "embedding": nn.Embedding(6, 4),
        }
    )


def gradients_of(rank: int, model: nn.Module) -> list[torch.Tensor]:
    """The gradients that process `rank` finds."""
    generator = torch.Generator().manual_seed(100 + rank)
    return [0.01 * torch.randn(p.shape, generator=generator) for p in model.parameters()]


def exchange(directory: Path) -> None:
    """One step from gradients of this process's own; write the masters and the exchanged values."""
    with distributed.joined(CPU):
        rank = distributed.rank()
        with distributed.first_alone():
            time.sleep(0.5 * (rank == 0))  # the other one would overtake it
            with (directory / "order").open("a") as file:
                file.write(f"{rank}\n")
        model = small_model()
        for parameter, grad in zip(model.parameters(), gradients_of(rank, model), strict=True):
            parameter.grad = grad
        optimizer = MasterOptimizer(model, learning_rate=0.01, weight_decay=0.1)
        norm = optimizer.step(1.0)
        found = {
            "masters": optimizer.masters,
            "norm": norm,
            "world_size": distributed.world_size(),
            "largest": distributed.largest(rank, -rank, device=CPU),
            "total": distributed.total(rank + 1.0, 10.0, device=CPU),
        }
        torch.save(found, directory / f"rank-{rank}.pt")


def train(directory: Path, argv: list[str]) -> int:
    """`mezzotint train`, reporting every step; says its process id and where it stopped."""
    rank = os.environ["RANK"]
    trainer_module.REPORT_SECONDS = 0.0
    run, report = Trainer.run, Trainer._report

    def run_and_tell(trainer: Trainer) -> float:
        best = run(trainer)
        (directory / f"rank-{rank}.stopped").write_text(str(trainer.step))
        return best

    def report_and_tell(trainer: Trainer, *args: object) -> None:
        report(trainer, *args)  # pyright: ignore[reportArgumentType]
        (directory / f"rank-{rank}.pid").write_text(str(os.getpid()))

    Trainer.run, Trainer._report = run_and_tell, report_and_tell
    return main(argv)


if __name__ == "__main__":
    where = Path(sys.argv[2])
    sys.exit(train(where, sys.argv[3:]) if sys.argv[1] == "train" else exchange(where))
