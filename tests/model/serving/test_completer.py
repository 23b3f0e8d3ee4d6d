from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.api import (
    CheckpointError,
    EngineUnavailableError,
    Frame,
    InfillRequest,
    InvalidRequestError,
    SupersededError,
)
from model.checkpoint import save_checkpoint
from model.denoiser import Denoiser
from model.engine.n_grams import Strength
from model.engine.sequence import Sequence
from model.serving.completer import EngineCompleter
from model.serving.loading import completer_of, load_completer
from model.tokenizer import CodeTokenizer

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def model(tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]) -> Denoiser:
    return make_denoiser(tokenizer.vocab_size, dtype=torch.float32, max_context=64)


@pytest.fixture
async def completer(model: Denoiser, tokenizer: CodeTokenizer) -> AsyncIterator[EngineCompleter]:
    completer = completer_of(model, tokenizer)
    yield completer
    await completer.close()


def dictate(completer: EngineCompleter, tokenizer: CodeTokenizer, *texts: str) -> None:
    """Have the denoiser want these texts in the holes, and `<eom>` behind them."""
    holes = [tokenizer.encode(text) for text in texts]

    def denoise(batch: list[Sequence]) -> torch.Tensor:
        logits = torch.zeros(len(batch), len(batch[0].canvas), tokenizer.vocab_size)
        for row, sequence in enumerate(batch):
            for wanted, hole in zip(holes, sequence.layout.holes(), strict=True):
                for offset, slot in enumerate(hole):
                    token = wanted[offset] if offset < len(wanted) else tokenizer.end_id
                    logits[row, slot, token] = 20.0
        return logits

    completer._engine.runner.denoise = denoise  # type: ignore[method-assign]


class TestComplete:
    async def test_text_goes_in_and_comes_out(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "number:\n        résumé = '🙂'")
        result = await completer.complete(InfillRequest(prefix="for ", suffix="\n", steps=2))
        assert [c.text for c in result.candidates] == ["number:\n        résumé = '🙂'"]
        assert result.candidates[0].finished
        assert 0.9 < result.candidates[0].confidence <= 1.0
        assert result.forwards <= 2
        assert result.tokens == len(tokenizer.encode(result.candidates[0].text))
        assert result.encoded_tokens > 0
        assert result.ms > 0

    async def test_the_documents_repetition_reaches_the_engine_also_from_afar(
        self, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        encoded: list[str] = []

        class Counting(CodeTokenizer):
            def encode(self, text: str, *, special: bool = False) -> list[int]:
                encoded.append(text)
                return super().encode(text, special=special)

        counting = Counting(tokenizer._tokenizer)
        completer = completer_of(model, counting, strengths=[Strength(1, 1e-3), Strength(2, 1e-3)])
        far = "numbers = items\nresult = total\n" * 4
        for where in ({"before": far}, {"after": far}):
            request = InfillRequest(prefix="\nresult", length_of=" = total", **where)
            for _ in range(2):
                (candidate,) = (await completer.complete(request)).candidates
                assert candidate.text == " = total"
            (alone,) = (await completer.complete(replace(request, n_grams=False))).candidates
            assert alone.text != " = total"
        assert encoded.count(far) == 2, "what is far is read once, on either side"
        await completer.close()

    async def test_the_model_goes_with_the_completer(
        self, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        completer = completer_of(model, tokenizer, strengths=[Strength(1, 1.0)])
        await completer.complete(InfillRequest(prefix="x", before="y = 1\n", length_of="y"))
        await completer.close()
        runner = weakref.ref(completer.engine.runner)
        gc.collect()
        gc.disable()
        try:
            del completer
            assert runner() is None, "something holds the engine in a circle"
        finally:
            gc.enable()

    async def test_a_candidate_tells_where_its_tokens_end(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        text = "nur ä = '🙂'"
        dictate(completer, tokenizer, "x" + text)
        request = InfillRequest(prefix="for ", suffix="\n", typed="x")
        candidate = (await completer.complete(request)).candidates[0]
        ids = tokenizer.encode(text)
        assert candidate.text == "x" + text
        assert len(candidate.token_ends) == len(candidate.probabilities) - 1  # and the end
        assert candidate.token_ends[-1] == len(candidate.text)
        assert list(candidate.token_ends) == sorted(candidate.token_ends)
        whole = [
            len("x" + tokenizer.decode(ids[: i + 1]).rstrip("\ufffd")) for i in range(len(ids))
        ]
        assert list(candidate.token_ends) == whole

    async def test_of_several_holes_it_tells_no_token_ends(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "a", "b")
        request = InfillRequest(prefix="(", suffix=")", between=(", ",))
        assert (await completer.complete(request)).candidates[0].token_ends == ()

    async def test_the_same_request_gives_the_same_candidates(
        self, completer: EngineCompleter
    ) -> None:
        request = InfillRequest(prefix="def f(", suffix=")", candidates=4, temperature=2.0, steps=4)
        first, second = [await completer.complete(request) for _ in range(2)]
        assert first.candidates == second.candidates
        assert len({c.text for c in first.candidates}) == 4  # each has a seed of its own
        assert second.encoded_tokens == 0

    async def test_candidates_come_best_first(self, completer: EngineCompleter) -> None:
        request = InfillRequest(
            prefix="def f(", suffix="):\n", candidates=6, temperature=2.0, max_new_tokens=8
        )
        result = await completer.complete(request)
        scores = [candidate.score for candidate in result.candidates]
        assert len(scores) > 1
        assert None not in scores
        assert scores == sorted(scores, reverse=True)
        (alone,) = (await completer.complete(InfillRequest(prefix="def f("))).candidates
        assert alone.score is None

    async def test_the_autoregressive_baseline_takes_a_forward_a_token_and_no_end(
        self, completer: EngineCompleter
    ) -> None:
        request = InfillRequest(
            prefix="for ", suffix=":", policy="autoregressive", max_new_tokens=7, typed="x"
        )
        result = await completer.complete(request)
        assert result.tokens == result.forwards == 7
        assert result.candidates[0].text.startswith("x")
        assert not result.candidates[0].finished
        known = InfillRequest(prefix="for ", policy="autoregressive", length_of="number in x")
        assert (await completer.complete(known)).candidates[0].finished

    async def test_equal_candidates_are_merged(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "pass")
        request = InfillRequest(prefix="def f():\n    ", candidates=5, temperature=0.1)
        result = await completer.complete(request)
        assert [c.text for c in result.candidates] == ["pass"]

    async def test_each_hole_gets_its_text(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "items", "total", "")
        request = InfillRequest(prefix="for i in ", between=(":\n    ", " += i"), suffix="\n")
        result = await completer.complete(request)
        assert result.candidates[0].texts == ("items", "total", "")

    @pytest.mark.parametrize(
        "typed", ["ret", "  x\t", "é🙂", "<mask><eom>", "a\r\nb", "half \ud83d"]
    )
    async def test_every_candidate_begins_with_exactly_what_was_typed(
        self, completer: EngineCompleter, typed: str
    ) -> None:
        request = InfillRequest(
            prefix="x = ", typed=typed, candidates=2, temperature=2.0, steps=2, max_new_tokens=8
        )
        result = await completer.complete(request)
        assert result.candidates
        for candidate in result.candidates:
            assert candidate.text.startswith(typed)

    async def test_lines_end_in_newlines_whatever_the_model_writes(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "a\r\nb\rc\nd")
        result = await completer.complete(InfillRequest(prefix=""))
        assert result.candidates[0].text == "a\nb\nc\nd"

    async def test_a_known_length_counts_the_tokens_of_its_text(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "items")
        text = "self.items.append(item)"
        result = await completer.complete(InfillRequest(prefix="        ", length_of=text))
        assert result.tokens == len(tokenizer.encode(text))
        assert result.candidates[0].finished

    async def test_lengths_add_a_candidate_of_just_so_many_tokens_each(
        self, completer: EngineCompleter
    ) -> None:
        request = InfillRequest(prefix="def f(", max_new_tokens=9, lengths=(2, 5))
        result = await completer.complete(request)
        assert {2, 5} <= {len(c.probabilities) for c in result.candidates if c.finished}
        assert all(candidate.score is not None for candidate in result.candidates)

    async def test_left_to_right_takes_a_forward_a_token(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "number:\n    result")
        request = InfillRequest(prefix="for ", policy="left-to-right")
        result = await completer.complete(request)
        assert result.candidates[0].text == "number:\n    result"
        assert result.forwards == result.tokens + 1  # and one for its end
        assert result.candidates[0].confidence == pytest.approx(
            math.prod(result.candidates[0].probabilities)
        )

    async def test_a_deadline_that_has_passed_gives_an_unfinished_answer(
        self, completer: EngineCompleter
    ) -> None:
        request = InfillRequest(prefix="x = ", typed="y", deadline_ms=0.0, candidates=2)
        result = await completer.complete(request)
        assert [(c.text, c.finished) for c in result.candidates] == [("y", False)]
        assert (result.forwards, result.tokens) == (0, 0)

    async def test_one_token_is_enough_to_ask_for(self, completer: EngineCompleter) -> None:
        result = await completer.complete(InfillRequest(prefix="x = ", max_new_tokens=1, steps=1))
        assert result.tokens <= 1

    async def test_a_request_that_fits_no_canvas_is_invalid(
        self, completer: EngineCompleter, code: str
    ) -> None:
        for request in (
            InfillRequest(prefix="", typed=3 * code),
            InfillRequest(prefix="", between=(3 * code,)),
        ):
            with pytest.raises(InvalidRequestError, match=r"do(es)? not fit"):
                await completer.complete(request)


class TestFrames:
    async def test_show_text_masks_and_ends(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "return self.items")
        frames: list[Frame] = []
        request = InfillRequest(prefix="x", typed="return", steps=3, candidates=2)
        await completer.complete(request, on_frame=frames.append)
        assert [frame.step for frame in frames] == list(range(1, len(frames) + 1))
        assert len(frames) <= 3
        assert "".join(s for s in frames[-1].slots if s is not None) == "return self.items"
        assert None not in frames[-1].slots
        assert frames[-1].slots[-1] == ""
        masks = [frame.slots.count(None) for frame in frames]
        assert masks == sorted(masks, reverse=True)

    async def test_a_listener_that_fails_fails_the_request_only(
        self, completer: EngineCompleter
    ) -> None:
        def fail(_: Frame) -> None:
            raise ValueError("no screen")

        with pytest.raises(Exception, match="no screen"):
            await completer.complete(InfillRequest(prefix="x"), on_frame=fail)
        assert (await completer.complete(InfillRequest(prefix="x", steps=1))).candidates


async def test_cancelling_the_task_stops_the_denoising_at_its_next_step(
    completer: EngineCompleter,
) -> None:
    frames: list[Frame] = []
    reached, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(frame: Frame) -> None:
        frames.append(frame)
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(TIMEOUT_S)

    task = asyncio.create_task(
        completer.complete(InfillRequest(prefix="x = ", steps=16), on_frame=hold)
    )
    await asyncio.wait_for(reached.wait(), TIMEOUT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await completer.complete(InfillRequest(prefix="x = ", steps=1))
    await completer.close()
    assert len(frames) == 1
    engine = completer._engine
    assert engine._futures == {}
    assert engine._scheduler.fills == []
    assert engine.runner._open == []


@pytest.mark.parametrize(
    ("newer", "replaces"),
    [
        (InfillRequest(prefix="y", client="window", document="a.py"), True),
        (InfillRequest(prefix="y", client="window", document="b.py"), False),
        (InfillRequest(prefix="y", client="other window", document="a.py"), False),
    ],
)
async def test_a_newer_request_replaces_the_older_one_of_its_client_and_document(
    completer: EngineCompleter, newer: InfillRequest, replaces: bool
) -> None:
    reached, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(_: Frame) -> None:
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(TIMEOUT_S)

    older = InfillRequest(prefix="x", client="window", document="a.py", steps=16)
    running = asyncio.create_task(completer.complete(older, on_frame=hold))
    await asyncio.wait_for(reached.wait(), TIMEOUT_S)
    task = asyncio.create_task(completer.complete(newer))
    await asyncio.sleep(0)  # it is submitted
    go_on.set()
    if replaces:
        with pytest.raises(SupersededError):
            await running
    else:
        assert (await running).candidates
    assert (await task).candidates


async def test_what_a_person_asked_for_is_urgent_and_gets_the_larger_canvas(
    completer: EngineCompleter,
) -> None:
    auto = completer._fill(InfillRequest(prefix="x", client="window"), now=0.0)
    assert auto.client == "window"
    manual = completer._fill(InfillRequest(prefix="x", priority="manual"), now=0.0)
    assert (auto.urgent, auto.layout.size) == (False, 32)
    assert (manual.urgent, manual.layout.size) == (True, 64)


async def test_a_closed_completer_is_unavailable(completer: EngineCompleter) -> None:
    await completer.close()
    await completer.close()
    with pytest.raises(EngineUnavailableError, match="closed"):
        await completer.complete(InfillRequest(prefix="x"))


class TestFromCheckpoint:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path, model: Denoiser, tokenizer: CodeTokenizer) -> Path:
        save_checkpoint(tmp_path / "tiny", model, tokenizer)
        return tmp_path / "tiny"

    async def test_a_saved_model_completes(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[int] = []
        monkeypatch.setattr(torch, "set_num_threads", threads.append)  # of the whole process
        completer = load_completer(checkpoint, device="cpu", dtype="float32")
        result = await completer.complete(InfillRequest(prefix="x = ", steps=1))
        assert len(result.candidates) == 1
        assert 1 <= threads[0] <= 8
        await completer.close()

    @pytest.mark.parametrize(
        ("device", "message"),
        [
            ("gpu", "'gpu' is not known; use auto, cpu or cuda"),
            ("meta", "'meta' is not supported; use auto, cpu or cuda"),
            ("cuda:99", "'cuda:99': this torch sees [0-9]+ CUDA devices; use"),
        ],
    )
    def test_a_device_it_cannot_use_is_named(
        self, checkpoint: Path, device: str, message: str
    ) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_completer(checkpoint, device=device)

    def test_a_dtype_it_does_not_know_is_named(self, checkpoint: Path) -> None:
        with pytest.raises(
            CheckpointError, match=r"'half' is not known; use auto or one of float32, bfloat16"
        ):
            load_completer(checkpoint, device="cpu", dtype="half")

    def test_float8_on_a_device_without_it_is_an_error_that_says_what_to_use(
        self, checkpoint: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=r"needs a CUDA card.*use bfloat16"):
            load_completer(checkpoint, device="cpu", dtype="float8")

    def test_a_directory_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
            load_completer(tmp_path / "nowhere")


class TestForOthersApis:
    async def test_frames_tell_what_is_decided_from_the_left_and_it_only_grows(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        text = "number:\n        résumé = '🙂'\n" * 3  # more than one canvas
        dictate(completer, tokenizer, "x" + text)
        frames: list[Frame] = []
        request = InfillRequest(prefix="for ", typed="x", policy="left-to-right")
        result = await completer.complete(request, on_frame=frames.append)
        whole = result.candidates[0].text
        told = [frame.text for frame in frames]
        assert whole.startswith("x" + text[:40])
        assert all(whole.startswith(part) for part in told)
        assert told == sorted(told, key=len)
        assert len(set(told)) > 10
        assert told[-1] == whole
        assert all(frame.text_stays for frame in frames)

    @pytest.mark.parametrize("change", [{"candidates": 2}, {"lengths": (3,)}, {"remask": 0.1}])
    async def test_text_that_may_yet_change_says_so(
        self, completer: EngineCompleter, change: dict[str, Any]
    ) -> None:
        frames: list[Frame] = []
        request = InfillRequest(prefix="for ", max_new_tokens=4, **change)
        await completer.complete(request, on_frame=frames.append)
        assert frames
        assert not any(frame.text_stays for frame in frames)

    async def test_of_several_holes_frames_tell_the_first(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        dictate(completer, tokenizer, "first", "second")
        frames: list[Frame] = []
        request = InfillRequest(prefix="(", suffix=")", between=(", ",))
        await completer.complete(request, on_frame=frames.append)
        assert frames[-1].text == "first"

    async def test_a_drawn_first_candidate_depends_on_its_seed_and_nothing_else(
        self, completer: EngineCompleter
    ) -> None:
        async def text(seed: int, temperature: float, *, drawn: bool) -> str:
            request = InfillRequest(
                prefix="def f(", steps=4, seed=seed, temperature=temperature, drawn=drawn
            )
            return (await completer.complete(request)).candidates[0].text

        greedy = await text(0, 2.0, drawn=False)
        assert await text(7, 2.0, drawn=False) == greedy
        assert await text(7, 0.0, drawn=True) == greedy
        assert len({await text(seed, 2.0, drawn=True) for seed in range(3)} | {greedy}) == 4
        assert await text(1, 2.0, drawn=True) == await text(1, 2.0, drawn=True)

    async def test_a_context_over_the_limit_is_told_or_refused(
        self, completer: EngineCompleter, tokenizer: CodeTokenizer
    ) -> None:
        text = "x = 1\n" * 100
        given = len(tokenizer.encode(text)) + 4  # two languages and two edges of the file
        frames: list[Frame] = []
        result = await completer.complete(
            InfillRequest(prefix=text, max_new_tokens=2), on_frame=frames.append
        )
        assert result.context.dropped > 0
        assert result.context.tokens + result.context.dropped == given
        assert frames[0].context == result.context
        with pytest.raises(InvalidRequestError, match=f"has {given} tokens"):
            await completer.complete(InfillRequest(prefix=text, must_fit=True))
        short = InfillRequest(prefix="x", must_fit=True, max_new_tokens=2)
        assert (await completer.complete(short)).context.dropped == 0

    async def test_our_tokenizer_reads_no_special_tokens(self, completer: EngineCompleter) -> None:
        with pytest.raises(InvalidRequestError, match="special_tokens_in_prefix"):
            await completer.complete(InfillRequest(prefix="<s>", special_tokens_in_prefix=True))
