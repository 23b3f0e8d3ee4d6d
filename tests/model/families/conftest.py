"""A tiny random checkpoint of every family, written in the family's own format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CODE = "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 'ä🙂'))\n" * 3
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 32, 2, 4, 2, 8, 48, 352

_QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIALS: dict[str, tuple[str, ...]] = {
    "Dream": (*_QWEN_SPECIALS, "<|beginoftext|>", "<|mask|>"),
    "DreamOn": (*_QWEN_SPECIALS, "<|beginoftext|>", "<|mask|>", "<|expand|>"),
    "llada": ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"),
    "qwen2": (*_QWEN_SPECIALS, "<M>"),
    "a2d-qwen2": (*_QWEN_SPECIALS, "<|mask|>"),
    "sdar": (*_QWEN_SPECIALS, "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|MASK|>"),
    "llama": (
        "<[begin▁of▁sentence]>", "<[end▁of▁sentence]>", "<[MASK_TOKEN]>",
        "<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>",
    ),
    "CoDA": (*_QWEN_SPECIALS, "<|mask|>"),
}  # fmt: skip
FAMILIES = tuple(SPECIALS)
_BOS = {"Dream": "<|beginoftext|>", "DreamOn": "<|beginoftext|>", "llada": "<|startoftext|>",
        "llama": "<[begin▁of▁sentence]>"}  # fmt: skip


def _config(family: str, vocab: int, mask_id: int, eos_id: int) -> dict[str, Any]:
    if family == "llada":
        return {
            "model_type": "llada", "d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS,
            "n_kv_heads": HEADS, "mlp_hidden_size": FFN, "vocab_size": vocab,
            "embedding_size": VOCAB, "rope_theta": 5e5, "max_sequence_length": 256,
            "rms_norm_eps": 1e-5, "weight_tying": False, "block_type": "llama",
            "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "alibi": False,
            "include_bias": False, "mask_token_id": mask_id, "eos_token_id": eos_id,
        }  # fmt: skip
    config: dict[str, Any] = {
        "model_type": "Dream" if family == "DreamOn" else family, "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "intermediate_size": FFN, "vocab_size": VOCAB,
        "max_position_embeddings": 256, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "eos_token_id": eos_id,
    }  # fmt: skip
    if family in ("Dream", "DreamOn", "sdar", "CoDA"):
        config["mask_token_id"] = mask_id
    if family in ("sdar", "CoDA"):  # as Qwen3: a head dimension of its own
        config["head_dim"] = 2 * HEAD_DIM
    if family != "CoDA":  # whose config does not say
        config["tie_word_embeddings"] = family in ("qwen2", "a2d-qwen2")
    if family == "sdar":
        config["block_size"] = 4
    return config


def _hugging_face_weights(family: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    dim = config.get("head_dim", HEAD_DIM)
    heads, kv_heads = HEADS * dim, KV_HEADS * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,),
    }  # fmt: skip
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for n in range(LAYERS):
        at = f"model.layers.{n}."
        for name, out in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (out, HIDDEN)
            if family in ("Dream", "DreamOn", "qwen2", "a2d-qwen2"):
                shapes[f"{at}self_attn.{name}_proj.bias"] = (out,)
        if family in ("sdar", "CoDA"):
            shapes[f"{at}self_attn.q_norm.weight"] = shapes[f"{at}self_attn.k_norm.weight"] = (dim,)
        shapes |= {
            f"{at}self_attn.o_proj.weight": (HIDDEN, heads),
            f"{at}mlp.gate_proj.weight": (FFN, HIDDEN), f"{at}mlp.up_proj.weight": (FFN, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, FFN), f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
        }  # fmt: skip
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _llada_weights() -> dict[str, torch.Tensor]:
    top = "model.transformer."
    shapes: dict[str, tuple[int, ...]] = {
        f"{top}wte.weight": (VOCAB, HIDDEN), f"{top}ln_f.weight": (HIDDEN,),
        f"{top}ff_out.weight": (VOCAB, HIDDEN),
    }  # fmt: skip
    for n in range(LAYERS):
        at = f"{top}blocks.{n}."
        shapes |= {
            **{f"{at}{x}.weight": (HIDDEN,) for x in ("attn_norm", "ff_norm")},
            **{f"{at}{x}.weight": (HIDDEN, HIDDEN) for x in ("q_proj", "k_proj", "v_proj")},
            f"{at}attn_out.weight": (HIDDEN, HIDDEN), f"{at}ff_proj.weight": (FFN, HIDDEN),
            f"{at}up_proj.weight": (FFN, HIDDEN), f"{at}ff_out.weight": (HIDDEN, FFN),
        }  # fmt: skip
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    seed = torch.Generator().manual_seed(sum(map(ord, name)))
    noise = torch.randn(shape, generator=seed)
    return 1 + 0.2 * noise if "norm" in name or "ln_f" in name else noise * 0.3


def make_tokenizer(*specials: str, in_vocabulary: bool = False) -> Tokenizer:
    """A byte-level BPE, as all families have. Its special tokens are added behind the vocabulary,
    as Qwen's, or are its first ones as well, as Seed-Coder's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=alphabet,
        show_progress=False,
        special_tokens=list(specials) if in_vocabulary else [],
    )
    tokenizer.train_from_iterator([CODE], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return tokenizer


def write_checkpoint(directory: Path, family: str, *, shards: int = 1) -> Path:
    """A tiny random checkpoint of a family, in its own names and files."""
    directory.mkdir(parents=True, exist_ok=True)
    specials = SPECIALS[family]
    tokenizer = make_tokenizer(*specials, in_vocabulary=family == "llama")
    mask = next(name for name in specials if "mask" in name.lower() or name == "<M>")
    eos = next(name for name in specials if "end" in name and "im_" not in name)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {"eos_token": eos, "pad_token": eos, "mask_token": mask}
    settings["bos_token"] = {"content": _BOS[family]} if family in _BOS else None
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = tokenizer.token_to_id
    config = _config(family, tokenizer.get_vocab_size(), ids(mask), ids(eos))
    (directory / "config.json").write_text(json.dumps(config))
    weights = _llada_weights() if family == "llada" else _hugging_face_weights(family, config)
    save_shards(directory, weights, shards)
    return directory


def save_shards(directory: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    """One file, or several and their index."""
    if shards == 1:
        save_file(weights, directory / "model.safetensors")
        return
    names, place = sorted(weights), {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        save_file({name: weights[name] for name in names[n::shards]}, directory / file)
        place |= dict.fromkeys(names[n::shards], file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """`write(directory, family, shards=1)` writes a checkpoint of one's own."""
    return write_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a family; shared, so not to be changed."""
    written: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in written:
            written[family] = write_checkpoint(tmp_path_factory.mktemp("open") / family, family)
        return written[family]

    return get
