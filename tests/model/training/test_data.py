from __future__ import annotations

import dataclasses
import itertools
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import CodeTokenizer
from model.training.corpus import Document, write_shard
from model.training.data import (
    HOLE_KINDS,
    MAX_SYNTAX_CHARS,
    NO_TARGET,
    SYNTAX_SHARE,
    Batch,
    BatchShape,
    Hole,
    WindowSampler,
    load_documents,
    sample_holes,
)

# Every file is longer than some windows below and shorter than others, and says where it is.
ODD_LINES = "naïve = '👩‍👩‍👧 <mask>'\n\n\tif x:\n\t\tpass\n    return {'a': 1}  # <eom>\n"
DOCUMENTS = [
    Document("".join(f"line_{d}_{i} = {i}\n{ODD_LINES}" for i in range(40)), "python", "test")
    for d in range(3)
]
SHAPE = BatchShape(windows=3, stream_tokens=160, canvases=6, canvas_sizes=(256,))

PROGRAMS = st.text(alphabet="ab (\t\n", max_size=60)


def sampler(
    tokenizer: CodeTokenizer, *, two_hole_share: float = 0.0, seed: int = 0, **sizes: object
) -> WindowSampler:
    shape = dataclasses.replace(SHAPE, **sizes)
    return WindowSampler(DOCUMENTS, tokenizer, shape, seed, two_hole_share=two_hole_share)


def canvases(batch: Batch) -> list[tuple[list[int], list[int], list[int], list[float], int]]:
    """(prefix stream seen, canvas, suffix stream seen, weights, window) of every used place."""
    found = []
    windows, places, _ = batch.canvas_targets.shape
    for b, k in itertools.product(range(windows), range(places)):
        weights = batch.canvas_weights[b, k].tolist()
        if sum(weights):
            prefix = batch.prefix_ids[b, : batch.prefix_seen[b, k]].tolist()
            suffix = batch.suffix_ids[b, : batch.suffix_seen[b, k]].tolist()
            found.append((prefix, batch.canvas_targets[b, k].tolist(), suffix, weights, b))
    return found


class TestHoles:
    @given(text=PROGRAMS, num=st.integers(1, 12), seed=st.integers(0, 999))
    def test_are_disjoint_ordered_inside_the_text_and_apart(
        self, text: str, num: int, seed: int
    ) -> None:
        holes = sample_holes(text, num, random.Random(seed))
        assert len(holes) <= num
        assert all(0 <= hole.start <= hole.end <= len(text) for hole in holes)
        assert all(a.end < b.start for a, b in itertools.pairwise(holes))

    @pytest.mark.parametrize("kind", [kind for kind, _ in HOLE_KINDS])
    @given(text=PROGRAMS.filter(str.strip), seed=st.integers(0, 999))
    def test_of_every_kind_start_in_their_line(self, kind, text: str, seed: int) -> None:
        rng = random.Random(seed)
        start = rng.choice([0, *(i + 1 for i, c in enumerate(text) if c == "\n")])
        end = text.find("\n", start) if "\n" in text[start:] else len(text)
        hole = kind(text, (start, end), rng)
        assert start <= hole.start <= end
        assert hole.start <= hole.end <= len(text)
        breaks = text[hole.start : hole.end].count("\n")
        assert breaks <= {"_several_lines": 5, "_line_with_break": 1}.get(kind.__name__, 0)
        if kind.__name__ == "_line_with_break":
            assert hole.start == start  # a deleted line takes its indentation along
            assert text[hole.end - 1 : hole.end] == "\n" or hole.end == len(text)

    def test_are_the_pieces_of_the_syntax_tree_in_their_share(self) -> None:
        text = "\n".join(f"value_{i} = function(argument_{i}, other)" for i in range(200))
        pieces = [(m.start(), m.end()) for m in re.finditer(r"\(.*\)", text)]
        long = (0, MAX_SYNTAX_CHARS + 1)
        holes = sample_holes(text, 200, random.Random(0), [long])
        assert Hole(*long) not in holes
        drawn = [
            (hole.start, hole.end)
            for seed in range(20)
            for hole in sample_holes(text, 40, random.Random(seed), pieces)
        ]
        share = sum(piece in set(pieces) for piece in drawn) / len(drawn)
        # 40 of 200 lines, so few pieces are drawn twice or lost to a hole beside them.
        assert SYNTAX_SHARE / 2 < share < SYNTAX_SHARE * 1.3

    def test_the_shares_of_the_kinds_are_a_distribution(self) -> None:
        assert sum(share for _, share in HOLE_KINDS) == pytest.approx(1.0)

    def test_a_text_without_code_has_none(self) -> None:
        assert sample_holes("\n  \n\t\n", 5, random.Random(0)) == []


class TestBatch:
    @pytest.mark.parametrize("two_hole_share", [0.0, 1.0])
    def test_prefix_target_and_suffix_of_every_canvas_are_the_window(
        self, tokenizer: CodeTokenizer, two_hole_share: float
    ) -> None:
        num = 0
        for step in range(12):
            batch = sampler(tokenizer, two_hole_share=two_hole_share).batch(step)
            for prefix, canvas, suffix, _, window in canvases(batch):
                text = tokenizer.decode(batch.prefix_ids[window].tolist())
                assert tokenizer.decode([*prefix, *canvas, *reversed(suffix)]) == text
                whole_characters = text.rstrip("\ufffd")  # the window ends at a token
                assert any(whole_characters in document.text for document in DOCUMENTS)
                num += 1
        assert num > 30

    def test_a_canvas_of_two_holes_clamps_the_text_between_them(
        self, tokenizer: CodeTokenizer
    ) -> None:
        pairs = 0
        for step in range(40):
            for _, canvas, _, weights, _ in canvases(
                sampler(tokenizer, two_hole_share=1.0).batch(step)
            ):
                clamped = [i for i, w in zip(canvas, weights, strict=True) if w == 0]
                assert tokenizer.end_id not in clamped
                first_hole = weights.index(0) if clamped else len(weights)
                # The text between stands in one piece, with a finished hole on each side.
                assert weights[first_hole : first_hole + len(clamped)] == [0] * len(clamped)
                assert canvas[first_hole - 1] == tokenizer.end_id
                assert canvas[-1] == tokenizer.end_id
                pairs += bool(clamped)
        assert pairs >= 10

    def test_a_hole_longer_than_its_canvas_is_cut_and_not_ended(
        self, tokenizer: CodeTokenizer
    ) -> None:
        ended = cut = 0
        for step in range(12):
            batch = sampler(tokenizer, canvas_sizes=(4,)).batch(step)
            for prefix, canvas, suffix, weights, window in canvases(batch):
                text = tokenizer.decode(batch.prefix_ids[window].tolist())
                whole = tokenizer.decode([*prefix, *canvas, *reversed(suffix)]) == text
                stream = batch.prefix_ids[window].tolist()
                if tokenizer.end_id in canvas:
                    assert whole
                    ended += 1
                else:
                    assert weights == [1.0] * 4
                    assert canvas == stream[len(prefix) : len(prefix) + 4]
                    cut += not whole
        assert ended > 10
        assert cut > 10

    def test_file_edges_stand_in_the_streams_exactly_where_the_window_has_them(
        self, tokenizer: CodeTokenizer, code: str
    ) -> None:
        text = "".join(f"{code}# {i}\n" for i in range(5))
        shape = BatchShape(windows=60, stream_tokens=300, canvases=1, canvas_sizes=(16,))
        batch = WindowSampler([Document(text, "python", "")], tokenizer, shape, seed=0).batch(0)
        starts = batch.prefix_ids[:, 1] == tokenizer.file_start_id
        ends = batch.suffix_ids[:, 1] == tokenizer.file_end_id
        for ids, starts_file, ends_file in zip(batch.prefix_ids, starts, ends, strict=True):
            window = tokenizer.decode(ids.tolist())
            assert window in text
            assert starts_file == text.startswith(window)
            assert ends_file == text.endswith(window)
        # Both happen often, and so do windows from the middle.
        assert starts.sum() > 5
        assert ends.sum() > 5
        assert (~starts & ~ends).sum() > 5

    def test_streams_begin_with_the_language_and_predict_their_next_token(
        self, tokenizer: CodeTokenizer
    ) -> None:
        batch = sampler(tokenizer).batch(0)
        for ids, targets in (
            (batch.prefix_ids, batch.prefix_targets),
            (batch.suffix_ids, batch.suffix_targets),
        ):
            assert set(ids[:, 0].tolist()) == {tokenizer.language_id("python")}
            has_target = targets != NO_TARGET
            assert targets[:, :-1][has_target[:, :-1]].equal(ids[:, 1:][has_target[:, :-1]])
            assert not has_target[:, -1].any()

    def test_both_streams_hold_the_same_tokens(self, tokenizer: CodeTokenizer) -> None:
        batch = sampler(tokenizer).batch(0)
        for forward, backward in zip(batch.prefix_ids, batch.suffix_ids, strict=True):
            read = [
                [i for i in stream.tolist() if i not in tokenizer.special_ids]
                for stream in (forward, backward)
            ]
            assert read[0] == read[1][::-1]

    def test_every_canvas_has_something_to_learn(self, tokenizer: CodeTokenizer) -> None:
        batch = sampler(tokenizer, canvases=60).batch(0)
        assert (batch.canvas_weights.sum(-1) > 0).all()

    def test_has_the_shapes_it_promises(self, tokenizer: CodeTokenizer) -> None:
        batch = sampler(tokenizer, canvas_sizes=(16,)).batch(0)
        assert batch.prefix_ids.shape == batch.suffix_targets.shape == (3, 160)
        assert batch.prefix_seen.shape == (3, 6)
        assert batch.canvas_targets.shape == batch.canvas_weights.shape == (3, 6, 16)


class TestOrder:
    @staticmethod
    def same(a: Batch, b: Batch) -> bool:
        return all(torch.equal(getattr(a, n), getattr(b, n)) for n in Batch.__slots__)

    def test_batch_n_of_a_seed_is_always_the_same(self, tokenizer: CodeTokenizer) -> None:
        one, other = sampler(tokenizer), sampler(tokenizer)
        one.batch(0)  # what was drawn before does not matter
        assert self.same(one.batch(5), other.batch(5))

    def test_steps_and_seeds_give_other_batches(self, tokenizer: CodeTokenizer) -> None:
        batch = sampler(tokenizer).batch(0)
        assert not self.same(batch, sampler(tokenizer).batch(1))
        assert not self.same(batch, sampler(tokenizer, seed=1).batch(0))

    def test_a_long_file_is_drawn_more_often_than_a_short_one(
        self, tokenizer: CodeTokenizer
    ) -> None:
        long, short = Document("a = 1\n" * 90, "python", ""), Document("b = 2\n" * 10, "go", "")
        shape = BatchShape(windows=50, stream_tokens=16, canvases=1, canvas_sizes=(4,))
        batch = WindowSampler([short, long], tokenizer, shape, seed=0).batch(0)
        from_long = (batch.prefix_ids[:, 0] == tokenizer.language_id("python")).sum().item()
        assert 38 <= from_long < 50  # 45 expected, of which 38 is more than 3 deviations away


def test_documents_load_in_the_order_of_their_shards(tmp_path: Path) -> None:
    documents = [Document(f"text {i}", "go", "s") for i in range(4)]
    write_shard(tmp_path / "train-001.jsonl.gz", documents[2:])
    write_shard(tmp_path / "train-000.jsonl.gz", documents[:2])
    write_shard(tmp_path / "heldout.jsonl.gz", [Document("other", "c", "s")])
    assert load_documents(tmp_path) == documents


def test_a_corpus_without_its_held_out_shard_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000.jsonl.gz", [Document("x = 1\n", "python", "s")])
    with pytest.raises(ValueError, match=r"has no files in heldout\.jsonl\.gz; pack"):
        load_documents(tmp_path, "heldout.jsonl.gz")
