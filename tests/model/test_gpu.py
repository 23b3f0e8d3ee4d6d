"""The model and engine on a CUDA device: the same answers as on the CPU."""

import pytest
import torch

from model.denoiser import Denoiser, DenoiserConfig, Role
from model.engine.engine import Engine
from model.engine.sequence import Fill
from model.infill import CanvasLayout, prefix_stream, suffix_stream
from model.tokenizer import CodeTokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CODE = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n" * 3


@pytest.fixture(scope="module")
def tokenizer() -> CodeTokenizer:
    return CodeTokenizer.train([CODE], 400)


@pytest.fixture(scope="module")
def model(tokenizer: CodeTokenizer) -> Denoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1
    )
    model = Denoiser(config).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.o_proj.weight, std=0.1)
        torch.nn.init.normal_(block.feed_forward.down_proj.weight, std=0.1)
    return model


def fill_tokens(model: Denoiser, tokenizer: CodeTokenizer) -> tuple[tuple[int, ...], ...]:
    engine = Engine(model, tokenizer)
    ids = tokenizer.encode(CODE)
    fill = Fill(
        prefix=prefix_stream(tokenizer, ids[:20], "python", starts_file=True),
        suffix=suffix_stream(tokenizer, ids[25:], "python", ends_file=True),
        layout=CanvasLayout.for_holes(16),
        max_new_tokens=16,
    )
    try:
        return engine.submit(fill).result(timeout=60)[0].holes
    finally:
        engine.close()


@torch.inference_mode()
def test_hidden_states_on_cuda_equal_those_on_the_cpu(model: Denoiser) -> None:
    ids = torch.randint(0, 300, (2, 40))
    expected, _ = model.encode(ids, Role.PREFIX)
    found, _ = model.to("cuda").encode(ids.cuda(), Role.PREFIX)
    model.to("cpu")
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


def test_a_fill_on_cuda_gives_the_cpus_tokens(model: Denoiser, tokenizer: CodeTokenizer) -> None:
    expected = fill_tokens(model, tokenizer)
    found = fill_tokens(model.to("cuda"), tokenizer)
    model.to("cpu")
    assert found == expected
