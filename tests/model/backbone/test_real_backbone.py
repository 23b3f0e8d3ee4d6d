"""The default backbone itself, where this machine has it, against `transformers`."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from model.backbone.checkpoint import Backbone, load_backbone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # reading the header takes `transformers` most of a minute
    pytest.mark.filterwarnings("ignore"),  # of `transformers`, about what it reads
]

REPOSITORY = Path(__file__).parents[3]
QWEN_ENDS = {151643, 151645, *range(151659, 151665)}
MEGABYTE = 1_000_000


def test_logits_are_those_of_transformers(real: Backbone, real_file: Path) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        real_file.parent, gguf_file=real_file.name, dtype=torch.float32
    )
    # This file holds the one matrix twice; we read the finer copy, the head's, for both.
    theirs.model.embed_tokens.weight = theirs.lm_head.weight
    ids = torch.tensor([real.tokenizer.encode(mixed_text())[:200]])
    with torch.inference_mode():
        expected = theirs(ids).logits
        visible = torch.ones(1, 200, 200, dtype=torch.bool).tril()
        hidden, _ = real.model.hidden(ids, torch.arange(200)[None], visible)
        found = real.model.logits(hidden)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_ids_are_those_of_transformers(real: Backbone, theirs: PreTrainedTokenizerFast) -> None:
    text = mixed_text()
    assert len(text.encode()) > MEGABYTE
    found = real.tokenizer.encode(text)
    assert found == without_special(theirs).encode(text).ids
    assert real.tokenizer.special_ids.isdisjoint(found)
    assert real.tokenizer.decode(found) == unicodedata.normalize("NFC", text)
    assert real.tokenizer.encode(text, special=True) == theirs(text).input_ids


def test_special_tokens_are_qwens(real: Backbone) -> None:
    tokenizer = real.tokenizer
    assert tokenizer.vocab_size == 151936
    assert (tokenizer.fim_prefix, tokenizer.fim_middle, tokenizer.fim_suffix) == (
        151659, 151660, 151661,
    )  # fmt: skip
    assert (tokenizer.repo_name, tokenizer.file_sep) == (151663, 151664)
    assert tokenizer.end_ids == QWEN_ENDS
    assert tokenizer.eos_id == 151645
    assert tokenizer.special_ids == set(range(151643, 151936))
    assert "<|im_start|>" in (real.chat_template or "")


def test_healing_allows_each_token_once(real: Backbone) -> None:
    tokenizer = real.tokenizer
    for rest in (b" ", b"        ret", b"self.", b"\xe6"):
        found = tokenizer.allowed_after(rest)
        words = [tokenizer.token_bytes(i) for i in found]
        assert len(set(found)) == len(found)
        assert all(word.startswith(rest) or rest.startswith(word) for word in words)
        assert len(found) == sum(
            word != b"" and (word.startswith(rest) or rest.startswith(word))
            for word in map(tokenizer.token_bytes, range(tokenizer.vocab_size))
        )


def test_it_goes_on_with_a_function_sensibly(real: Backbone) -> None:
    start = 'def is_even(number: int) -> bool:\n    """Whether a number is even."""\n'
    assert greedy(real, start, 12).startswith("    return number % 2 == 0\n")


def greedy(backbone: Backbone, text: str, num_tokens: int) -> str:
    """What the model writes behind a text, each token with all before it read anew."""
    ids = backbone.tokenizer.encode(text)
    start = len(ids)
    for _ in range(num_tokens):
        length = len(ids)
        visible = torch.ones(1, length, length, dtype=torch.bool).tril()
        with torch.inference_mode():
            hidden, _ = backbone.model.hidden(
                torch.tensor([ids]), torch.arange(length)[None], visible
            )
            ids.append(int(backbone.model.logits(hidden[:, -1]).argmax()))
    return backbone.tokenizer.decode(ids[start:])


def mixed_text() -> str:
    """A megabyte: this repository's code, and what trips tokenizers up."""
    odd = (
        "<|fim_prefix|>x<|fim_middle|><|endoftext|> <|im_start|>user\r\n<tool_call>\r\n\r\n\t\r"
        "e\u0301a\u0308\u0323 \u1e9b\u0323 ﬁ Å \u212b ½ ① ١٢٣ 12345.678e-9 0xFFee\u00a0\u3000 "
        "漢字かなカナ한국어 日本語。「」 العربية עברית ไทย हिन्दी \u2028\u200b\ufeff\u0000\x1b[0m "
        "👩\u200d👩\u200d👧\u200d👦👍🏽🇩🇪 it's WE'LL they've 'd 'RE x_y  \n   \n\t\t \n"
        "        return   \u2003 #!/bin/sh !!! ==>>= \r\n"
    )
    files = [REPOSITORY / name for name in ("model", "lsp_server", "tests", "editor-extension/src")]
    code = [
        path.read_text(encoding="utf-8")
        for folder in files
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".ts", ".md")
    ]
    parts = [part for text in code for part in (text, odd, text[-300:].replace("\n", "\r\n"))]
    text = "".join(parts)
    return text * (1 + MEGABYTE // len(text))


def without_special(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The tokenizer to which names of special tokens are text."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))


@pytest.fixture(scope="module")
def real(real_file: Path) -> Backbone:
    return load_backbone(real_file)


@pytest.fixture(scope="module")
def theirs(real_file: Path) -> PreTrainedTokenizerFast:
    found = AutoTokenizer.from_pretrained(real_file.parent, gguf_file=real_file.name)
    # A GGUF file names no normaliser, and `transformers` then has none; Qwen's own files name one.
    found.backend_tokenizer.normalizer = Qwen2Tokenizer().backend_tokenizer.normalizer
    return found
