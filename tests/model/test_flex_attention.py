"""FlexAttention, uncompiled, against the reference masks; compiled for CUDA: see test_gpu.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.attention.flex_attention as flex_module
from torch import Tensor

from model.attention import KeyValue, canvas_attention
from model.denoiser import Denoiser
from model.flex_attention import canvas_block_mask, flex_canvas_attention
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training.corpus import Document
from model.training.data import BatchShape, WindowSampler
from model.training.loss import joint_loss

# Uncompiled, as here, it computes all scores; that is what it warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:flex_attention called without:UserWarning",
    # Of torch's tracer, which looks at every input.
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)

# (windows, heads, key/value heads, head size, stream tokens, canvases, slots of one)
SHAPES = [
    (1, 1, 1, 4, 3, 1, 1),
    (2, 4, 2, 8, 40, 3, 8),
    (2, 3, 1, 4, 17, 5, 4),  # nothing divides anything
    (1, 2, 2, 8, 300, 12, 16),  # more than one block of 128 queries and of keys
]


def additive(seen_BK: Tensor, length: int, size: int, dtype: torch.dtype) -> Tensor:
    hidden = torch.arange(length) >= seen_BK.repeat_interleave(size, dim=1)[..., None]
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf"))[:, None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_gives_what_the_reference_gives_and_its_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch refuses gradients on a CPU because its compiler has no kernel for them; uncompiled,
    # the mathematics is the same on every device.
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    batch, heads, groups, dim, length, canvases, size = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=dtype, requires_grad=True)

    def key_value(num: int) -> KeyValue:
        return normal(batch, groups, num, dim), normal(batch, groups, num, dim)

    num = canvases * size
    q_left, q_right = normal(batch, heads, num, dim), normal(batch, heads, num, dim)
    contexts = key_value(length), key_value(length), key_value(num)
    # From the first token alone to the whole stream.
    seen = [torch.randint(1, length + 1, (batch, canvases), generator=generator) for _ in range(2)]
    seen[0][0, 0], seen[1][0, 0] = 1, length
    masks = (additive(s, length, size, dtype) for s in seen)
    expected = canvas_attention(q_left, q_right, *contexts, *masks, None, size)
    block_mask = canvas_block_mask(seen[0], seen[1], length, size)
    found = flex_canvas_attention(q_left, q_right, *contexts, block_mask)
    torch.testing.assert_close(found, expected)
    inputs = [q_left, q_right, *(t for pair in contexts for t in pair)]
    upstream = normal(*found.shape).detach()
    gradients, reference = (
        torch.autograd.grad(mixed, inputs, upstream) for mixed in (found, expected)
    )
    torch.testing.assert_close(gradients, reference)


@torch.no_grad()
@pytest.mark.parametrize("two_hole_share", [0.0, 1.0])
def test_a_real_batch_has_the_same_loss(
    two_hole_share: float,
    tokenizer: CodeTokenizer,
    code: str,
    make_denoiser: Callable[..., Denoiser],
) -> None:
    shape = BatchShape(windows=2, stream_tokens=100, canvases=6, canvas_sizes=(8, 32))
    documents = [Document(code, "python", "")]
    sampler = WindowSampler(documents, tokenizer, shape, 0, two_hole_share=two_hole_share)
    model = make_denoiser(tokenizer.vocab_size).requires_grad_(False)
    for step in range(4):
        losses = []
        for model.is_compiled in (False, True):
            terms = joint_loss(
                model,
                sampler.batch(step),
                mask_id=tokenizer.mask_id,
                schedule=LinearSchedule(),
                context_weight=0.5,
                generator=torch.Generator().manual_seed(0),
            )
            losses.append(terms.diffusion)
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)


def test_blocks_of_keys_that_nobody_sees_are_left_out() -> None:
    """128 slots of one canvas; the first 200 of 1,024 prefix tokens, the first 20 of the suffix."""
    block_mask = canvas_block_mask(torch.tensor([[200]]), torch.tensor([[20]]), 1024, 128)
    full, partial = block_mask.full_kv_num_blocks, block_mask.kv_num_blocks
    assert full is not None
    assert full.tolist() == [[[2]]]  # prefix tokens 0 to 127; the canvas
    assert partial.tolist() == [[[2]]]  # prefix tokens 128 to 255; suffix tokens 0 to 127
