"""The backbone's tokenizer: text <-> ids, and the only place that knows its special tokens.

It comes out of a GGUF file, whose words, merges and kind of pre-tokenizer make a `tokenizers`
one, or out of a `tokenizer.json`. A literal `<|fim_prefix|>` in a file is the characters it is.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from model.api import CheckpointError
from model.backbone.gguf_file import GgufFile
from model.families.configs import read_json
from model.families.tokenizer import SETTINGS, all_special
from model.families.vocabulary import QWEN_WORDS, TOKENIZER, tokenizer_json
from model.transformer import TransformerConfig

_INFILL_NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),  # Seed-Coder
)
_INFILL_KEYS = ("fim_pre", "fim_suf", "fim_mid")
_FILE_SEP_NAMES = ("<|file_sep|>", "<file_sep>")
_REPO_NAMES = ("<|repo_name|>", "<repo_name>", "<reponame>")
_END_NAMES = (
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<[end▁of▁sentence]>",
    "<|fim_pad|>", "<fim_pad>", "</s>",
)  # fmt: skip
"""Tokens at which a text, a turn or a middle ends, beside those of the infill form."""
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")

_LLAMA_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SEED_WORDS = QWEN_WORDS.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
_WORDS = {
    "qwen2": QWEN_WORDS,
    "llama-bpe": _LLAMA_WORDS,
    "llama3": _LLAMA_WORDS,
    "llama-v3": _LLAMA_WORDS,
    "seed-coder": _SEED_WORDS,
}
"""Where words end, by what GGUF calls it (`tokenizer.ggml.pre`)."""
_SINGLE_DIGITS = ("starcoder", "refact", "smollm")
"""Kinds of pre-tokenizer that cut out digits and then GPT-2's words."""
_NORMAL, _ADDED = 1, (3, 4)
"""Of `tokenizer.ggml.token_type`: tokens of text; control tokens and those that users define."""


class BackboneTokenizer:
    """A byte-level BPE tokenizer with the tokens that infilling needs."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocab_size: int, ids: Mapping[str, int | None]
    ) -> None:
        """`vocab_size`: rows of the embedding. `ids`: what the checkpoint says of special tokens,
        by the names of GGUF's keys: `eos`, `fim_pre`, `fim_suf`, `fim_mid`, …

        Raises `CheckpointError` for a tokenizer of another kind, or without infill tokens.
        """
        # Otherwise a file that contains "<|fim_middle|>" could end its own context.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._special = {
            token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._bytes = self._token_bytes()
        self.special_ids = frozenset(i for i, found in enumerate(self._bytes) if not found)
        """Ids that stand for no text: special tokens, and rows of the embedding without a token."""
        infill = self._infill_ids(ids)
        self.fim_prefix, self.fim_suffix, self.fim_middle = infill
        self.file_sep = self._known(ids.get("fim_sep"), _FILE_SEP_NAMES)
        self.repo_name = self._known(ids.get("fim_rep"), _REPO_NAMES)
        named = (self._special.get(name) for name in _END_NAMES)
        said = (ids.get(key) for key in _END_KEYS)
        ends = (*named, *said, *infill, self.file_sep, self.repo_name)
        self.end_ids = frozenset(i for i in ends if i is not None)
        """Tokens at which a middle or a text ends."""
        self.eos_id = self._eos_id(ids.get("eos"))
        if strange := [i for i in self.end_ids if not 0 <= i < vocab_size]:
            raise CheckpointError(
                f"a special token has id {strange[0]}, the model has ids 0..{vocab_size - 1}: they "
                "do not belong together"
            )
        words = sorted((found, i) for i, found in enumerate(self._bytes) if found)
        self._sorted_bytes = [found for found, _ in words]
        self._sorted_ids = [i for _, i in words]
        self._allowed = lru_cache(maxsize=256)(self._find_allowed)
        names = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._special_names = re.compile(f"({'|'.join(names)})")

    @classmethod
    def from_gguf(cls, file: GgufFile, config: TransformerConfig) -> BackboneTokenizer:
        """Make the tokenizer that a GGUF file describes. Raises `CheckpointError`."""
        prefix, suffix = "tokenizer.ggml.", "_token_id"
        ids = {
            key[len(prefix) : -len(suffix)]: value
            for key, value in file.metadata.items()
            if key.startswith(prefix) and key.endswith(suffix)
        }
        try:
            return cls(_from_gguf(file.metadata), vocab_size=config.vocab_size, ids=ids)
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {error}") from error
        except Exception as error:  # the Rust side raises bare Exceptions
            raise CheckpointError(
                f"{file.path} holds no readable tokenizer: {error}; download it again"
            ) from error

    @classmethod
    def from_directory(cls, directory: Path, config: TransformerConfig) -> BackboneTokenizer:
        """Read the tokenizer of a Hugging Face folder. Raises `CheckpointError`."""
        settings = read_json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
        try:
            content = tokenizer_json(directory, config.model_type, settings)
            tokenizer = all_special(content)
            eos = settings.get("eos_token")
            name = eos.get("content") if isinstance(eos, dict) else eos
            named = tokenizer.token_to_id(name) if isinstance(name, str) else None
            ids = {"eos": config.eos_id if named is None else named}
            return cls(tokenizer, vocab_size=config.vocab_size, ids=ids)
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
        if not special:
            return self._tokenizer.encode(whole, add_special_tokens=False).ids
        ids: list[int] = []
        for part in self._special_names.split(whole):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, of a special one none."""
        return self._bytes[token]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the ids mean: the same for one vocabulary, whatever file it is from."""
        names = {index: name for name, index in self._special.items()}
        digest = hashlib.sha256()
        for index, found in enumerate(self._bytes):
            kind, content = (1, found) if found else (0, names.get(index, "").encode())
            digest.update(bytes([kind]) + len(content).to_bytes(4, "little") + content)
        return digest.hexdigest()

    def allowed_after(self, rest: bytes) -> list[int]:
        """Tokens that can stand where the bytes `rest` have to come next: those that begin with
        them, and those that they begin with. The list is shared: not to be changed."""
        return self._allowed(rest)

    def _find_allowed(self, rest: bytes) -> list[int]:
        first = bisect_left(self._sorted_bytes, rest)
        # The bytes FF occur in no token of text, so this lies behind all that begin with `rest`.
        last = bisect_left(self._sorted_bytes, rest + b"\xff" * 4, lo=first)
        found = self._sorted_ids[first:last]
        for length in range(1, len(rest)):
            start = rest[:length]
            at = bisect_left(self._sorted_bytes, start)
            while at < len(self._sorted_bytes) and self._sorted_bytes[at] == start:
                found.append(self._sorted_ids[at])
                at += 1
        return found

    def _token_bytes(self) -> list[bytes]:
        byte_of = {char: byte for byte, char in enumerate(_byte_alphabet())}
        found = [b""] * self.vocab_size
        special = set(self._special.values())
        for token, index in self._tokenizer.get_vocab().items():
            if index >= self.vocab_size:
                raise CheckpointError(
                    f"the tokenizer's token {token!r} has id {index}, the model has ids "
                    f"0..{self.vocab_size - 1}: they do not belong together"
                )
            if index in special:
                continue
            try:
                found[index] = bytes(byte_of[char] for char in token)
            except KeyError:
                raise CheckpointError(
                    f"the tokenizer is not a byte-level one (its token {index} is {token!r}); "
                    "other kinds are not read"
                ) from None
        return found

    def _infill_ids(self, ids: Mapping[str, int | None]) -> tuple[int, int, int]:
        said = [ids.get(key) for key in _INFILL_KEYS]
        named = ([self._special.get(name) for name in names] for names in _INFILL_NAMES)
        for prefix, suffix, middle in (said, *named):
            if prefix is not None and suffix is not None and middle is not None:
                return prefix, suffix, middle
        raise CheckpointError(
            "the tokenizer lacks the infill tokens (<|fim_prefix|>, <|fim_suffix|> and "
            "<|fim_middle|>, say), so this model cannot be asked what stands between two texts; "
            "take a code model that was trained to infill, Qwen2.5-Coder say"
        )

    def _known(self, said: int | None, names: Sequence[str]) -> int | None:
        found = (self._special.get(name) for name in names)
        return said if said is not None else next((i for i in found if i is not None), None)

    def _eos_id(self, said: int | None) -> int:
        found = self._known(said, _END_NAMES)
        if found is None:
            raise CheckpointError(
                "the tokenizer has no token that ends a text; name it as eos_token in "
                "tokenizer_config.json"
            )
        return found


def _from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise CheckpointError(
            f"its tokenizer is of the kind {kind!r}; only byte-level BPE ('gpt2') is read"
        )
    tokens, merges, types = (
        metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges", "token_type")
    )
    if not tokens or merges is None or types is None or len(types) != len(tokens):
        raise CheckpointError(
            "its tokenizer is not complete: of tokens, merges and token_type at least one is "
            "missing or too short; download it again"
        )
    names = [token for token, kind in zip(tokens, types, strict=True) if kind in _ADDED]
    # Special tokens are in the vocabulary too: thus each keeps its id, whatever its place.
    vocabulary = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _NORMAL or kind in _ADDED
    }
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    whole_words_first = _WORDS.get(str(pre)) is _LLAMA_WORDS
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=whole_words_first))
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return tokenizer


def _pre_tokenizer(pre: Any) -> pre_tokenizers.PreTokenizer:
    if pre in _SINGLE_DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True)]
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif pre in _WORDS:
        steps = [pre_tokenizers.Split(Regex(_WORDS[pre]), behavior="isolated")]
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        raise CheckpointError(
            f"its tokenizer cuts text into words in the way {pre!r}; known are "
            + ", ".join((*_WORDS, *_SINGLE_DIGITS))
        )
    return pre_tokenizers.Sequence([*steps, words])


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it can be
    seen, else one from U+0100 on, in the bytes' order (GPT-2's)."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]
