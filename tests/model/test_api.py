from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from model.api import Candidate, CompletionError, InfillRequest, InvalidRequestError
from model.engines import connect


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("candidates", 17),
        ("steps", 0),
        ("threshold", 1.01),
        ("entropy_bound", -0.1),
        ("policy", "random"),
        ("factor", -1.0),
        ("remask", 1.5),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("deadline_ms", -1.0),
        ("min_confidence", 1.1),
        ("priority", "urgent"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=rf"{name} is '?{value}'?; "):
        InfillRequest(prefix="", **{name: value})  # pyright: ignore[reportArgumentType]


def test_a_fixed_number_of_steps_leaves_no_choice_to_another_policy() -> None:
    with pytest.raises(InvalidRequestError, match="leave out the policy 'entropy'"):
        InfillRequest(prefix="", steps=4, policy="entropy")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"policy": "autoregressive", "steps": 3}, "leave out the policy 'autoregressive'"),
        ({"policy": "autoregressive", "remask": 0.1}, "leave out `remask`"),
        ({"policy": "left-to-right", "remask": 0.1}, "leave out `remask`"),
        ({"threshold": 0.5, "remask": 0.6}, "remask must not be larger"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        InfillRequest(prefix="", **fields)


@pytest.mark.parametrize(
    "others", [{"length_of": ""}, {"typed": "x"}, {"between": ("x",)}], ids=lambda o: next(iter(o))
)
def test_a_known_length_is_for_one_untouched_hole(others: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="length_of"):
        InfillRequest(prefix="", **{"length_of": "text", **others})


def test_unset_steps_and_deadline_are_valid() -> None:
    request = InfillRequest(prefix="x", steps=None, deadline_ms=None)
    assert request.steps is None
    assert request.deadline_ms is None


def test_every_refusal_is_a_completion_error() -> None:
    with pytest.raises(CompletionError):
        InfillRequest(prefix="", candidates=0)


def test_the_text_of_a_candidate_is_its_first_hole() -> None:
    assert Candidate(texts=("one", "two"), confidence=0.5).text == "one"


def test_connect_refuses_an_address_that_is_no_socket() -> None:
    with pytest.raises(InvalidRequestError, match="ftp://somewhere"):
        connect("ftp://somewhere", "token")


def test_importing_the_interface_imports_no_torch() -> None:
    program = "import sys, model.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "fields", [{"avoid": ("x",) * 17}, {"avoid": ("x",), "between": ("y",)}, {"max_lines": 0},
               {"min_indent": -1}, {"prefix_tokens": 1}, {"suffix_tokens": -1}],
)  # fmt: skip
def test_what_a_backbone_cannot_be_asked_for_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(fields))):
        InfillRequest(prefix="", **fields)
