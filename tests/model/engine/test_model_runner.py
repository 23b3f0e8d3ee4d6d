from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from canvases import half_decided, stream, uncached
from hypothesis import given, settings
from hypothesis import strategies as st

from model.api import EngineOverloadedError
from model.attention import KeyValue
from model.denoiser import Denoiser, Role
from model.engine.kv_cache import PAGE_SIZE
from model.engine.model_runner import ModelRunner
from model.engine.page_pool import page_bytes
from model.engine.runner import is_out_of_memory
from model.engine.sequence import Sequence
from model.tokenizer import CodeTokenizer


@torch.inference_mode()
def uncached_causal(model: Denoiser, tokens: list[int]) -> torch.Tensor:
    """Next-token logits (L, V) after each token of a prefix stream."""
    return model.logits(model.encode(torch.tensor([tokens]), Role.PREFIX)[0])[0]


def make_runner(model: Denoiser, num_pages: int) -> ModelRunner:
    """A runner whose cache has so many pages."""
    per_page = page_bytes(model.config, model.embedding.weight.dtype)
    runner = ModelRunner(model, cache_bytes=num_pages * per_page)
    assert runner.pool.pages.isnan().all()
    return runner


@pytest.fixture(autouse=True, scope="module")
def _fresh_memory_is_nan() -> Iterator[None]:
    """So that nothing that was never written can be read unnoticed."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def runner(model: Denoiser) -> ModelRunner:
    return make_runner(model, 60)


def run(runner: ModelRunner, *batch: Sequence) -> torch.Tensor:
    assert runner.open_contexts(batch) == list(batch)
    runner.check_integrity()
    return runner.denoise(batch)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Editor:
    """Documents of tokens around a cursor, edited as people do."""

    def __init__(self) -> None:
        self.documents = [(stream(1, 40), stream(2, 30)), (stream(3, 9), stream(4, 50)), ([5], [6])]
        self.current = 0
        self.num_typed = 0

    @property
    def prefix(self) -> list[int]:
        return self.documents[self.current][0]

    @property
    def suffix(self) -> list[int]:
        return self.documents[self.current][1]

    def edit(self, kind: str, amount: int) -> None:
        prefix, suffix = self.documents[self.current]
        self.num_typed += 1
        match kind:
            case "type":
                prefix = prefix + stream(self.num_typed, 1 + amount % 3)
            case "backspace":
                prefix = prefix[:1] + prefix[1:][: -1 - amount % 5]
            case "paste":
                prefix = prefix + stream(amount, 20)
            case "edit above":
                prefix = [*prefix[: 1 + amount], *stream(self.num_typed, 1), *prefix[2 + amount :]]
            case "edit below":
                suffix = [*suffix[: 1 + amount], *stream(self.num_typed, 1), *suffix[2 + amount :]]
            case "move down":
                prefix, suffix = (
                    prefix + suffix[1:][-1 - amount % 9 :][::-1],
                    (suffix[:1] + suffix[1:][: -1 - amount % 9]),
                )
            case _:
                self.current = amount % len(self.documents)
        self.documents[self.current] = (prefix[:64], suffix[:64])


EDITS = st.tuples(
    st.sampled_from(
        ["type", "type", "backspace", "paste", "edit above", "edit below", "move down", "switch"]
    ),
    st.integers(0, 30),
    st.sampled_from(
        ["run", "run", "run", "two candidates", "beside another", "abort", "out of memory"]
    ),
)


class Failing:
    """Has the model's next encoding fail, once."""

    def __init__(self, model: Denoiser, error: Exception) -> None:
        self.model, self.error = model, error

    def __enter__(self) -> None:
        def fail(*args: object) -> object:
            del self.model.encode  # type: ignore[attr-defined]
            raise self.error

        self.model.encode = fail  # type: ignore[method-assign,assignment]

    def __exit__(self, *_: object) -> None:
        self.model.__dict__.pop("encode", None)


class TestCachedEqualsUncached:
    # Two full contexts are eight pages: ten always evict, and with five windows are shortened.
    @pytest.mark.parametrize("num_pages", [5, 10, 60])
    @settings(max_examples=25)
    @given(edits=st.lists(EDITS, min_size=1, max_size=12))
    def test_after_any_edits_evictions_and_aborts(
        self,
        model: Denoiser,
        tokenizer: CodeTokenizer,
        num_pages: int,
        edits: list[tuple[str, int, str]],
    ) -> None:
        runner, editor = make_runner(model, num_pages), Editor()
        idle = half_decided(stream(7, 20), stream(8, 5), tokenizer.mask_id)
        for kind, amount, what in edits:
            editor.edit(kind, amount)
            seqs = [
                half_decided(editor.prefix, editor.suffix, tokenizer.mask_id, seed=seed, size=size)
                for seed, size in ((amount, 16), (1, 32))
            ]
            batch = seqs[:1]
            match what:
                case "two candidates":
                    batch = seqs
                case "beside another":
                    batch = [*seqs[:1], idle]
                case "abort":
                    abort = ValueError("aborted")
                    with contextlib.suppress(ValueError), Failing(model, abort):
                        runner.open_contexts(batch)
                case "out of memory":
                    with Failing(model, torch.OutOfMemoryError("for once")):
                        runner.open_contexts(batch)
            runner.check_integrity()
            opened = runner.open_contexts(batch)
            runner.check_integrity()
            assert opened[0] is batch[0]
            assert runner.cache_bytes <= num_pages * runner._page_bytes
            for seq, logits in zip(opened, runner.denoise(opened), strict=True):
                assert_close(logits[: len(seq.canvas)], uncached(model, seq))
            if what != "out of memory" and num_pages > 5:
                assert (batch[0].prefix, batch[0].suffix) == (editor.prefix, editor.suffix)
            for seq in batch:
                runner.close_context(seq)
            runner.check_integrity()
        runner.open_contexts([])
        assert runner._open == []
        runner.check_integrity()

    def test_a_typed_token_at_a_time(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        prefix, suffix = stream(1, 40), stream(2, 7)
        for num_tokens in (4, 5, 6, 9, 12, 8, 12, 16, 17, 33, 40):
            seq = half_decided(prefix[:num_tokens], suffix, tokenizer.mask_id)
            assert_close(run(runner, seq)[0], uncached(model, seq))
            runner.close_context(seq)

    def test_padding_in_a_batch_changes_no_logits(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        batch = [
            half_decided(
                stream(i, 3 + 9 * i), stream(10 + i, 20 - 5 * i), tokenizer.mask_id, seed=i
            )
            for i in range(4)
        ]
        for seq, logits in zip(batch, run(runner, *batch), strict=True):
            assert_close(logits, uncached(model, seq))

    def test_canvases_of_several_sizes_share_a_batch(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        batch = [
            half_decided(stream(i % 2, 20), stream(3, 30 + i), tokenizer.mask_id, seed=i, size=size)
            for i, size in enumerate((16, 64, 32))
        ]
        logits = run(runner, *batch)
        assert logits.shape[:2] == (3, 64)
        for seq, row in zip(batch, logits, strict=True):
            assert_close(row[: len(seq.canvas)], uncached(model, seq))

    def test_a_batch_follows_its_canvases_from_step_to_step(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        batch = [
            half_decided(stream(i, 5 + i), stream(9, 4), tokenizer.mask_id, seed=i)
            for i in range(2)
        ]
        run(runner, *batch)
        for seq in batch:
            seq.canvas[3] = 111
        for seq, logits in zip(batch, run(runner, *batch), strict=True):
            assert_close(logits, uncached(model, seq))

    def test_another_text_of_the_same_length_in_the_same_pages_is_noticed(
        self, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        runner = make_runner(model, 4)
        other = half_decided(stream(5, 9), stream(6, 9), tokenizer.mask_id)
        pages: set[tuple[int, ...]] = set()
        for first in (1, 8):  # with four pages, all of the first text must go for the second
            seq = half_decided(stream(first, 6), stream(first + 1, 7), tokenizer.mask_id)
            logits = run(runner, seq, other)
            assert seq.context is not None
            pages |= {tuple(sorted(t.pages[0] for t in seq.context))}
            assert_close(logits[0], uncached(model, seq))
            runner.close_context(seq)
        assert len(pages) == 1


class TestReuse:
    def encoded(self, runner: ModelRunner, seq: Sequence) -> int:
        before = runner.tokens_encoded
        run(runner, seq)
        runner.close_context(seq)
        assert seq.fill.encoded_tokens == runner.tokens_encoded - before
        return seq.fill.encoded_tokens

    def test_of_every_edit_only_what_is_new_is_encoded(
        self, runner: ModelRunner, tokenizer: CodeTokenizer
    ) -> None:
        prefix, suffix = stream(1, 40), stream(2, 50)
        changed = [*suffix[:30], 299, *suffix[31:]]  # 20 tokens lie between cursor and edit
        elsewhere = stream(5, 20), stream(6, 20)
        for what, (before, after), count in (
            ("cold", (prefix, suffix), 90),
            ("again", (prefix, suffix), 0),
            ("type three", ([*prefix, 111, 112, 113], suffix), 3),
            ("backspace", (prefix[:37], suffix), 0),
            ("type something else", ([*prefix[:37], 114], suffix), 1),
            ("edit below the cursor", (prefix, changed), 20),
            ("another file", elsewhere, 40),
            ("and back", (prefix, changed), 0),
            ("undo", (prefix, suffix), 0),
        ):
            assert self.encoded(runner, half_decided(before, after, tokenizer.mask_id)) == count, (
                what
            )
        assert runner.tokens_encoded == 154
        assert runner.tokens_reused == 9 * 90 + 3 - 3 - 2 - 50 - 154

    def test_candidates_of_one_context_share_one_copy(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        prefix, suffix = stream(1, 12), stream(2, 7)
        batch = [half_decided(prefix, suffix, tokenizer.mask_id, seed=i) for i in range(3)]
        logits = run(runner, *batch)
        assert [s.fill.encoded_tokens for s in batch] == [19, 0, 0]
        assert all(keys.stride(0) == 0 for keys, _ in runner._context.prefix)
        for seq, row in zip(batch, logits, strict=True):
            assert_close(row, uncached(model, seq))

    def test_a_sequence_that_sits_out_a_step_is_unpinned_and_finds_its_context_again(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        first = half_decided(stream(1, 9), stream(2, 9), tokenizer.mask_id)
        second = half_decided(stream(3, 9), stream(4, 9), tokenizer.mask_id)
        run(runner, first)
        run(runner, second)
        assert first.context is None
        assert_close(run(runner, first)[0], uncached(model, first))
        assert first.fill.encoded_tokens == 18

    def test_a_step_moves_no_keys(self, runner: ModelRunner, tokenizer: CodeTokenizer) -> None:
        batch = [half_decided(stream(i, 9 + i), stream(9, 4), tokenizer.mask_id) for i in range(2)]
        run(runner, *batch)
        places = [keys.data_ptr() for keys, _ in runner._context.prefix]
        context = runner._context
        run(runner, *batch)
        assert runner._context is context
        runner.close_context(batch[0])
        batch[0] = half_decided([*stream(0, 9), 111], stream(9, 4), tokenizer.mask_id)
        run(runner, *batch)
        assert [keys.data_ptr() for keys, _ in runner._context.prefix] == places

    def test_page_tables_name_the_pages_that_hold_the_streams(
        self, runner: ModelRunner, tokenizer: CodeTokenizer
    ) -> None:
        batch = [
            half_decided(stream(i, 9 + 9 * i), stream(i + 5, 40), tokenizer.mask_id) for i in (0, 1)
        ]
        run(runner, *batch)
        for (pages, lengths), gathered in zip(
            runner.page_tables(batch), (runner._context.prefix, runner._context.suffix), strict=True
        ):
            assert pages.dtype == lengths.dtype == torch.int32
            for row, length in enumerate(lengths.tolist()):
                for pool, contiguous in zip(runner.pool.layers, gathered, strict=True):
                    for paged, flat in zip(pool, contiguous, strict=True):
                        found = paged[pages[row].long()].transpose(0, 1).flatten(1, 2)
                        assert torch.equal(found[:, :length], flat[row, :, :length])


class TestLackOfMemory:
    def test_too_small_a_budget_is_refused(self, model: Denoiser) -> None:
        with pytest.raises(ValueError, match="cache_bytes is 4095; a fill needs two pages"):
            ModelRunner(model, cache_bytes=4095)

    def test_those_that_do_not_fit_sit_the_step_out(
        self, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        runner = make_runner(model, 8)
        batch = [
            half_decided(stream(i, 20), stream(9 + i, 20), tokenizer.mask_id, seed=i)
            for i in range(3)
        ]
        assert runner.open_contexts(batch) == batch[:2]
        runner.check_integrity()
        runner.close_context(batch[1])
        assert runner.open_contexts([batch[0], batch[2]]) == [batch[0], batch[2]]
        for seq, logits in zip((batch[0], batch[2]), runner.denoise(batch[::2]), strict=True):
            assert_close(logits, uncached(model, seq))

    def test_the_first_takes_the_room_of_the_others(
        self, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        runner = make_runner(model, 8)
        old = [half_decided(stream(i, 20), stream(9 + i, 20), tokenizer.mask_id) for i in range(2)]
        urgent = half_decided(stream(5, 20), stream(6, 20), tokenizer.mask_id)
        runner.open_contexts(old)
        assert runner.open_contexts([urgent, *old]) == [urgent, old[0]]
        assert old[1].context is None
        assert len(urgent.prefix) == len(urgent.suffix) == 20

    @pytest.mark.parametrize("num_pages", [2, 3, 5])
    def test_a_lone_one_gets_a_shorter_window(
        self, model: Denoiser, tokenizer: CodeTokenizer, num_pages: int
    ) -> None:
        runner = make_runner(model, num_pages)
        seq = half_decided(stream(1, 60), stream(2, 64), tokenizer.mask_id)
        prefix = seq.prefix
        logits = run(runner, seq)
        assert PAGE_SIZE / 2 <= len(seq.prefix) < 60
        assert seq.prefix == prefix[:1] + prefix[1 - len(seq.prefix) :]
        assert_close(logits[0], uncached(model, seq))

    def test_where_not_even_a_token_fits_it_says_so(
        self,
        runner: ModelRunner,
        model: Denoiser,
        tokenizer: CodeTokenizer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: object) -> object:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")

        monkeypatch.setattr(model, "encode", fail)
        with pytest.raises(EngineOverloadedError, match="no memory left"):
            runner.open_contexts([half_decided(stream(1, 60), stream(2, 64), tokenizer.mask_id)])
        runner.check_integrity()

    def test_after_a_forward_without_memory_half_the_batch_may_be_tried(
        self,
        runner: ModelRunner,
        model: Denoiser,
        tokenizer: CodeTokenizer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        batch = [
            half_decided(stream(i, 9 + i), stream(9 + i, 20), tokenizer.mask_id, seed=i)
            for i in range(2)
        ]
        denoise = model.denoise

        def only_one(ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            if len(ids) > 1:
                raise torch.OutOfMemoryError("no")
            return denoise(ids, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(model, "denoise", only_one)
        runner.open_contexts(batch)
        with pytest.raises(torch.OutOfMemoryError) as failure:
            runner.denoise(batch)
        assert is_out_of_memory(failure.value)
        for seq in batch:
            logits = run(runner, seq)[0]
            with monkeypatch.context() as patch:
                patch.setattr(model, "denoise", denoise)
                assert_close(logits, uncached(model, seq))

    def test_rows_that_could_not_grow_are_filled_anew(
        self,
        runner: ModelRunner,
        model: Denoiser,
        tokenizer: CodeTokenizer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        batch = [half_decided(stream(i, 9), stream(9 + i, 20), tokenizer.mask_id) for i in range(3)]
        run(runner, batch[0])
        runner.open_contexts(batch)
        with monkeypatch.context() as patch:
            patch.setattr(runner.pool, "read", lambda _: (_ for _ in ()).throw(MemoryError()))
            for rows in runner._rows.values():
                rows.forget(range(60))
            with pytest.raises(MemoryError):
                runner.denoise(batch)
        for seq, logits in zip(batch, run(runner, *batch), strict=True):
            assert_close(logits, uncached(model, seq))

    def test_a_bug_is_no_lack_of_memory(self) -> None:
        assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


class TestAFailedEncoding:
    @pytest.mark.parametrize("failing_role", [Role.PREFIX, Role.SUFFIX])
    def test_leaves_nothing_pinned_and_nothing_half_cached(
        self,
        runner: ModelRunner,
        model: Denoiser,
        tokenizer: CodeTokenizer,
        monkeypatch: pytest.MonkeyPatch,
        failing_role: Role,
    ) -> None:
        seq = half_decided(stream(1, 9), stream(2, 9), tokenizer.mask_id)
        encode = model.encode

        def fail(ids: torch.Tensor, role: Role, past: list[KeyValue] | None) -> object:
            if role == failing_role:
                raise RuntimeError("a bug")
            return encode(ids, role, past)

        with monkeypatch.context() as patch:
            patch.setattr(model, "encode", fail)
            with pytest.raises(RuntimeError, match="a bug"):
                runner.open_contexts([seq])
        assert seq.context is None
        runner.check_integrity()
        assert_close(run(runner, seq)[0], uncached(model, seq))

    def test_of_a_cache_that_was_dropped_nothing_is_left(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        seq = half_decided(stream(1, 20), stream(2, 9), tokenizer.mask_id)
        run(runner, seq)
        runner.drop_cache()
        assert (seq.context, runner.cache_bytes) == (None, 0)
        other = half_decided(stream(3, 20), stream(4, 9), tokenizer.mask_id)
        for each in (other, seq):
            assert_close(run(runner, each)[0], uncached(model, each))
        assert seq.fill.encoded_tokens == 2 * 29

    def test_closing_a_context_twice_is_harmless(
        self, runner: ModelRunner, tokenizer: CodeTokenizer
    ) -> None:
        seq = half_decided(stream(1, 9), stream(2, 9), tokenizer.mask_id)
        runner.open_contexts([seq])
        runner.close_context(seq)
        runner.close_context(seq)
        runner.check_integrity()


class TestCausalDecoding:
    def test_next_logits_follow_a_growing_prefix(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        batch = [half_decided(stream(i, 14 + i), stream(9, 4), tokenizer.mask_id) for i in range(2)]
        runner.open_contexts(batch)
        encoded = runner.tokens_encoded
        for step in range(5):
            logits = runner.next_logits(batch)
            runner.check_integrity()
            for seq, row in zip(batch, logits, strict=True):
                assert_close(row, uncached_causal(model, seq.prefix)[-1])
                seq.prefix = [*seq.prefix, 120 + step]
        assert runner.tokens_encoded == encoded + 2 * 4

    def test_next_logits_do_without_room_in_the_cache(
        self, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        runner = make_runner(model, 2)
        seq = half_decided(stream(1, 15), stream(2, 4), tokenizer.mask_id)
        runner.open_contexts([seq])
        for token in (120, 121, 122, 123):
            seq.prefix = [*seq.prefix, token]
            found = runner.next_logits([seq])
            assert_close(found[0], uncached_causal(model, seq.prefix)[-1])
            runner.check_integrity()

    def test_a_denoising_step_may_come_between(
        self, runner: ModelRunner, model: Denoiser, tokenizer: CodeTokenizer
    ) -> None:
        batch = [half_decided(stream(i, 14 + i), stream(9, 4), tokenizer.mask_id) for i in range(2)]
        run(runner, *batch)
        runner.next_logits(batch[1:])
        runner.causal_log_probs(batch[1], [[111, 112]])
        for seq, logits in zip(batch, runner.denoise(batch), strict=True):
            assert_close(logits, uncached(model, seq))

    @pytest.mark.parametrize(("num_tokens", "num_pages"), [(1, 60), (20, 60), (20, 2)])
    @pytest.mark.parametrize("is_open", [True, False])
    def test_log_probs_of_continuations_are_those_of_the_whole_text(
        self,
        model: Denoiser,
        tokenizer: CodeTokenizer,
        num_tokens: int,
        num_pages: int,
        is_open: bool,
    ) -> None:
        runner = make_runner(model, num_pages)
        seq = half_decided(stream(1, num_tokens), stream(2, 4), tokenizer.mask_id)
        if is_open:
            runner.open_contexts([seq])
        filled = runner.cache_bytes
        continuations = [stream(5, 7), [], stream(6, 1), stream(7, 20)]
        found = runner.causal_log_probs(seq, continuations)
        runner.check_integrity()
        assert runner.cache_bytes == filled or not is_open
        for ids, log_probs in zip(continuations, found, strict=True):
            expected = uncached_causal(model, [*seq.prefix, *ids]).log_softmax(-1)
            at = range(len(seq.prefix) - 1, len(seq.prefix) + len(ids) - 1)
            wanted = [expected[i, token].item() for i, token in zip(at, ids, strict=True)]
            assert log_probs == pytest.approx(wanted, abs=1e-3)

    def test_no_continuations_need_no_forward(
        self, runner: ModelRunner, tokenizer: CodeTokenizer
    ) -> None:
        seq = half_decided(stream(1, 9), stream(2, 4), tokenizer.mask_id)
        assert runner.causal_log_probs(seq, []) == []
        assert runner.causal_log_probs(seq, [[]]) == [[]]
        assert runner.tokens_encoded == 0
