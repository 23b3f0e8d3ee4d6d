"""Where the borders of a prompt lie, and that typing moves none of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.backbone.prompt import NEAR_STEP, NEAR_TOKENS, Prompt, most_tokens

PREFIX, SUFFIX, MIDDLE = 9_000, 9_001, 9_002


class Words:
    """Cuts as byte-level tokenizers do: words with the blank before them, runs of blanks, ends of
    lines with what closes the line."""

    fim_prefix, fim_suffix, fim_middle = PREFIX, SUFFIX, MIDDLE

    def __init__(self) -> None:
        self._texts: list[str] = []

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        pieces = re.findall(r" ?[A-Za-z_]+| ?\d|\n+| +(?! \S)(?=\S)| +|.", text)
        for piece in pieces:
            if piece not in self._texts:
                self._texts.append(piece)
        return [self._texts.index(piece) for piece in pieces]

    def token_bytes(self, token: int) -> bytes:
        return b"" if token >= PREFIX else self._texts[token].encode()

    def text(self, ids: tuple[int, ...]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode()


def lines(count: int, start: int = 0) -> str:
    return "".join(
        f"    name_{i % 7} = call(value, {i % 9})\n" for i in range(start, start + count)
    )


def prompt(
    words: Words, prefix: str, suffix: str, prefix_tokens: int = 768, suffix_tokens: int = 128
) -> Prompt:
    return Prompt.of(
        words, prefix, suffix, prefix_tokens=prefix_tokens, suffix_tokens=suffix_tokens
    )


def test_far_text_comes_first_then_the_suffix_then_what_the_middle_continues() -> None:
    words = Words()
    found = prompt(words, lines(50), lines(3, 50))
    far, near = words.text(found.far), words.text(found.near)
    assert far + near == lines(50)
    assert far.endswith("\n")
    assert NEAR_TOKENS <= len(found.near) < NEAR_TOKENS + NEAR_STEP + 20
    assert words.text(found.suffix) == lines(3, 50)
    assert found.ids == (
        *found.far, PREFIX, SUFFIX, *found.suffix, MIDDLE, *found.near,
    )  # fmt: skip
    assert found.dropped == 0


def test_without_a_suffix_the_text_stands_alone() -> None:
    words = Words()
    for suffix in ("", "\n  \n"):
        found = prompt(words, "def f():\n", suffix)
        assert words.text(found.ids) == "def f():\n"
    assert prompt(words, "def f():\n", "x", suffix_tokens=0).suffix == ()


def test_a_short_file_is_all_near() -> None:
    words = Words()
    found = prompt(words, "a = 1\n", "b = 2\n")
    assert (found.far, words.text(found.near)) == ((), "a = 1\n")


@pytest.mark.parametrize(
    ("before", "healed"),
    [
        ("x = retu", " retu"),
        ("return ", " "),
        ("    ", "    "),
        ("if x:\n        ", "        "),
        ("foo(", "("),
        ("self.", "."),
        ("a + b\n", ""),
        ("", ""),
        ("f(long_na", "long_na"),
    ],
)
def test_a_cut_word_or_a_run_of_blanks_is_written_again(before: str, healed: str) -> None:
    words = Words()
    found = prompt(words, before, "\nend")
    assert found.heal.decode() == healed
    assert words.text(found.near) + healed == before


def test_budgets_are_kept_at_whole_lines() -> None:
    words = Words()
    found = prompt(words, lines(300), lines(300), prefix_tokens=600, suffix_tokens=100)
    assert len(found.far) + len(found.near) <= 600
    assert words.text(found.far).startswith("    name_")
    assert len(found.suffix) <= 100
    assert words.text(found.suffix).endswith("\n")
    assert found.dropped > 0


def test_a_line_longer_than_the_budget_is_cut_where_it_must_be() -> None:
    words = Words()
    found = prompt(words, "x + " * 400, "y + " * 400, prefix_tokens=100, suffix_tokens=50)
    assert 100 <= len(found.near) <= most_tokens(100)
    assert len(found.suffix) == 50


def test_what_is_typed_in_a_line_only_appends() -> None:
    words = Words()
    for count in range(55, 95):
        base = lines(count)
        before = prompt(words, base, "\nend\n")
        for typed in ("    ", "    retu", "    return value", "    return call(value, "):
            now = prompt(words, base + typed, "\nend\n")
            assert now.ids[: len(before.ids)] == before.ids
            assert len(now.ids) - len(before.ids) <= len(words.encode(typed))


def test_the_borders_move_in_large_steps() -> None:
    words = Words()
    borders = [prompt(words, lines(count), "end\n") for count in range(20, 220)]
    assert len({len(p.far) for p in borders[:60]}) <= 60 * 12 // NEAR_STEP + 2
    starts = {words.text(p.far)[:200] for p in borders[80:]}
    assert len(starts) <= 140 * 12 // (768 // 4) + 2


def test_the_same_prompt_without_its_far_text_ends_alike() -> None:
    words = Words()
    whole = prompt(words, lines(60), lines(2))
    close = whole.without_far()
    assert close.ids == whole.ids[len(whole.far) :]
    assert (close.heal, close.dropped) == (whole.heal, len(whole.far))


@given(
    prefix=st.text("ab \n(_1", max_size=300),
    suffix=st.text("ab \n)", max_size=80),
    prefix_tokens=st.integers(16, 120),
    suffix_tokens=st.integers(0, 40),
)
def test_nothing_is_lost_between_near_text_and_cursor(
    prefix: str, suffix: str, prefix_tokens: int, suffix_tokens: int
) -> None:
    words = Words()
    found = prompt(words, prefix, suffix, prefix_tokens, suffix_tokens)
    read = words.text(found.far) + words.text(found.near) + found.heal.decode()
    assert prefix.endswith(read)
    assert suffix.startswith(words.text(found.suffix))
    assert len(found.far) + len(found.near) <= most_tokens(prefix_tokens)
    assert len(found.suffix) <= suffix_tokens
