"""The tokenizer of a checkpoint as `tokenizers` reads it: `tokenizer.json`, or Qwen's older files.

Dream's repositories hold `vocab.json`, `merges.txt` and `added_tokens.json` with a tokenizer in
Python, which is not run: it is Qwen2's, whose rules are these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from model.api import CheckpointError
from model.families.configs import read_json

TOKENIZER, VOCABULARY, MERGES, ADDED = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
FROM_QWEN = ("Dream", "qwen2", "a2d-qwen2", "sdar", "CoDA")
"""Families whose text is cut into words as Qwen2 does."""

# Contractions, words, single digits, punctuation, line ends, white space.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_json(directory: Path, model_type: str, settings: dict[str, Any]) -> str:
    """The content of a `tokenizer.json`. `settings` are those of `tokenizer_config.json`.

    Raises `CheckpointError`.
    """
    file = directory / TOKENIZER
    if file.is_file():
        return file.read_text(encoding="utf-8")
    vocabulary, merges = directory / VOCABULARY, directory / MERGES
    if model_type not in FROM_QWEN or not (vocabulary.is_file() and merges.is_file()):
        raise CheckpointError(f"{file} is missing; other kinds of tokenizer are not read")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, directory, settings)
    return tokenizer.to_str()


def _add_tokens(tokenizer: Tokenizer, directory: Path, settings: dict[str, Any]) -> None:
    """The tokens that no text is made of, at the ids that the checkpoint says."""
    added = read_json(directory / ADDED) if (directory / ADDED).is_file() else {}
    for number, token in settings.get("added_tokens_decoder", {}).items():
        added[token["content"]] = int(number)
    for content, number in sorted(added.items(), key=lambda entry: entry[1]):
        tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])
        if tokenizer.token_to_id(content) != number:
            raise CheckpointError(
                f"{directory}: the added token {content} should have id {number}, and would get "
                f"{tokenizer.token_to_id(content)}: {ADDED} does not continue {VOCABULARY}"
            )
