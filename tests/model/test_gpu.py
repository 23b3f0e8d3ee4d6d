"""The model, engine and training on a CUDA device: the same answers as on the CPU.

Runs without the other tests' conftest and plugins (`make gpu`).
"""

import copy
import json
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.denoiser import Denoiser, DenoiserConfig, Role
from model.engine.engine import Engine
from model.engine.sequence import Fill
from model.infill import CanvasLayout, prefix_stream, suffix_stream
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training import trainer as trainer_module
from model.training.compilation import compile_layers
from model.training.corpus import Document
from model.training.data import Batch, BatchShape, WindowSampler
from model.training.loss import joint_loss
from model.training.trainer import Trainer, TrainingConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CODE = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n" * 3


@pytest.fixture(autouse=True)
def _compile_anew() -> None:
    """All models compile the same two functions, and torch gives up after eight variants of one."""
    torch.compiler.reset()


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


def window_sampler(tokenizer: CodeTokenizer, seed: int = 0) -> WindowSampler:
    # 24 canvases of 16 slots are three blocks of queries; one of them holds two holes now and then.
    shape = BatchShape(windows=4, stream_tokens=192, canvases=24, canvas_sizes=(16, 32))
    document = Document(CODE * 4, "python", "")
    return WindowSampler([document], tokenizer, shape, seed, two_hole_share=0.5)


def loss_and_gradients(
    model: Denoiser, tokenizer: CodeTokenizer, batch: Batch
) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    terms = joint_loss(
        model,
        batch.to("cuda"),
        mask_id=tokenizer.mask_id,
        schedule=LinearSchedule(),
        context_weight=0.5,
        generator=torch.Generator().manual_seed(0),
    )
    terms.total.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return terms.total.item(), torch.cat(gradients).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_layers_give_the_references_loss_and_gradients(
    model: Denoiser, tokenizer: CodeTokenizer, dtype: torch.dtype
) -> None:
    reference = copy.deepcopy(model).to("cuda", dtype)
    compiled = copy.deepcopy(reference)
    sampler = window_sampler(tokenizer)
    batches = [sampler.batch(step) for step in range(6)]
    assert {batch.canvas_targets.shape[-1] for batch in batches} == {16, 32}
    assert compile_layers(
        compiled, lambda: [loss_and_gradients(compiled, tokenizer, b) for b in batches]
    )
    for batch in batches:
        expected, expected_gradients = loss_and_gradients(reference, tokenizer, batch)
        found, found_gradients = loss_and_gradients(compiled, tokenizer, batch)
        assert found == pytest.approx(expected, rel=0.02)
        cosine = torch.cosine_similarity(found_gradients, expected_gradients, dim=0).item()
        assert cosine > (0.999 if dtype is torch.float32 else 0.98)


def test_training_compiles_learns_saves_and_resumes(
    tokenizer: CodeTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "HELD_OUT_BATCHES", 2)
    monkeypatch.setattr(trainer_module, "REPORT_SECONDS", 1.0)

    def make_trainer(minutes: float) -> Trainer:
        config = DenoiserConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=128, num_heads=2, num_layers=2
        )
        return Trainer(
            Denoiser(config),
            tokenizer,
            window_sampler(tokenizer),
            window_sampler(tokenizer, seed=1),
            TrainingConfig(minutes=minutes),
            tmp_path,
            torch.device("cuda"),
        )

    trainer = make_trainer(minutes=0.1)
    before = trainer.score()
    trainer.run()
    assert trainer.model.is_compiled
    assert trainer.score().diffusion < 0.5 * before.diffusion
    load_checkpoint(tmp_path / "checkpoint")
    again = make_trainer(minutes=0.15)
    assert again.resume()
    again.run()
    assert again.step > trainer.step
    steps = [json.loads(row)["step"] for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == again.step
