"""The tokenizer of an open checkpoint -> what the engine and its completer need of a tokenizer.

Special tokens are found by name: in `tokenizer_config.json`, or among the names that the families
use. A literal `<|mask|>` in a file is the characters it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from model.api import CheckpointError
from model.families.configs import read_json
from model.families.vocabulary import ADDED, TOKENIZER, tokenizer_json
from model.transformer import TransformerConfig

SETTINGS = "tokenizer_config.json"

MASK_NAMES = ("<|mask|>", "<|mdm_mask|>", "<M>", "<|MASK|>", "<MASK>", "<[MASK_TOKEN]>", "[MASK]")
"""What the families call it: Dream, a2d and CoDA; LLaDA; Open-dCoder; SDAR twice;
Stable-DiffCoder."""
EXPAND_NAMES = ("<|expand|>",)
"""DreamOn's token that turns into two masks."""
TURN_END_NAMES = ("<|im_end|>", "<|eot_id|>")
"""What ends an answer in a conversation: Qwen's families and Dream; LLaDA."""


@dataclass(frozen=True, slots=True)
class FillInTheMiddle:
    """The tokens that bring what follows a hole before it, for models that only look back."""

    prefix: int
    suffix: int
    middle: int
    order: Literal["prefix-suffix", "suffix-prefix"]


_FILL_NAMES: tuple[tuple[str, str, str, Literal["prefix-suffix", "suffix-prefix"]], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "prefix-suffix"),  # Qwen
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", "suffix-prefix"),  # Seed-Coder
)


class OpenTokenizer:
    """A checkpoint's tokenizer and the ids of its special tokens."""

    def __init__(
        self, tokenizer_json: str, settings: dict[str, Any], config: TransformerConfig
    ) -> None:
        """`settings` are those of `tokenizer_config.json`. Raises `CheckpointError`."""
        self._texts = all_special(tokenizer_json)
        self._texts.encode_special_tokens = True
        self._templates = all_special(tokenizer_json)
        self.vocab_size = config.vocab_size + 1
        """The model's ids, and one that only the engine uses."""
        self.no_token_id = config.vocab_size
        """Stands where a layout has no token: no token of the model."""
        self.mask_id = self._mask_id(settings, config)
        self.eos_id = self._named(settings, "eos_token", config.eos_id)
        self.bos_id = self._named(settings, "bos_token", None)
        self.expand_id = self._first_known(EXPAND_NAMES)
        self.fill_in_the_middle = self._fill_tokens()
        self.end_id = self._end_id(config)
        """What the model writes behind the end of a text that nothing follows; `no_token_id` where
        it does not, or means something else by it (DreamOn: a deletion)."""
        turn_ends = (self._texts.token_to_id(name) for name in TURN_END_NAMES)
        self.turn_end_ids = tuple(i for i in turn_ends if i is not None)
        """What it may write instead to end an answer."""
        # Some tokenizers have their added tokens in the vocabulary as well.
        text_ids = set(self._texts.get_vocab(with_added_tokens=False).values())
        text_ids -= self._texts.get_added_tokens_decoder().keys()
        self.special_ids = frozenset(range(self.vocab_size)) - text_ids | {self.mask_id}
        """Ids that stand for no text: special tokens, and rows of the embedding without a token."""

    @classmethod
    def from_directory(cls, directory: Path, config: TransformerConfig) -> OpenTokenizer:
        """Read a checkpoint's tokenizer. Raises `CheckpointError`."""
        settings = read_json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
        try:
            content = tokenizer_json(directory, config.model_type, settings)
            return cls(content, settings, config)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from error
        except Exception as error:  # the Rust side raises bare Exceptions
            raise CheckpointError(
                f"{directory / TOKENIZER} is not a readable tokenizer: {error}"
            ) from error

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`; with `special`, names of special tokens in it are those tokens, as a
        rendered chat template means them. A lone surrogate becomes `?`."""
        whole = text.encode("utf-8", "replace").decode("utf-8")
        tokenizer = self._templates if special else self._texts
        return tokenizer.encode(whole, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return self._texts.decode([i for i in ids if i not in self.special_ids])

    def _mask_id(self, settings: dict[str, Any], config: TransformerConfig) -> int:
        mask_id = config.mask_id
        if mask_id is None:
            mask_id = self._named(settings, "mask_token", self._first_known(MASK_NAMES))
        if mask_id is None:
            raise CheckpointError(
                "there is no mask token, neither in config.json nor in tokenizer_config.json nor "
                f"under a name that a family uses ({', '.join(MASK_NAMES)}); this is not a "
                "diffusion model's checkpoint"
            )
        if not 0 <= mask_id < config.vocab_size:
            raise CheckpointError(
                f"the mask token's id is {mask_id}; the model has ids 0..{config.vocab_size - 1}"
            )
        return mask_id

    def _end_id(self, config: TransformerConfig) -> int:
        if self.eos_id is None and config.attention == "block-causal":
            raise CheckpointError(
                "there is no end-of-sequence token, with which a block-causal model ends a hole; "
                "name it as eos_token in tokenizer_config.json"
            )
        if self.eos_id is None or self.expand_id is not None:
            return self.no_token_id
        return self.eos_id

    def _named(self, settings: dict[str, Any], key: str, default: int | None) -> int | None:
        """The id of the token that the settings name."""
        entry = settings.get(key)
        name = entry.get("content") if isinstance(entry, dict) else entry
        found = self._texts.token_to_id(name) if isinstance(name, str) else None
        return default if found is None else found

    def _first_known(self, names: Sequence[str]) -> int | None:
        ids = (self._texts.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def _fill_tokens(self) -> FillInTheMiddle | None:
        for *names, order in _FILL_NAMES:
            prefix, suffix, middle = map(self._texts.token_to_id, names)
            if prefix is not None and suffix is not None and middle is not None:
                return FillInTheMiddle(prefix, suffix, middle, order)
        return None


def has_mask_token(directory: Path) -> bool:
    """Whether a checkpoint's tokenizer has a mask token, by its settings or by a name that the
    families use. Raises `CheckpointError` for files that are not readable JSON."""
    settings = read_json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
    if settings.get("mask_token"):
        return True
    files = (TOKENIZER, ADDED)
    found = [read_json(directory / name) for name in files if (directory / name).is_file()]
    names = {token["content"] for content in found for token in content.get("added_tokens", ())}
    names |= {token["content"] for token in settings.get("added_tokens_decoder", {}).values()}
    names.update(*(content.keys() for content in found))
    return not names.isdisjoint(MASK_NAMES)


def all_special(tokenizer_json: str) -> Tokenizer:
    """The tokenizer with every added token special: Qwen's, for one, would find its literal
    `<|fim_prefix|>` in a text otherwise."""
    content = json.loads(tokenizer_json)
    for token in content.get("added_tokens", ()):
        token["special"] = True
    return Tokenizer.from_str(json.dumps(content))
