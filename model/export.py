"""A checkpoint for other people's tools: the causal half of the denoiser, in Qwen3's layout.

The prefix stream is an ordinary causal language model (RMSNorm, rotary positions in half-split
order, grouped queries, QK-norm, SwiGLU), so `transformers` runs it as `Qwen3ForCausalLM`, with the
same next-token logits. Two things are folded into `embed_tokens`, which therefore is not tied to
the head: the scale sqrt(E), and the embedding of the prefix role. What is left behind is what only
we have: the suffix, the canvas, and with them the end of a span (`<eom>` is never a next token).

    python -m model.export DIR

A prompt is a prefix stream: `<lang:python><file>def add(` (`<file>` where a file begins).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.api import SHIPPED_WEIGHTS, CheckpointError
from model.checkpoint import CONFIG, TOKENIZER, WEIGHTS, load_checkpoint
from model.denoiser import Denoiser, DenoiserConfig, Role
from model.tokenizer import CodeTokenizer

_LAYER_NAMES = {
    "input_norm": "input_layernorm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.gate_proj": "mlp.gate_proj",
    "feed_forward.up_proj": "mlp.up_proj",
    "feed_forward.down_proj": "mlp.down_proj",
}
"""Modules of one layer: our name, and Qwen3's."""


def export(directory: Path, model: Denoiser, tokenizer: CodeTokenizer) -> None:
    """Write `model.safetensors` (fp32), `config.json` and the tokenizer into `directory`.

    Raises `CheckpointError` for a model that Qwen3's layout cannot hold, and `OSError`.
    """
    if not model.config.qk_norm:
        raise CheckpointError(
            "this checkpoint has no QK-norm, which Qwen3's layout takes for granted; "
            "export one that was trained with it"
        )
    directory.mkdir(parents=True, exist_ok=True)
    save_file(qwen3_weights(model), directory / WEIGHTS, metadata={"format": "pt"})
    _write_json(directory / CONFIG, qwen3_config(model.config))
    tokenizer.save(directory / TOKENIZER)
    _write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
    )


def qwen3_weights(model: Denoiser) -> dict[str, Tensor]:
    """The tensors of `Qwen3ForCausalLM` (fp32, on the CPU), by their names there."""
    own = {name: t.float().cpu().contiguous() for name, t in model.state_dict().items()}
    embedding = own["embedding.weight"]
    scale = model.config.hidden_size**0.5
    theirs = {
        "model.embed_tokens.weight": embedding * scale + own["role_embedding.weight"][Role.PREFIX],
        "model.norm.weight": own["final_norm.weight"],
        "lm_head.weight": embedding,
    }
    for layer in range(model.config.num_layers):
        for ours, name in _LAYER_NAMES.items():
            theirs[f"model.layers.{layer}.{name}.weight"] = own[f"blocks.{layer}.{ours}.weight"]
    return theirs


def qwen3_config(config: DenoiserConfig) -> dict[str, object]:
    """`config.json` of `Qwen3ForCausalLM`."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        # Readers older than transformers 5 look for this one.
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m model.export",
        description="Write the causal half of a checkpoint as a Qwen3ForCausalLM.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write")
    parser.add_argument(
        "--model", type=Path, default=SHIPPED_WEIGHTS, metavar="PATH",
        help="checkpoint directory (the shipped one)",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    try:
        export(args.directory, *load_checkpoint(args.model, dtype=torch.float32))
    except (CheckpointError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {args.directory}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
