from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model.families.configs import read_config
from model.families.layout import OpenLayout
from model.families.tokenizer import OpenTokenizer

PREFIX, SUFFIX = [55, 56, 57], [58, 59]


def of(directory: Path) -> OpenLayout:
    config = read_config(directory)
    return OpenLayout(config, OpenTokenizer.from_directory(directory, config))


def streams(layout: OpenLayout, suffix: list[int]) -> tuple[list[int], list[int]]:
    return (
        layout.prefix_stream(PREFIX),
        layout.suffix_stream(suffix),
    )


def around(layout: OpenLayout, suffix: list[int] = SUFFIX) -> tuple[list[int], list[int]]:
    return layout.around(*streams(layout, suffix), 0)


def test_dream_has_both_ends(checkpoints: Callable[[str], Path]) -> None:
    layout = of(checkpoints("Dream"))
    bos, eos = layout.tokenizer.bos_id, layout.tokenizer.eos_id
    assert around(layout) == ([bos, 55, 56, 57], [58, 59, eos])


def test_an_end_is_given_where_something_follows_and_to_dreamon_always(
    checkpoints: Callable[[str], Path],
) -> None:
    assert around(of(checkpoints("Dream")), [])[1] == []
    dreamon = of(checkpoints("DreamOn"))
    assert around(dreamon, [])[1] == [dreamon.tokenizer.eos_id]


def test_a_rendered_chat_template_brings_its_own_beginning(
    checkpoints: Callable[[str], Path],
) -> None:
    for family in ("Dream", "llada"):
        layout = of(checkpoints(family))
        name = "<|im_start|>" if family == "Dream" else "<|startoftext|>"
        prompt = layout.tokenizer.encode(f"{name}user", special=True)
        prefix = layout.prefix_stream(prompt)
        assert layout.around(prefix, [layout.tokenizer.no_token_id], 0) == (prompt, [])


def test_llada_has_a_beginning_and_qwens_have_nothing_around(
    checkpoints: Callable[[str], Path],
) -> None:
    llada = of(checkpoints("llada"))
    assert around(llada) == ([llada.tokenizer.bos_id, 55, 56, 57], [58, 59])
    for family in ("qwen2", "a2d-qwen2", "CoDA"):
        assert around(of(checkpoints(family))) == (PREFIX, SUFFIX)


def test_block_causal_models_read_what_follows_first(checkpoints: Callable[[str], Path]) -> None:
    sdar, seed = of(checkpoints("sdar")), of(checkpoints("llama"))
    fim = sdar.tokenizer.fill_in_the_middle
    assert fim is not None
    assert around(sdar) == ([fim.prefix, 55, 56, 57, fim.suffix, 58, 59, fim.middle], [])
    fim = seed.tokenizer.fill_in_the_middle
    assert fim is not None
    bos = seed.tokenizer.bos_id
    assert around(seed) == ([bos, fim.suffix, 58, 59, fim.prefix, 55, 56, 57, fim.middle], [])


def test_a_block_causal_model_that_nothing_follows_just_goes_on(
    checkpoints: Callable[[str], Path],
) -> None:
    sdar, seed = of(checkpoints("sdar")), of(checkpoints("llama"))
    assert around(sdar, []) == (PREFIX, [])
    assert around(seed, []) == ([seed.tokenizer.bos_id, *PREFIX], [])


def test_what_is_committed_stays_behind_the_middle_token(
    checkpoints: Callable[[str], Path],
) -> None:
    layout = of(checkpoints("sdar"))
    prefix, suffix = streams(layout, SUFFIX)
    committed = [61, 62]
    left, right = layout.around([*prefix, *committed], suffix, len(committed))
    assert (left, right) == (around(layout)[0] + committed, [])


def test_a_canvas_ends_where_its_block_does(checkpoints: Callable[[str], Path]) -> None:
    layout = of(checkpoints("sdar"))
    for length in range(9):
        prefix = layout.prefix_stream([55] * length)
        _, suffix = streams(layout, SUFFIX)
        slots = layout.slots_to_edge(prefix, suffix, 0)
        assert 1 <= slots <= 4
        assert (len(layout.around(prefix, suffix, 0)[0]) + slots) % 4 == 0
