from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import pytest
import torch

from model.api import (
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidRequestError,
    Policy,
    SupersededError,
)
from model.denoiser import Denoiser, Role
from model.engine.engine import Engine
from model.engine.canvas.sequence import Fill, FilledHoles, SamplingParams, Sequence
from model.engine.canvas.layout import CanvasLayout, prefix_stream, suffix_stream
from model.tokenizer import CodeTokenizer

TIMEOUT_S = 120
MakeEngine = Callable[..., Engine]
MakeFill = Callable[..., Fill]


@pytest.fixture
def make_fill(tokenizer: CodeTokenizer, code: str) -> MakeFill:
    """`make_fill(prefix=…, suffix=…, …)`: a fill of texts, by default in 4 fixed steps."""

    def make(
        prefix: str = code[:150],
        suffix: str = code[200:300],
        *,
        between: tuple[str, ...] = (),
        typed: str = "",
        slots: int = 16,
        params: tuple[SamplingParams, ...] = (SamplingParams(steps=4),),
        max_new_tokens: int = 64,
        **options: object,
    ) -> Fill:
        typed_ids = tuple(tokenizer.encode(typed))
        return Fill(
            prefix=prefix_stream(tokenizer, tokenizer.encode(prefix), "python", starts_file=True),
            suffix=suffix_stream(tokenizer, tokenizer.encode(suffix), "python", ends_file=True),
            layout=CanvasLayout.for_holes(
                slots, [tokenizer.encode(t) for t in between], len(typed_ids)
            ),
            typed=typed_ids,
            params=params,
            max_new_tokens=max_new_tokens,
            **options,  # type: ignore[arg-type]
        )

    return make


class Gate:
    """An `on_step` that holds the engine's thread at its fill's first step until opened."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def __call__(self, sequence: Sequence) -> None:
        self._reached.set()
        assert self._open.wait(TIMEOUT_S)

    def wait(self) -> None:
        assert self._reached.wait(TIMEOUT_S)

    def open(self) -> None:
        self._open.set()


def answer(future: Future[list[FilledHoles]]) -> list[FilledHoles]:
    return future.result(TIMEOUT_S)


def assert_nothing_left(engine: Engine) -> None:
    """No fill, no future, no pinned page (asked for while the engine's thread is idle)."""
    assert engine._scheduler.fills == []
    assert engine._futures == {}
    assert engine._replaced == []
    assert engine.runner._open == []
    engine.runner.check_integrity()


def dictate(engine: Engine, *holes: list[int]) -> None:
    """Have the denoiser want exactly these tokens in the holes, and `<eom>` behind them."""
    vocab_size = engine.runner.model.config.vocab_size

    def denoise(batch: list[Sequence]) -> torch.Tensor:
        width = max(len(sequence.canvas) for sequence in batch)
        logits = torch.zeros(len(batch), width, vocab_size)
        for row, sequence in enumerate(batch):
            for index, hole in enumerate(sequence.layout.holes()):
                wanted = holes[index][len(sequence.committed) if index == 0 else 0 :]
                for slot, offset in zip(hole, range(len(hole)), strict=True):
                    token = wanted[offset] if offset < len(wanted) else engine.vocabulary.end_id
                    logits[row, slot, token] = 12.0 - 0.1 * slot  # the first is the surest
        return logits

    engine.runner.denoise = denoise  # type: ignore[method-assign]


class TestACachedFillEqualsTheUncachedOne:
    """The invariant the cache stands on, under everything an editor can do to a context."""

    NUM_EDITS = 70

    @pytest.mark.parametrize("num_pages", [9, 100], ids=["few pages", "many pages"])
    def test_after_random_edits(
        self, make_engine: MakeEngine, make_fill: MakeFill, code: str, num_pages: int
    ) -> None:
        draw = random.Random(num_pages)
        engine = make_engine(num_pages)
        documents = [[code[:90], code[90:200]], [code[300:], code[:40]], ["", ""]]
        document = documents[0]
        cached = uncached = 0
        for edit in range(self.NUM_EDITS):
            document = self._edit(draw, documents, document, code)
            params = (
                SamplingParams(steps=3),
                SamplingParams(threshold=0.15, temperature=0.8, seed=edit),
            )[: draw.choice([1, 2])]
            if draw.random() < 0.25:
                self._abort(engine, make_fill(*document, params=params))
            found, fresh = (
                make_fill(*document, params=params, max_new_tokens=20) for _ in range(2)
            )
            actual = answer(engine.submit(found))
            expected = self._by_a_fresh_engine(make_engine, fresh)
            assert [f.holes for f in actual] == [f.holes for f in expected], f"edit {edit}"
            for one, other in zip(actual, expected, strict=True):
                assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
            cached += found.encoded_tokens
            uncached += fresh.encoded_tokens
        assert cached < uncached / (2 if num_pages > 9 else 1)  # the cache did take part
        engine.close()
        assert_nothing_left(engine)

    def _edit(
        self, draw: random.Random, documents: list[list[str]], document: list[str], code: str
    ) -> list[str]:
        """Change a document's (prefix, suffix) in place, or switch to another one."""
        prefix, suffix = document
        somewhere = draw.randrange(len(code) - 30)
        text = code[somewhere : somewhere + 30]
        match draw.choice(
            ["type", "type", "type", "backspace", "paste", "above", "below", "move", "switch"]
        ):
            case "type":
                document[0] = prefix + text[: draw.randint(1, 3)]
            case "backspace":
                document[0] = prefix[: -draw.randint(1, 6)]
            case "paste":
                document[0] = prefix + text
            case "above":
                at = draw.randint(0, len(prefix))
                document[0] = prefix[:at] + text[:5] + prefix[at + 2 :]
            case "below":
                at = draw.randint(0, len(suffix))
                document[1] = suffix[:at] + text[:5] + suffix[at + 2 :]
            case "move":
                whole, at = prefix + suffix, draw.randint(0, len(prefix + suffix))
                document[:] = [whole[:at], whole[at:]]
            case _:
                return draw.choice(documents)
        return document

    def _by_a_fresh_engine(self, make_engine: MakeEngine, fill: Fill) -> list[FilledHoles]:
        engine = make_engine()
        outputs = answer(engine.submit(fill))
        engine.close()
        return outputs

    def _abort(self, engine: Engine, fill: Fill) -> None:
        fill.on_step = gate = Gate()
        future = engine.submit(fill)
        gate.wait()
        assert future.cancel()
        gate.open()


class TestContextCache:
    def test_the_same_request_again_encodes_nothing(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        first, again = make_fill(max_new_tokens=16), make_fill(max_new_tokens=16)
        assert answer(engine.submit(first)) == answer(engine.submit(again))
        assert first.encoded_tokens == len(first.prefix) + len(first.suffix)
        assert again.encoded_tokens == 0

    def test_a_typed_token_is_the_only_one_encoded(
        self, make_engine: MakeEngine, make_fill: MakeFill, tokenizer: CodeTokenizer
    ) -> None:
        engine = make_engine()
        before, after = make_fill("x = 1\n"), make_fill("x = 1\n")
        after.prefix.append(tokenizer.encode("y")[0])
        answer(engine.submit(before))
        answer(engine.submit(after))
        assert after.encoded_tokens == 1

    def test_the_canvases_of_a_long_hole_are_encoded_once(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        words = list(range(100, 140))
        dictate(engine, words)
        fill = make_fill("x", "y")
        answer(engine.submit(fill))
        assert fill.encoded_tokens == len(fill.prefix) + len(fill.suffix) + 32


class TestBatches:
    def test_give_the_tokens_each_fill_gets_alone(
        self, make_engine: MakeEngine, make_fill: MakeFill, code: str
    ) -> None:
        params = (SamplingParams(steps=5), SamplingParams(steps=5, temperature=0.7, seed=3))
        contexts = [(code[:n], code[2 * n : 2 * n + m]) for n, m in ((0, 0), (30, 90), (90, 5))]
        alone = [answer(make_engine().submit(make_fill(*c, params=params))) for c in contexts]
        engine = make_engine()
        sizes: list[int] = []
        denoise = engine.runner.denoise

        def watched(batch: list[Sequence]) -> torch.Tensor:
            sizes.append(len(batch))
            return denoise(batch)

        engine.runner.denoise = watched  # type: ignore[method-assign,assignment]
        gate = Gate()
        held = engine.submit(make_fill(on_step=gate))
        gate.wait()
        futures = [engine.submit(make_fill(*c, params=params)) for c in contexts]
        gate.open()
        assert [[f.holes for f in answer(future)] for future in futures] == [
            [f.holes for f in outputs] for outputs in alone
        ]
        answer(held)
        assert max(sizes) == 7
        engine.close()
        assert_nothing_left(engine)


class TestCancelling:
    def test_a_cancelled_fill_leaves_before_its_next_step_and_unpins_its_contexts(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        fill = make_fill(on_step=gate)
        future = engine.submit(fill)
        gate.wait()
        assert future.cancel()
        gate.open()
        answer(engine.submit(make_fill()))  # the engine goes on
        assert fill.forwards == 1
        assert future.cancelled()
        engine.close()
        assert_nothing_left(engine)

    def test_a_fill_cancelled_in_its_last_step_stays_cancelled(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        future = engine.submit(make_fill(on_step=gate, params=(SamplingParams(steps=1),)))
        gate.wait()
        future.cancel()
        gate.open()
        with pytest.raises(CancelledError):
            answer(future)
        answer(engine.submit(make_fill()))
        engine.close()
        assert_nothing_left(engine)

    def test_cancelling_an_answered_fill_changes_nothing(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        future = make_engine().submit(make_fill())
        outputs = answer(future)
        assert not future.cancel()
        assert answer(future) == outputs


class TestSuperseding:
    def test_a_newer_fill_takes_the_place_of_a_running_older_one(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        old = make_fill(replaces=("editor", "a.py"), on_step=gate)
        future = engine.submit(old)
        gate.wait()
        elsewhere = engine.submit(make_fill(replaces=("editor", "b.py")))
        waiting = engine.submit(make_fill(replaces=("editor", "a.py")))
        newest = engine.submit(make_fill(replaces=("editor", "a.py")))
        gate.open()
        answer(newest)
        answer(elsewhere)
        for replaced in (future, waiting):
            with pytest.raises(SupersededError, match="newer request"):
                answer(replaced)
        assert old.forwards == 1
        engine.close()
        assert_nothing_left(engine)

    def test_a_replaced_and_cancelled_fill_is_cancelled(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        future = engine.submit(make_fill(replaces=("editor", "a.py"), on_step=gate))
        gate.wait()
        newer = engine.submit(make_fill(replaces=("editor", "a.py")))
        future.cancel()
        gate.open()
        answer(newer)
        assert future.cancelled()
        engine.close()
        assert_nothing_left(engine)


class TestDeadlines:
    def test_a_deadline_that_has_passed_gives_what_was_typed(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        fill = make_fill(typed="return", between=("\n",), deadline=time.monotonic() - 1)
        (output,) = answer(make_engine().submit(fill))
        assert output == FilledHoles((fill.typed, ()), (), False)
        assert output.confidence == 0.0
        assert fill.forwards == fill.encoded_tokens == 0

    def test_a_deadline_between_steps_gives_the_part_that_is_committed(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        words = list(range(100, 130))
        dictate(engine, words)

        def run_out(sequence: Sequence) -> None:
            sequence.fill.deadline = time.monotonic() - 1

        (output,) = answer(engine.submit(make_fill(on_step=run_out)))
        assert output.holes == (tuple(words[:4]),)  # a quarter of 16 slots, the surest first
        assert not output.finished
        assert 0.5 < output.confidence < 1

    def test_a_deadline_keeps_the_candidates_that_are_done(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        dictate(engine, [100, 101])

        def run_out(sequence: Sequence) -> None:
            sequence.fill.deadline = time.monotonic() - 1

        params = (SamplingParams(steps=16), SamplingParams(steps=1))
        slow, quick = answer(engine.submit(make_fill(params=params, on_step=run_out)))
        assert (slow.holes, slow.finished) == (((100,),), False)
        assert (quick.holes, quick.finished) == (((100, 101),), True)
        engine.close()
        assert_nothing_left(engine)


class TestClosing:
    def test_a_closed_engine_takes_no_fills(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        engine.close()
        engine.close()
        with pytest.raises(EngineUnavailableError, match="closed"):
            engine.submit(make_fill())

    def test_closing_ends_running_waiting_and_replaced_fills(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        futures = [engine.submit(make_fill(replaces=("editor", "a.py"), on_step=gate))]
        gate.wait()
        futures += [engine.submit(make_fill(replaces=("editor", "a.py"))) for _ in range(2)]
        closing = threading.Thread(target=engine.close)
        closing.start()
        while not engine._closed:
            time.sleep(0.001)
        gate.open()
        closing.join(TIMEOUT_S)
        for future in futures:
            with pytest.raises(EngineUnavailableError, match="closed"):
                answer(future)
        assert_nothing_left(engine)

    def test_a_listener_may_close_the_engine(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        future = engine.submit(make_fill(on_step=lambda _: engine.close()))
        with pytest.raises(EngineUnavailableError):
            answer(future)
        engine.close()
        assert_nothing_left(engine)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_bug_that_ends_the_engines_thread_leaves_nobody_waiting(
        self, make_engine: MakeEngine, make_fill: MakeFill, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make_engine()
        monkeypatch.setattr(engine._scheduler, "schedule", lambda: 1 / 0)
        future = engine.submit(make_fill())
        with pytest.raises(EngineUnavailableError):
            answer(future)
        engine.close()
        with pytest.raises(EngineUnavailableError):
            engine.submit(make_fill())


class TestFailures:
    def test_a_failed_forward_ends_its_batch_and_no_more(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        denoise = engine.runner.denoise

        def fail_once(batch: list[Sequence]) -> torch.Tensor:
            engine.runner.denoise = denoise  # type: ignore[method-assign]
            raise RuntimeError("a broken kernel")

        running = engine.submit(make_fill(on_step=gate))
        gate.wait()
        batched = engine.submit(make_fill())
        larger = engine.submit(make_fill(slots=128))  # waits for a batch of its own
        engine.runner.denoise = fail_once  # type: ignore[method-assign,assignment]
        gate.open()
        for future in (running, batched):
            with pytest.raises(CompletionError, match="step failed: a broken kernel"):
                answer(future)
        answer(larger)
        engine.close()
        assert_nothing_left(engine)

    def test_logits_that_are_not_finite_end_their_fill_and_the_others_finish_as_alone(
        self, make_engine: MakeEngine, make_fill: MakeFill, code: str
    ) -> None:
        contexts = [(code[:40], code[60:90]), (code[90:200], code[200:])]
        alone = [answer(make_engine().submit(make_fill(*c)))[0].holes for c in contexts]
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(slots=32, on_step=gate, urgent=True))
        gate.wait()
        bad = make_fill()
        denoise = engine.runner.denoise
        sizes: list[int] = []

        def spoil(batch: list[Sequence]) -> torch.Tensor:
            logits = denoise(batch).clone()
            sizes.append(len(batch))
            for row, sequence in enumerate(batch):
                if sequence.fill is bad:
                    logits[row] = float("nan")
            return logits

        engine.runner.denoise = spoil  # type: ignore[method-assign,assignment]
        doomed = engine.submit(bad)
        good = [engine.submit(make_fill(*c)) for c in contexts]
        gate.open()
        with pytest.raises(CompletionError, match="non-finite"):
            answer(doomed)
        assert [answer(future)[0].holes for future in good] == alone
        answer(held)
        assert max(sizes) >= 3  # they did share a batch
        engine.close()
        assert_nothing_left(engine)

    def test_a_listener_that_raises_ends_its_fill_and_no_other(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(on_step=gate))
        gate.wait()

        def fail(_: Sequence) -> None:
            raise RuntimeError("the event loop is closed")

        heard = engine.submit(make_fill(on_step=fail))
        gate.open()
        with pytest.raises(CompletionError, match="event loop is closed"):
            answer(heard)
        answer(held)
        answer(engine.submit(make_fill()))
        engine.close()
        assert_nothing_left(engine)

    @pytest.mark.parametrize("part", ["decide", "next_tokens"])
    def test_a_decision_that_fails_ends_its_batch_and_not_the_engine(
        self,
        make_engine: MakeEngine,
        make_fill: MakeFill,
        monkeypatch: pytest.MonkeyPatch,
        part: str,
    ) -> None:
        engine = make_engine()
        policy = "threshold" if part == "decide" else "autoregressive"
        params = (SamplingParams(policy=policy),)
        with monkeypatch.context() as broken:
            broken.setattr(f"model.engine.engine.{part}", lambda *_: 1 / 0)
            with pytest.raises(CompletionError, match="step failed: division by zero"):
                answer(engine.submit(make_fill(params=params)))
        answer(engine.submit(make_fill(params=params)))
        engine.close()
        assert_nothing_left(engine)

    def test_a_fill_that_would_break_its_batch_is_refused_at_once(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        too_large, no_suffix, no_token, several = (make_fill() for _ in range(4))
        too_large.layout = CanvasLayout((129,))
        no_suffix.suffix = []
        no_token.prefix.append(10**6)
        several = make_fill(between=("(",), params=(SamplingParams(policy="autoregressive"),))
        for fill, reason in (
            (too_large, "129 slots; the largest has 128"),
            (no_suffix, "streams that begin with a language"),
            (no_token, r"token ids must lie in 0\.\."),
            (several, "autoregressive decoding takes a single hole, not 2"),
            (make_fill(between=("(",), params=(SamplingParams(length=2),)), "a known length takes"),
        ):
            with pytest.raises(InvalidRequestError, match=reason):
                engine.submit(fill)
        assert_nothing_left(engine)

    def test_more_than_may_wait_are_refused(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        engine._scheduler.max_fills = 2
        futures = [engine.submit(make_fill(on_step=gate)) for _ in range(2)]
        gate.wait()
        with pytest.raises(EngineOverloadedError, match="2 requests are waiting"):
            engine.submit(make_fill())
        gate.open()
        for future in futures:
            answer(future)
        answer(engine.submit(make_fill()))

    def test_a_typed_start_longer_than_the_canvas_is_refused_at_once(
        self, make_engine: MakeEngine, make_fill: MakeFill, code: str
    ) -> None:
        engine = make_engine()
        with pytest.raises(InvalidRequestError, match="typed tokens do not fit a hole of 128"):
            engine.submit(make_fill(typed=3 * code))
        answer(engine.submit(make_fill()))
        engine.close()
        assert_nothing_left(engine)


CPU_OUT_OF_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")


class TestOutOfMemory:
    PARAMS = tuple(SamplingParams(steps=3, temperature=1.0, seed=i) for i in range(8))

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_OUT_OF_MEMORY]
    )
    def test_halves_the_batch_and_changes_no_token(
        self, make_engine: MakeEngine, make_fill: MakeFill, error: Exception
    ) -> None:
        expected = answer(make_engine().submit(make_fill(params=self.PARAMS, max_new_tokens=16)))
        engine = make_engine()
        denoise = engine.runner.denoise
        sizes: list[int] = []

        def of_three_at_most(batch: list[Sequence]) -> torch.Tensor:
            sizes.append(len(batch))
            if len(batch) > 3:
                raise error
            return denoise(batch)

        engine.runner.denoise = of_three_at_most  # type: ignore[method-assign,assignment]
        found = answer(engine.submit(make_fill(params=self.PARAMS, max_new_tokens=16)))
        assert [f.holes for f in found] == [f.holes for f in expected]
        assert sizes[:3] == [8, 4, 2]
        assert max(sizes[2:]) == 2
        engine.close()
        assert_nothing_left(engine)

    def test_ends_a_lone_sequence_that_does_not_fit_and_no_other(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(on_step=gate))
        gate.wait()
        huge = make_fill(urgent=True)
        denoise = engine.runner.denoise

        def without_the_huge_one(batch: list[Sequence]) -> torch.Tensor:
            if any(sequence.fill is huge for sequence in batch):
                raise CPU_OUT_OF_MEMORY
            return denoise(batch)

        engine.runner.denoise = without_the_huge_one  # type: ignore[method-assign,assignment]
        future = engine.submit(huge)
        gate.open()
        with pytest.raises(EngineOverloadedError, match="no memory for this request alone"):
            answer(future)
        answer(held)
        engine.close()
        assert_nothing_left(engine)

    def test_leaves_candidates_unranked(self, make_engine: MakeEngine, make_fill: MakeFill) -> None:
        engine = make_engine()

        def fail(*_: object) -> list[list[float]]:
            raise CPU_OUT_OF_MEMORY

        engine.runner.causal_log_probs = fail  # type: ignore[method-assign,assignment]
        outputs = answer(engine.submit(make_fill(params=self.PARAMS)))
        assert len(outputs) == len(self.PARAMS)
        assert all(output.score is None for output in outputs)


class TestAutoregressive:
    GREEDY = SamplingParams(policy="autoregressive")

    def test_tokens_are_the_likeliest_after_the_prefix_and_the_suffix_is_unseen(
        self, make_engine: MakeEngine, make_fill: MakeFill, model: Denoiser
    ) -> None:
        engine = make_engine()
        fill = make_fill("def f(", "x", typed="a", params=(self.GREEDY,), max_new_tokens=6)
        (output,) = answer(engine.submit(fill))
        stream = [*fill.prefix, *fill.typed]
        expected: list[int] = []
        with torch.inference_mode():
            for _ in range(6):
                hidden, _ = model.encode(torch.tensor([stream + expected]), Role.PREFIX)
                logits = model.logits(hidden[0, -1]).float()
                logits[engine.vocabulary.forbidden] = float("-inf")
                logits[engine.vocabulary.end_id] = float("-inf")
                expected.append(int(logits.argmax()))
        assert output.holes == ((*fill.typed, *expected),)
        assert len(output.probabilities) == fill.forwards == 6
        assert not output.finished
        other = make_fill("def f(", "y = 2", typed="a", params=(self.GREEDY,), max_new_tokens=6)
        assert answer(engine.submit(other))[0].holes == output.holes
        engine.close()
        assert_nothing_left(engine)

    def test_each_token_is_encoded_once_and_a_known_length_is_kept(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        params = SamplingParams(policy="autoregressive", length=20)
        fill = make_fill("x = ", "y", params=(params,), max_new_tokens=3)
        (output,) = answer(engine.submit(fill))
        assert len(output.holes[0]) == 20
        assert output.finished
        # The first forward runs over the prefix's last token again, which no cache keeps.
        assert fill.encoded_tokens <= len(fill.prefix) + len(fill.suffix) + 20

    def test_a_stream_longer_than_the_window_goes_on_at_its_shortened_prefix(
        self, make_engine: MakeEngine, make_fill: MakeFill, code: str
    ) -> None:
        (output,) = answer(
            make_engine().submit(make_fill(code, params=(self.GREEDY,), max_new_tokens=100))
        )
        assert len(output.holes[0]) == 100

    def test_shares_steps_with_canvases_and_changes_neither(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        sampled = SamplingParams(policy="autoregressive", temperature=1.0, seed=4)
        kinds = [(SamplingParams(steps=4),), (self.GREEDY, sampled)]
        alone = [answer(make_engine().submit(make_fill(params=p))) for p in kinds]
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(on_step=gate))
        gate.wait()
        together = [engine.submit(make_fill(params=p)) for p in kinds]
        gate.open()
        for future, expected in zip(together, alone, strict=True):
            assert [f.holes for f in answer(future)] == [f.holes for f in expected]
        answer(held)
        engine.close()
        assert_nothing_left(engine)

    def test_stops_at_a_deadline_and_when_cancelled(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine, gate = make_engine(), Gate()

        def run_out(sequence: Sequence) -> None:
            if sequence.step == 3:
                sequence.fill.deadline = time.monotonic() - 1

        (output,) = answer(engine.submit(make_fill(params=(self.GREEDY,), on_step=run_out)))
        assert (len(output.holes[0]), output.finished) == (3, False)
        cancelled = make_fill(params=(self.GREEDY,), on_step=gate)
        future = engine.submit(cancelled)
        gate.wait()
        assert future.cancel()
        gate.open()
        answer(engine.submit(make_fill()))
        assert cancelled.forwards == 1
        engine.close()
        assert_nothing_left(engine)


class TestAConfidenceThatIsNotReached:
    @pytest.mark.parametrize("policy", ["threshold", "left-to-right", "autoregressive"])
    def test_ends_the_fill_there_with_the_tokens_it_would_have_had(
        self, make_engine: MakeEngine, make_fill: MakeFill, policy: Policy
    ) -> None:
        engine = make_engine()
        params = (SamplingParams(policy=policy),)
        whole, stopped = make_fill(params=params), make_fill(params=params, min_confidence=1e-6)
        (wanted,), (found,) = (answer(engine.submit(fill)) for fill in (whole, stopped))
        num_tokens = len(found.holes[0])
        assert 0 < num_tokens < len(wanted.holes[0])
        assert found.holes[0] == wanted.holes[0][:num_tokens]
        assert found.probabilities == pytest.approx(wanted.probabilities[:num_tokens], rel=1e-3)
        assert found.confidence < 1e-6
        assert not found.finished
        assert stopped.forwards < whole.forwards
        assert_nothing_left(engine)

    def test_is_no_matter_to_a_fill_that_is_sure(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        dictate(engine, [111, 112, 113])
        (found,) = answer(engine.submit(make_fill(min_confidence=0.5)))
        assert found.holes == ((111, 112, 113),)
        assert found.finished

    def test_ends_neither_several_holes_nor_tokens_that_may_be_masked_again(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        for options in (
            {"between": ("x",)},
            {"params": (SamplingParams(threshold=0.01, remask=0.001),)},
        ):
            whole, asked = make_fill(**options), make_fill(**options, min_confidence=1.0)
            (wanted,), (found,) = (answer(engine.submit(fill)) for fill in (whole, asked))
            assert found.holes == wanted.holes
            assert asked.forwards == whole.forwards


class TestCandidates:
    def test_come_best_first_by_the_causal_score_of_themselves_and_of_what_follows(
        self, make_engine: MakeEngine, make_fill: MakeFill, model: Denoiser
    ) -> None:
        engine = make_engine()
        params = tuple(SamplingParams(steps=4, temperature=2.0 * i, seed=i) for i in range(4))
        fill = make_fill("x = ", "+ y\n", params=params, max_new_tokens=8)
        outputs = answer(engine.submit(fill))
        scores = [output.score for output in outputs]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) > 1
        following = fill.suffix[:1:-1]  # all but the language and the file's end
        for output in outputs:
            after = [*output.holes[0], *following]
            with torch.inference_mode():
                hidden, _ = model.encode(torch.tensor([fill.prefix + after]), Role.PREFIX)
                log_probs = model.logits(hidden[0]).float().log_softmax(-1)
            at = range(len(fill.prefix) - 1, len(fill.prefix) + len(after) - 1)
            expected = sum(float(log_probs[i, j]) for i, j in zip(at, after, strict=True))
            assert output.score == pytest.approx(expected, abs=1e-3)

    def test_alone_or_all_alike_have_no_score(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        dictate(engine, [100, 101])
        for count in (1, 3):
            outputs = answer(engine.submit(make_fill(params=(SamplingParams(),) * count)))
            assert [output.score for output in outputs] == [None] * count

    def test_of_several_holes_are_read_with_the_text_between_them(
        self, make_engine: MakeEngine, make_fill: MakeFill, tokenizer: CodeTokenizer
    ) -> None:
        engine = make_engine()
        read: list[list[int]] = []
        engine.runner.causal_log_probs = (  # type: ignore[method-assign,assignment]
            lambda _, texts: read.extend(map(list, texts)) or [[0.0]] * len(texts)
        )
        params = tuple(SamplingParams(steps=2, temperature=2.0 * i, seed=i) for i in range(3))
        fill = make_fill(suffix="z", between=("(",), slots=4, params=params)
        outputs = answer(engine.submit(fill))
        between, after = tokenizer.encode("("), tokenizer.encode("z")
        for first, second in {output.holes for output in outputs}:
            assert [*first, *between, *second, *after] in read

    def test_may_have_lengths_of_their_own_beside_the_unknown_one(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        dictate(engine, list(range(100, 105)))
        lengths = (None, 1, 3, 20)
        params = tuple(SamplingParams(length=length) for length in lengths)
        fill = make_fill(typed="", params=params)
        engine.runner.causal_log_probs = (  # type: ignore[method-assign,assignment]
            lambda _, texts: [[0.0]] * len(texts)  # equal: they keep their order
        )
        outputs = answer(engine.submit(fill))
        assert [len(output.holes[0]) for output in outputs] == [5, 1, 3, 20]
        assert all(output.finished for output in outputs)
        assert outputs[2].holes[0] == (100, 101, 102)

    def test_of_a_known_length_keep_what_was_typed(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        params = (SamplingParams(length=15), SamplingParams(length=130, steps=4))
        fill = make_fill(typed="return", params=params)
        for output in answer(make_engine().submit(fill)):
            assert output.holes[0][: len(fill.typed)] == fill.typed
            assert len(output.holes[0]) - len(fill.typed) in (15, 130)
            assert output.finished


class TestFilling:
    def test_a_hole_ends_where_the_model_says(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        for words in ([], [100], list(range(100, 115))):
            dictate(engine, words)
            (output,) = answer(engine.submit(make_fill()))
            assert output.holes == (tuple(words),)
            assert output.finished

    @pytest.mark.parametrize("num_words", [16, 20, 40, 63])
    def test_a_hole_longer_than_its_canvas_goes_on(
        self, make_engine: MakeEngine, make_fill: MakeFill, num_words: int
    ) -> None:
        engine = make_engine()
        words = list(range(100, 100 + num_words))
        dictate(engine, words)
        (output,) = answer(engine.submit(make_fill()))
        assert output.holes == (tuple(words),)
        assert output.finished

    def test_a_further_canvas_is_as_small_as_what_is_left_allows(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        dictate(engine, list(range(100, 180)))
        sizes: list[int] = []
        fill = make_fill(slots=32, max_new_tokens=74, params=(SamplingParams(steps=1),))
        fill.on_step = lambda sequence: sizes.append(len(sequence.canvas))
        answer(engine.submit(fill))
        assert sizes == [32, 32, 16]

    @pytest.mark.parametrize("limit", [1, 5, 16, 17, 30])
    def test_no_hole_is_longer_than_the_limit(
        self, make_engine: MakeEngine, make_fill: MakeFill, limit: int
    ) -> None:
        engine = make_engine()
        words = list(range(100, 140))
        dictate(engine, words)
        fill = make_fill(typed="x", max_new_tokens=limit)
        words[: len(fill.typed)] = fill.typed
        (output,) = answer(engine.submit(fill))
        assert output.holes == (tuple(words[: limit + len(fill.typed)]),)
        assert not output.finished

    def test_a_hole_that_ends_at_the_limit_is_finished(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        dictate(engine, [100, 101, 102])
        (output,) = answer(engine.submit(make_fill(max_new_tokens=3)))
        assert output == FilledHoles(((100, 101, 102),), output.probabilities, True)

    def test_what_was_typed_is_kept_whatever_the_model_wants(
        self, make_engine: MakeEngine, make_fill: MakeFill, tokenizer: CodeTokenizer
    ) -> None:
        engine = make_engine()
        dictate(engine, [100])  # and an end right behind it
        fill = make_fill(typed="return self")
        (output,) = answer(engine.submit(fill))
        assert output.holes == (fill.typed,)
        assert output.finished

    def test_what_was_typed_is_clamped_at_every_step(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        starts: list[list[int]] = []
        fill = make_fill(typed="return self", max_new_tokens=14)
        fill.on_step = lambda sequence: starts.append(sequence.canvas[: len(fill.typed)])
        answer(make_engine().submit(fill))
        assert starts == [list(fill.typed)] * fill.forwards

    def test_what_was_typed_does_not_count_as_confidence(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        params = (SamplingParams(steps=1),)

        def unsure(batch: list[Sequence]) -> torch.Tensor:  # certain of nothing, never ends
            logits = torch.zeros(
                len(batch), len(batch[0].canvas), engine.runner.model.config.vocab_size
            )
            logits[:, :, engine.vocabulary.end_id] = float("-inf")
            return logits

        engine.runner.denoise = unsure  # type: ignore[method-assign,assignment]
        for limit in (8, 40):  # within its canvas, and going on in further ones
            fill = make_fill(typed="return self", params=params, max_new_tokens=limit)
            (output,) = answer(engine.submit(fill))
            assert len(output.holes[0]) == limit + len(fill.typed)
            assert len(output.probabilities) == limit
            assert max(output.probabilities) < 0.01

    def test_confidence_is_the_probability_of_all_tokens_and_the_end(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        vocab_size = engine.runner.model.config.vocab_size

        def unsure(batch: list[Sequence]) -> torch.Tensor:  # 0.5, 0.5, then 0.8 for the end
            logits = torch.full((len(batch), len(batch[0].canvas), vocab_size), -1e4)
            logits[:, :, [100, 101]] = 0.0
            logits[:, 2:, [engine.vocabulary.end_id, 101]] = torch.tensor([0.8, 0.2]).log()
            logits[:, 2:, 100] = -1e4
            return logits

        engine.runner.denoise = unsure  # type: ignore[method-assign,assignment]
        params = (SamplingParams(policy="left-to-right"),)
        (output,) = answer(engine.submit(make_fill(params=params)))
        assert output.probabilities == pytest.approx((0.5, 0.5, 0.8))
        assert output.confidence == pytest.approx(0.2)

    @pytest.mark.parametrize("length", [1, 3, 15, 16, 17, 127, 128, 129, 300])
    def test_a_known_length_is_kept_to_the_token_and_its_end_costs_no_confidence(
        self, make_engine: MakeEngine, make_fill: MakeFill, length: int
    ) -> None:
        engine = make_engine()
        canvases: list[list[int]] = []
        dictate(engine, [100, 101])  # and then `<eom>` at all costs
        fill = make_fill(
            params=(SamplingParams(steps=1, length=length),),
            on_step=lambda sequence: canvases.append(list(sequence.canvas)),
        )
        (output,) = answer(engine.submit(fill))
        assert len(output.holes[0]) == len(output.probabilities) == length
        assert engine.vocabulary.end_id not in output.holes[0]
        assert output.finished
        assert sum(canvas.count(engine.vocabulary.end_id) for canvas in canvases) == (
            sum(map(len, canvases)) - length
        )

    def test_several_holes_are_filled_around_the_text_between_them(
        self, make_engine: MakeEngine, make_fill: MakeFill, tokenizer: CodeTokenizer
    ) -> None:
        engine = make_engine()
        canvases: list[list[int]] = []
        fill = make_fill(slots=4, between=("(", "):\n"), typed="def")
        dictate(engine, [*fill.typed, 101], [], [102])
        fill.on_step = lambda sequence: canvases.append(list(sequence.canvas))
        (output,) = answer(engine.submit(fill))
        assert output.holes == ((*fill.typed, 101), (), (102,))
        assert output.finished
        first, second, third = fill.layout.holes()
        assert [canvas[first.stop : second.start] for canvas in canvases] == [
            tokenizer.encode("(")
        ] * len(canvases)
        assert [canvas[second.stop : third.start] for canvas in canvases] == [
            tokenizer.encode("):\n")
        ] * len(canvases)

    def test_several_holes_without_an_end_stop_at_their_slots(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        words = list(range(100, 140))
        dictate(engine, words, words)
        fill = make_fill(slots=6, between=("=",))
        (output,) = answer(engine.submit(fill))
        assert output.holes == tuple(tuple(words[:n]) for n in fill.layout.slots)
        assert not output.finished


class TestSteps:
    @pytest.mark.parametrize("steps", [1, 2, 3, 7])
    def test_a_fixed_number_is_never_exceeded(
        self, make_engine: MakeEngine, make_fill: MakeFill, code: str, steps: int
    ) -> None:
        engine = make_engine()
        forwards: list[int] = []
        for start in range(0, 300, 20):
            fill = make_fill(
                code[: start + 20], code[start:], params=(SamplingParams(steps=steps),),
                max_new_tokens=16,
            )  # fmt: skip
            answer(engine.submit(fill))
            forwards.append(fill.forwards)
        assert max(forwards) == steps

    def test_an_end_that_loses_to_a_token_in_the_last_step_is_decided_in_that_step(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()

        def undecided(batch: list[Sequence]) -> torch.Tensor:
            logits = torch.zeros(1, 16, engine.runner.model.config.vocab_size)
            logits[0, :, engine.vocabulary.end_id] = 9.0
            logits[0, :, 100] = 8.0
            logits[0, 2, 101] = 20.0
            return logits

        engine.runner.denoise = undecided  # type: ignore[method-assign,assignment]
        fill = make_fill(params=(SamplingParams(steps=1),))
        (output,) = answer(engine.submit(fill))
        assert output.holes == ((100, 100, 101),)
        assert fill.forwards == 1

    def test_the_listener_sees_masks_vanish_one_step_at_a_time(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        dictate(engine, list(range(100, 130)))
        seen: list[tuple[int, int]] = []
        answer(
            engine.submit(
                make_fill(
                    max_new_tokens=32,
                    params=(SamplingParams(steps=4), SamplingParams(steps=2)),
                    on_step=lambda s: seen.append(
                        (s.step, s.canvas.count(engine.vocabulary.mask_id))
                    ),
                )
            )
        )
        one_canvas = [(1, 12), (2, 8), (3, 4), (4, 0)]
        assert seen[:4] == one_canvas
        assert [step for step, _ in seen[4:]] == list(range(1, len(seen) - 3))
        assert seen[-1][1] == 0

    def test_candidates_of_one_fill_share_its_steps(
        self, make_engine: MakeEngine, make_fill: MakeFill
    ) -> None:
        engine = make_engine()
        params = tuple(SamplingParams(steps=4, temperature=1.0, seed=i) for i in range(5))
        fill = make_fill(params=params, max_new_tokens=16)
        outputs = answer(engine.submit(fill))
        assert len(outputs) == 5
        assert fill.forwards <= 4
        assert len({output.holes for output in outputs}) > 1
        assert answer(engine.submit(make_fill(params=params, max_new_tokens=16))) == outputs


def test_fills_from_many_threads_are_all_settled(
    make_engine: MakeEngine, make_fill: MakeFill
) -> None:
    """Submitting, replacing and cancelling at random leaves nothing behind."""
    engine = make_engine()
    outcomes: list[str] = []

    def client(name: str) -> None:
        draw = random.Random(name)
        futures: list[Future[list[FilledHoles]]] = []
        for _ in range(8):
            document = draw.choice(["a.py", "b.py"])
            futures.append(
                engine.submit(
                    make_fill(
                        slots=draw.choice([16, 32]),
                        params=(SamplingParams(steps=draw.randint(1, 3)),),
                        max_new_tokens=16,
                        replaces=(name, document),
                    )
                )
            )
            if draw.random() < 0.3:
                draw.choice(futures).cancel()
        for future in futures:
            try:
                answer(future)
                outcomes.append("filled")
            except CancelledError:
                outcomes.append("cancelled")
            except SupersededError:
                outcomes.append("superseded")

    clients = [threading.Thread(target=client, args=(f"editor {i}",)) for i in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(TIMEOUT_S)
    assert len(outcomes) == 32
    assert outcomes.count("filled") >= 4  # at least each client's last one or its cancellation
    engine.close()
    assert_nothing_left(engine)


def wait_for(condition: Callable[[], bool]) -> None:
    """Machines are slow at times; what never comes true fails the test."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


class TestAnIdleEngineChecksItsCache:
    def test_once_after_each_time_it_worked(
        self, make_engine: MakeEngine, make_fill: MakeFill, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("model.engine.engine.IDLE_S", 0.01)
        engine = make_engine()
        checks: list[float] = []
        engine.runner.check_integrity = lambda: checks.append(0.0)  # type: ignore[method-assign]
        for num_fills in (1, 2):
            answer(engine.submit(make_fill()))
            wait_for(lambda least=num_fills: len(checks) >= least)
            time.sleep(0.1)  # for one too many
            # The one more is the new engine's own, if it came before its first fill.
            assert len(checks) in (num_fills, num_fills + 1)

    def test_and_drops_it_when_it_is_damaged(
        self,
        make_engine: MakeEngine,
        make_fill: MakeFill,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("model.engine.engine.IDLE_S", 0.01)
        engine = make_engine()
        first, again = make_fill(), make_fill()
        pages = engine.runner.cache._free
        lost: list[int] = []
        # During the fill, so that the look that follows it is not yet over.
        first.on_step = lambda _: None if lost else lost.append(pages.pop())
        expected = answer(engine.submit(first))
        wait_for(lambda: "the context cache is damaged" in caplog.text)
        assert [f.holes for f in answer(engine.submit(again))] == [f.holes for f in expected]
        assert again.encoded_tokens == first.encoded_tokens
        engine.close()
        assert_nothing_left(engine)
