"""Logits of every family against two others: a reference written here from the papers' equations,
one token and one head at a time, and `transformers`, where it is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.families.configs import read_config
from model.families.transformer import visibility
from model.families.weights import load_transformer

FAMILIES = ("Dream", "DreamOn", "llada", "qwen2", "a2d-qwen2", "sdar", "llama", "CoDA")
BLOCKS = {"sdar": 4, "llama": 4}
TOLERANCE = 1e-4
IDS = [3, 14, 15, 92, 65, 35, 89, 79, 320]


def ours(directory: Path, ids: list[int]) -> Tensor:
    config = read_config(directory)
    model = load_transformer(directory, config)
    row = torch.tensor([ids])
    positions = torch.arange(len(ids))[None]
    visible = visibility(config, positions, torch.ones_like(row, dtype=torch.bool))
    return model.logits(model.hidden(row, positions, visible)[0])[0]


def may_see(family: str, query: int, key: int) -> bool:
    """Full attention, or block-causal: the own block and the earlier ones."""
    return family not in BLOCKS or key // BLOCKS[family] <= query // BLOCKS[family]


class Reference:
    """RMSNorm (arXiv 1910.07467, eq. 4), rotary positions as rotations of complex numbers (arXiv
    2104.09864, eq. 14), attention (1706.03762, eq. 1), SwiGLU (2002.05202, eq. 6)."""

    def __init__(self, directory: Path, family: str) -> None:
        self.family = family
        self.raw = json.loads((directory / "config.json").read_text())
        self.w = load_file(directory / "model.safetensors")
        is_llada = family == "llada"
        self.eps = self.raw["rms_norm_eps"]
        self.heads = self.raw["n_heads" if is_llada else "num_attention_heads"]
        self.groups = self.raw["n_kv_heads" if is_llada else "num_key_value_heads"]
        self.top = "model.transformer." if is_llada else "model."
        self.layers = self.raw["n_layers" if is_llada else "num_hidden_layers"]

    def names(self, layer: int) -> dict[str, str]:
        if self.family == "llada":
            at = f"{self.top}blocks.{layer}."
            short = "attn_norm q_proj k_proj v_proj attn_out ff_norm ff_proj up_proj ff_out"
        else:
            at = f"{self.top}layers.{layer}."
            short = (
                "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj "
                "self_attn.o_proj post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.down_proj"
            )
        keys = ("norm1", "q", "k", "v", "o", "norm2", "gate", "up", "down")
        return {key: at + name for key, name in zip(keys, short.split(), strict=True)}

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.dot(x) / len(x) + self.eps).sqrt() * weight

    def turn(self, head: Tensor, position: int) -> Tensor:
        half = len(head) // 2
        z = torch.complex(head[:half], head[half:])
        angles = [position * self.raw["rope_theta"] ** (-i / half) for i in range(half)]
        z = z * torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles])
        return torch.cat((z.real, z.imag))

    def project(self, x: Tensor, name: str) -> Tensor:
        y = self.w[f"{name}.weight"] @ x
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def rotated(self, x: Tensor, name: str, heads: int, position: int) -> list[Tensor]:
        norm = self.w.get(name.replace("_proj", "_norm") + ".weight")
        parts = self.project(x, name).chunk(heads)
        if norm is not None:
            parts = [self.norm(part, norm) for part in parts]
        return [self.turn(part, position) for part in parts]

    def logits(self, ids: list[int]) -> Tensor:
        is_llada = self.family == "llada"
        embedding = self.w[self.top + ("wte" if is_llada else "embed_tokens") + ".weight"]
        xs = [embedding[i] for i in ids]
        for layer in range(self.layers):
            xs = self.layer(xs, self.names(layer))
        final = self.w[self.top + ("ln_f" if is_llada else "norm") + ".weight"]
        head = self.w.get("model.transformer.ff_out.weight" if is_llada else "lm_head.weight")
        head = embedding if head is None else head
        return torch.stack([head @ self.norm(x, final) for x in xs])

    def layer(self, xs: list[Tensor], names: dict[str, str]) -> list[Tensor]:
        normed = [self.norm(x, self.w[names["norm1"] + ".weight"]) for x in xs]
        queries = [self.rotated(x, names["q"], self.heads, p) for p, x in enumerate(normed)]
        keys = [self.rotated(x, names["k"], self.groups, p) for p, x in enumerate(normed)]
        values = [self.project(x, names["v"]).chunk(self.groups) for x in normed]
        out = []
        for p, x in enumerate(xs):
            seen = [j for j in range(len(xs)) if may_see(self.family, p, j)]
            mixed = []
            for head, query in enumerate(queries[p]):
                group = head * self.groups // self.heads
                scores = [query.dot(keys[j][group]) / math.sqrt(len(query)) for j in seen]
                weights = torch.stack(scores).softmax(0)
                mixed.append(sum(w * values[j][group] for w, j in zip(weights, seen, strict=True)))
            x = x + self.project(torch.cat(mixed), names["o"])
            inner = self.norm(x, self.w[names["norm2"] + ".weight"])
            gate = self.project(inner, names["gate"])
            swish = gate * torch.sigmoid(gate)
            out.append(x + self.project(swish * self.project(inner, names["up"]), names["down"]))
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_the_papers_equations(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    directory = checkpoints(family)
    expected = Reference(directory, family).logits(IDS)
    found = ours(directory, IDS)
    assert expected.std() > 0.1  # not equal for want of anything to compute
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra `bench`)"
    )
    directory = checkpoints(family)
    raw = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    if family == "llada":
        raw, weights = _llada_as_llama(raw, weights)
    kind = {"sdar": "Qwen3", "CoDA": "Qwen3", "llama": "Llama", "llada": "Llama"}.get(
        family, "Qwen2"
    )
    for key in ("model_type", "mask_token_id", "block_size"):
        raw.pop(key, None)
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": raw.pop("rope_theta")}
    raw.setdefault("tie_word_embeddings", True)
    config = getattr(transformers, f"{kind}Config")(**raw, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    missing, extra = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not extra
    seen = [[may_see(family, q, k) for k in range(len(IDS))] for q in range(len(IDS))]
    mask = torch.where(torch.tensor(seen), 0.0, float("-inf"))[None, None]
    with torch.no_grad():
        expected = model(torch.tensor([IDS]), attention_mask=mask).logits[0]
    assert (ours(directory, IDS) - expected).abs().max() < TOLERANCE


def _llada_as_llama(
    raw: dict[str, Any], weights: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """LLaDA's Transformer is Llama's under OLMo's names."""
    config = {
        "hidden_size": raw["d_model"], "num_hidden_layers": raw["n_layers"],
        "num_attention_heads": raw["n_heads"], "num_key_value_heads": raw["n_kv_heads"],
        "intermediate_size": raw["mlp_hidden_size"], "vocab_size": raw["embedding_size"],
        "rms_norm_eps": raw["rms_norm_eps"], "rope_theta": raw["rope_theta"],
        "max_position_embeddings": raw["max_sequence_length"], "tie_word_embeddings": False,
    }  # fmt: skip
    pairs = (
        ("model.transformer.wte", "model.embed_tokens"), ("model.transformer.ln_f", "model.norm"),
        ("model.transformer.ff_out", "lm_head"), ("model.transformer.blocks", "model.layers"),
        ("attn_norm", "input_layernorm"), ("ff_norm", "post_attention_layernorm"),
        ("attn_out", "self_attn.o_proj"), (".ff_proj", ".mlp.gate_proj"),
        (".up_proj", ".mlp.up_proj"), (".ff_out", ".mlp.down_proj"),
        (".q_proj", ".self_attn.q_proj"), (".k_proj", ".self_attn.k_proj"),
        (".v_proj", ".self_attn.v_proj"),
    )  # fmt: skip

    def renamed(name: str) -> str:
        for theirs, llamas in pairs:
            name = name.replace(theirs, llamas)
        return name

    return config, {renamed(name): tensor for name, tensor in weights.items()}
