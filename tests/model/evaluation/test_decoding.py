from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import pytest

from model.api import InvalidRequestError
from model.evaluation.decoding import (
    Decoding,
    add_model_arguments,
    add_policy_arguments,
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
            (("--threshold", "0.5"), Decoding(policy="threshold", threshold=0.5)),
            (("--steps", "4"), Decoding(policy="fixed", steps=4)),
            (("--policy", "fixed", "--steps", "4"), Decoding(policy="fixed", steps=4)),
            (("--policy", "entropy"), Decoding(policy="entropy")),
            (("--entropy-bound", "0"), Decoding(policy="entropy", entropy_bound=0.0)),
            (("--policy", "autoregressive"), Decoding(policy="autoregressive")),
            (("--policy", "verified"), Decoding(policy="verified")),
            (("--factor", "0.5"), Decoding(policy="factor", factor=0.5)),
            (("--policy", "left-to-right"), Decoding(policy="left-to-right")),
            (("--oracle-length",), Decoding(oracle_length=True)),
            (("--max-lines", "1"), Decoding(max_lines=1)),
            (
                ("--prefix-tokens", "400", "--suffix-tokens", "0"),
                Decoding(prefix_tokens=400, suffix_tokens=0),
            ),
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
            ("--policy", "autoregressive", "--steps", "4"),
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

    @pytest.mark.parametrize(
        "argv", [("--steps", "0"), ("--threshold", "2"), ("--max-lines", "-7")]
    )
    def test_a_value_out_of_range_is_refused_at_once(self, argv: tuple[str, ...]) -> None:
        with pytest.raises(InvalidRequestError, match=argv[1]):
            parsed(*argv)


class TestRequest:
    def test_texts_go_in_as_they_are_and_the_middle_stays_out(self) -> None:
        request = Decoding().request(prefix="for num", suffix=" in x\n", middle="ber")
        assert (request.prefix, request.suffix) == ("for num", " in x\n")
        assert request.length_of is None
        assert "ber" not in repr(request)

    def test_an_oracle_tells_the_length_of_the_middle(self) -> None:
        assert Decoding(oracle_length=True).request(prefix="a", middle="ber").length_of == "ber"

    def test_budgets_and_lines_are_told(self) -> None:
        decoding = Decoding(prefix_tokens=99, suffix_tokens=0, max_lines=2, max_new_tokens=7)
        request = decoding.request(prefix="a")
        assert (request.prefix_tokens, request.suffix_tokens) == (99, 0)
        assert (request.max_lines, request.max_new_tokens) == (2, 7)

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
                Decoding(policy="verified", max_lines=1),
                Decoding(policy="threshold"),
            )
        ] == [
            "the model's own", "fixed 4", "entropy 0.1, oracle length", "factor 0.5",
            "left-to-right", "autoregressive", "verified, at most 1 lines", "threshold 0.9",
        ]  # fmt: skip


class TestFilling:
    def completer_arguments(self, checkpoint: Path) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        add_model_arguments(parser)
        return parser.parse_args(["--model", str(checkpoint), "--device", "cpu"])

    @pytest.mark.parametrize("policy", ["verified", "autoregressive"])
    def test_each_hole_is_filled_with_its_cost(
        self, checkpoint: Path, policy: Literal["verified", "autoregressive"]
    ) -> None:
        decoding = Decoding(policy=policy, oracle_length=True)
        requests = [decoding.request(prefix="x = ", middle=m) for m in ("1", "sum(numbers)")]
        completer = open_completer(self.completer_arguments(checkpoint))
        fills, interrupted = fill_all(completer, requests)
        assert not interrupted
        assert all(1 <= fill.forwards <= fill.tokens for fill in fills)
        if policy == "autoregressive":
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
        request = Decoding(max_new_tokens=2).request(prefix="x = ")
        fills, interrupted = fill_all(completer, [request] * 5)
        assert interrupted
        assert len(fills) == 2
