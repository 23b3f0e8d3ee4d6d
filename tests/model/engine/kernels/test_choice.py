"""A model gets triton's kernels only where they pass a test on the spot."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from model.engine.kernels import choice
from model.engine.kernels.choice import REFERENCE, check, kernels_for, triton_kernels
from model.transformer import TransformerConfig

CPU = torch.device("cpu")
CONFIG = TransformerConfig(
    model_type="qwen2", vocab_size=100, hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2,
    head_dim=16, ffn_size=48, max_positions=64, rope_theta=1e4, norm_eps=1e-6, is_tied=False,
    qkv_bias=True, attention="causal", shifts_logits=True,
)  # fmt: skip
NORMED = dataclasses.replace(CONFIG, qkv_bias=False, qk_norm=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, NORMED], ids=["bias", "norms"])
def test_tritons_kernels_pass_the_test_that_they_are_chosen_by(
    config: TransformerConfig, dtype: torch.dtype
) -> None:
    check(triton_kernels(), config, CPU, dtype, is_float8=True)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(REFERENCE)][1:])
def test_a_kernel_that_computes_something_else_is_found_out_by_name(name: str) -> None:
    def wrong(*arguments: object) -> object:
        result = getattr(REFERENCE, name)(*arguments)
        if isinstance(result, Tensor):
            return result * 1.1
        return tuple((part.float() * 1.1).to(part.dtype) for part in result)

    broken = dataclasses.replace(REFERENCE, **{name: wrong})
    with pytest.raises(AssertionError, match=name):
        check(broken, CONFIG, CPU, torch.float32, is_float8=True)


def test_keys_that_are_written_wrongly_are_found_out() -> None:
    def wrong(*arguments: object) -> Tensor:
        result = REFERENCE.split_rotate(*arguments)
        arguments[-1][0].mul_(1.1)  # type: ignore[index]
        return result

    with pytest.raises(AssertionError, match="split_rotate"):
        check(dataclasses.replace(REFERENCE, split_rotate=wrong), CONFIG, CPU, torch.float32)


def test_a_cpu_has_no_kernels_and_that_is_no_problem() -> None:
    assert kernels_for(CONFIG, CPU, torch.float32) == (REFERENCE, None)


def test_a_head_size_that_no_kernel_takes_is_a_named_problem() -> None:
    config = dataclasses.replace(CONFIG, head_dim=24)
    kernels, problem = kernels_for(config, torch.device("cuda"), torch.bfloat16)
    assert kernels is REFERENCE
    assert problem is not None
    assert "24 dimensions" in problem


def test_kernels_that_fail_on_the_device_leave_plain_torch_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(choice, "check", fail)
    kernels, problem = kernels_for(CONFIG, torch.device("cuda"), torch.bfloat16)
    assert kernels is REFERENCE
    assert problem == "the kernels failed their test: no kernel image is available"
    assert "plain torch" in caplog.text
