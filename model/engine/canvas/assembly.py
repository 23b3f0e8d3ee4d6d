"""Puts the engine of an open checkpoint together: its family's length policy and runner."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.engine.canvas.decoder import CanvasDecoder
from model.engine.canvas.layout import CANVAS_SIZES
from model.engine.canvas.length import ExpandDelete, LearnedEnd, LengthPolicy, LengthSearch
from model.engine.canvas.sampler import Vocabulary
from model.engine.canvas.sequence import CanvasSequence
from model.engine.engine import Engine
from model.engine.run.joint_runner import ContextCache, JointRunner
from model.families.layout import OpenLayout
from model.transformer import Transformer


def open_engine(model: Transformer, layout: OpenLayout, *, cache: ContextCache = "none") -> Engine:
    """An engine around an open checkpoint's model, where the model is."""
    length = _length_policy(layout)
    runner = JointRunner(model, layout, cache=cache)
    return Engine(CanvasDecoder(runner, _vocabulary(layout, length, runner.device), length))


def canvas_slots(layout: OpenLayout) -> Callable[[CanvasSequence], int]:
    """`CanvasFill.canvas_slots` of a model: all there may be, or those up to its block's edge."""
    if layout.config.attention == "full":
        return lambda _: CANVAS_SIZES[-1]
    return lambda s: layout.slots_to_edge(s.prefix, s.suffix, len(s.committed))


def _length_policy(layout: OpenLayout) -> LengthPolicy:
    tokenizer = layout.tokenizer
    if layout.config.attention == "block-causal":
        return LearnedEnd()
    if tokenizer.expand_id is not None and tokenizer.eos_id is not None:
        return ExpandDelete(tokenizer.expand_id, tokenizer.eos_id)
    return LengthSearch()


def _vocabulary(layout: OpenLayout, length: LengthPolicy, device: torch.device) -> Vocabulary:
    """Of all special tokens only those are generated that the length policy reads."""
    tokenizer = layout.tokenizer
    generated = {tokenizer.end_id}
    if isinstance(length, ExpandDelete):
        generated |= {length.expand_id, length.delete_id}
    forbidden = torch.zeros(tokenizer.vocab_size, dtype=torch.bool, device=device)
    forbidden[list(tokenizer.special_ids - generated)] = True
    return Vocabulary(
        mask_id=tokenizer.mask_id,
        end_id=tokenizer.end_id,
        special_ids=tokenizer.special_ids,
        forbidden=forbidden,
    )
