"""Text <-> token ids: a byte-level BPE trained on code, and the only place that knows an id.

Special tokens are never produced from text: `encode` treats a literal `<mask>` in a file as
the six characters it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from model.api import CheckpointError, InvalidRequestError

MASK = "<mask>"
"""A canvas slot that is still noise."""
END_OF_MIDDLE = "<eom>"
"""The span has ended; also fills every slot after its end."""
FILE_START = "<file>"
"""First token of a prefix that begins where its file begins."""
FILE_END = "</file>"
"""Outermost token of a suffix that ends where its file ends."""

LANGUAGES = (
    "bash", "c", "cpp", "csharp", "css", "go", "html", "java", "javascript", "json", "php",
    "python", "ruby", "rust", "typescript",
)  # fmt: skip
"""Languages with a token of their own; every other one shares `<lang:other>`."""

_LANGUAGE_OF_LSP_ID = {
    "shellscript": "bash",
    "javascriptreact": "javascript",
    "typescriptreact": "typescript",
    "jsonc": "json",
    "scss": "css",
    "less": "css",
}

SPECIAL_TOKENS = (
    MASK,
    END_OF_MIDDLE,
    FILE_START,
    FILE_END,
    "<lang:other>",
    *(f"<lang:{language}>" for language in LANGUAGES),
)

# Newlines keep the indentation that follows them in one token ("\n        "): half of a program's
# whitespace then costs one token a line. Words take their leading space and their underscores.
_PRE_TOKENS = r"[\r\n]+[ \t]*| ?[\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|[ \t]+|\s"


class CodeTokenizer:
    """A trained tokenizer and the ids of its special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._special: dict[str, int] = {}
        for name in SPECIAL_TOKENS:
            if (token_id := tokenizer.token_to_id(name)) is not None:
                self._special[name] = token_id
        if missing := [name for name in SPECIAL_TOKENS if name not in self._special]:
            raise CheckpointError(
                f"the tokenizer lacks the special tokens {', '.join(missing)}; "
                "train one with CodeTokenizer.train"
            )
        self._tokenizer = tokenizer
        # Otherwise a file that contains "<mask>" could put noise into its own context.
        tokenizer.encode_special_tokens = True
        self.mask_id = self._special[MASK]
        self.end_id = self._special[END_OF_MIDDLE]
        self.file_start_id = self._special[FILE_START]
        self.file_end_id = self._special[FILE_END]
        self.special_ids = frozenset(self._special.values())

    @cached_property
    def line_break_ids(self) -> frozenset[int]:
        """Ids of the tokens that begin with a line end."""
        # In the byte-level alphabet, \n and \r are written U+010A and U+010D.
        vocabulary = self._tokenizer.get_vocab()
        return frozenset(i for token, i in vocabulary.items() if token[0] in "\u010a\u010d")

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes of each id, of a special one none."""
        byte_of = {char: byte for byte, char in enumerate(_byte_alphabet())}
        found = [b""] * self.vocab_size
        for token, index in self._tokenizer.get_vocab().items():
            if index not in self.special_ids:
                found[index] = bytes(byte_of[char] for char in token)
        return tuple(found)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> CodeTokenizer:
        """Learn `vocab_size` tokens (special ones and the 256 bytes included) from `texts`."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PRE_TOKENS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_file(cls, path: Path) -> CodeTokenizer:
        """Read a `tokenizer.json`. Raises `CheckpointError`."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except CheckpointError:
            raise
        except Exception as error:  # the Rust side raises bare Exceptions
            raise CheckpointError(f"{path} is not a readable tokenizer: {error}") from error

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        path.write_text(self._tokenizer.to_str(pretty=False), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size()

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer: a checkpoint remembers it, so the two cannot be mixed up."""
        return hashlib.sha256(self._tokenizer.to_str(pretty=False).encode()).hexdigest()

    def language_id(self, language: str) -> int:
        """The token of an LSP language id; unknown ones share `<lang:other>`."""
        name = _LANGUAGE_OF_LSP_ID.get(language, language)
        token = f"<lang:{name}>" if name in LANGUAGES else "<lang:other>"
        return self._special[token]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`, never a special one. A lone surrogate, half of a character that an editor
        cut in two, becomes `?`: UTF-8 has no bytes for it.

        Raises `InvalidRequestError` for `special`, which would read special tokens' names as these.
        """
        if special:
            raise InvalidRequestError(
                "this checkpoint's tokenizer reads no special tokens out of text, so it takes no "
                "prompt of a chat template; leave out `special_tokens_in_prefix`"
            )
        whole = text.encode("utf-8", "replace").decode("utf-8")
        return self._tokenizer.encode(whole, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, broken UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode([i for i in ids if i not in self.special_ids])


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it can be
    seen, else one from U+0100 on, in the bytes' order (GPT-2's)."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]
