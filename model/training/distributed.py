"""One model trained by several processes, each on batches of its own (data parallelism).

Started by `torchrun`, which sets the environment that `join` reads; everything here does nothing
in a process that trains alone. Gradients are averaged by hand, in one all-reduce a step: the model
has two entry points, which `DistributedDataParallel`'s hooks know nothing of, and is far too small
to be sharded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Take part in the group of processes that `torchrun` has started, if it has."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()  # leave together: process 0 still saves when the others are done
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 goes through the block first: what it writes to disk, the others only read."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """This process's number; 0 writes what a run writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor, in place, by its mean over all processes, in one exchange."""
    if world_size() == 1:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def total(*values: float, device: torch.device) -> list[float]:
    """Each value's sum over all processes."""
    return _reduced(values, device, dist.ReduceOp.SUM)


def largest(*values: float, device: torch.device) -> list[float]:
    """Each value's largest over all processes: how clocks and wishes to stop are agreed on."""
    return _reduced(values, device, dist.ReduceOp.MAX)


def _reduced(
    values: Sequence[float], device: torch.device, operation: dist.ReduceOp.RedOpType
) -> list[float]:
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()
