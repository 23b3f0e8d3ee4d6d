"""A backbone computes what `transformers` computes, whatever file it comes from."""

from __future__ import annotations

import gc
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize
from tiny_backbones import (
    CONTEXT,
    EMBEDDING,
    HEAD,
    KINDS,
    SPECIALS,
    TEMPLATE,
    make_model,
    make_tokenizer,
    metadata,
    quantised,
    tensors,
    with_values,
    write_folder,
    write_gguf,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from model.api import CheckpointError
from model.backbone.checkpoint import Backbone, is_backbone, load_backbone
from model.backbone.gguf_file import GgufFile

Q = GGMLQuantizationType
FULL = (Q.F32, Q.F16, Q.BF16)
BLOCKS = (Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1)
SCALES = {  # where the two-byte scales lie in a block of those that `gguf` does not write
    Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,),
}  # fmt: skip


def test_a_folder_computes_what_transformers_does(tmp_path: Path, kind: str, tied: bool) -> None:
    model = make_model(kind, tied=tied)
    folder = write_folder(tmp_path, kind, model, make_tokenizer(kind))
    assert is_backbone(folder)
    backbone = load_backbone(folder)
    assert_same_logits(backbone, model)
    assert backbone.model.config.attention == "causal"
    assert backbone.model.config.shifts_logits
    assert backbone.model.config.max_positions == CONTEXT
    assert backbone.path == folder
    assert backbone.digest == sha256(folder / "model.safetensors")
    assert backbone.chat_template == TEMPLATE


@pytest.mark.parametrize("stored_as", [*FULL, *BLOCKS], ids=lambda kind: kind.name)
def test_a_gguf_file_computes_what_transformers_does(
    tmp_path: Path, kind: str, stored_as: GGMLQuantizationType
) -> None:
    model = make_model(kind)
    stored = quantised(tensors(kind, model), stored_as)
    path = write_gguf(tmp_path / "tiny.gguf", kind, metadata(kind, make_tokenizer(kind)), stored)
    assert is_backbone(path)
    backbone = load_backbone(path)
    assert_same_logits(backbone, with_values(kind, model, stored))
    assert backbone.model.config.attention == "causal"
    assert backbone.model.config.max_positions == CONTEXT
    assert backbone.digest == sha256(path)
    assert backbone.chat_template == TEMPLATE


@pytest.mark.parametrize("stored_as", list(SCALES), ids=lambda kind: kind.name)
def test_k_quants_too(tmp_path: Path, kind: str, stored_as: GGMLQuantizationType) -> None:
    model = make_model(kind)
    stored = quantised(tensors(kind, model), Q.F32)
    seed = np.random.default_rng(1)
    for name, (weight, _) in stored.items():
        if weight.ndim == 2:
            stored[name] = random_blocks(weight.shape, stored_as, seed), stored_as
    path = write_gguf(tmp_path / "tiny.gguf", kind, metadata(kind, make_tokenizer(kind)), stored)
    assert_same_logits(load_backbone(path), with_values(kind, model, stored))


def test_transformers_reads_the_same_out_of_a_llama_file(tmp_path: Path) -> None:
    """Who else undoes the order of rows that llama.cpp gives to queries and keys."""
    model = make_model("llama")
    stored = quantised(tensors("llama", model), Q.F32)
    entries = metadata("llama", make_tokenizer("llama"))
    path = write_gguf(tmp_path / "tiny.gguf", "llama", entries, stored)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    assert_same_logits(load_backbone(path), theirs)


def test_an_embedding_without_a_head_is_both(tmp_path: Path, kind: str) -> None:
    model = make_model(kind, tied=True)
    stored = quantised(tensors(kind, model), Q.Q8_0)
    assert HEAD not in stored
    path = write_gguf(tmp_path / "tiny.gguf", kind, metadata(kind, make_tokenizer(kind)), stored)
    backbone = load_backbone(path)
    assert backbone.model.head.weight is backbone.model.embedding.weight
    assert_same_logits(backbone, with_values(kind, model, stored))


def test_a_matrix_that_is_stored_twice_is_read_once_and_precisely(tmp_path: Path) -> None:
    model = make_model("qwen2", tied=True)
    weights = tensors("qwen2", model)
    stored = quantised(weights, Q.Q5_0)
    stored[HEAD] = quantised(weights, Q.Q8_0)[EMBEDDING]
    entries = metadata("qwen2", make_tokenizer("qwen2"))
    path = write_gguf(tmp_path / "tiny.gguf", "qwen2", entries, stored)
    backbone = load_backbone(path)
    assert backbone.model.head.weight is backbone.model.embedding.weight
    assert_same_logits(backbone, with_values("qwen2", model, stored, embedding=HEAD))


def test_a_backbone_can_be_read_in_half_precision(tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    stored = quantised(tensors(kind, model), Q.Q8_0)
    path = write_gguf(tmp_path / "tiny.gguf", kind, metadata(kind, make_tokenizer(kind)), stored)
    backbone = load_backbone(path, dtype=torch.bfloat16)
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    expected = with_values(kind, model, stored).model.layers[1].mlp.up_proj.weight
    found = backbone.model.layers[1].up_proj.weight
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_nothing_is_kept_of_a_file_but_the_weights(tmp_path: Path) -> None:
    model = make_model("qwen2")
    stored = quantised(tensors("qwen2", model), Q.F32)
    entries = metadata("qwen2", make_tokenizer("qwen2"))
    path = write_gguf(tmp_path / "tiny.gguf", "qwen2", entries, stored)
    backbone = load_backbone(path)
    before = logits(backbone)
    gc.collect()
    path.write_bytes(b"")  # a mapped page of it would be gone
    assert torch.equal(before, logits(backbone))


def test_large_tensors_are_read_in_pieces_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(3).standard_normal((37, 96), dtype=np.float32)
    stored = quantised({"odd": weight}, Q.Q4_1)
    path = write_gguf(tmp_path / "odd.gguf", "qwen2", {}, stored)
    monkeypatch.setattr("model.backbone.gguf_file._AT_ONCE", 100)  # 3 blocks, 3 values left over
    found = GgufFile(path).tensor("odd")
    assert torch.equal(found, torch.from_numpy(dequantize(*stored["odd"])))


def test_headers_are_read_as_the_gguf_package_reads_them(tmp_path: Path, kind: str) -> None:
    stored = quantised(tensors(kind, make_model(kind)), Q.Q8_0)
    entries = metadata(kind, make_tokenizer(kind))
    path = write_gguf(tmp_path / "tiny.gguf", kind, entries, stored)
    reader, file = GGUFReader(path), GgufFile(path)
    theirs = {key: field.contents() for key, field in reader.fields.items()}
    ours = {"general.architecture": kind, **file.metadata}
    assert ours == {key: value for key, value in theirs.items() if not key.startswith("GGUF.")}
    assert {t.name: (t.data_offset, t.n_bytes) for t in reader.tensors} == {
        name: (stored.start, stored.num_bytes) for name, stored in file.tensors.items()
    }


def test_a_diffusion_model_on_the_same_architecture_stays_with_its_family(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("qwen2", (*SPECIALS, "<M>"))
    open_d_coder = write_folder(tmp_path / "a", "qwen2", make_model("qwen2"), tokenizer)
    assert not is_backbone(open_d_coder)
    plain = write_folder(tmp_path / "b", "qwen2", make_model("qwen2"), make_tokenizer("qwen2"))
    edit(plain, mask_token_id=7)
    assert not is_backbone(plain)
    edit(plain, mask_token_id=None, block_size=4)
    assert not is_backbone(plain)
    edit(plain, block_size=None)
    assert is_backbone(plain)
    edit(plain, architectures=["DreamModel"])
    assert not is_backbone(plain)


def test_what_is_no_model_is_no_backbone(tmp_path: Path) -> None:
    assert not is_backbone(tmp_path)
    assert not is_backbone(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("GGUG")
    assert not is_backbone(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text("{")
    assert not is_backbone(tmp_path)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


IDS = torch.randint(0, 340, (2, 60), generator=torch.Generator().manual_seed(5))


def assert_same_logits(backbone: Backbone, theirs: PreTrainedModel) -> None:
    with torch.inference_mode():
        expected = theirs(IDS).logits
    assert expected.std() > 0.1, "logits so alike would prove nothing"
    torch.testing.assert_close(logits(backbone), expected, atol=1e-3, rtol=0)


def logits(backbone: Backbone) -> torch.Tensor:
    length = IDS.shape[1]
    visible = torch.ones(1, length, length, dtype=torch.bool).tril()
    with torch.inference_mode():
        hidden, _ = backbone.model.hidden(IDS, torch.arange(length)[None], visible)
        return backbone.model.logits(hidden)


def random_blocks(
    shape: tuple[int, ...], kind: GGMLQuantizationType, seed: np.random.Generator
) -> np.ndarray:
    """A matrix that `gguf` can read but not write: random bits with scales that keep it small."""
    block, size = GGML_QUANT_SIZES[kind]
    raw = seed.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    for start in SCALES[kind]:
        scales = seed.uniform(1e-4, 3e-4, len(raw)).astype(np.float16)
        raw[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
    return raw.reshape(shape[0], -1)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_path_without_a_model_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mezzotint download"):
        load_backbone(tmp_path / "missing.gguf")
