from __future__ import annotations

import random

import pytest
import torch

from model.denoiser import Denoiser, Role
from model.engine.model_runner import ModelRunner
from model.engine.sequence import Fill, SamplingParams, Sequence
from model.infill import CanvasLayout
from model.tokenizer import CodeTokenizer


def sequence(prefix: list[int], suffix: list[int], mask_id: int, *, seed: int = 0) -> Sequence:
    """A half-decided canvas of 16 slots."""
    layout = CanvasLayout((16,))
    canvas, clamped = layout.blank(mask_id)
    draw = random.Random(seed)
    for slot in draw.sample(range(16), 5):
        canvas[slot] = draw.randrange(100, 300)
    return Sequence(
        fill=Fill(prefix=prefix, suffix=suffix, layout=layout),
        params=SamplingParams(),
        prefix=prefix,
        suffix=suffix,
        layout=layout,
        canvas=canvas,
        clamped=clamped,
        confidences=[1.0] * 16,
    )


def stream(seed: int, num_tokens: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(100, 300) for _ in range(num_tokens)]


@torch.inference_mode()
def uncached(model: Denoiser, seq: Sequence) -> torch.Tensor:
    """The reference: encode both streams, denoise the one canvas."""
    _, prefix = model.encode(torch.tensor([seq.prefix]), Role.PREFIX)
    _, suffix = model.encode(torch.tensor([seq.suffix]), Role.SUFFIX)
    size = len(seq.canvas)
    hidden = model.denoise(
        torch.tensor([seq.canvas]),
        torch.tensor([seq.prefix[-1:]]),
        torch.arange(size)[None] + len(seq.prefix),
        torch.full((1, size), len(seq.suffix)),
        prefix,
        suffix,
        canvas_size=size,
    )
    return model.logits(hidden)[0]


@pytest.fixture
def runner(model: Denoiser) -> ModelRunner:
    """A runner in whose memory everything that was never written is NaN."""
    runner = ModelRunner(model, max_batch=4, spare_slots=2)
    for buffers in runner._buffers:
        for buffer in buffers:
            buffer.fill_(float("nan"))
    return runner


def run(runner: ModelRunner, *batch: Sequence) -> torch.Tensor:
    runner.open_contexts(batch)
    return runner.denoise(batch)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_typed_token_at_a_time_gives_the_uncached_logits(
    runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    prefix, suffix = stream(1, 12), stream(2, 7)
    for num_tokens in (4, 5, 6, 9, 12, 8, 12):
        seq = sequence(prefix[:num_tokens], suffix, tokenizer.mask_id)
        assert_close(run(runner, seq)[0], uncached(model, seq))
        runner.close_context(seq)


def test_padding_in_a_batch_changes_no_logits(
    runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    batch = [
        sequence(stream(i, 3 + 9 * i), stream(10 + i, 20 - 5 * i), tokenizer.mask_id, seed=i)
        for i in range(4)
    ]
    for seq, logits in zip(batch, run(runner, *batch), strict=True):
        assert_close(logits, uncached(model, seq))


def test_candidates_of_one_context_are_encoded_once(
    runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    prefix, suffix = stream(1, 12), stream(2, 7)
    batch = [sequence(prefix, suffix, tokenizer.mask_id, seed=i) for i in range(3)]
    logits = run(runner, *batch)
    assert [s.fill.encoded_tokens for s in batch] == [19, 0, 0]
    for seq, row in zip(batch, logits, strict=True):
        assert_close(row, uncached(model, seq))


def test_a_batch_follows_its_canvases_from_step_to_step(
    runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    batch = [sequence(stream(i, 5 + i), stream(9, 4), tokenizer.mask_id, seed=i) for i in range(2)]
    run(runner, *batch)
    for seq in batch:
        seq.canvas[3] = 111
    for seq, logits in zip(batch, run(runner, *batch), strict=True):
        assert_close(logits, uncached(model, seq))


def test_another_text_of_the_same_length_in_the_same_slots_is_noticed(
    runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    other = sequence(stream(5, 9), stream(6, 9), tokenizer.mask_id)
    slots: set[tuple[int, int] | None] = set()
    for last in (101, 102):  # replaces the stream's last token in place
        seq = sequence([*stream(1, 6), last], stream(2, 7), tokenizer.mask_id)
        logits = run(runner, seq, other)
        slots.add(seq.context_slots)
        assert_close(logits[0], uncached(model, seq))
        runner.close_context(seq)
    assert len(slots) == 1


def test_a_sequence_that_sits_out_a_step_is_unpinned_and_finds_its_context_again(
    runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    first = sequence(stream(1, 9), stream(2, 9), tokenizer.mask_id)
    second = sequence(stream(3, 9), stream(4, 9), tokenizer.mask_id)
    run(runner, first)
    run(runner, second)
    assert first.context_slots is None
    assert_close(run(runner, first)[0], uncached(model, first))
    assert first.fill.encoded_tokens == 18


@pytest.mark.parametrize("failing_role", [Role.PREFIX, Role.SUFFIX])
def test_a_failed_encoding_leaves_nothing_pinned_and_nothing_half_cached(
    runner: ModelRunner,
    model: Denoiser,
    tokenizer: CodeTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    failing_role: Role,
) -> None:
    seq = sequence(stream(1, 9), stream(2, 9), tokenizer.mask_id)
    encode = model.encode

    def fail(ids: torch.Tensor, role: Role, past: object) -> object:
        if role == failing_role:
            raise RuntimeError("out of memory")
        return encode(ids, role, past)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            runner.open_contexts([seq])
    assert seq.context_slots is None
    runner.cache.check_integrity()
    assert all(slot.users == 0 for slot in runner.cache._slots)
    assert_close(run(runner, seq)[0], uncached(model, seq))


def test_closing_a_context_twice_is_harmless(runner: ModelRunner, tokenizer: CodeTokenizer) -> None:
    seq = sequence(stream(1, 9), stream(2, 9), tokenizer.mask_id)
    runner.open_contexts([seq])
    runner.close_context(seq)
    runner.close_context(seq)
    assert all(slot.users == 0 for slot in runner.cache._slots)
