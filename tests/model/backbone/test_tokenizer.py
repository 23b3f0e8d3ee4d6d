"""A backbone's tokenizer cuts text as `transformers` does, from either kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_backbones import (
    CODE,
    KINDS,
    SPECIALS,
    make_model,
    make_tokenizer,
    metadata,
    quantised,
    tensors,
    write_folder,
    write_gguf,
)
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model.backbone.gguf_file import GgufFile
from model.backbone.gguf_model import read_config
from model.backbone.tokenizer import BackboneTokenizer
from model.families.configs import read_causal_config

SOURCES = ("gguf", "folder")
TEXTS = (
    CODE,
    "12345 x = 1_000_000\r\n\r\n\tif it's WE'LL 'quoted'  \n   \n",
    "e\u0301 und \u00e9, 한국어, 漢字かな, 👩‍👩‍👧‍👦 \u202e\u0000\ufeff",
    "".join(SPECIALS) + "<|not_one|> <|endoftext|",
)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_tokenizer_without_its_special_tokens(
    kind: str, source: str, read: Callable[..., BackboneTokenizer], text: str
) -> None:
    expected = plain(make_tokenizer(kind)).encode(text).ids
    assert read(kind, source).encode(text) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_special_tokens_are_read_where_one_asks_for_them(
    kind: str, source: str, read: Callable[..., BackboneTokenizer], text: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, kind, make_model(kind), make_tokenizer(kind))
    expected = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids
    assert read(kind, source).encode(text, special=True) == expected


def test_both_kinds_of_file_give_one_tokenizer(
    kind: str, read: Callable[..., BackboneTokenizer]
) -> None:
    gguf, folder = read(kind, "gguf"), read(kind, "folder")
    assert gguf.digest == folder.digest
    assert gguf.special_ids == folder.special_ids
    assert gguf.end_ids == folder.end_ids
    assert gguf.vocab_size == folder.vocab_size == 352
    assert gguf.eos_id == folder.eos_id
    assert [gguf.token_bytes(i) for i in range(352)] == [folder.token_bytes(i) for i in range(352)]


def test_another_vocabulary_has_another_digest(tmp_path: Path) -> None:
    digests = {
        _from_gguf(tmp_path, "qwen2", tokenizer=make_tokenizer("qwen2", specials)).digest
        for specials in (SPECIALS, (*SPECIALS, "<|more|>"), (*SPECIALS, "<|else|>"))
    }
    assert len(digests) == 3


def test_special_ids_are_those_that_stand_for_no_text(
    kind: str, source: str, read: Callable[..., BackboneTokenizer]
) -> None:
    tokenizer = read(kind, source)
    ids = {name: make_tokenizer(kind).token_to_id(name) for name in SPECIALS}
    unused = set(range(max(ids.values()) + 1, 352))
    assert tokenizer.special_ids == set(ids.values()) | unused
    assert tokenizer.fim_prefix == ids["<|fim_prefix|>"]
    assert tokenizer.fim_suffix == ids["<|fim_suffix|>"]
    assert tokenizer.fim_middle == ids["<|fim_middle|>"]
    assert tokenizer.file_sep == ids["<|file_sep|>"]
    assert tokenizer.repo_name == ids["<|repo_name|>"]
    assert tokenizer.eos_id == ids["<|endoftext|>"]
    assert tokenizer.end_ids == set(ids.values()) - {ids["<|im_start|>"]}
    assert all(not tokenizer.token_bytes(i) for i in tokenizer.special_ids)


def test_text_comes_back(read: Callable[..., BackboneTokenizer]) -> None:
    tokenizer = read("llama", "gguf")  # Qwen's composes characters
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert tokenizer.special_ids.isdisjoint(ids)


def test_half_a_character(kind: str, read: Callable[..., BackboneTokenizer]) -> None:
    tokenizer = read(kind, "gguf")
    assert tokenizer.encode("a\ud83db") == tokenizer.encode("a?b")
    assert tokenizer.encode("a\ud83db", special=True) == tokenizer.encode("a?b")
    ids = tokenizer.encode("漢")
    assert len(ids) > 1
    assert tokenizer.decode(ids[:-1]) == "\ufffd"


def test_decoding_leaves_special_tokens_out(read: Callable[..., BackboneTokenizer]) -> None:
    tokenizer = read("qwen2", "gguf")
    ids = [tokenizer.fim_prefix, *tokenizer.encode("x = 1"), tokenizer.eos_id, 351]
    assert tokenizer.decode(ids) == "x = 1"


def test_infill_tokens_can_be_named_by_the_file(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("qwen2", ("<|endoftext|>", "PRE", "SUF", "MID", "END"))
    ids = {name: tokenizer.token_to_id(name) for name in ("PRE", "SUF", "MID", "END")}
    keys = {"fim_pre": "PRE", "fim_suf": "SUF", "fim_mid": "MID", "eot": "END"}
    said = {f"tokenizer.ggml.{key}_token_id": ids[name] for key, name in keys.items()}
    found = _from_gguf(tmp_path, "qwen2", tokenizer=tokenizer, entries=said)
    assert (found.fim_prefix, found.fim_suffix, found.fim_middle) == (
        ids["PRE"], ids["SUF"], ids["MID"],
    )  # fmt: skip
    assert found.end_ids == {found.eos_id, *ids.values()}
    assert found.file_sep is None
    assert found.repo_name is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rest=st.one_of(st.sampled_from([b"ret", b"    ", b"print(add", b"\n", b"\xff"]), st.binary())
)
@example(rest=b"")
def test_healing_allows_what_agrees_with_the_bytes_and_nothing_else(
    read: Callable[..., BackboneTokenizer], rest: bytes
) -> None:
    tokenizer = read("qwen2", "gguf")
    words = {i: tokenizer.token_bytes(i) for i in range(352) if tokenizer.token_bytes(i)}
    expected = [i for i, word in words.items() if word.startswith(rest) or rest.startswith(word)]
    found = tokenizer.allowed_after(rest)
    assert sorted(found) == sorted(expected)
    assert found or rest[:1] == b"\xff"
    assert tokenizer.allowed_after(rest) is found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BackboneTokenizer]:
    """`read(kind, source)`: the tokenizer of a model of a kind, from one kind of file."""
    made: dict[tuple[str, str], BackboneTokenizer] = {}

    def read(kind: str, source: str) -> BackboneTokenizer:
        if (kind, source) not in made:
            directory = tmp_path_factory.mktemp("tokenizer")
            made[kind, source] = {"gguf": _from_gguf, "folder": _from_folder}[source](
                directory, kind
            )
        return made[kind, source]

    return read


def _from_folder(directory: Path, kind: str) -> BackboneTokenizer:
    folder = write_folder(directory, kind, make_model(kind), make_tokenizer(kind))
    return BackboneTokenizer.from_directory(folder, read_causal_config(folder))


def _from_gguf(
    directory: Path,
    kind: str,
    *,
    tokenizer: Tokenizer | None = None,
    entries: dict[str, Any] | None = None,
) -> BackboneTokenizer:
    found = metadata(kind, tokenizer or make_tokenizer(kind)) | (entries or {})
    stored = quantised(tensors(kind, make_model(kind)), GGMLQuantizationType.Q8_0)
    file = GgufFile(write_gguf(directory / "tiny.gguf", kind, found, stored))
    return BackboneTokenizer.from_gguf(file, read_config(file))


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, knowing no special token."""
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": []}))
