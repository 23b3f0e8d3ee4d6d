"""Which implementation of the kernels a model gets: triton's where it passes a test on the spot.

A kernel that does not compile, or computes something else on this card with this driver, must cost
speed and nothing more; so at load every one of them is held against plain torch, once, in the
model's own sizes.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.denoiser import DenoiserConfig
from model.engine.cache.page_tree import PAGE_SIZE
from model.engine.kernels import reference
from model.engine.kernels.reference import PagedStreams, Rotations, SlotBeliefs

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference, as a share of the largest value: far above what plain torch loses by rounding
after each operation. A wrong kernel is off by as much as the values are large."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations of a denoising step, as `reference` describes them."""

    name: str
    paged_attention: Callable[..., Tensor]
    head: Callable[..., SlotBeliefs]
    split_rotate: Callable[..., tuple[Tensor, Tensor, Tensor]]
    add_norm: Callable[..., tuple[Tensor, Tensor]]
    swiglu: Callable[[Tensor], Tensor]


REFERENCE = Kernels(
    "reference",
    reference.paged_attention,
    reference.head,
    reference.split_rotate,
    reference.add_norm,
    reference.swiglu,
)


def triton_kernels() -> Kernels:
    """The kernels in triton. Raises `ImportError` where it is not installed."""
    names = ("paged_attention", "head", "layer")
    attention, head, layer = (importlib.import_module(f"model.engine.kernels.{n}") for n in names)
    return Kernels(
        "triton",
        attention.paged_attention,
        head.head,
        layer.split_rotate,
        layer.add_norm,
        layer.swiglu,
    )


def kernels_for(
    config: DenoiserConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Kernels, str | None]:
    """The kernels for a model, and why they are the slow ones if they are (None: they are not, or
    the device has no others)."""
    if device.type != "cuda":
        return REFERENCE, None
    dim = config.head_dim
    if dim & (dim - 1) or not 16 <= dim <= 256 or dtype not in TOLERANCE:
        return REFERENCE, f"the kernels take no heads of {dim} dimensions in {dtype}"
    try:
        kernels = triton_kernels()
        check(kernels, config, device, dtype)
    except Exception as error:
        logger.exception("the kernels failed their test: steps run on plain torch, slowly")
        return REFERENCE, f"the kernels failed their test: {error}"
    return kernels, None


@torch.inference_mode()
def check(
    kernels: Kernels, config: DenoiserConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise `AssertionError`, or what a kernel raises, unless all agree with plain torch."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    tolerance = TOLERANCE[dtype]
    for name, arguments in _examples(config, random, device):
        found = getattr(kernels, name)(*arguments)
        expected = getattr(REFERENCE, name)(*arguments)
        if isinstance(found, SlotBeliefs):  # of two tokens alike, rounding may choose another
            found, expected = found.confidence, expected.confidence
        for a, b in zip(_tensors(found), _tensors(expected), strict=True):
            error = ((a - b).abs().amax() / b.abs().amax()).item()
            # NaN is no small error.
            assert error <= tolerance, f"{name} is off by {error:.1%} from plain torch"


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def _examples(
    config: DenoiserConfig, random: Callable[..., Tensor], device: torch.device
) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Arguments for each kernel: a full row, one that ends inside a page, one that is empty."""
    heads, groups, dim = config.num_heads, config.num_kv_heads, config.head_dim
    rows, slots, pages, eps = 3, 24, 6, config.norm_eps

    def ints(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    tables = torch.arange(2 * rows * pages, dtype=torch.int32, device=device).flip(0)
    streams = PagedStreams(
        tables.view(2, rows, pages), ints([[pages * PAGE_SIZE, 37, 0], [1, 70, 0]])
    )
    pool = tuple(random(2 * rows * pages, groups, PAGE_SIZE, dim) for _ in range(2))
    own = tuple(random(rows, groups, slots, dim) for _ in range(2))
    q = random(2, rows, heads, slots, dim)
    yield "paged_attention", (q, pool, streams, own, ints([slots, 5, 0]))
    hidden, weight = random(rows * slots, config.hidden_size), random(301, config.hidden_size)
    wanted = torch.arange(rows * slots, device=device) % 3 != 0
    forbidden = torch.arange(301, device=device) % 7 == 0
    scale = config.hidden_size**-0.5
    yield "head", (hidden, weight * scale, wanted, ~wanted, forbidden, 300)
    left, right = random(2, rows, slots, dim // 2).float()
    rotations = Rotations((left.cos(), left.sin()), (right.cos(), right.sin()))
    norms = (random(dim), random(dim)) if config.qk_norm else None
    qkv = random(rows, slots, (heads + 2 * groups) * dim)
    yield "split_rotate", (qkv, norms, eps, rotations, heads, groups)
    residual = (random(rows, slots, config.hidden_size) for _ in range(2))
    yield "add_norm", (*residual, random(config.hidden_size), eps)
    yield "swiglu", (random(rows, slots, 2 * config.ffn_size),)
