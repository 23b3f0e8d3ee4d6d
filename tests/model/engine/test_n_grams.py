from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import log
from types import EllipsisType

import pytest
import torch

from model.denoiser import Denoiser
from model.engine.assembly import engine_for
from model.engine.engine import Engine
from model.engine.n_grams import NGrams, Strength, healed
from model.engine.sampler import Vocabulary
from model.engine.sequence import Fill, SamplingParams, Sequence
from model.infill import CanvasLayout, StreamLayout
from model.tokenizer import CodeTokenizer

STRENGTHS = (Strength(1, 4.0), Strength(2, 2.0))
TIMEOUT_S = 60


@pytest.fixture
def vocabulary(tokenizer: CodeTokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer, tokenizer.vocab_size, torch.device("cpu"))


@pytest.fixture
def n_grams(tokenizer: CodeTokenizer, vocabulary: Vocabulary) -> NGrams:
    return NGrams(tokenizer, vocabulary, STRENGTHS)


def fill_of(
    n_grams: NGrams,
    tokenizer: CodeTokenizer,
    before: str,
    after: str = "",
    *,
    params: SamplingParams | None = None,
    typed: str = "",
    slots: int = 15,
) -> Fill:
    """A fill between two texts, which are the document."""
    layout, prefix, suffix = StreamLayout(tokenizer), *map(tokenizer.encode, (before, after))
    return Fill(
        prefix=layout.prefix_stream(prefix, "python", starts_file=True),
        suffix=layout.suffix_stream(suffix, "python", ends_file=True),
        layout=CanvasLayout.for_holes(slots, typed=len(tokenizer.encode(typed))),
        typed=tuple(tokenizer.encode(typed)),
        params=(params or SamplingParams(),),
        document=(
            n_grams.text(prefix, precedes_hole=True),
            n_grams.text(suffix, precedes_hole=False),
        ),
    )


def sequence_of(fill: Fill, vocabulary: Vocabulary) -> Sequence:
    return Sequence.of(
        fill,
        fill.params[0],
        mask_id=vocabulary.mask_id,
        end_id=vocabulary.end_id,
        max_context=64,
    )


def test_strengths_have_to_make_sense() -> None:
    for order, strength in ((0, 1.0), (1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(ValueError, match="order must be at least 1 and its strength above 0"):
            Strength(order, strength)


class TestCounts:
    def test_what_follows_the_context_is_counted_on_both_sides(
        self, n_grams: NGrams, tokenizer: CodeTokenizer
    ) -> None:
        fill = fill_of(n_grams, tokenizer, "self.items\nself.push\n", "self.items\nreturn.x")
        (dot,), context = tokenizer.encode("."), tokenizer.encode("self.")
        items, push = tokenizer.encode("items")[0], tokenizer.encode("push")[0]
        one, two = n_grams.counts(fill.document, context, 1)
        assert two == Counter({items: 2, push: 1})
        assert one == two + Counter({tokenizer.encode("x")[0]: 1})
        assert n_grams.counts(fill.document, [dot], 1) == [one]

    def test_without_context_there_is_nothing_to_count(
        self, n_grams: NGrams, tokenizer: CodeTokenizer
    ) -> None:
        fill = fill_of(n_grams, tokenizer, "self.items")
        assert n_grams.counts(fill.document, [], 0) == []

    def test_behind_a_cursor_the_rest_of_a_word_is_counted(
        self, n_grams: NGrams, tokenizer: CodeTokenizer
    ) -> None:
        assert len(tokenizer.encode(" numbers")) == 1 < len(tokenizer.encode(" num"))
        fill = fill_of(n_grams, tokenizer, "for x in numbers:\n    x in num")
        context, rest = tokenizer.encode(" in num"), Counter({tokenizer.encode("bers")[0]: 1})
        assert n_grams.counts(fill.document, context, 0) == [rest, rest]
        assert n_grams.counts(fill.document, context, 1) == [rest, rest], "still in the word"
        assert n_grams.counts(fill.document, context, 5) == [Counter(), Counter()]

    def test_a_word_that_the_cursor_cut_is_one_again_behind_it(
        self, n_grams: NGrams, tokenizer: CodeTokenizer
    ) -> None:
        fill = fill_of(n_grams, tokenizer, "for x in numbers:\n    x in num")
        context = tokenizer.encode(" in num") + tokenizer.encode("bers")
        colon = Counter(tokenizer.encode(":"))
        assert n_grams.counts(fill.document, context, 1) == [colon, colon]

    def test_what_was_typed_is_one_word_with_what_stands_before_it(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        fill = fill_of(n_grams, tokenizer, "numbers(x)\nitems(self)\nnum", typed="bers(")
        slot = len(fill.typed)
        one, two = n_grams.counts_at(sequence_of(fill, vocabulary), slot)
        x, self_ = tokenizer.encode("x")[0], tokenizer.encode("self")[0]
        assert one == {x: 1, self_: 1}
        assert two == {x: 1}


@pytest.mark.parametrize(
    ("tokens", "cut", "expected"),
    [
        (["x", " ", "=", " ", "nu", "m"], 6, ["x", " ", "=", " num"]),
        (["x", " ", "nu", "m", "bers", "[", "0", "1"], 4, ["x", " numbers", "[", "0", "1"]),
        (["it", "ems", ".", "ap", "pend"], 3, ["it", "ems", ".", "ap", "pend"]),
        (["gr", "\u00f6", "\u00dfe"], 2, ["gr\u00f6\u00dfe"]),
        (["it", "ems"], 0, ["it", "ems"]),
        (["it", "ems"], -3, ["it", "ems"]),
        ([], 0, []),
    ],
)
def test_the_word_at_the_cursor_is_put_together(
    tokens: list[str], cut: int, expected: list[str]
) -> None:
    found = healed([token.encode() for token in tokens], cut)
    assert found == [word.encode() for word in expected]


class TestPosterior:
    def test_each_order_corrects_the_one_before(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        a, b, c = tokenizer.encode("a")[0], tokenizer.encode("b")[0], tokenizer.encode("c")[0]
        logits = torch.full((tokenizer.vocab_size,), float("-inf"))
        logits[[a, b, vocabulary.end_id]] = torch.tensor([0.6, 0.2, 0.2]).log()
        found = n_grams.posterior(
            logits, [Counter({b: 3, c: 1}), Counter({c: 2})], b"", may_end=True
        )
        prior = {a: 0.6, b: 0.2, c: 0.0, vocabulary.end_id: 0.2}
        first = {w: ({b: 3, c: 1}.get(w, 0) + 8 * p) / 12 for w, p in prior.items()}
        second = {w: ({c: 2}.get(w, 0) + 2 * p) / 4 for w, p in first.items()}
        for token in (a, b, c):  # the end keeps its chance, and the others share what is left
            chance = second[token] * 0.8 / (1 - second[vocabulary.end_id])
            assert found[token].item() == pytest.approx(chance)
        assert found[vocabulary.end_id].item() == pytest.approx(0.2)
        assert found.sum().item() == pytest.approx(1)

    @pytest.mark.parametrize(
        ("following", "seen", "inner"),
        [
            ("\n    return", "\n    ", None),  # the hole may end here
            ("    return", "\n    ", "\n"),  # a line end that takes the indentation along
            ("s", "numbers", "number"),
            ("x", "numbers", ...),
            ("", "\n    ", ...),
        ],
    )
    def test_a_count_of_what_follows_the_hole_speaks_for_its_end_as_well(
        self,
        n_grams: NGrams,
        vocabulary: Vocabulary,
        tokenizer: CodeTokenizer,
        following: str,
        seen: str,
        inner: str | EllipsisType | None,
    ) -> None:
        token, *more = tokenizer.encode(seen)
        assert not more
        denoiser = torch.zeros(tokenizer.vocab_size)
        denoiser[token] = 0.1
        count = Counter({token: 8})
        if inner is ...:
            assert n_grams.shared(count, denoiser, following.encode()) == {token: 8}
            return
        other = vocabulary.end_id if inner is None else tokenizer.encode(inner)[0]
        denoiser[other] = 0.3
        shared = n_grams.shared(count, denoiser, following.encode())
        assert shared == {token: pytest.approx(2), other: pytest.approx(6)}

    def test_no_counts_correct_nothing(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        logits = torch.randn(tokenizer.vocab_size, generator=torch.Generator().manual_seed(1))
        allowed = logits.masked_fill(vocabulary.forbidden, float("-inf"))
        found = n_grams.posterior(logits, [], b"", may_end=True)
        torch.testing.assert_close(found, allowed.softmax(-1))

    def test_a_sure_end_leaves_finite_chances(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        logits = torch.zeros(tokenizer.vocab_size)
        logits[vocabulary.end_id] = 1e4
        found = n_grams.posterior(logits, [], b"", may_end=True)
        assert found[vocabulary.end_id] == 1
        assert torch.isfinite(found).all()

    def test_where_the_hole_cannot_end_its_end_has_no_chance(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        found = n_grams.posterior(torch.zeros(tokenizer.vocab_size), [], b"", may_end=False)
        assert found[vocabulary.end_id] == 0
        assert found.sum().item() == pytest.approx(1)


class TestWeigh:
    PASSAGE = "self.items.append(item)\n"

    def weighed(
        self, n_grams: NGrams, vocabulary: Vocabulary, sequence: Sequence, logits: torch.Tensor
    ) -> torch.Tensor:
        given = logits.clone()
        n_grams.weigh([sequence], given[None])
        return given

    def test_a_repeated_passage_is_followed_as_far_as_it_is_sure(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        fill = fill_of(n_grams, tokenizer, self.PASSAGE * 40 + "self.items")
        sequence = sequence_of(fill, vocabulary)
        logits = torch.zeros(len(sequence.canvas), tokenizer.vocab_size)
        logits[:, vocabulary.end_id] = -20.0
        weighed = self.weighed(n_grams, vocabulary, sequence, logits)
        rest = tokenizer.encode(self.PASSAGE)[len(tokenizer.encode("self.items")) :]
        assert weighed[: len(rest)].argmax(dim=-1).tolist() == rest

    @pytest.mark.parametrize(
        "params",
        [SamplingParams(policy="left-to-right"), SamplingParams(steps=4),
         SamplingParams(temperature=0.5)],
    )  # fmt: skip
    def test_other_policies_are_told_of_the_leftmost_slot_alone(
        self,
        n_grams: NGrams,
        vocabulary: Vocabulary,
        tokenizer: CodeTokenizer,
        params: SamplingParams,
    ) -> None:
        fill = fill_of(n_grams, tokenizer, self.PASSAGE * 40 + "self.items", params=params)
        sequence = sequence_of(fill, vocabulary)
        logits = torch.zeros(len(sequence.canvas), tokenizer.vocab_size)
        logits[:, vocabulary.end_id] = -20.0
        weighed = self.weighed(n_grams, vocabulary, sequence, logits)
        assert not torch.equal(weighed[0], logits[0])
        assert torch.equal(weighed[1:], logits[1:])

    def test_what_a_doubt_may_mask_again_is_left_to_the_denoiser(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        params = SamplingParams(remask=0.2)
        fill = fill_of(n_grams, tokenizer, self.PASSAGE * 3 + "self.items", params=params)
        sequence = sequence_of(fill, vocabulary)
        logits = torch.zeros(len(sequence.canvas), tokenizer.vocab_size)
        assert torch.equal(self.weighed(n_grams, vocabulary, sequence, logits), logits)

    def test_each_of_several_holes_is_told_what_stands_before_it(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        fill = fill_of(n_grams, tokenizer, self.PASSAGE * 40 + "x = ")
        between = tokenizer.encode("\nself.items")
        fill.layout = CanvasLayout.for_holes(4, [between])
        sequence = sequence_of(fill, vocabulary)
        logits = torch.zeros(len(sequence.canvas), tokenizer.vocab_size)
        weighed = self.weighed(n_grams, vocabulary, sequence, logits)
        second = sequence.layout.holes()[1].start
        rest = tokenizer.encode(self.PASSAGE)[len(tokenizer.encode("self.items")) :]
        assert weighed[second].argmax().item() == rest[0]

    def test_an_end_is_no_end_before_a_decided_token(
        self, n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
    ) -> None:
        sequence = sequence_of(fill_of(n_grams, tokenizer, self.PASSAGE), vocabulary)
        sequence.canvas[3] = tokenizer.encode("x")[0]
        logits = torch.zeros(len(sequence.canvas), tokenizer.vocab_size)
        weighed = self.weighed(n_grams, vocabulary, sequence, logits)
        assert weighed[0, vocabulary.end_id] == float("-inf")


def test_a_causal_reading_is_corrected_token_by_token(
    n_grams: NGrams, vocabulary: Vocabulary, tokenizer: CodeTokenizer
) -> None:
    fill = fill_of(n_grams, tokenizer, "self.items\nself.push\nself")
    start = sequence_of(fill, vocabulary)
    text = tokenizer.encode(".items")
    corrected = n_grams.reread(start, text, [log(0.01)] * len(text))
    context = tokenizer.encode("self.items\nself.push\nself")
    for index, token in enumerate(text):
        chance = 0.01
        counts = n_grams.counts(fill.document, context[-2:], index)
        for each, count in zip(STRENGTHS, counts, strict=True):
            weight = each.strength * len(count)
            chance = (count[token] + weight * chance) / (count.total() + weight)
        assert corrected[index] == pytest.approx(log(chance))
        context.append(token)
    assert corrected[0] > log(0.5), "a dot follows each `self`"


class TestEngine:
    @pytest.fixture
    def engine(self, model: Denoiser, tokenizer: CodeTokenizer) -> Engine:
        return engine_for(model, tokenizer, strengths=(Strength(1, 1e-3), Strength(2, 1e-3)))

    def test_what_repeats_is_written_in_few_steps(
        self, engine: Engine, tokenizer: CodeTokenizer, make_engine: Callable[..., Engine]
    ) -> None:
        n_grams = engine.n_grams
        assert n_grams is not None
        before = "numbers = items\nresult = total\n" * 4 + "numbers = items\nresult"
        length = len(tokenizer.encode(" = total"))
        params = SamplingParams(length=length)
        fill = fill_of(n_grams, tokenizer, before, params=params)
        (output,) = engine.submit(fill).result(TIMEOUT_S)
        assert tokenizer.decode(output.holes[0]) == " = total"
        assert fill.forwards == 1
        assert output.confidence > 0.9
        silent = fill_of(n_grams, tokenizer, before, params=params)
        silent.document = ()
        (alone,) = engine.submit(silent).result(TIMEOUT_S)
        (without,) = make_engine().submit(silent).result(TIMEOUT_S)
        assert alone == without != output
        engine.close()

    @pytest.mark.parametrize("typed", ["", "re"])
    def test_of_several_lengths_the_one_that_the_document_leads_on_to_is_best(
        self, engine: Engine, tokenizer: CodeTokenizer, typed: str
    ) -> None:
        n_grams = engine.n_grams
        assert n_grams is not None
        before = "numbers = items\nresult = total\n" * 4 + "numbers = items\n"
        rest = len(tokenizer.encode("result = total".removeprefix(typed)))
        params = tuple(SamplingParams(length=n) for n in (rest - 1, rest, rest + 1))
        fill = fill_of(n_grams, tokenizer, before, "\nnumbers", typed=typed)
        fill.params = params
        best, *others = engine.submit(fill).result(TIMEOUT_S)
        assert tokenizer.decode(best.holes[0]) == "result = total"
        assert best.score is not None
        assert all(other.score is not None and other.score < best.score for other in others)
        engine.close()

    def test_the_baseline_is_not_told_what_follows_the_hole(
        self, engine: Engine, tokenizer: CodeTokenizer
    ) -> None:
        n_grams = engine.n_grams
        assert n_grams is not None
        params = SamplingParams(policy="autoregressive", length=3)
        texts = []
        for after in ("", "\nresult = total" * 6):
            fill = fill_of(n_grams, tokenizer, "x = 1\nresult", after, params=params)
            (output,) = engine.submit(fill).result(TIMEOUT_S)
            texts.append(output.holes)
        before = "result = total\n" * 6 + "result"
        fill = fill_of(n_grams, tokenizer, before, params=params)
        (told,) = engine.submit(fill).result(TIMEOUT_S)
        assert texts[0] == texts[1]
        assert tokenizer.decode(told.holes[0]).startswith(" =")
        engine.close()
