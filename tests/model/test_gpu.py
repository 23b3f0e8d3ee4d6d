"""The backbone on a CUDA device: the same answers as on the CPU, whatever is recorded or fused.

Runs without the other tests' conftest and plugins (`make gpu`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from model.denoiser.config import DenoiserConfig
from model.denoiser.network import Denoiser
from model.engine.draft.choice import BackboneVocabulary
from model.engine.draft.denoiser_drafter import DenoiserDrafter
from model.engine.draft.drafters import GuessDrafter
from model.engine.draft.stream import BackboneFill, Stream
from model.engine.draft.verify import VerifyingDecoder
from model.engine.engine import Engine
from model.engine.fill import SamplingParams
from model.engine.kernels import choice
from model.engine.run.backbone_runner import BackboneRunner, NewRows
from model.engine.run.cuda_forward import CudaForward
from model.engine.run.cuda_runner import MEASURED_ROWS, CudaRunner
from model.engine.run.float8 import Float8Weight, is_supported, linear
from model.engine.run.graphs import PlainRecorder
from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer, TransformerConfig

DEVICE = torch.device("cuda")
CACHE_BYTES = 64 << 20
VOCAB_SIZE = 1000

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_float8 = pytest.mark.skipif(
    torch.cuda.is_available() and not is_supported(DEVICE),
    reason="the card does not multiply float8 (compute capability below 8.9)",
)


def config_of(**changes: object) -> TransformerConfig:
    """A Qwen2 with the head size of the default backbone."""
    sizes: dict[str, object] = {
        "model_type": "qwen2", "vocab_size": VOCAB_SIZE, "hidden_size": 256, "num_layers": 4,
        "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "ffn_size": 512, "max_positions": 4096,
        "rope_theta": 1e5, "norm_eps": 1e-6, "is_tied": False, "qkv_bias": True,
        "attention": "causal", "shifts_logits": True,
    }  # fmt: skip
    return TransformerConfig(**{**sizes, **changes})  # type: ignore[arg-type]


def random_model(
    *, device: torch.device = DEVICE, dtype: torch.dtype = torch.float32, **changes: object
) -> Transformer:
    """Random weights, biases and norms included; the same ones wherever they lie."""
    model = Transformer(config_of(**changes))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        scale = 0.2 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter.data = noise * scale + ("norm" in name)
    return model.requires_grad_(False).eval().to(device, dtype)


def text(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCAB_SIZE) for _ in range(length)]


def stream(ids: list[int]) -> Stream:
    fill = BackboneFill(prompt=tuple(ids))
    return Stream(fill=fill, params=SamplingParams(), ids=list(ids), num_prompt=len(ids), rest=b"")


DRAFT = ([5, 6, 7, 8, 9], [-1, 0, 0, 2, -1])
"""Tokens and parents of a tree."""


def logits_over_steps(runner: BackboneRunner) -> list[Tensor]:
    """Two prompts of different lengths, then a tree behind each, of which a branch is kept, then a
    token more."""
    streams = [stream(text(seed, length)) for seed, length in ((1, 37), (2, 300))]
    found: list[Tensor] = []
    for each in streams:
        runner.open(each)
        unread = each.ids[len(each.ids) - each.unread :]
        chain = list(range(-1, len(unread) - 1))
        found += read(runner, [NewRows(each, unread, chain, num_logits=1)])
        runner.keep(0, range(len(unread)))
        each.ids.append(11)
    tokens, parents = DRAFT
    batch = [
        NewRows(each, [11, *tokens], [-1, *(1 + p for p in parents)], num_logits=6)
        for each in streams
    ]
    found += read(runner, batch)
    for index, each in enumerate(streams):
        each.ids += [5, 7, 8]
        runner.keep(index, [0, 1, 3, 4])  # one draft that is no chain
        each.ids.append(12)
    found += read(runner, [NewRows(each, [12], [-1], num_logits=1) for each in streams])
    for each in streams:
        runner.close(each)
    runner.check_integrity()
    return found


def read(runner: BackboneRunner, batch: list[NewRows]) -> list[Tensor]:
    return [verdict.logits.clone().cpu() for verdict in runner.run(batch)]


def cuda_runner(model: Transformer, **options: object) -> CudaRunner:
    is_float8 = bool(options.pop("is_float8", False))
    forward = CudaForward(model, is_float8=is_float8)
    return CudaRunner(forward, cache_bytes=CACHE_BYTES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [
    {}, {"hidden_size": 896, "num_heads": 14, "ffn_size": 4864},
    {"head_dim": 128, "num_heads": 8, "num_kv_heads": 1, "qkv_bias": False, "qk_norm": True},
], ids=["small", "0.5B", "norms"])  # fmt: skip
def test_kernels_equal_plain_torch(changes: dict[str, object], dtype: torch.dtype) -> None:
    choice.check(choice.triton_kernels(), config_of(**changes), DEVICE, dtype)


@needs_float8
def test_the_float8_kernel_equals_plain_torch() -> None:
    kernels = choice.triton_kernels()
    choice.check(kernels, config_of(), DEVICE, torch.bfloat16, is_float8=True)


def test_a_forward_on_cuda_equals_the_plain_one_on_the_cpu() -> None:
    on_cpu = TorchForward(random_model(device=torch.device("cpu")))
    expected = logits_over_steps(BackboneRunner(on_cpu, cache_bytes=CACHE_BYTES))
    runner = cuda_runner(random_model())
    found = logits_over_steps(runner)
    assert runner.forward.problems == []
    assert runner.forward.kernels.name == "triton"
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_forwards_equal_those_run_kernel_by_kernel(dtype: torch.dtype) -> None:
    recorded = cuda_runner(random_model(dtype=dtype))
    eager = cuda_runner(random_model(dtype=dtype), recorder=PlainRecorder())
    found, expected = logits_over_steps(recorded), logits_over_steps(eager)
    assert recorded.forward.problems == []
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(logits_over_steps(recorded), expected, strict=True):  # from the cache
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.1)


def test_bf16_stays_near_float32_in_every_shape() -> None:
    exact = logits_over_steps(cuda_runner(random_model()))
    rounded = logits_over_steps(cuda_runner(random_model(dtype=torch.bfloat16)))
    for a, b in zip(rounded, exact, strict=True):
        assert torch.cosine_similarity(a, b, dim=-1).min() > 0.995


@needs_float8
def test_float8_weights_multiply_as_the_same_numbers_in_full_precision() -> None:
    torch.manual_seed(0)
    weight = torch.randn(512, 256, device=DEVICE, dtype=torch.bfloat16)
    for rows in (1, 3, 33):
        x = torch.randn(2, rows, 256, device=DEVICE, dtype=torch.bfloat16)
        found = linear(x, Float8Weight.of(weight)).float()
        expected = torch.nn.functional.linear(x, weight).float()
        assert (found - expected).norm() / expected.norm() < 0.06


@needs_float8
def test_a_float8_backbone_stays_near_the_full_one() -> None:
    exact = logits_over_steps(cuda_runner(random_model()))
    runner = cuda_runner(random_model(dtype=torch.bfloat16), is_float8=True)
    rounded = logits_over_steps(runner)
    assert runner.forward.problems == []
    for a, b in zip(rounded, exact, strict=True):
        assert torch.cosine_similarity(a, b, dim=-1).min() > 0.97


def test_what_rows_cost_is_known_from_the_start() -> None:
    costs = cuda_runner(random_model(dtype=torch.bfloat16)).forward.costs
    assert tuple(costs) == MEASURED_ROWS
    assert all(ms > 0 for ms in costs.values())


class NoBytes:
    """A tokenizer of which no fill here asks anything."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token % 256])

    def allowed_after(self, rest: bytes) -> list[int]:
        raise AssertionError


@contextmanager
def engine_of(model: Transformer, *, drafts: bool = False) -> Iterator[Engine]:
    """An engine around a backbone; with `drafts`, a random denoiser writes some of them."""
    config = DenoiserConfig.of(model.config, num_layers=2)
    denoiser = Denoiser.of(config, model, torch.arange(VOCAB_SIZE))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.05)
    denoiser.register_rotation(DEVICE)
    denoiser = denoiser.requires_grad_(False).eval().to(DEVICE, model.final_norm.weight.dtype)
    num_kv_layers = model.config.num_layers + config.num_layers
    forward = CudaForward(model, tapped_layers=config.taps, num_kv_layers=num_kv_layers)
    runner = CudaRunner(forward, denoiser=denoiser if drafts else None, cache_bytes=CACHE_BYTES)
    vocabulary = BackboneVocabulary(
        end_ids=frozenset({VOCAB_SIZE - 1}),
        forbidden=torch.zeros(0, dtype=torch.long, device=DEVICE),
    )
    drafters = [GuessDrafter(), *([DenoiserDrafter(runner, denoiser)] if drafts else [])]
    engine = Engine(VerifyingDecoder(runner, vocabulary, NoBytes(), drafters))
    try:
        yield engine
    finally:
        engine.close()


def fill_of(seed: int, policy: str, guess: tuple[int, ...] = ()) -> BackboneFill:
    return BackboneFill(
        prompt=tuple(text(seed, 20 + 45 * seed)),
        params=(SamplingParams(policy=policy),),  # type: ignore[arg-type]
        max_new_tokens=24,
        guess=guess,
    )


def test_verified_greedy_text_is_the_backbones_own() -> None:
    draw, num_saved = random.Random(0), 0
    with engine_of(random_model()) as alone, engine_of(random_model(), drafts=True) as drafting:
        for seed in range(8):
            expected = fill_of(seed, "autoregressive")
            tokens = alone.submit(expected).result(120)[0].holes[0]
            guess = tuple(token if draw.random() < 0.8 else 3 for token in tokens)
            found = fill_of(seed, "verified", guess)
            assert drafting.submit(found).result(120)[0].holes[0] == tokens
            num_saved += expected.forwards - found.forwards
    assert num_saved > 0


def test_many_fills_at_once_are_what_they_are_alone() -> None:
    with engine_of(random_model()) as engine:
        alone = [engine.submit(fill_of(seed, "autoregressive")).result(120) for seed in range(16)]
        engine.decoder.drop_cache()
        futures = [engine.submit(fill_of(seed, "autoregressive")) for seed in range(16)]
        together = [future.result(120) for future in futures]
    same = [a[0].holes == b[0].holes for a, b in zip(together, alone, strict=True)]
    assert sum(same) >= 15  # where two tokens are equally likely, a batch may round otherwise


def test_a_backbone_of_seven_billion_weights_is_recorded() -> None:
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of free GPU memory")
    config = config_of(
        vocab_size=152_064, hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4,
        head_dim=128, ffn_size=18_944, max_positions=32_768,
    )  # fmt: skip
    with torch.device("meta"):
        model = Transformer(config).to(torch.bfloat16)
    model.to_empty(device=DEVICE).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    model.register_rotation(DEVICE)
    runner = CudaRunner(CudaForward(model), cache_bytes=2 << 30)
    found = logits_over_steps(runner)
    assert runner.forward.problems == []
    assert all(logits.isfinite().all() for logits in found)
