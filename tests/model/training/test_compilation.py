from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from model.denoiser import Denoiser
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training.compilation import compile_layers
from model.training.corpus import Document
from model.training.data import BatchShape, WindowSampler
from model.training.loss import joint_loss

# Of torch's own, when it imports its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The graphs that `torch.compile` captures; they are run as they are, no compiler is called."""
    captured: list[object] = []
    compile_with_torch = torch.compile

    def capture(graph: Any, _inputs: object) -> Callable[..., object]:
        captured.append(graph)
        return graph.forward

    def compile_whole(function: Callable[..., object], **options: Any) -> object:
        return compile_with_torch(function, backend=capture, fullgraph=True, **options)

    monkeypatch.setattr(torch, "compile", compile_whole)
    torch.compiler.reset()
    yield captured
    torch.compiler.reset()


@torch.no_grad()  # FlexAttention's gradient exists on CUDA only: see test_gpu.py
def test_all_layers_and_steps_share_a_graph_a_canvas_size_and_one_for_contexts(
    graphs: list[object],
    tokenizer: CodeTokenizer,
    code: str,
    make_denoiser: Callable[..., Denoiser],
) -> None:
    model = make_denoiser(tokenizer.vocab_size, num_layers=3).requires_grad_(False)
    shape = BatchShape(windows=2, stream_tokens=64, canvases=4, canvas_sizes=(8, 16))
    sampler = WindowSampler([Document(code, "python", "")], tokenizer, shape, seed=0)
    batches = [sampler.batch(step) for step in range(6)]
    assert {batch.canvas_targets.shape[-1] for batch in batches} == {8, 16}

    def losses() -> list[float]:
        return [
            joint_loss(
                model,
                batch,
                mask_id=tokenizer.mask_id,
                schedule=LinearSchedule(),
                context_weight=0.5,
                generator=torch.Generator().manual_seed(0),
            ).total.item()
            for batch in batches
        ]

    expected = losses()
    assert compile_layers(model, losses)
    assert model.is_compiled
    assert len(graphs) == 3
    assert losses() == pytest.approx(expected)
    assert len(graphs) == 3


def test_a_model_that_does_not_compile_is_left_as_it_was_and_the_reason_is_logged(
    make_denoiser: Callable[..., Denoiser], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_denoiser(40)
    before = dict(vars(model.blocks[0]))

    def fail() -> None:
        assert model.is_compiled
        raise RuntimeError("no C compiler found\nlong trace")

    with caplog.at_level(logging.WARNING):
        assert not compile_layers(model, fail)
    assert not model.is_compiled
    assert vars(model.blocks[0]) == before
    (message,) = caplog.messages
    assert "could not be compiled" in message
    assert message.endswith("RuntimeError: no C compiler found")


def test_a_full_memory_is_not_answered_by_taking_more(
    make_denoiser: Callable[..., Denoiser],
) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compile_layers(make_denoiser(40), fail)
