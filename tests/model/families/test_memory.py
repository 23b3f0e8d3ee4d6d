from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.api import CheckpointError
from model.families.configs import read_config
from model.families.memory import WORKING_BYTES, bytes_needed, require_memory
from model.families.weights import load_transformer
from model.transformer import TransformerConfig

DREAM_7B = TransformerConfig(
    model_type="Dream", vocab_size=152064, hidden_size=3584, num_layers=28, num_heads=28,
    num_kv_heads=4, head_dim=128, ffn_size=18944, max_positions=32768, rope_theta=1e6,
    norm_eps=1e-6, is_tied=False, qkv_bias=True, shifts_logits=True,
)  # fmt: skip


@pytest.mark.parametrize("family", ["Dream", "llada", "sdar", "qwen2"])
def test_the_estimate_is_what_the_weights_take(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    config = read_config(checkpoints(family))
    tensors = {p.data_ptr(): p for p in load_transformer(checkpoints(family), config).parameters()}
    actual = sum(t.nbytes for t in tensors.values())
    estimate = bytes_needed(config, "float32") - WORKING_BYTES
    assert 0.97 * actual < estimate <= actual  # norms and biases are left out


def test_a_7b_model_needs_what_its_files_weigh_and_some() -> None:
    assert 15e9 < bytes_needed(DREAM_7B, "bfloat16") < 17e9
    require_memory(DREAM_7B, "bfloat16", room=24 << 30, device="cuda:0")


@pytest.mark.parametrize(
    ("device", "dtype", "gb", "advice"),
    [
        ("cuda:0", "float32", 24, "dtype 'bfloat16' needs 16.3 GB"),
        ("cuda:0", "bfloat16", 12, "dtype 'float8' needs 9.8 GB"),
        ("cuda:0", "bfloat16", 8, "int8 needs 9.8 GB, too: use device 'cpu'"),
        ("cpu", "bfloat16", 12, "dtype 'int8' needs 9.8 GB"),
        ("cpu", "float32", 8, "take a smaller checkpoint"),
    ],
)
def test_a_device_too_small_says_how_much_is_needed_and_what_helps(
    device: str, dtype: str, gb: int, advice: str
) -> None:
    with pytest.raises(CheckpointError, match=f"{device} has {gb}.0 GB") as info:
        require_memory(DREAM_7B, dtype, room=gb * 10**9, device=device)
    assert advice in str(info.value)
    assert f"in {dtype}" in str(info.value)
