"""The engine around a tiny backbone: what it writes, and what becomes of requests."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from concurrent.futures import CancelledError, Future

import pytest
import torch
from torch import Tensor

from model.api import (
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidRequestError,
    SupersededError,
)
from model.engine.draft.repeated_text import IndexedText, RepeatedText
from model.engine.draft.stream import BackboneFill, Stream
from model.engine.draft.verify import CHUNK
from model.engine.engine import Engine
from model.engine.fill import FilledHoles, SamplingParams, Sequence
from model.engine.run.backbone_runner import BackboneRunner, NewRows, Verdict

TIMEOUT_S = 120
MakeEngine = Callable[..., Engine]

VERIFIED = SamplingParams(policy="verified")
ALONE = SamplingParams(policy="autoregressive")


def text(seed: int, length: int) -> tuple[int, ...]:
    """Random tokens of text."""
    draw = random.Random(seed)
    return tuple(draw.randrange(56) for _ in range(length))


def make_fill(
    prompt: Items[int] = text(0, 40),
    *,
    params: tuple[SamplingParams, ...] = (VERIFIED,),
    max_new_tokens: int = 12,
    **options: object,
) -> BackboneFill:
    return BackboneFill(
        prompt=tuple(prompt),
        params=params,
        max_new_tokens=max_new_tokens,
        **options,  # type: ignore[arg-type]
    )


def runner_of(engine: Engine) -> BackboneRunner:
    return engine.decoder.runner  # type: ignore[attr-defined]


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
    assert runner_of(engine)._open == []
    engine.decoder.check_integrity()


def hole(output: FilledHoles) -> tuple[int, ...]:
    return output.holes[0]


def wanted(engine: Engine, tokens: Items[int], prompt_length: int = 40) -> None:
    """Have the backbone want exactly these tokens behind a prompt, and an end behind them."""
    runner = runner_of(engine)
    run = runner.run

    def dictated(batch: Items[NewRows]) -> list[Verdict]:
        verdicts = run(batch)
        found = [verdict.logits.clone() for verdict in verdicts]
        for new, logits in zip(batch, found, strict=True):
            table = new.stream.table
            assert table is not None
            depths: list[int] = []
            for parent in new.parents:
                depths.append(0 if parent < 0 else depths[parent] + 1)
            for row, depth in enumerate(depths[len(depths) - len(logits) :]):
                place = table.length + depth + 1 - prompt_length
                token = tokens[place] if place < len(tokens) else 60
                logits[row] = 0.0
                logits[row, token] = 12.0
        return [Verdict(logits) for logits in found]

    runner.run = dictated  # type: ignore[method-assign]


class TestVerifiedTextIsTheBackbonesOwn:
    """Whatever is drafted, right, wrong or half right, and whoever shares the batch."""

    @pytest.mark.parametrize("temperature", [0.0, 0.9])
    def test_on_many_fills(
        self, make_engine: MakeEngine, model: object, temperature: float
    ) -> None:
        alone, drafting = make_engine(), make_engine()
        num_saved = 0
        for seed in range(40):
            draw = random.Random(seed)
            prompt = text(seed, draw.randrange(1, 60))
            options = {"max_new_tokens": draw.randrange(1, 24)}
            params = SamplingParams(
                policy="autoregressive", temperature=temperature, top_p=0.9, seed=seed
            )
            (expected,) = answer(alone.submit(make_fill(prompt, params=(params,), **options)))
            guess = [i if draw.random() < 0.8 else draw.randrange(56) for i in hole(expected)]
            fill = make_fill(
                prompt,
                params=(SamplingParams(
                    policy="verified", temperature=temperature, top_p=0.9, seed=seed
                ),),
                guess=tuple(guess),
                document=RepeatedText([IndexedText([*prompt, *text(seed + 1, 9), *prompt])], []),
                **options,
            )  # fmt: skip
            (found,) = answer(drafting.submit(fill))
            assert found.holes == expected.holes
            assert found.finished == expected.finished
            assert found.probabilities == pytest.approx(expected.probabilities, rel=1e-3)
            num_saved += len(found.probabilities) - fill.forwards
        assert num_saved > 60  # drafts were used

    def test_in_batches_of_fills_of_different_lengths(self, make_engine: MakeEngine) -> None:
        prompts = [text(seed, 5 + 9 * seed) for seed in range(6)]
        expected = [
            hole(answer(make_engine().submit(make_fill(p, params=(ALONE,))))[0]) for p in prompts
        ]
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(text(99, 8), on_step=gate))
        gate.wait()
        sizes: list[int] = []
        run = runner_of(engine).run

        def counting(batch: Items[NewRows]) -> list[Verdict]:
            sizes.append(len(batch))
            return run(batch)

        runner_of(engine).run = counting  # type: ignore[method-assign]
        futures = [
            engine.submit(make_fill(p, guess=e[:5])) for p, e in zip(prompts, expected, strict=True)
        ]
        gate.open()
        assert [hole(answer(future)[0]) for future in futures] == expected
        answer(held)
        assert max(sizes) >= 3
        engine.close()
        assert_nothing_left(engine)

    def test_after_random_edits_with_few_pages_and_aborted_fills(
        self, make_engine: MakeEngine
    ) -> None:
        fresh = make_engine()
        for num_pages in (40, 512):
            engine = make_engine(num_pages)
            draw = random.Random(num_pages)
            document = list(text(5, 200))
            for _ in range(25):
                at = draw.randrange(20, len(document))
                document[at : at + draw.randrange(3)] = text(draw.randrange(99), draw.randrange(4))
                prompt = document[: draw.randrange(1, len(document))]
                if draw.random() < 0.3:
                    engine.submit(make_fill(prompt[: len(prompt) // 2 + 1])).cancel()
                fill = make_fill(prompt, max_new_tokens=6, guess=text(draw.randrange(9), 4))
                (found,) = answer(engine.submit(fill))
                runner_of(fresh).drop_cache()
                (expected,) = answer(fresh.submit(make_fill(prompt, max_new_tokens=6)))
                assert found.holes == expected.holes
            engine.close()
            assert_nothing_left(engine)


class TestContextCache:
    def test_the_same_request_again_encodes_nothing(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        first, again = make_fill(), make_fill()
        (output,) = answer(engine.submit(first))
        assert answer(engine.submit(again))[0].holes == output.holes
        assert (first.encoded_tokens, again.encoded_tokens) == (40, 0)

    def test_a_typed_token_is_the_only_one_encoded(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        answer(engine.submit(make_fill(text(0, 40))))
        longer = make_fill((*text(0, 40), 55, 54))
        answer(engine.submit(longer))
        assert longer.encoded_tokens <= 2

    def test_what_is_typed_as_it_was_suggested_costs_nothing(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        (output,) = answer(engine.submit(make_fill(max_new_tokens=9)))
        assert len(hole(output)) > 2
        accepted = make_fill((*text(0, 40), *hole(output)[:2]))
        answer(engine.submit(accepted))
        assert accepted.encoded_tokens == 0

    def test_candidates_share_one_reading_of_the_prompt(self, make_engine: MakeEngine) -> None:
        prompt = text(1, 3 * CHUNK)
        params = tuple(
            SamplingParams(policy="verified", temperature=1.0 if seed else 0.0, seed=seed)
            for seed in range(4)
        )
        fill = make_fill(prompt, params=params)
        outputs = answer(make_engine().submit(fill))
        assert fill.encoded_tokens == len(prompt)
        assert len({output.holes for output in outputs}) > 1

    def test_a_prompt_that_leaves_no_room_is_refused_at_once(self, make_engine: MakeEngine) -> None:
        with pytest.raises(InvalidRequestError, match="reads at most"):
            make_engine(num_pages=12).submit(make_fill(text(0, 200)))


class TestReading:
    def test_goes_in_chunks_between_which_it_is_cancelled(self, make_engine: MakeEngine) -> None:
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(on_step=gate))
        gate.wait()
        long = make_fill(text(1, 4 * CHUNK - 60))
        future = engine.submit(long)
        run, reads = runner_of(engine).run, list[int]()

        def cancel_after_one(batch: Items[NewRows]) -> list[Verdict]:
            if batch[0].stream.fill is long:
                reads.append(len(batch[0].tokens))
                future.cancel()
            return run(batch)

        runner_of(engine).run = cancel_after_one  # type: ignore[method-assign]
        gate.open()
        answer(held)
        answer(engine.submit(make_fill()))
        assert reads == [CHUNK]
        engine.close()
        assert_nothing_left(engine)

    def test_lets_others_go_on_between_two_chunks(self, make_engine: MakeEngine) -> None:
        engine, gate = make_engine(), Gate()
        short = make_fill(on_step=gate, params=(ALONE,), max_new_tokens=8)
        future = engine.submit(short)
        gate.wait()
        order: list[str] = []
        run = runner_of(engine).run

        def noted(batch: Items[NewRows]) -> list[Verdict]:
            order.append("reads" if len(batch[0].tokens) == CHUNK else "verifies")
            return run(batch)

        runner_of(engine).run = noted  # type: ignore[method-assign]
        long = engine.submit(make_fill(text(1, 4 * CHUNK - 60), urgent=True))
        gate.open()
        answer(future)
        answer(long)
        assert order[:6] == ["verifies", "reads"] * 3


class TestAColdContext:
    """Of a prompt that would take too long to read, the close part answers first."""

    WHOLE = text(1, 2 * CHUNK + 40)
    CLOSE = WHOLE[-60:]

    @pytest.fixture(autouse=True)
    def impatience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("model.engine.draft.verify.PATIENCE_MS", 0.0)

    def test_the_close_part_is_read_alone(self, make_engine: MakeEngine) -> None:
        fill = make_fill(self.WHOLE, close_prompt=self.CLOSE)
        engine = make_engine()
        (output,) = answer(engine.submit(fill))
        (expected,) = answer(make_engine().submit(make_fill(self.CLOSE)))
        assert output.holes == expected.holes
        assert fill.encoded_tokens == len(self.CLOSE)
        assert all(stream.is_close for stream in fill.sequences)  # type: ignore[attr-defined]

    def test_what_was_read_at_leisure_is_there_for_the_next_request(
        self, make_engine: MakeEngine
    ) -> None:
        engine = make_engine()
        (output,) = answer(engine.submit(make_fill(self.WHOLE, only_reads=True, can_wait=True)))
        assert output == FilledHoles(((),), (), True)
        fill = make_fill(self.WHOLE, close_prompt=self.CLOSE)
        (found,) = answer(engine.submit(fill))
        (expected,) = answer(make_engine().submit(make_fill(self.WHOLE)))
        assert found.holes == expected.holes
        assert fill.encoded_tokens == 0
        engine.close()
        assert_nothing_left(engine)

    def test_reading_at_leisure_waits_for_everybody(self, make_engine: MakeEngine) -> None:
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(on_step=gate, params=(ALONE,)))
        gate.wait()
        order: list[bool] = []
        run = runner_of(engine).run

        def noted(batch: Items[NewRows]) -> list[Verdict]:
            order.append(batch[0].stream.fill.can_wait)
            return run(batch)

        runner_of(engine).run = noted  # type: ignore[method-assign]
        leisure = engine.submit(make_fill(self.WHOLE, only_reads=True, can_wait=True))
        other = engine.submit(make_fill(text(7, 30)))
        gate.open()
        for future in (held, other, leisure):
            answer(future)
        assert order == sorted(order)
        assert order.count(True) > 2  # in small pieces


class TestWhatAHoleHolds:
    def test_it_ends_where_the_backbone_says(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        wanted(engine, [3, 4, 5])
        fill = make_fill(guess=(3, 4, 5, 6))
        (output,) = answer(engine.submit(fill))
        assert (hole(output), output.finished) == ((3, 4, 5), True)
        assert len(output.probabilities) == 4  # the end's, too
        assert fill.forwards == 1

    def test_no_hole_is_longer_than_the_limit(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        wanted(engine, range(20))
        (output,) = answer(engine.submit(make_fill(max_new_tokens=7, guess=tuple(range(20)))))
        assert (hole(output), output.finished) == (tuple(range(7)), False)

    def test_a_known_length_is_kept_to_the_token(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        wanted(engine, [3])
        (output,) = answer(engine.submit(make_fill(length=4, max_new_tokens=9)))
        assert (len(hole(output)), output.finished) == (4, True)

    def test_it_begins_with_what_has_to_be_healed(
        self, make_engine: MakeEngine, letters: object
    ) -> None:
        for heal in (b"a", b"xyz", b"hello "):
            for guess in ((), (7, 8), text(2, 3)):
                fill = make_fill(heal=heal, guess=guess, max_new_tokens=16)
                (output,) = answer(make_engine().submit(fill))
                assert letters.text(hole(output)).encode().startswith(heal)  # type: ignore[attr-defined]

    def test_healing_costs_no_confidence_where_there_is_no_choice(
        self, make_engine: MakeEngine
    ) -> None:
        (output,) = answer(make_engine().submit(make_fill(heal=b"(", max_new_tokens=1)))
        assert output.probabilities == (1.0,)

    def test_it_begins_otherwise_than_what_is_avoided(
        self, make_engine: MakeEngine, letters: object
    ) -> None:
        engine = make_engine()
        (output,) = answer(engine.submit(make_fill(max_new_tokens=6)))
        bad = letters.text(hole(output)).encode()  # type: ignore[attr-defined]
        fill = make_fill(max_new_tokens=6, avoid=(bad,), guess=hole(output))
        (other,) = answer(engine.submit(fill))
        assert hole(other)[0] != hole(output)[0]
        healed = make_fill(max_new_tokens=6, heal=bad[:1], avoid=(bad[1:],))
        (third,) = answer(engine.submit(healed))
        written = letters.text(hole(third)).encode()  # type: ignore[attr-defined]
        assert written.startswith(bad[:1])
        assert written[:2] != bad[:2]

    def test_nothing_is_written_behind_a_stop(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        wanted(engine, range(20))
        fill = make_fill(stop=lambda tokens: 5 in tokens, guess=tuple(range(20)))
        (output,) = answer(engine.submit(fill))
        assert (hole(output), output.finished) == ((0, 1, 2, 3, 4, 5), True)

    def test_one_that_is_too_unsure_ends_there(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        (whole,) = answer(engine.submit(make_fill()))
        least = whole.probabilities[0] * whole.probabilities[1] * 1.01
        (part,) = answer(engine.submit(make_fill(min_confidence=least)))
        assert not part.finished
        assert hole(part) == hole(whole)[: len(hole(part))]
        assert 1 <= len(hole(part)) <= 2

    def test_the_listener_sees_what_was_drafted_and_what_was_agreed_with(
        self, make_engine: MakeEngine
    ) -> None:
        engine = make_engine()
        wanted(engine, [3, 4, 5, 6])
        seen: list[tuple[tuple[int, ...], int, list[int]]] = []

        def see(sequence: Sequence) -> None:
            assert isinstance(sequence, Stream)
            seen.append((sequence.drafted, sequence.accepted, sequence.tokens))

        answer(engine.submit(make_fill(guess=(3, 4, 9), on_step=see)))
        assert seen[0] == ((3, 4, 9), 2, [3, 4, 5])


class TestCandidates:
    def test_come_by_mean_log_probability_and_the_same_seed_gives_the_same(
        self, make_engine: MakeEngine
    ) -> None:
        params = tuple(
            SamplingParams(policy="verified", temperature=1.5, seed=seed) for seed in range(5)
        )
        engine = make_engine()
        outputs = answer(engine.submit(make_fill(params=params)))
        scores = [output.score for output in outputs]
        assert scores == sorted(scores, key=lambda score: -(score or 0))
        assert None not in scores
        again = answer(engine.submit(make_fill(params=params)))
        assert [output.holes for output in again] == [output.holes for output in outputs]

    def test_a_lone_one_has_no_score(self, make_engine: MakeEngine) -> None:
        (output,) = answer(make_engine().submit(make_fill()))
        assert output.score is None

    def test_drawn_ones_keep_the_backbones_distribution(self, make_engine: MakeEngine) -> None:
        """With drafts that are right half of the time."""
        engine = make_engine()
        prompt, draws = text(0, 10), 400
        logits: list[Tensor] = []
        run = runner_of(engine).run

        def kept(batch: Items[NewRows]) -> list[Verdict]:
            found = run(batch)
            logits.append(found[0].logits[0].clone())
            return found

        runner_of(engine).run = kept  # type: ignore[method-assign]
        counts: dict[int, int] = {}
        guess = (hole(answer(engine.submit(make_fill(prompt)))[0])[0],)
        for seed in range(draws):
            params = (SamplingParams(policy="verified", temperature=1.0, seed=seed),)
            fill = make_fill(prompt, params=params, guess=guess, max_new_tokens=1)
            (output,) = answer(engine.submit(fill))
            token = hole(output)[0] if hole(output) else 60
            counts[token] = counts.get(token, 0) + 1
        row = logits[0].clone()
        row[[56, 57, 58, 59, 62, 63]] = float("-inf")
        row[60] = row[[60, 61]].logsumexp(0)
        row[61] = float("-inf")
        probabilities = row.softmax(0)
        for token in range(61):
            expected = probabilities[token].item() * draws
            assert abs(counts.get(token, 0) - expected) < 4.5 * max(expected, 1) ** 0.5 + 1


class TestCancelling:
    def test_a_cancelled_fill_leaves_before_its_next_step_and_unpins_its_contexts(
        self, make_engine: MakeEngine
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
        self, make_engine: MakeEngine
    ) -> None:
        engine, gate = make_engine(), Gate()
        future = engine.submit(make_fill(on_step=gate, max_new_tokens=1))
        gate.wait()
        future.cancel()
        gate.open()
        with pytest.raises(CancelledError):
            answer(future)
        answer(engine.submit(make_fill()))
        engine.close()
        assert_nothing_left(engine)

    def test_cancelling_an_answered_fill_changes_nothing(self, make_engine: MakeEngine) -> None:
        future = make_engine().submit(make_fill())
        outputs = answer(future)
        assert not future.cancel()
        assert answer(future) is outputs


class TestSuperseding:
    def test_a_newer_fill_takes_the_place_of_a_running_older_one(
        self, make_engine: MakeEngine
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

    def test_a_replaced_and_cancelled_fill_is_cancelled(self, make_engine: MakeEngine) -> None:
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
    def test_a_deadline_that_has_passed_gives_nothing(self, make_engine: MakeEngine) -> None:
        fill = make_fill(deadline=time.monotonic() - 1)
        (output,) = answer(make_engine().submit(fill))
        assert output == FilledHoles(((),), (), False)
        assert output.confidence == 0.0
        assert fill.forwards == fill.encoded_tokens == 0

    def test_a_deadline_between_steps_gives_the_part_that_is_decided(
        self, make_engine: MakeEngine
    ) -> None:
        engine = make_engine()
        wanted(engine, range(20))

        def run_out(sequence: Sequence) -> None:
            sequence.fill.deadline = time.monotonic() - 1

        (output,) = answer(engine.submit(make_fill(guess=(0, 1, 2), on_step=run_out)))
        assert (hole(output), output.finished) == ((0, 1, 2, 3), False)
        assert 0.5 < output.confidence < 1
        engine.close()
        assert_nothing_left(engine)


class TestClosing:
    def test_a_closed_engine_takes_no_fills(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        engine.close()
        engine.close()
        with pytest.raises(EngineUnavailableError, match="closed"):
            engine.submit(make_fill())

    def test_closing_ends_running_waiting_and_replaced_fills(self, make_engine: MakeEngine) -> None:
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

    def test_a_listener_may_close_the_engine(self, make_engine: MakeEngine) -> None:
        engine = make_engine()
        future = engine.submit(make_fill(on_step=lambda _: engine.close()))
        with pytest.raises(EngineUnavailableError):
            answer(future)
        engine.close()
        assert_nothing_left(engine)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_bug_that_ends_the_engines_thread_leaves_nobody_waiting(
        self, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
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
    def test_a_failed_forward_ends_its_batch_and_no_more(self, make_engine: MakeEngine) -> None:
        engine, gate = make_engine(), Gate()
        runner = runner_of(engine)
        run = runner.run

        def fail_once(batch: Items[NewRows]) -> list[Verdict]:
            runner.run = run  # type: ignore[method-assign]
            raise RuntimeError("a broken kernel")

        running = engine.submit(make_fill(on_step=gate))
        gate.wait()
        batched = engine.submit(make_fill())
        runner.run = fail_once  # type: ignore[method-assign]
        gate.open()
        for future in (running, batched):
            with pytest.raises(CompletionError, match="step failed: a broken kernel"):
                answer(future)
        answer(engine.submit(make_fill()))
        engine.close()
        assert_nothing_left(engine)

    def test_logits_that_are_not_finite_end_their_fill_and_the_others_finish_as_alone(
        self, make_engine: MakeEngine
    ) -> None:
        prompts = [text(1, 20), text(2, 30)]
        alone = [answer(make_engine().submit(make_fill(p)))[0].holes for p in prompts]
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(on_step=gate, urgent=True))
        gate.wait()
        bad = make_fill(text(3, 10))
        runner = runner_of(engine)
        run = runner.run

        def spoil(batch: Items[NewRows]) -> list[Verdict]:
            verdicts = run(batch)
            found = [verdict.logits.clone() for verdict in verdicts]
            for new, logits in zip(batch, found, strict=True):
                if new.stream.fill is bad:
                    logits[:] = float("nan")
            return [Verdict(logits) for logits in found]

        runner.run = spoil  # type: ignore[method-assign]
        doomed = engine.submit(bad)
        good = [engine.submit(make_fill(p)) for p in prompts]
        gate.open()
        with pytest.raises(CompletionError, match="non-finite"):
            answer(doomed)
        assert [answer(future)[0].holes for future in good] == alone
        answer(held)
        engine.close()
        assert_nothing_left(engine)

    def test_a_listener_that_raises_ends_its_fill_and_no_other(
        self, make_engine: MakeEngine
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

    def test_a_decision_that_fails_ends_its_batch_and_not_the_engine(
        self, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make_engine()
        with monkeypatch.context() as broken:
            broken.setattr("model.engine.draft.verify.chosen", lambda *_: 1 / 0)
            with pytest.raises(CompletionError, match="step failed: division by zero"):
                answer(engine.submit(make_fill()))
        answer(engine.submit(make_fill()))
        engine.close()
        assert_nothing_left(engine)

    def test_a_fill_that_would_break_its_batch_is_refused_at_once(
        self, make_engine: MakeEngine
    ) -> None:
        engine = make_engine()
        for fill, reason in (
            (make_fill(()), "a prompt of at least a token"),
            (make_fill((1, 10**6)), r"token ids must lie in 0\.\."),
            (make_fill(guess=(-1,)), r"token ids must lie in 0\.\."),
            (make_fill(params=()), "needs a candidate"),
        ):
            with pytest.raises(InvalidRequestError, match=reason):
                engine.submit(fill)
        assert_nothing_left(engine)

    def test_more_than_may_wait_are_refused(self, make_engine: MakeEngine) -> None:
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


CPU_OUT_OF_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")


class TestOutOfMemory:
    PARAMS = tuple(SamplingParams(policy="verified", temperature=1.0, seed=i) for i in range(8))

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_OUT_OF_MEMORY]
    )
    def test_halves_the_batch_and_changes_no_token(
        self, make_engine: MakeEngine, error: Exception
    ) -> None:
        expected = answer(make_engine().submit(make_fill(params=self.PARAMS)))
        engine = make_engine()
        runner = runner_of(engine)
        run, sizes = runner.run, list[int]()

        def of_three_at_most(batch: Items[NewRows]) -> list[Verdict]:
            sizes.append(len(batch))
            if len(batch) > 3:
                raise error
            return run(batch)

        runner.run = of_three_at_most  # type: ignore[method-assign]
        found = answer(engine.submit(make_fill(params=self.PARAMS)))
        assert sorted(f.holes for f in found) == sorted(f.holes for f in expected)
        assert [size for size in sizes if size > 3][:2] == [8, 4]
        engine.close()
        assert_nothing_left(engine)

    def test_ends_a_lone_sequence_that_does_not_fit_and_no_other(
        self, make_engine: MakeEngine
    ) -> None:
        engine, gate = make_engine(), Gate()
        held = engine.submit(make_fill(on_step=gate))
        gate.wait()
        huge = make_fill(urgent=True)
        runner = runner_of(engine)
        run = runner.run

        def without_the_huge_one(batch: Items[NewRows]) -> list[Verdict]:
            if any(new.stream.fill is huge for new in batch):
                raise CPU_OUT_OF_MEMORY
            return run(batch)

        runner.run = without_the_huge_one  # type: ignore[method-assign]
        future = engine.submit(huge)
        gate.open()
        with pytest.raises(EngineOverloadedError, match="no memory for this request alone"):
            answer(future)
        answer(held)
        engine.close()
        assert_nothing_left(engine)

    def test_streams_that_do_not_fit_the_cache_together_take_turns(
        self, make_engine: MakeEngine
    ) -> None:
        prompts = [text(seed, 100) for seed in range(6)]
        roomy = make_engine()
        expected = [answer(roomy.submit(make_fill(p)))[0].holes for p in prompts]
        engine = make_engine(num_pages=14)
        futures = [engine.submit(make_fill(p)) for p in prompts]
        assert [answer(future)[0].holes for future in futures] == expected
        engine.close()
        assert_nothing_left(engine)


def test_fills_from_many_threads_are_all_settled(make_engine: MakeEngine) -> None:
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
                        text(draw.randrange(3), draw.randrange(1, 90)),
                        max_new_tokens=draw.randint(1, 6),
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
        self, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("model.engine.engine.IDLE_S", 0.01)
        engine = make_engine()
        checks: list[float] = []
        engine.decoder.check_integrity = lambda: checks.append(0.0)  # type: ignore[method-assign]
        for num_fills in (1, 2):
            answer(engine.submit(make_fill()))
            wait_for(lambda least=num_fills: len(checks) >= least)
            time.sleep(0.1)  # for one too many
            # The one more is the new engine's own, if it came before its first fill.
            assert len(checks) in (num_fills, num_fills + 1)

    def test_and_drops_it_when_it_is_damaged(
        self,
        make_engine: MakeEngine,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("model.engine.engine.IDLE_S", 0.01)
        engine = make_engine()
        first, again = make_fill(), make_fill()
        pages = runner_of(engine).cache._free
        lost: list[int] = []
        # During the fill, so that the look that follows it is not yet over.
        first.on_step = lambda _: None if lost else lost.append(pages.pop())
        expected = answer(engine.submit(first))
        wait_for(lambda: "the context cache is damaged" in caplog.text)
        assert [f.holes for f in answer(engine.submit(again))] == [f.holes for f in expected]
        assert again.encoded_tokens == first.encoded_tokens
        engine.close()
        assert_nothing_left(engine)
