from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from model.api import CheckpointError
from model.tokenizer import LANGUAGES, SPECIAL_TOKENS, CodeTokenizer

# Text in which special names turn up whole, in part and next to everything else.
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=20), st.sampled_from([*SPECIAL_TOKENS, "\r\n", "\t", "    ", "👩‍👩‍👧"])
    )
).map("".join)


@given(text=TEXTS)
def test_decoding_gives_back_any_text(tokenizer: CodeTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=TEXTS)
def test_no_text_encodes_to_a_special_token(tokenizer: CodeTokenizer, text: str) -> None:
    assert not tokenizer.special_ids & set(tokenizer.encode(text))


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_a_special_name_in_a_file_is_plain_text_also_after_a_reload(
    tokenizer: CodeTokenizer, tmp_path: Path, name: str
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for one in (tokenizer, CodeTokenizer.from_file(tmp_path / "tokenizer.json")):
        ids = one.encode(f"x = '{name}'")
        assert not one.special_ids & set(ids)
        assert one.decode(ids) == f"x = '{name}'"
        assert one.encode_batch([f"x = '{name}'"]) == [ids]


def test_special_tokens_are_left_out_of_decoded_text(tokenizer: CodeTokenizer) -> None:
    ids = [tokenizer.file_start_id, *tokenizer.encode("pass"), tokenizer.end_id, tokenizer.mask_id]
    assert tokenizer.decode(ids) == "pass"


@given(texts=st.lists(TEXTS, max_size=4))
def test_a_batch_is_encoded_as_its_texts_are(tokenizer: CodeTokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_a_newline_and_the_indentation_after_it_are_one_token(tokenizer: CodeTokenizer) -> None:
    for indent in ("    ", "        "):
        assert len(tokenizer.encode("\n" + indent)) == 1
        (first, *_), whole = tokenizer.encode("\n" + indent), tokenizer.encode(f"\n{indent}return")
        assert whole[0] == first


def test_half_a_character_becomes_a_question_mark(tokenizer: CodeTokenizer) -> None:
    cut = "x = '\ud83d"  # an editor that counts in UTF-16 can send this
    assert tokenizer.decode(tokenizer.encode(cut)) == "x = '?"


def test_broken_utf8_decodes_to_the_replacement_character(tokenizer: CodeTokenizer) -> None:
    first_byte_of_emoji = tokenizer.encode("👍")[:1]
    assert tokenizer.decode(first_byte_of_emoji) == "\ufffd"


def test_every_byte_has_a_token_however_small_the_vocabulary() -> None:
    tiny = CodeTokenizer.train(["aaaa"], vocab_size=1)
    assert tiny.vocab_size == 256 + len(SPECIAL_TOKENS)
    assert tiny.decode(tiny.encode("Ünïcode\x00🎉")) == "Ünïcode\x00🎉"


def test_ids_are_below_the_vocabulary_size(tokenizer: CodeTokenizer) -> None:
    ids = {*tokenizer.encode("".join(map(chr, range(1, 0x300)))), *tokenizer.special_ids}
    assert max(ids) < tokenizer.vocab_size


def test_training_keeps_to_the_vocabulary_size(code: str) -> None:
    assert CodeTokenizer.train([code], 300).vocab_size == 300


def test_the_digest_survives_saving_and_tells_tokenizers_apart(
    tokenizer: CodeTokenizer, code: str, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert CodeTokenizer.from_file(tmp_path / "tokenizer.json").digest == tokenizer.digest
    assert CodeTokenizer.train([code] * 3, 399).digest != tokenizer.digest


def test_every_language_has_a_token_of_its_own(tokenizer: CodeTokenizer) -> None:
    ids = {tokenizer.language_id(language) for language in (*LANGUAGES, "other")}
    assert len(ids) == len(LANGUAGES) + 1
    assert ids <= tokenizer.special_ids


@pytest.mark.parametrize(
    ("lsp_id", "language"),
    [
        ("shellscript", "bash"),
        ("typescriptreact", "typescript"),
        ("jsonc", "json"),
        ("cobol", "other"),
        ("", "other"),
        ("mask>", "other"),
    ],
)
def test_lsp_ids_share_the_token_of_their_language(
    tokenizer: CodeTokenizer, lsp_id: str, language: str
) -> None:
    assert tokenizer.language_id(lsp_id) == tokenizer.language_id(language)


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 1}', b"\xff\xfe"])
def test_a_broken_file_is_a_checkpoint_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a readable tokenizer"):
        CodeTokenizer.from_file(file)


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        CodeTokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_our_special_tokens_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE()).save(str(foreign))
    with pytest.raises(CheckpointError, match="lacks the special tokens <mask>, <eom>"):
        CodeTokenizer.from_file(foreign)
