"""Write whole functions without a suffix and run their tests: HumanEval, MultiPL-E.

The model ends the function itself or writes on; what counts is the function alone:

* Python: up to the first statement or comment that begins at column 0 behind it (by Python's
  tokenizer, so that a string or a bracket may go there);
* other languages: up to the first of the problem's own `stop_tokens`.
"""

from __future__ import annotations

import argparse
import io
import tokenize
from collections.abc import Iterable
from dataclasses import replace

from model.evaluation.decoding import Fill
from model.evaluation.infilling import add_scoring_arguments, evaluate, load_tasks
from model.evaluation.infilling import check_arguments as check_arguments  # the same for both
from model.evaluation.problems import Problem, whole_functions
from model.evaluation.report import Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mezzotint evaluate generation`."""
    add_scoring_arguments(parser)


def run(args: argparse.Namespace) -> Figures:
    """Evaluate; returns the figures. Raises as `infilling.run` does."""
    return evaluate(args, load_tasks(args, without_suffix), first_function)


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
