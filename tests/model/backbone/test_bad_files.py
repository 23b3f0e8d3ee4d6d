"""What cannot be read is refused in one sentence that says what is wrong."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_backbones import (
    EMBEDDING,
    INFILL,
    SPECIALS,
    make_model,
    make_tokenizer,
    metadata,
    quantised,
    tensors,
    write_folder,
    write_gguf,
)

from model.api import CheckpointError
from model.backbone.checkpoint import is_backbone, load_backbone

Q = GGMLQuantizationType
Write = Callable[..., Path]
UP = "blk.1.ffn_up.weight"
WITHOUT_INFILL = tuple(name for name in SPECIALS if name not in INFILL)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_backbone(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_cut_short(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[:-1])
    assert f"the file at {len(content) - 1}; download it again" in refusal(path)
    for length in (9, 23, 100, 1_000, 6_000):
        path.write_bytes(content[:length])
        assert f"cut short: it ends within its header, at byte {length}" in refusal(path)
    path.write_bytes(b"")
    assert "cannot be read as a GGUF file" in refusal(path)


def test_a_file_of_another_kind(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "web page.gguf"
    path.write_bytes(b"<!doctype html><p>404")
    assert is_backbone(path)  # by its name: whoever names it wants to hear what is wrong with it
    assert "is not a GGUF file: it begins with b'<!do'" in refusal(path)
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + whole.read_bytes()[8:])
    assert "of version 1; versions 2 and 3 are read" in refusal(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + whole.read_bytes()[8:])
    assert "of version 50331648" in refusal(path)


def test_an_unknown_architecture(write: Write) -> None:
    message = refusal(write(architecture="gemma3"))
    assert "architecture 'gemma3'; known are qwen2, llama" in message


def test_a_part_of_a_model(write: Write) -> None:
    assert "is one of 3 parts of a model; join them" in refusal(write({"split.count": 3}))


def test_missing_additional_and_misshapen_tensors(write: Write) -> None:
    def without(stored: dict[str, Any]) -> None:
        del stored[UP]

    def misshapen(stored: dict[str, Any]) -> None:
        stored[UP] = np.zeros((512, 128), np.float32), Q.F32

    def additional(stored: dict[str, Any]) -> None:
        stored["blk.0.attn_q_norm.weight"] = np.zeros(32, np.float32), Q.F32

    def empty(stored: dict[str, Any]) -> None:
        del stored[EMBEDDING]

    assert f"tensor {UP} should have shape [512, 256], found nothing" in refusal(
        write(change=without)
    )
    assert f"{UP} should have shape [512, 256], found [512, 128]" in refusal(
        write(change=misshapen)
    )
    assert "attn_q_norm.weight should have shape none at all" in refusal(write(change=additional))
    assert f"lacks the matrix {EMBEDDING}" in refusal(write(change=empty))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"qwen2.context_length": None}, "its metadata lack qwen2.context_length"),
        ({"qwen2.context_length": 1 << 30}, "is 1073741824, not a whole number from 1 to 1048576"),
        ({"qwen2.block_count": 24}, "block_count is 24, and it holds 2 blocks"),
        ({"qwen2.embedding_length": 0}, "embedding_length is 0, not a whole number above 0"),
        ({"qwen2.attention.head_count_kv": 3}, "8 heads cannot share 3 key/value heads"),
        ({"qwen2.rope.scaling.type": "yarn"}, "rotary scaling 'yarn' is not supported"),
        ({"qwen2.rope.dimension_count": 16}, "rotation of a part of each head"),
        ({"qwen2.attention.value_length": 16}, "values of another size than keys"),
        ({"qwen2.attention.sliding_window": 64}, "sliding-window attention is not supported"),
        ({"qwen2.expert_count": 8}, "a mixture of experts is not supported"),
        ({"tokenizer.ggml.model": "llama"}, "is of the kind 'llama'; only byte-level BPE"),
        ({"tokenizer.ggml.pre": "tekken"}, "in the way 'tekken'; known are qwen2, llama-bpe"),
        ({"tokenizer.ggml.merges": None}, "its tokenizer is not complete"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "its tokenizer is not complete"),
        ({"tokenizer.ggml.merges": ["no such"]}, "holds no readable tokenizer"),
        ({"tokenizer.ggml.eos_token_id": 9_999}, "has id 9999, the model has ids 0..351"),
        ({"general.alignment": 0}, "general.alignment is 0, not a whole number above 0"),
    ],
)
def test_metadata_that_fit_no_model(write: Write, entries: dict[str, Any], expected: str) -> None:
    assert expected in refusal(write(entries))


def test_scaled_rotation_by_factors(write: Write) -> None:
    def scaled(stored: dict[str, Any]) -> None:
        stored["rope_freqs.weight"] = np.ones(16, np.float32), Q.F32

    assert "rotary scaling 'llama3' is not supported" in refusal(write(change=scaled))


def test_a_kind_of_blocks_that_nobody_dequantises(write: Write) -> None:
    def unreadable(stored: dict[str, Any]) -> None:
        stored[UP] = np.zeros((512, 256), np.int8), Q.I8

    message = refusal(write(change=unreadable))
    assert f"tensor {UP} is stored as I8, which cannot be dequantised" in message


def test_weights_that_are_no_numbers(write: Write) -> None:
    def damaged(stored: dict[str, Any]) -> None:
        stored[UP] = np.full((512, 256 // 32 * 34), 255, np.uint8), Q.Q8_0

    assert f"damaged: tensor {UP} holds what is no number" in refusal(write(change=damaged))


def test_tokenizers_without_infill_tokens(write: Write, tmp_path: Path) -> None:
    tokenizer = make_tokenizer("qwen2", WITHOUT_INFILL)
    assert "the tokenizer lacks the infill tokens" in refusal(write(tokenizer=tokenizer))
    folder = write_folder(tmp_path / "folder", "qwen2", make_model("qwen2"), tokenizer)
    assert "the tokenizer lacks the infill tokens" in refusal(folder)


def test_folders_of_another_kind(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "llama", make_model("llama"), make_tokenizer("llama"))
    config = folder / "config.json"
    raw = json.loads(config.read_text())

    def refused(**changes: object) -> str:
        config.write_text(json.dumps({k: v for k, v in (raw | changes).items() if v is not None}))
        return refusal(folder)

    assert "['MambaForCausalLM']; known are Qwen2ForCausalLM, LlamaForCausalLM" in refused(
        architectures=["MambaForCausalLM"]
    )
    assert "lacks the key 'max_position_embeddings'" in refused(max_position_embeddings=None)
    assert "rotary scaling 'yarn' is not supported" in refused(
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    )
    assert "should have shape [128, 256], found [512, 256]" in refused(intermediate_size=128)
    assert "the model has ids 0..299" in refused(vocab_size=300)
    config.write_text(json.dumps(raw))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "is truncated, too long or damaged" in refusal(folder)
    weights.unlink()
    assert "lacks model.safetensors; fetch the checkpoint again" in refusal(folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    assert "tokenizer" in refusal(folder)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(4, 9_000), raw=st.binary(min_size=1, max_size=8))
def test_damage_anywhere_in_the_header_is_a_checkpoint_error_or_none(
    whole: Path, tmp_path: Path, at: int, raw: bytes
) -> None:
    content = bytearray(whole.read_bytes())
    content[at : at + len(raw)] = raw
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        load_backbone(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(entries, change=, architecture=, tokenizer=)`: a file with something wrong in it."""

    def write(*args: Any, **settings: Any) -> Path:
        return _write(tmp_path, *args, **settings)

    return write


def _write(
    directory: Path,
    entries: dict[str, Any] | None = None,
    *,
    change: Callable[[dict[str, Any]], None] = lambda _: None,
    architecture: str = "qwen2",
    tokenizer: Any = None,
) -> Path:
    stored = quantised(tensors("qwen2", make_model("qwen2")), Q.Q8_0)
    change(stored)
    found = metadata("qwen2", tokenizer or make_tokenizer("qwen2")) | (entries or {})
    present = {key: value for key, value in found.items() if value is not None}
    return write_gguf(directory / "tiny.gguf", architecture, present, stored)
