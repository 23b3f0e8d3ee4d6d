"""Every family, from its folder to filled text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.api import CheckpointError, Frame, InfillRequest, InvalidRequestError
from model.engines import load
from model.serving.loading import load_completer
from model.serving.swap import SwappableCompleter

FAMILIES = ("Dream", "DreamOn", "llada", "qwen2", "a2d-qwen2", "sdar", "llama", "CoDA")
REQUEST = InfillRequest(
    prefix="def add(a, b):\n    ", suffix="\n\nadd(1, 2)\n", language="python", max_new_tokens=12
)


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_fills_a_hole(family: str, checkpoints: Callable[[str], Path]) -> None:
    completer = load(checkpoints(family), device="cpu")
    try:
        frames: list[Frame] = []
        result = await completer.complete(REQUEST, on_frame=frames.append)
        again = await completer.complete(REQUEST)
    finally:
        await completer.close()
    (candidate,) = result.candidates
    assert candidate.finished or family in ("sdar", "llama")
    assert result.tokens <= 12
    assert result.forwards >= 1
    assert 0 < candidate.confidence <= 1
    assert frames
    assert [c.texts for c in again.candidates] == [c.texts for c in result.candidates]
    specials = ("<|", "<[", "<M>")
    assert not any(name in candidate.text for name in specials)


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_fills_a_hole_of_known_length_behind_what_is_typed(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    completer = load_completer(checkpoints(family), device="cpu")
    oracle = replace(REQUEST, length_of="return a + b")
    typed = replace(REQUEST, typed="return", candidates=2)
    try:
        known = await completer.complete(oracle)
        length = len(completer._tokenizer.encode("return a + b"))
        behind = await completer.complete(typed)
    finally:
        await completer.close()
    assert known.tokens == length
    assert known.candidates[0].finished
    assert all(c.text.startswith("return") for c in behind.candidates)


@pytest.mark.parametrize("family", ["Dream", "llada", "sdar"])
async def test_a_text_that_nothing_follows_goes_on_until_the_model_ends_it(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    completer = load_completer(checkpoints(family), device="cpu")
    try:
        request = replace(REQUEST, suffix="", max_new_tokens=40)
        result = await completer.complete(request)
    finally:
        await completer.close()
    assert result.candidates[0].finished == (result.tokens < 40)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_family_fills_several_holes_or_says_that_it_cannot(
    family: str, checkpoints: Callable[[str], Path]
) -> None:
    completer = load_completer(checkpoints(family), device="cpu")
    try:
        with pytest.raises(InvalidRequestError, match="needs a backbone"):
            await completer.complete(replace(REQUEST, policy="autoregressive"))
        several = replace(REQUEST, between=(", ",), typed="x")
        if family in ("sdar", "llama"):
            with pytest.raises(InvalidRequestError, match="one hole at a time, not 2"):
                await completer.complete(several)
        else:
            (candidate,) = (await completer.complete(several)).candidates
            assert len(candidate.texts) == 2
            assert candidate.text.startswith("x")
    finally:
        await completer.close()


async def test_a_longer_context_than_the_model_reads_is_cut_at_its_far_edges(
    checkpoints: Callable[[str], Path],
) -> None:
    completer = load_completer(checkpoints("Dream"), device="cpu")
    try:
        await completer.complete(replace(REQUEST, prefix=REQUEST.prefix * 100))
    finally:
        await completer.close()


async def test_a_block_causal_model_without_fill_in_the_middle_says_what_it_does_not_see(
    tmp_path: Path, write: Callable[..., Path], checkpoints: Callable[[str], Path]
) -> None:
    directory = write(tmp_path / "sdar", "sdar")
    file = directory / "tokenizer.json"
    file.write_text(file.read_text().replace("<|fim_", "<|other_"))
    for path, expected in ((directory, 1), (checkpoints("sdar"), 0)):
        completer = load_completer(path, device="cpu")
        await completer.complete(REQUEST)
        await completer.close()
        assert len(completer.problems) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
async def test_smaller_dtypes_fill_as_well(dtype: str, checkpoints: Callable[[str], Path]) -> None:
    completer = load_completer(checkpoints("Dream"), device="cpu", dtype=dtype)
    result = await completer.complete(REQUEST)
    await completer.close()
    assert result.candidates


def test_what_does_not_go_together_is_refused(
    tmp_path: Path, checkpoints: Callable[[str], Path]
) -> None:
    dream = checkpoints("Dream")
    with pytest.raises(CheckpointError, match="float32, bfloat16, float8, int8"):
        load(dream, device="cpu", dtype="int4")
    with pytest.raises(CheckpointError, match="compute capability"):
        load(dream, device="cpu", dtype="float8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2'; known are"):
        load(tmp_path, device="cpu")


async def test_a_model_is_exchanged_under_load_and_a_broken_one_changes_nothing(
    tmp_path: Path, write: Callable[..., Path], checkpoints: Callable[[str], Path]
) -> None:
    broken = write(tmp_path / "broken", "llada")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    swappable = SwappableCompleter(load(checkpoints("Dream"), device="cpu"))
    running = [
        asyncio.create_task(swappable.complete(replace(REQUEST, typed=str(n)))) for n in range(8)
    ]
    await asyncio.sleep(0)
    with pytest.raises(CheckpointError, match="truncated"):
        await swappable.swap(lambda: load(broken, device="cpu"))
    await swappable.swap(lambda: load(checkpoints("llada"), device="cpu"))
    running.append(asyncio.create_task(swappable.complete(REQUEST)))
    results = await asyncio.gather(*running)
    await swappable.close()
    assert len(results) == 9
    assert all(result.candidates for result in results)
