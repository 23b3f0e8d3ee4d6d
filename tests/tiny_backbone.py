"""A tiny random backbone: a Hugging Face folder of half a megabyte that loads at once."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

CONTEXT, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 2048, 64, 96, 2, 4, 2
NUM_ROWS = 512
"""Rows of the embedding: a few more than the tokenizer has tokens."""
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CODE = '''\
class Stack:
    """Items, the last one first."""

    def __init__(self, items=()):
        self.items = list(items)

    def push(self, item):
        self.items.append(item)
        return self

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()


def total(numbers):
    result = 0
    for number in numbers:
        if number > 0:
            result += number
    return result
'''


def write_tiny_backbone(directory: Path, *, seed: int = 7, context: int = CONTEXT) -> Path:
    """Write a Qwen2 of random weights into `directory`, which is made; the directory.

    It writes text without end, mostly words of `CODE`: no bytes that are no text, and of the
    special tokens none. It reads `context` tokens.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": SPECIALS[0], "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": NUM_ROWS,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": context, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "float32",
        "eos_token_id": tokenizer.token_to_id(SPECIALS[0]),
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = random_weights(seed, written=_words(tokenizer))
    save_file(weights, directory / "model.safetensors")
    return directory


def make_tokenizer() -> Tokenizer:
    """As Qwen2's, of few words: every byte is a token, too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CODE] * 3, trainer)
    tokenizer.add_tokens(
        [AddedToken(name, special="fim" not in name, normalized=False) for name in SPECIALS]
    )
    return tokenizer


def random_weights(seed: int, *, written: list[int]) -> dict[str, torch.Tensor]:
    """A Qwen2's weights by its names, of which only the tokens `written` are ever likely."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    head = HIDDEN // HEADS
    weights = {
        "model.embed_tokens.weight": random(NUM_ROWS, HIDDEN, scale=1.0),
        "model.norm.weight": 1 + random(HIDDEN, scale=0.1),
        "lm_head.weight": torch.zeros(NUM_ROWS, HIDDEN),
    }
    weights["lm_head.weight"][written] = random(len(written), HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        sizes = {"q": HEADS * head, "k": KV_HEADS * head, "v": KV_HEADS * head}
        for name, size in sizes.items():
            weights[f"{layer}self_attn.{name}_proj.weight"] = random(size, HIDDEN)
            weights[f"{layer}self_attn.{name}_proj.bias"] = random(size, scale=0.1)
        weights[f"{layer}self_attn.o_proj.weight"] = random(HIDDEN, HEADS * head)
        weights[f"{layer}mlp.gate_proj.weight"] = random(FFN, HIDDEN)
        weights[f"{layer}mlp.up_proj.weight"] = random(FFN, HIDDEN)
        weights[f"{layer}mlp.down_proj.weight"] = random(HIDDEN, FFN)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}{norm}.weight"] = 1 + random(HIDDEN, scale=0.1)
    return weights


def _words(tokenizer: Tokenizer) -> list[int]:
    """The tokens that are text by themselves: printable ASCII."""
    texts = {i: tokenizer.decode([i]) for i in range(256, tokenizer.get_vocab_size())}
    return [
        i for i, text in texts.items() if text and text.isascii() and text.strip().isprintable()
    ]
