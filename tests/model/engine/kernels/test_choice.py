"""A model gets triton's kernels only where they pass a test on the spot."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from model.denoiser import DenoiserConfig
from model.engine.kernels import choice
from model.engine.kernels.choice import REFERENCE, check, kernels_for, triton_kernels

CPU = torch.device("cpu")
CONFIG = DenoiserConfig(
    vocab_size=100, hidden_size=64, num_heads=4, num_kv_heads=2, ffn_size=48, num_layers=1
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tritons_kernels_pass_the_test_that_they_are_chosen_by(dtype: torch.dtype) -> None:
    check(triton_kernels(), CONFIG, CPU, dtype)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(REFERENCE)][1:])
def test_a_kernel_that_computes_something_else_is_found_out_by_name(name: str) -> None:
    def wrong(*arguments: object) -> object:
        result = getattr(REFERENCE, name)(*arguments)
        if name == "head":
            return dataclasses.replace(result, confidence=result.confidence * 1.1)
        if isinstance(result, Tensor):
            return result * 1.1
        return tuple(part * 1.1 for part in result)

    broken = dataclasses.replace(REFERENCE, **{name: wrong})
    with pytest.raises(AssertionError, match=name):
        check(broken, CONFIG, CPU, torch.float32)


def test_a_cpu_has_no_kernels_and_that_is_no_problem() -> None:
    assert kernels_for(CONFIG, CPU, torch.float32) == (REFERENCE, None)


def test_a_head_size_that_no_kernel_takes_is_a_named_problem() -> None:
    config = dataclasses.replace(CONFIG, hidden_size=96)
    kernels, problem = kernels_for(config, torch.device("cuda"), torch.bfloat16)
    assert kernels is REFERENCE
    assert problem is not None
    assert "24 dimensions" in problem


def test_kernels_that_fail_on_the_device_leave_plain_torch_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(choice, "check", fail)
    kernels, problem = kernels_for(CONFIG, torch.device("cuda"), torch.bfloat16)
    assert kernels is REFERENCE
    assert problem == "the kernels failed their test: no kernel image is available"
    assert "plain torch" in caplog.text
