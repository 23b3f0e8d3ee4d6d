"""Tiny random causal models, as `transformers` saves them and as GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CONTEXT, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 128, 256, 512, 2, 8, 2
KINDS = ("qwen2", "llama")
INFILL = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *INFILL,
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
CODE = "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 'ä🙂'))\n" * 3
DIGITS = {"qwen2": r"\p{N}", "llama": r"\p{N}{1,3}"}
PRE = {"qwen2": "qwen2", "llama": "llama-bpe"}
FULL = GGMLQuantizationType.F32


def make_tokenizer(kind: str, specials: tuple[str, ...] = SPECIALS) -> Tokenizer:
    """As Qwen2's or Llama 3's, of few words."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + DIGITS[kind] + "|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CODE], trainer)
    # As Qwen's: not all of them are special for `tokenizers`.
    tokenizer.add_tokens(
        [AddedToken(n, special="fim" not in n, normalized=False) for n in specials]
    )
    return tokenizer


def make_model(kind: str, *, tied: bool = False, **settings: Any) -> PreTrainedModel:
    """With random weights, biases and norms, and more rows than the tokenizer has tokens."""
    classes = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    config_class, model_class = classes[kind]
    config = config_class(
        vocab_size=352, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied, rms_norm_eps=1e-5, eos_token_id=330, bos_token_id=330,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0}, **settings,
    )  # fmt: skip
    model = model_class(config)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.2 * random if "norm" in name else 0.08 * random)
    return model.eval()


def write_folder(directory: Path, kind: str, model: PreTrainedModel, tokenizer: Tokenizer) -> Path:
    """As a repository on the hub has it."""
    model.save_pretrained(directory)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return directory


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "model.layers": "blk",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """What llama.cpp calls a parameter."""
    for hugging_face, ours in NAMES.items():
        name = name.replace(hugging_face, ours)
    return name


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Llama's queries or keys as llama.cpp wants them: pairs side by side."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def metadata(kind: str, tokenizer: Tokenizer, num_rows: int = 352) -> dict[str, Any]:
    """What a GGUF file says of the model and its tokenizer, by key."""
    tokens = [f"[PAD{i}]" for i in range(num_rows)]
    types = [int(TokenType.UNUSED)] * num_rows
    for token, i in tokenizer.get_vocab(with_added_tokens=False).items():
        tokens[i], types[i] = token, int(TokenType.NORMAL)
    for i, token in tokenizer.get_added_tokens_decoder().items():
        tokens[i] = token.content
        types[i] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    merges = [" ".join(pair) for pair in merges_of(tokenizer)]
    return {
        f"{kind}.context_length": CONTEXT,
        f"{kind}.embedding_length": HIDDEN,
        f"{kind}.block_count": LAYERS,
        f"{kind}.feed_forward_length": FFN,
        f"{kind}.attention.head_count": HEADS,
        f"{kind}.attention.head_count_kv": KV_HEADS,
        f"{kind}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{kind}.rope.freq_base": 50_000.0,
        **({"llama.rope.dimension_count": HIDDEN // HEADS} if kind == "llama" else {}),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE[kind],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "tokenizer.chat_template": TEMPLATE,
    }


def merges_of(tokenizer: Tokenizer) -> list[list[str]]:
    """The pairs that a BPE joins, in its order."""
    import json

    return json.loads(tokenizer.to_str())["model"]["merges"]


def tensors(kind: str, model: PreTrainedModel) -> dict[str, np.ndarray]:
    """A model's weights by llama.cpp's names and in its order of rows."""
    found: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if kind == "llama" and "q_proj" in name:
            weight = interleaved(weight, HEADS)
        if kind == "llama" and "k_proj" in name:
            weight = interleaved(weight, KV_HEADS)
        found[gguf_name(name)] = weight
    return found


Stored = tuple[np.ndarray, GGMLQuantizationType]


def quantised(weights: dict[str, np.ndarray], kind: GGMLQuantizationType) -> dict[str, Stored]:
    """Matrices in blocks of a kind, vectors in float32, as llama.cpp does."""
    return {
        name: (gguf.quantize(weight, kind), kind) if weight.ndim == 2 else (weight, FULL)
        for name, weight in weights.items()
    }


def write_gguf(
    path: Path, architecture: str, entries: dict[str, Any], stored: dict[str, Stored]
) -> Path:
    """A GGUF file of these tensors. Lists and scalars of `entries` get the type that llama.cpp
    gives them."""
    writer = GGUFWriter(path, architecture)
    for key, value in entries.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, (data, kind) in stored.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_values(
    kind: str, model: PreTrainedModel, stored: dict[str, Stored], *, embedding: str | None = None
) -> PreTrainedModel:
    """The model with the values that a GGUF file keeps of its weights; `embedding` names the tensor
    that its embedding is taken from."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key = gguf_name(name)
            data, quantisation = stored[embedding if embedding and key == EMBEDDING else key]
            values = gguf.dequantize(data, quantisation)
            heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
            if kind == "llama" and heads:
                half = values.shape[0] // heads // 2
                values = values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
            parameter.copy_(torch.from_numpy(np.array(values)))
    return model


EMBEDDING, HEAD = "token_embd.weight", "output.weight"
