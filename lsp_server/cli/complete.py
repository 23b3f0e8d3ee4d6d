"""`mezzotint complete`: a file and a place in it -> what may stand there."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial

from lsp_server.ask.completion import Completion, Suggestion, complete_context, window_sizes
from lsp_server.check.syntax import CHECKED_CHARS, SyntaxChecker, SyntaxPlace
from lsp_server.cli.screen import Film, Screen, in_place
from lsp_server.document.context import InfillContext, context_at, offset_at, read_document
from lsp_server.languages import language_of
from lsp_server.settings import CandidateSettings, DeadlineSettings, Settings
from model import api, engines
from model.backbone.catalogue import resolve


def run_complete(args: argparse.Namespace) -> int:
    """`mezzotint complete`. Raises `DocumentError`, `CompletionError`."""
    place = args.place
    # No editor waits for this answer: it may take as long as it takes (an hour is the limit).
    settings = Settings(
        candidates=CandidateSettings(manual=args.candidates),
        steps=args.steps,
        deadline_ms=DeadlineSettings(manual=3_600_000),
        syntax_check="warn",
    )
    text = read_document(place.path, settings.max_file_kb)
    start = offset_at(text, place.line, place.column)
    end = start if args.until is None else offset_at(text, *args.until)
    window = partial(context_at, text, start, end, language=language_of(str(place.path)))
    screen = Screen(sys.stderr if args.json else sys.stdout)
    model = resolve(args.model)
    completer = engines.load(model, device=args.device)
    film = Film(screen) if args.film else None
    completion = asyncio.run(_fill(completer, window, settings, film))

    if args.json:
        print(json.dumps(_summary(completion, str(model))))
    if completion.reason is not None:
        raise api.CompletionError(completion.reason.message)
    best = completion.suggestions[0]
    if args.film:
        screen.write_lines(in_place(text, start, end, best.text, screen))
    if not args.json and not (args.film and len(completion.suggestions) == 1):
        _print_texts(completion.suggestions)
    if best.new_syntax_errors:
        print(f"mezzotint: note that it {_adds_errors(best)}", file=sys.stderr)
    return 0


async def _fill(
    completer: api.Completer,
    window: Callable[..., InfillContext],
    settings: Settings,
    on_frame: api.FrameListener | None,
) -> Completion:
    """Complete in the document that `window` cuts contexts from; closes the completer."""
    context = window(**window_sizes(settings))
    surroundings = window(prefix_chars=CHECKED_CHARS, suffix_chars=CHECKED_CHARS)
    try:
        return await complete_context(
            completer,
            context,
            SyntaxPlace(SyntaxChecker(), surroundings),
            settings,
            explicit=True,
            on_frame=on_frame,
        )
    finally:
        await completer.close()


def _summary(completion: Completion, model: str) -> dict[str, object]:
    result = completion.result
    tokens, forwards = (result.tokens, result.forwards) if result else (0, 0)
    return {
        "model": model,
        "candidates": [
            {
                "text": suggestion.text,
                "confidence": round(suggestion.confidence, 4),
                "new_syntax_errors": suggestion.new_syntax_errors,
            }
            for suggestion in completion.suggestions
        ],
        "verified": result is not None and result.verified,
        "forwards": forwards,
        "tokens": tokens,
        "tokens_per_forward": round(tokens / forwards, 2) if forwards else 0.0,
        "ms": round(result.ms, 2) if result else 0.0,
    }


def _print_texts(suggestions: Sequence[Suggestion]) -> None:
    """One text exactly as it is, for programs; several with numbers, for people."""
    if len(suggestions) == 1:
        sys.stdout.write(suggestions[0].text)
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        return
    for number, suggestion in enumerate(suggestions, start=1):
        note = f", {_adds_errors(suggestion)}" if suggestion.new_syntax_errors else ""
        print(f"[{number}] confidence {suggestion.confidence:.2f}{note}")
        print(suggestion.text)


def _adds_errors(suggestion: Suggestion) -> str:
    errors = suggestion.new_syntax_errors
    return f"adds {errors} syntax error{'' if errors == 1 else 's'}"
