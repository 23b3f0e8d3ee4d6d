"""Compiled layers for training on CUDA: one graph a kind of layer and canvas size."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from model.denoiser import Denoiser

logger = logging.getLogger(__name__)


def compile_layers(model: Denoiser, try_out: Callable[[], object]) -> bool:
    """Compile both methods of the model's layers, and have its canvases mixed by FlexAttention.

    Layers are compiled one by one, not the loss as a whole: all of them share one graph, so that
    what a compiler takes minutes for takes seconds. Nothing is compiled before it runs; `try_out`
    must run every shape that training will. If it fails, for whatever reason a compiler finds, the
    model is left on the reference path. Returns whether it is compiled.
    """
    try:
        for block in model.blocks:
            block.encode = torch.compile(block.encode, dynamic=False)
            block.denoise = torch.compile(block.denoise, dynamic=False)
        model.is_compiled = True
        try_out()
    except torch.OutOfMemoryError:  # the reference path would need more still
        raise
    except Exception as error:  # compilers, and the compilers below them, raise all kinds
        for block in model.blocks:
            vars(block).pop("encode", None)
            vars(block).pop("denoise", None)
        model.is_compiled = False
        model.zero_grad()
        logger.warning(
            "the layers could not be compiled, and are trained on uncompiled: slower, and with "
            "several times the memory (use fewer --windows if it runs out). %s: %s",
            type(error).__name__,
            str(error).strip().split("\n")[0],
        )
    return model.is_compiled
