from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from model.api import CheckpointError
from model.families.configs import read_config
from model.families.tokenizer import OpenTokenizer

FAMILIES = ("Dream", "DreamOn", "llada", "qwen2", "a2d-qwen2", "sdar", "llama", "CoDA")
MASKS = {
    "llada": "<|mdm_mask|>", "qwen2": "<M>", "sdar": "<|MASK|>", "llama": "<[MASK_TOKEN]>",
}  # fmt: skip


def read(directory: Path) -> OpenTokenizer:
    return OpenTokenizer.from_directory(directory, read_config(directory))


def raw(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_its_mask_and_its_ends(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    directory = checkpoints(family)
    tokenizer, plain = read(directory), raw(directory)
    assert tokenizer.mask_id == plain.token_to_id(MASKS.get(family, "<|mask|>"))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    assert tokenizer.eos_id == plain.token_to_id(settings["eos_token"])
    bos = settings["bos_token"]
    assert tokenizer.bos_id == (bos and plain.token_to_id(bos["content"]))
    turn_end = plain.token_to_id("<|im_end|>")
    assert tokenizer.turn_end_ids == (() if turn_end is None else (turn_end,))
    assert (tokenizer.expand_id is not None) == (family == "DreamOn")
    assert (tokenizer.fill_in_the_middle is not None) == (family in ("sdar", "llama"))
    assert {tokenizer.mask_id, tokenizer.eos_id, tokenizer.no_token_id} <= tokenizer.special_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_text_comes_back_and_special_tokens_are_never_read_from_it(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    tokenizer = read(checkpoints(family))
    name = MASKS.get(family, "<|mask|>")
    text = f"def ä():\n\treturn '🙂'  # {name}\r\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.encode("\ud83d") == tokenizer.encode("?")
    assert tokenizer.mask_id in tokenizer.encode(text, special=True)
    assert tokenizer.decode([*ids, tokenizer.mask_id, tokenizer.no_token_id]) == text


def test_an_added_token_that_is_not_called_special_is_no_text_either(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    directory = write(tmp_path / "sdar", "sdar")
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        token["special"] = False  # as Qwen's fill-in-the-middle tokens
    file.write_text(json.dumps(content))
    tokenizer = read(directory)
    assert not tokenizer.special_ids & set(tokenizer.encode("a <|fim_prefix|> b"))
    assert tokenizer.special_ids & set(tokenizer.encode("a <|fim_prefix|> b", special=True))


def test_rows_of_the_embedding_without_a_token_are_never_text(
    checkpoints: Callable[[str], Path],
) -> None:
    directory = checkpoints("Dream")
    unused = set(range(raw(directory).get_vocab_size(), 352))
    assert unused
    assert unused <= read(directory).special_ids


class TestQwensOlderFiles:
    """`vocab.json`, `merges.txt` and `added_tokens.json`, as in Dream's repositories."""

    @pytest.fixture
    def older(self, tmp_path: Path, write: Callable[..., Path]) -> Path:
        directory = write(tmp_path / "dream", "Dream")
        plain = raw(directory)
        content = json.loads((directory / "tokenizer.json").read_text())
        vocabulary = plain.get_vocab(with_added_tokens=False)
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
        merges = [" ".join(pair) for pair in content["model"]["merges"]]
        (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        added = {token["content"]: token["id"] for token in content["added_tokens"]}
        (directory / "added_tokens.json").write_text(json.dumps(added))
        (directory / "tokenizer.json").unlink()
        return directory

    def test_they_give_the_same_ids(self, older: Path, checkpoints: Callable[[str], Path]) -> None:
        tokenizer, expected = read(older), read(checkpoints("Dream"))
        assert tokenizer.special_ids == expected.special_ids
        assert (tokenizer.mask_id, tokenizer.bos_id) == (expected.mask_id, expected.bos_id)
        for text in ("def add(a, b):\n    return a + b", "<|mask|>", " 'ä🙂'\t"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode("return") == expected.encode("return")

    def test_words_are_cut_as_transformers_cuts_them(self, older: Path) -> None:
        transformers = pytest.importorskip(
            "transformers", reason="transformers is not installed (the extra `bench`)"
        )
        vocabulary = json.loads((older / "vocab.json").read_text())
        lines = (older / "merges.txt").read_text().splitlines()[1:]
        merges = [tuple(line.split(" ")) for line in lines]
        theirs = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
        tokenizer = read(older)
        for text in ("I'LL don't\n\n    x1234 = a+b  \n", "if (a):\r\n\tprint('é')", "  e\u0301 "):
            expected = theirs.encode(text, add_special_tokens=False)
            assert tokenizer.encode(text) == expected

    def test_an_added_token_at_a_wrong_id_is_named(self, older: Path) -> None:
        file = older / "added_tokens.json"
        added = json.loads(file.read_text())
        file.write_text(json.dumps({**added, "<|mask|>": added["<|mask|>"] + 3}))
        with pytest.raises(CheckpointError, match=r"token <\|mask\|> should have id"):
            read(older)

    def test_other_families_need_a_tokenizer_json(self, older: Path) -> None:
        config = read_config(older)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
            OpenTokenizer.from_directory(older, replace(config, model_type="llada"))


class TestBadInput:
    def test_a_tokenizer_without_a_mask_token_is_refused_by_name(
        self, tmp_path: Path, write: Callable[..., Path]
    ) -> None:
        directory = write(tmp_path / "qwen2", "qwen2")
        file = directory / "tokenizer.json"
        file.write_text(file.read_text().replace("<M>", "<N>"))
        with pytest.raises(CheckpointError, match="no mask token") as info:
            read(directory)
        assert str(directory) in str(info.value)

    def test_a_mask_outside_the_embedding_is_refused(
        self, tmp_path: Path, write: Callable[..., Path]
    ) -> None:
        directory = write(tmp_path / "dream", "Dream")
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "mask_token_id": 352}))
        with pytest.raises(CheckpointError, match=r"352; the model has ids 0\.\.351"):
            read(directory)

    def test_a_damaged_or_missing_tokenizer_is_named(
        self, tmp_path: Path, write: Callable[..., Path]
    ) -> None:
        directory = write(tmp_path / "dream", "Dream")
        file = directory / "tokenizer.json"
        file.write_text("{}")
        with pytest.raises(CheckpointError, match="not a readable tokenizer"):
            read(directory)
        file.unlink()
        with pytest.raises(CheckpointError, match="is missing"):
            read(directory)
