"""Write whole functions and run their tests: HumanEval, MultiPL-E.

A model with a chat template is asked for them in a conversation, and its answer begun with the
problem, so that it goes on with the function (`--plain`: the problem alone, as text). It ends the
function itself or writes on; what counts is the function alone:

* Python: up to the first statement or comment that begins at column 0 behind it (by Python's
  tokenizer, so that a string or a bracket may go there);
* other languages: up to the first of the problem's own `stop_tokens`;
* in a conversation, up to the end of the code in any case.
"""

from __future__ import annotations

import argparse
import io
import tokenize
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from model import api
from model.backbone.catalogue import resolve
from model.evaluation.decoding import Decoding, Fill
from model.evaluation.infilling import (
    add_scoring_arguments,
    evaluate,
    load_tasks,
    request_for,
)
from model.evaluation.infilling import check_arguments as check_infilling_arguments
from model.evaluation.problems import Problem, whole_functions
from model.evaluation.report import Figures

if TYPE_CHECKING:
    from model.serving.v1.chat_template import ChatTemplate

FENCE = "```"
INSTRUCTION = "Complete this {language} code so that it does what it says. Answer with code alone."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mezzotint evaluate generation`."""
    add_scoring_arguments(parser)
    parser.add_argument(
        "--plain", action="store_true", help="the problem as text, without a conversation"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Check what no single option can tell. Raises `ValueError`, `InvalidRequestError`."""
    check_infilling_arguments(args)
    if args.engine is not None and not args.plain:
        raise ValueError(
            "the chat template of an engine elsewhere is not known; use --plain, or --model"
        )


def run(args: argparse.Namespace) -> Figures:
    """Evaluate; returns the figures. Raises as `infilling.run` does."""
    problems = load_tasks(args, without_suffix)
    template = None if args.plain else _template(args)
    if template is None:
        return evaluate(args, problems, first_function, function_request)
    conversation = Conversation(template)
    return evaluate(args, problems, conversation.function, conversation.request)


def _template(args: argparse.Namespace) -> ChatTemplate | None:
    from model.serving.v1.chat_template import ChatTemplate  # which needs the server's packages

    return ChatTemplate.of_checkpoint(resolve(args.model))


def function_request(problem: Problem, decoding: Decoding) -> api.InfillRequest:
    """The request that goes on with a problem's text, and for Python with nothing behind the
    function: what comes at column 0 need not be waited for."""
    request = request_for(problem, decoding)
    return replace(request, min_indent=1) if problem.language == "python" else request


class Conversation:
    """Asks for a function in a conversation."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def request(self, problem: Problem, decoding: Decoding) -> api.InfillRequest:
        """The request whose answer goes on with the problem's text."""
        code = f"{FENCE}{problem.language}\n{problem.prefix}"
        instruction = INSTRUCTION.format(language=problem.language)
        content = f"{instruction}\n\n{code.rstrip()}\n{FENCE}"
        prompt = self._template.render([{"role": "user", "content": content}]) + code
        return replace(
            function_request(problem, decoding),
            prefix=prompt,
            special_tokens_in_prefix=True,
            must_fit=True,  # a conversation without its beginning is another one
        )

    def function(self, problem: Problem, fill: Fill) -> Fill:
        """`fill` up to where the function ends."""
        code = fill.text.partition(f"\n{FENCE}")[0]
        ended = code if code == fill.text else f"{code}\n"
        return first_function(problem, replace(fill, text=ended))


def without_suffix(problems: Iterable[Problem]) -> list[Problem]:
    """The problems as they are; of infilling tasks, the functions they were cut from."""
    problems = list(problems)
    if any(problem.suffix for problem in problems):
        return whole_functions(problems)
    return problems


def first_function(problem: Problem, fill: Fill) -> Fill:
    """`fill` up to where the function ends."""
    if problem.language == "python":
        end = _end_of_block(problem.prefix, fill.text)
    else:
        places = [fill.text.find(stop) for stop in problem.stop_tokens]
        end = min((place for place in places if place >= 0), default=len(fill.text))
    return replace(fill, text=fill.text[:end])


def _end_of_block(prefix: str, text: str) -> int:
    """Characters of `text` before the first logical line of its own at column 0."""
    whole = prefix + text
    starts = [0]
    for line in io.StringIO(whole):
        starts.append(starts[-1] + len(line))
    starts_line = True
    try:
        for token in tokenize.generate_tokens(io.StringIO(whole).readline):
            if token.type in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
                continue
            row, column = token.start
            offset = starts[row - 1]
            if starts_line and column == 0 and offset >= len(prefix):
                return offset - len(prefix)
            if token.type != tokenize.COMMENT:  # behind one, an open bracket is still open
                starts_line = token.type == tokenize.NEWLINE
    except (tokenize.TokenError, SyntaxError):
        pass  # it breaks off inside a bracket or a string: its own tests will tell
    return len(text)
