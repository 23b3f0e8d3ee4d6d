"""Every family against a reference written here from the papers' equations, one token and one head
at a time, and against `transformers`, where it is installed: its logits, and what it fills in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.api import InfillRequest
from model.families.configs import read_config
from model.families.tokenizer import OpenTokenizer
from model.families.weights import load_transformer
from model.serving.loading import load_completer
from model.transformer import visibility

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


# ---- fills ---------------------------------------------------------------------------------

PREFIX, SUFFIX, MIDDLE = "def add(a, b):\n    ", "\n\nadd(1)\n", "return a"
LAYOUTS = {
    "Dream": ("<|beginoftext|>", "P", "?", "S", "<|endoftext|>"),
    "DreamOn": ("<|beginoftext|>", "P", "?", "S", "<|endoftext|>"),
    "llada": ("<|startoftext|>", "P", "?", "S"),
    "qwen2": ("P", "?", "S"),
    "a2d-qwen2": ("P", "?", "S"),
    "CoDA": ("P", "?", "S"),
    "sdar": ("<|fim_prefix|>", "P", "<|fim_suffix|>", "S", "<|fim_middle|>", "?"),
    "llama": (
        "<[begin▁of▁sentence]>", "<[fim-suffix]>", "S", "<[fim-prefix]>", "P", "<[fim-middle]>", "?"
    ),
}  # fmt: skip
SHIFTED = {"Dream", "DreamOn", "qwen2", "CoDA"}


class ReferenceFill:
    """The families' published loop: the surest masked slot of all becomes its likeliest token."""

    def __init__(self, directory: Path, family: str) -> None:
        config = read_config(directory)
        self.words = OpenTokenizer.from_directory(directory, config)
        self.family, self.model = family, Reference(directory, family)
        parts = LAYOUTS[family]
        at = parts.index("?")
        self.left = self.ids(parts[:at])
        self.right = self.ids(parts[at + 1 :])

    def ids(self, parts: tuple[str, ...]) -> list[int]:
        texts = {"P": PREFIX, "S": SUFFIX}
        return [i for p in parts for i in self.words.encode(texts.get(p, p), special=True)]

    def surest(self, canvas: list[int], allowed: set[int]) -> tuple[int, int]:
        """The slot that is decided next, and its token."""
        logits = self.model.logits([*self.left, *canvas, *self.right])
        text_ids = sorted(set(range(logits.shape[1])) - self.words.special_ids | allowed)
        best = (-1.0, 0, 0)
        for slot, token in enumerate(canvas):
            if token == self.words.mask_id:
                row = logits[len(self.left) + slot - (self.family in SHIFTED)]
                chance, index = row[text_ids].softmax(0).max(0)
                best = max(best, (chance.item(), slot, text_ids[int(index)]))
        return best[1], best[2]

    def of_length(self, length: int) -> list[int]:
        """All at once under full attention, else block after block."""
        filled: list[int] = []
        while len(filled) < length:
            size = length - len(filled)
            if self.family in BLOCKS:
                size = min(size, BLOCKS[self.family] - len(self.left) % BLOCKS[self.family])
            canvas = [self.words.mask_id] * size
            for _ in range(size):
                slot, token = self.surest(canvas, set())
                canvas[slot] = token
            filled += canvas
            self.left += canvas
        return filled

    def dreamon(self, start: int, most: int) -> tuple[list[int], int, int]:
        """Expand and delete; also how often each happened."""
        expand, delete, mask = self.words.expand_id, self.words.eos_id, self.words.mask_id
        assert expand is not None
        assert delete is not None
        canvas, num_expanded, num_deleted = [mask] * start, 0, 0
        while mask in canvas:
            may_expand = len(canvas) < most and num_expanded < most
            slot, token = self.surest(canvas, {expand, delete} if may_expand else {delete})
            canvas[slot] = token
            if token == expand:
                canvas[slot : slot + 1] = [mask, mask]
                num_expanded += 1
            if token == delete:
                canvas = [i for n, i in enumerate(canvas) if n < slot or i not in (mask, delete)]
                num_deleted += 1
        return canvas, num_expanded, num_deleted


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_fill_is_what_the_published_loop_gives(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    reference = ReferenceFill(checkpoints(family), family)
    expected = reference.of_length(len(reference.words.encode(MIDDLE)))
    completer = load_completer(checkpoints(family), device="cpu")
    request = InfillRequest(prefix=PREFIX, suffix=SUFFIX, length_of=MIDDLE, threshold=1.0)
    result = await completer.complete(request)
    await completer.close()
    assert result.forwards == len(expected)
    assert result.candidates[0].text == reference.words.decode(expected).replace("\r", "\n")


@pytest.mark.parametrize("seed", [4, 5, 8])
async def test_dreamon_expands_and_deletes_as_its_published_loop(
    tmp_path: Path, write: Callable[..., Path], seed: int
) -> None:
    directory = write(tmp_path / "dreamon", "DreamOn")
    weights = load_file(directory / "model.safetensors")
    words = OpenTokenizer.from_directory(directory, read_config(directory))
    noise = torch.Generator().manual_seed(seed)
    for token, strength in ((words.expand_id, 1.5), (words.eos_id, 1.0)):  # so that both happen
        weights["lm_head.weight"][token] = torch.randn(32, generator=noise) * strength
    save_file(weights, directory / "model.safetensors")
    reference = ReferenceFill(directory, "DreamOn")
    expected, num_expanded, num_deleted = reference.dreamon(5, 5)
    completer = load_completer(directory, device="cpu")
    request = InfillRequest(prefix=PREFIX, suffix=SUFFIX, max_new_tokens=5, threshold=1.0)
    result = await completer.complete(request)
    await completer.close()
    assert result.candidates[0].text == words.decode(expected).replace("\r", "\n")
    assert num_expanded > 1
    assert num_deleted > 1
