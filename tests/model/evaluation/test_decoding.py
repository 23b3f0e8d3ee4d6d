from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from model.api import Candidate, InfillRequest, InvalidRequestError
from model.evaluation.decoding import (
    Decoding,
    add_model_arguments,
    add_policy_arguments,
    choice_of,
    decoding_of,
    fill_all,
    open_completer,
)


def parsed(*argv: str) -> Decoding:
    parser = argparse.ArgumentParser()
    add_policy_arguments(parser)
    return decoding_of(parser.parse_args(argv))


class TestOptions:
    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            ((), Decoding()),
            (("--threshold", "0.5"), Decoding(threshold=0.5)),
            (("--steps", "4"), Decoding(policy="fixed", steps=4)),
            (("--policy", "fixed", "--steps", "4"), Decoding(policy="fixed", steps=4)),
            (("--policy", "entropy"), Decoding(policy="entropy")),
            (("--entropy-bound", "0"), Decoding(policy="entropy", entropy_bound=0.0)),
            (("--autoregressive",), Decoding(policy="autoregressive")),
            (("--factor", "0.5"), Decoding(policy="factor", factor=0.5)),
            (("--policy", "left-to-right"), Decoding(policy="left-to-right")),
            (("--oracle-length",), Decoding(oracle_length=True)),
            (("--lengths", "2", "5", "--checked"), Decoding(lengths=(2, 5), checked=True)),
            (("--no-n-grams",), Decoding(n_grams=False)),
            (
                ("--priority", "manual", "--max-new-tokens", "9"),
                Decoding(priority="manual", max_new_tokens=9),
            ),
        ],
    )
    def test_a_policy_follows_from_its_parameter(
        self, argv: tuple[str, ...], expected: Decoding
    ) -> None:
        assert parsed(*argv) == expected

    @pytest.mark.parametrize(
        "argv",
        [
            ("--autoregressive", "--steps", "4"),
            ("--policy", "threshold", "--entropy-bound", "1"),
            ("--steps", "4", "--threshold", "0.9"),
        ],
    )
    def test_options_of_two_policies_are_refused(self, argv: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match=r"ask for .* and .* at once; choose one"):
            parsed(*argv)

    def test_fixed_needs_its_number_of_steps(self) -> None:
        with pytest.raises(ValueError, match="'fixed' and a number of steps go together"):
            parsed("--policy", "fixed")

    @pytest.mark.parametrize("argv", [("--steps", "0"), ("--threshold", "2")])
    def test_a_value_out_of_range_is_refused_at_once(self, argv: tuple[str, ...]) -> None:
        with pytest.raises(InvalidRequestError, match=argv[1]):
            parsed(*argv)

    def test_there_must_be_something_to_choose_from(self) -> None:
        with pytest.raises(ValueError, match="chooses among several fills; name further lengths"):
            parsed("--checked")


class TestChoice:
    REQUEST = InfillRequest(prefix="def f(x):\n", suffix="    return x\n", language="python")

    def chosen(self, *texts: str, request: InfillRequest = REQUEST) -> str:
        candidates = [Candidate(texts=(text,), confidence=0.5) for text in texts]
        choice = choice_of(Decoding(lengths=(1,), checked=True))
        assert choice_of(Decoding())(request, candidates).text == texts[0]
        return choice(request, candidates).text

    def test_the_best_with_which_the_text_parses_is_taken(self) -> None:
        texts = ("    if x:\n", "  \n", "    x = 1)\n", "    x += 1\n", "    x = 1\n")
        assert self.chosen(*texts) == "    x += 1\n"

    def test_where_none_does_it_is_the_engines_best(self) -> None:
        assert self.chosen("    if x:\n", "    x = (\n", "\n") == "    if x:\n"

    def test_where_no_parser_knows_the_language_it_is_the_engines_best(self) -> None:
        request = replace(self.REQUEST, language="klingon")
        assert self.chosen("a", "b", request=request) == "a"


class TestRequest:
    def test_texts_go_in_as_they_are_and_the_middle_stays_out(self) -> None:
        request = Decoding().request(prefix="for num", suffix=" in x\n", middle="ber")
        assert (request.prefix, request.suffix) == ("for num", " in x\n")
        assert request.length_of is None
        assert "ber" not in repr(request)

    def test_an_oracle_tells_the_length_of_the_middle(self) -> None:
        assert Decoding(oracle_length=True).request(prefix="a", middle="ber").length_of == "ber"

    def test_n_grams_can_be_left_out(self) -> None:
        assert Decoding().request(prefix="a").n_grams
        assert not Decoding(n_grams=False).request(prefix="a").n_grams

    def test_labels_tell_decodings_apart(self) -> None:
        assert [
            decoding.label
            for decoding in (
                Decoding(),
                Decoding(policy="fixed", steps=4),
                Decoding(policy="entropy", entropy_bound=0.1, oracle_length=True),
                Decoding(policy="factor", factor=0.5),
                Decoding(policy="left-to-right"),
                Decoding(policy="autoregressive"),
                Decoding(lengths=(2, 5), checked=True),
                Decoding(n_grams=False),
            )
        ] == [
            "threshold 0.9", "fixed 4", "entropy 0.1, oracle length", "factor 0.5",
            "left-to-right", "autoregressive", "threshold 0.9, best of 3 lengths, checked",
            "threshold 0.9, no n-grams",
        ]  # fmt: skip


class TestFilling:
    def completer_arguments(self, checkpoint: Path) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        add_model_arguments(parser)
        return parser.parse_args(["--model", str(checkpoint), "--device", "cpu"])

    @pytest.mark.parametrize("policy", ["left-to-right", "autoregressive"])
    def test_each_hole_is_filled_with_its_cost(
        self, checkpoint: Path, policy: Literal["left-to-right", "autoregressive"]
    ) -> None:
        decoding = Decoding(policy=policy, oracle_length=True)
        requests = [decoding.request(prefix="x = ", middle=m) for m in ("1", "sum(numbers)")]
        completer = open_completer(self.completer_arguments(checkpoint))
        fills, interrupted = fill_all(completer, requests)
        assert not interrupted
        assert [fill.tokens for fill in fills] == [fill.forwards for fill in fills]
        assert fills[0].tokens < fills[1].tokens
        assert all(fill.ms > 0 and fill.finished for fill in fills)

    def test_an_interruption_keeps_what_is_filled(self, checkpoint: Path) -> None:
        completer = open_completer(self.completer_arguments(checkpoint))
        complete, calls = completer.complete, []

        async def interrupted_third(request: object, **options: object) -> object:
            calls.append(request)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return await complete(request, **options)  # type: ignore[arg-type]

        completer.complete = interrupted_third  # type: ignore[method-assign,assignment]
        request = Decoding(policy="fixed", steps=1).request(prefix="x = ")
        fills, interrupted = fill_all(completer, [request] * 5)
        assert interrupted
        assert len(fills) == 2
