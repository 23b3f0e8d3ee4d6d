"""`config.json` of an open checkpoint -> one `TransformerConfig`, by its `model_type`.

Everything that tells the families apart is here: sizes by their names, which way attention looks,
whether a position predicts itself or its successor, and how text around a hole is laid out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.api import CheckpointError
from model.transformer import TransformerConfig

CONFIG = "config.json"


def _from_hugging_face(raw: Mapping[str, Any], **conventions: Any) -> TransformerConfig:
    """The keys that Qwen2, Qwen3 and Llama share."""
    _refuse_variants(raw)
    heads, hidden = _whole(raw, "num_attention_heads"), _whole(raw, "hidden_size")
    rope = raw.get("rope_parameters") or {}
    return TransformerConfig(
        model_type=raw["model_type"],
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or hidden // heads,
        ffn_size=raw["intermediate_size"],
        max_positions=raw["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        is_tied=raw.get("tie_word_embeddings", conventions.pop("is_tied", False)),
        mask_id=raw.get("mask_token_id"),
        eos_id=_first(raw.get("eos_token_id")),
        **conventions,
    )


def _refuse_variants(raw: Mapping[str, Any]) -> None:
    """Raise `ValueError` for what the shared Transformer does not compute."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rotary scaling {kind!r} is not supported, only plain rotary positions")
    if raw.get("use_sliding_window"):
        raise ValueError("sliding-window attention is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"the activation {raw['hidden_act']!r} is not supported, only 'silu'")
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name):
            raise ValueError(f"{name} is not supported: this family was released without")


def _dream(raw: Mapping[str, Any]) -> TransformerConfig:
    # Canvas between [BOS] prefix and suffix [EOS], as DreamOn's demonstration has it.
    return _from_hugging_face(raw, qkv_bias=True, shifts_logits=True, adds_bos=True, adds_eos=True)


def _qwen2(raw: Mapping[str, Any]) -> TransformerConfig:
    return _from_hugging_face(raw, qkv_bias=True, shifts_logits=True)


def _a2d_qwen2(raw: Mapping[str, Any]) -> TransformerConfig:
    return _from_hugging_face(raw, qkv_bias=True, shifts_logits=False, **_blocks(raw, default=0))


def _sdar(raw: Mapping[str, Any]) -> TransformerConfig:
    return _from_hugging_face(raw, qk_norm=True, shifts_logits=False, **_blocks(raw, default=4))


def _llama(raw: Mapping[str, Any]) -> TransformerConfig:
    return _from_hugging_face(raw, shifts_logits=False, adds_bos=True, **_blocks(raw, default=4))


def _coda(raw: Mapping[str, Any]) -> TransformerConfig:
    return _from_hugging_face(raw, qk_norm=True, shifts_logits=True, is_tied=None)


def _blocks(raw: Mapping[str, Any], *, default: int) -> dict[str, Any]:
    """Attention by blocks, where the config or the family says so."""
    size = raw.get("block_size") or default
    return {"attention": "block-causal", "block_size": size} if size else {}


def _llada(raw: Mapping[str, Any]) -> TransformerConfig:
    """OLMo's keys."""
    for name, wanted in (
        ("block_type", "llama"), ("layer_norm_type", "rms"), ("activation_type", "silu"),
        ("rope", True), ("alibi", False), ("include_bias", False), ("attention_layer_norm", False),
        ("input_emb_norm", False), ("scale_logits", False),
    ):  # fmt: skip
        if raw.get(name, wanted) != wanted:
            raise ValueError(f"{name} is {raw[name]!r}; LLaDA was released with {wanted!r}")
    heads, hidden = _whole(raw, "n_heads"), _whole(raw, "d_model")
    return TransformerConfig(
        model_type=raw["model_type"],
        vocab_size=raw.get("embedding_size") or raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["n_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("n_kv_heads") or heads,
        head_dim=hidden // heads,
        ffn_size=raw.get("mlp_hidden_size") or raw["mlp_ratio"] * hidden,
        max_positions=raw["max_sequence_length"],
        rope_theta=float(raw.get("rope_theta", 10_000.0)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        is_tied=raw.get("weight_tying", False),
        qkv_bias=raw.get("include_qkv_bias", False),
        shifts_logits=False,
        adds_bos=True,
        mask_id=raw.get("mask_token_id"),
        eos_id=_first(raw.get("eos_token_id")),
    )


FAMILIES: dict[str, Callable[[Mapping[str, Any]], TransformerConfig]] = {
    "Dream": _dream,
    "llada": _llada,
    "qwen2": _qwen2,
    "a2d-qwen2": _a2d_qwen2,
    "sdar": _sdar,
    "llama": _llama,
    "CoDA": _coda,
}
"""Of each `model_type`: Dream, Dream-Coder, DiffuCoder and DreamOn; LLaDA; Open-dCoder; dLLM's
converted Qwen2; SDAR; Stable-DiffCoder; CoDA."""


def read_config(directory: Path) -> TransformerConfig:
    """The configuration of an open checkpoint. Raises `CheckpointError`."""
    file = directory / CONFIG
    raw = read_json(file)
    family = FAMILIES.get(raw.get("model_type", ""))
    if family is None:
        raise CheckpointError(
            f"{file} has model_type {raw.get('model_type')!r}; known are "
            + ", ".join(map(repr, FAMILIES))
        )
    return _described(file, raw, family)


def _described(
    file: Path, raw: Mapping[str, Any], family: Callable[[Mapping[str, Any]], TransformerConfig]
) -> TransformerConfig:
    try:
        return family(raw)
    except KeyError as error:
        raise CheckpointError(f"{file} lacks the key {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file} describes no model that runs here: {error}") from error


CAUSAL = {"Qwen2ForCausalLM": _qwen2, "LlamaForCausalLM": _llama}
"""Of each architecture that `model.backbone` reads, the family with the same keys."""


def is_causal(raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a causal model, as far as it tells: converted diffusion
    models keep the architecture's name, but have blocks or a mask token."""
    architectures = raw.get("architectures") or []
    has_own = raw.get("block_size") or raw.get("mask_token_id") is not None
    return any(name in CAUSAL for name in architectures) and not has_own


def read_causal_config(directory: Path) -> TransformerConfig:
    """The configuration of a causal checkpoint. Raises `CheckpointError`."""
    file = directory / CONFIG
    raw = read_json(file)
    architectures = raw.get("architectures") or []
    family = next((CAUSAL[name] for name in architectures if name in CAUSAL), None)
    if family is None:
        raise CheckpointError(
            f"{file} has architectures {architectures!r}; known are {', '.join(CAUSAL)}"
        )
    config = _described(file, raw, family)
    return dataclasses.replace(
        config, attention="causal", block_size=0, shifts_logits=True, adds_bos=False
    )


def read_json(file: Path) -> dict[str, Any]:
    """An object in a file. Raises `CheckpointError` when it is missing or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; a checkpoint directory holds it") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; it must be an object")
    return content


def _whole(raw: Mapping[str, Any], key: str) -> int:
    if not isinstance(raw[key], int) or raw[key] < 1:
        raise ValueError(f"{key} is {raw[key]!r}; it must be a whole number above 0")
    return raw[key]


def _first(ids: Any) -> int | None:
    """Generation settings may list several ends; the first is the tokenizer's own."""
    return next(iter(ids), None) if isinstance(ids, list) else ids
