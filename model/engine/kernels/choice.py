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

from model.engine.cache.page_tree import PAGE_SIZE
from model.engine.kernels import reference
from model.engine.kernels.reference import PagedStreams, Projection
from model.engine.run.float8 import FLOAT8, Quantise
from model.transformer import TransformerConfig

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference, as a share of the largest value: far above what plain torch loses by rounding
after each operation. A wrong kernel is off by as much as the values are large."""
FLOAT8_TOLERANCE = 0.07
"""Where a value lies between two of float8, rounding may choose the other: a sixteenth away."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations of a forward, as `reference` describes them."""

    name: str
    paged_attention: Callable[..., Tensor]
    split_rotate: Callable[..., Tensor]
    add_norm: Callable[..., tuple[Tensor, Tensor]]
    swiglu: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor, Tensor], Tensor]
    quantised: Quantise


REFERENCE = Kernels(
    "reference",
    reference.paged_attention,
    reference.split_rotate,
    reference.add_norm,
    reference.swiglu,
    reference.logits,
    reference.quantised,
)


def triton_kernels() -> Kernels:
    """The kernels in triton. Raises `ImportError` where it is not installed."""
    names = ("paged_attention", "head", "layer")
    attention, head, layer = (importlib.import_module(f"model.engine.kernels.{n}") for n in names)
    return Kernels(
        "triton",
        attention.paged_attention,
        layer.split_rotate,
        layer.add_norm,
        layer.swiglu,
        head.logits,
        layer.quantised,
    )


def kernels_for(
    config: TransformerConfig, device: torch.device, dtype: torch.dtype, *, is_float8: bool = False
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
        check(kernels, config, device, dtype, is_float8=is_float8)
    except Exception as error:
        logger.exception("the kernels failed their test: forwards run on plain torch, slowly")
        return REFERENCE, f"the kernels failed their test: {error}"
    return kernels, None


@torch.inference_mode()
def check(
    kernels: Kernels,
    config: TransformerConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_float8: bool = False,
) -> None:
    """Raise `AssertionError`, or what a kernel raises, unless all agree with plain torch."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    for example in _examples(config, random, device, is_float8):
        found = _results(kernels, example)
        for a, b in zip(found, _results(REFERENCE, example), strict=True):
            tolerance = FLOAT8_TOLERANCE if a.dtype == FLOAT8 else TOLERANCE[dtype]
            a, b = a.float(), b.float()
            error = ((a - b).abs().amax() / b.abs().amax()).item()
            # NaN is no small error.
            assert error <= tolerance, f"{example.name} is off by {error:.1%} from plain torch"


@dataclass(frozen=True, slots=True)
class _Example:
    name: str
    arguments: tuple[object, ...]
    outputs: tuple[Tensor, ...] = ()
    """Among the arguments, what is written to."""


def _results(kernels: Kernels, example: _Example) -> tuple[Tensor, ...]:
    result = getattr(kernels, example.name)(*example.arguments)
    returned = (result,) if isinstance(result, Tensor) else tuple(result)
    return (*returned, *(output.clone() for output in example.outputs))


def _examples(
    config: TransformerConfig,
    random: Callable[..., Tensor],
    device: torch.device,
    is_float8: bool,
) -> Iterator[_Example]:
    """Arguments for each kernel: a full stream, one that ends inside a page, an empty one; rows
    that follow one another, a tree, rows that only pad."""
    heads, groups, dim = config.num_heads, config.num_kv_heads, config.head_dim
    hidden, ffn, eps = config.hidden_size, config.ffn_size, config.norm_eps
    batch, new, pages = 3, 5, 6

    def ints(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    tables = torch.arange(batch * pages, dtype=torch.int32, device=device).flip(0)
    streams = PagedStreams(tables.view(batch, pages), ints([pages * PAGE_SIZE, 37, 0]))
    pool = tuple(random(batch * pages, groups, PAGE_SIZE, dim) for _ in range(2))
    own = tuple(random(batch, groups, new, dim) for _ in range(2))
    visible = torch.stack([torch.ones(new, new).tril(), torch.eye(new), torch.eye(new)]).bool()
    visible[1, 1:, 0] = visible[1, 4, 2] = True
    q = random(batch, heads, new, dim)
    yield _Example("paged_attention", (q, pool, streams, own, visible.to(device)))
    angles = random(batch, new, dim // 2).float()
    projection = Projection(
        random((heads + 2 * groups) * dim) if config.qkv_bias else None,
        (random(dim), random(dim)) if config.qk_norm else None,
        eps,
    )
    qkv = random(batch, new, (heads + 2 * groups) * dim)
    out = tuple(torch.zeros_like(each) for each in own)
    yield _Example("split_rotate", (qkv, projection, angles.cos(), angles.sin(), out), out)
    residual = (random(batch, new, hidden) for _ in range(2))
    yield _Example("add_norm", (*residual, random(hidden), eps))
    yield _Example("swiglu", (random(batch, new, 2 * ffn),))
    yield _Example("logits", (random(batch * new, hidden), random(301, hidden) * hidden**-0.5))
    if is_float8:
        yield _Example("quantised", (random(batch * new, hidden),))
