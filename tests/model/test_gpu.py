"""The model, engine and training on a CUDA device: the same answers as on the CPU.

Runs without the other tests' conftest and plugins (`make gpu`).
"""

import copy
import json
from pathlib import Path

import pytest
import torch

from model.attention import rotary_tables
from model.checkpoint import load_checkpoint
from model.denoiser import Denoiser, DenoiserConfig, Role
from model.engine.assembly import engine_for
from model.engine.float8 import Float8Weight, is_supported, linear
from model.engine.graphed_runner import GraphedRunner
from model.engine.graphs import GraphedStep
from model.engine.kernels import choice
from model.engine.model_runner import ModelRunner
from model.engine.sampler import Vocabulary
from model.engine.sequence import Fill, SamplingParams, Sequence
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
    engine = engine_for(model, tokenizer)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("hidden_size", "heads", "groups"), [(256, 4, 2), (512, 4, 4), (64, 4, 1)])
def test_kernels_equal_plain_torch_on_the_device(
    hidden_size: int, heads: int, groups: int, dtype: torch.dtype
) -> None:
    config = DenoiserConfig(
        vocab_size=300, hidden_size=hidden_size, num_heads=heads, num_kv_heads=groups
    )
    choice.check(choice.triton_kernels(), config, torch.device("cuda"), dtype)


def opened(runner: GraphedRunner, prefix: int, suffix: int, slots: int, seed: int) -> Sequence:
    """A blank canvas between random streams that the runner has encoded."""
    generator = torch.Generator().manual_seed(seed)
    streams = [torch.randint(100, 300, (n,), generator=generator).tolist()
               for n in (prefix, suffix)]  # fmt: skip
    layout = CanvasLayout((slots,))
    canvas, clamped = layout.blank(runner.rules.mask_id)
    sequence = Sequence(
        fill=Fill(prefix=streams[0], suffix=streams[1], layout=layout),
        params=SamplingParams(threshold=0.5),
        prefix=streams[0],
        suffix=streams[1],
        layout=layout,
        canvas=canvas,
        clamped=clamped,
        fixed=clamped,
        confidences=[1.0] * slots,
    )
    assert runner.open_contexts([*runner._open, sequence])[-1] is sequence
    return sequence


def graphed(
    model: Denoiser, tokenizer: CodeTokenizer, dtype: torch.dtype, *, is_float8: bool = False
) -> GraphedRunner:
    on_device = copy.deepcopy(model).to("cuda", dtype)
    rules = Vocabulary.of(tokenizer, model.config.vocab_size, on_device.embedding.weight.device)
    return GraphedRunner(on_device, rules, cache_bytes=64 << 20, is_float8=is_float8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_steps_equal_steps_run_kernel_by_kernel(
    model: Denoiser, tokenizer: CodeTokenizer, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = graphed(model, tokenizer, dtype)
    eager = graphed(model, tokenizer, dtype)
    assert recorded.denoiser.kernels.name == "triton"
    shapes = [(40, 3, 16), (1, 300, 16), (257, 90, 48)]
    found, expected = [], []
    for runner, results in ((recorded, found), (eager, expected)):
        batch = [opened(runner, *shape, seed) for seed, shape in enumerate(shapes)]
        with monkeypatch.context() as patched:
            if runner is eager:
                patched.setattr(GraphedStep, "_recorded", lambda *_: None)
            results.append(runner.denoise(batch).clone())
            for num_steps in (1, 5):
                results.append(runner.decide(batch, num_steps))
    assert not recorded.problems
    torch.testing.assert_close(found[0], expected[0])
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert [c.ids for c in a] == [c.ids for c in b]
        assert [c.num_steps for c in a] == [c.num_steps for c in b]


def test_a_paged_forward_on_cuda_equals_the_plain_one_on_the_cpu(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    runner = graphed(model, tokenizer, torch.float32)
    batch = [opened(runner, 70, 33, 16, 0), opened(runner, 5, 200, 32, 1)]
    logits = runner.denoise(batch).cpu()
    plain = ModelRunner(copy.deepcopy(model).cpu())
    runner.open_contexts([])
    assert plain.open_contexts(batch) == batch
    expected = plain.denoise(batch)
    for row, sequence in enumerate(batch):
        own = slice(0, len(sequence.canvas))
        torch.testing.assert_close(logits[row, own], expected[row, own], atol=2e-3, rtol=2e-3)


@pytest.mark.skipif(
    torch.cuda.is_available() and not is_supported(torch.device("cuda")),
    reason="the card does not multiply float8 (compute capability below 8.9)",
)
def test_float8_weights_multiply_as_the_same_numbers_in_full_precision() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 33, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16)
    found = linear(x, Float8Weight.of(weight)).float()
    expected = torch.nn.functional.linear(x, weight).float()
    assert (found - expected).norm() / expected.norm() < 0.06


def test_a_step_of_seven_billion_weights_is_recorded_and_decides(
    tokenizer: CodeTokenizer,
) -> None:
    config = DenoiserConfig(
        vocab_size=32_000, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8,
        ffn_size=14_336, max_context=8192, max_positions=16_384,
    )  # fmt: skip
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of free GPU memory")
    with torch.device("meta"):
        model = Denoiser(config).to(torch.bfloat16)
    model.to_empty(device="cuda").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        cos, sin = rotary_tables(config.max_positions, config.head_dim, config.rope_theta)
        model.cos.copy_(cos)
        model.sin.copy_(sin)
    rules = Vocabulary.of(tokenizer, config.vocab_size, model.embedding.weight.device)
    runner = GraphedRunner(model, rules, cache_bytes=2 << 30)
    sequence = opened(runner, 6000, 1500, 32, 0)
    (decided,) = runner.decide([sequence], 4)
    assert not runner.problems
    assert decided.num_steps == 4
    assert not decided.is_broken
    assert sum(token != tokenizer.mask_id for token in decided.ids) >= 4


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
