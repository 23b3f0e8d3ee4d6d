"""How much memory an open checkpoint needs, asked before anything is loaded."""

from __future__ import annotations

from model.api import CheckpointError
from model.families.configs import TransformerConfig

BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "int8": 1}
"""Of one weight of a layer, by dtype; embedding and head have two bytes at least."""
WORKING_BYTES = 1 << 30
"""For what runs: activations, logits, the driver's own."""


def bytes_needed(config: TransformerConfig, dtype: str) -> int:
    """Bytes of the weights in a dtype, and of what runs."""
    heads = config.num_heads + 2 * config.num_kv_heads
    attention = config.hidden_size * config.head_dim * (heads + config.num_heads)
    layers = config.num_layers * (attention + 3 * config.hidden_size * config.ffn_size)
    tables = config.vocab_size * config.hidden_size * (1 if config.is_tied else 2)
    return layers * BYTES[dtype] + tables * max(BYTES[dtype], 2) + WORKING_BYTES


def require_memory(config: TransformerConfig, dtype: str, free: int, device: str) -> None:
    """Raise `CheckpointError` unless `free` bytes on `device` are enough: how much is needed, and
    which setting helps."""
    needed = bytes_needed(config, dtype)
    if needed <= free:
        return
    fitting = [d for d in ("bfloat16", "float8", "int8") if bytes_needed(config, d) <= free]
    advice = (
        f"no dtype makes it fit ({_gb(bytes_needed(config, 'int8'))} in int8); use device 'cpu'"
    )
    if fitting:
        advice = f"dtype {fitting[0]!r} needs {_gb(bytes_needed(config, fitting[0]))}"
    raise CheckpointError(
        f"this {config.model_type} model needs {_gb(needed)} in {dtype}, and {device} has "
        f"{_gb(free)} free; {advice}"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
