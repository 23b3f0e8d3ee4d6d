"""The exported half of a checkpoint is the model that `transformers` runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.api import CheckpointError
from model.checkpoint import save_checkpoint
from model.denoiser import Denoiser, DenoiserConfig, Role
from model.export import export, main
from model.infill import prefix_stream
from model.tokenizer import CodeTokenizer


@pytest.fixture(scope="module")
def transformers() -> Any:
    reason = "needs transformers (the extra `bench`)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason=reason)


@pytest.fixture
def model(tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]) -> Denoiser:
    return make_denoiser(tokenizer.vocab_size, dtype=torch.float32, hidden_size=48, max_context=64)


@torch.inference_mode()
def test_next_token_logits_equal_those_of_transformers(
    transformers: Any, model: Denoiser, tokenizer: CodeTokenizer, code: str, tmp_path: Path
) -> None:
    export(tmp_path, model, tokenizer)
    ids = torch.tensor([
        prefix_stream(tokenizer, tokenizer.encode(code)[:50], "python", starts_file=True)
    ])  # fmt: skip
    hidden, _ = model.encode(ids, Role.PREFIX)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(peer).__name__ == "Qwen3ForCausalLM"
    torch.testing.assert_close(peer(ids).logits, model.logits(hidden), atol=1e-4, rtol=0)


def test_the_exported_tokenizer_reads_a_prompt_as_ours_does(
    transformers: Any, model: Denoiser, tokenizer: CodeTokenizer, code: str, tmp_path: Path
) -> None:
    export(tmp_path, model, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = prefix_stream(tokenizer, tokenizer.encode(code), "python", starts_file=True)
    assert theirs("<lang:python><file>" + code)["input_ids"] == ours
    assert theirs.decode(theirs(code)["input_ids"]) == code


def test_a_model_without_qk_norm_is_refused(tokenizer: CodeTokenizer, tmp_path: Path) -> None:
    config = DenoiserConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, qk_norm=False)
    with pytest.raises(CheckpointError, match="QK-norm"):
        export(tmp_path / "out", Denoiser(config), tokenizer)
    assert not (tmp_path / "out").exists()


def test_the_command_exports_a_checkpoint_and_names_a_missing_one(
    model: Denoiser, tokenizer: CodeTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "ours", model, tokenizer)
    assert main([str(tmp_path / "theirs"), "--model", str(tmp_path / "ours")]) == 0
    assert (tmp_path / "theirs" / "model.safetensors").is_file()
    assert main([str(tmp_path / "theirs"), "--model", str(tmp_path / "none")]) == 1
    assert "there is no checkpoint directory" in capsys.readouterr().err
