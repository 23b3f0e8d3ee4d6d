"""`mezzotint bench keystrokes`: what every key costs in an editing session.

Each event of the session is the request that the language server would make, its windows cut as the
language server cuts them. What is counted is how many context tokens the engine had to encode for
it, because no cache held them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from lsp_server.ask.completion import infill_request, window_sizes
from lsp_server.document.context import context_at
from lsp_server.settings import Settings
from model.api import Completer, InfillRequest
from model.benchmarks.session import Event, EventKind, events
from model.benchmarks.setting import Setting, verifying
from model.benchmarks.table import Goal, Row
from model.evaluation.report import Figures, percentile, share

TITLE = "An editing session, key by key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one event cost."""

    kind: EventKind
    encoded: int
    """Context tokens that no cache held."""
    context: int
    """Tokens that the model reads."""
    ms: float


async def measure(setting: Setting, num_events: int) -> Figures:
    """Replay a session. Raises `CompletionError`, `OSError` and `ValueError`."""
    setting.require_backbone()
    session = events(setting.sources, num_events, setting.seed)
    completer = setting.open_completer()
    try:
        costs = await replay(completer, session)
        cache_bytes = verifying(completer).runner.cache_bytes
    finally:
        await completer.close()
    return {**summary(costs), "cache_bytes": cache_bytes, "kinds": by_kind(costs)}


async def replay(completer: Completer, session: Sequence[Event]) -> list[Cost]:
    """Every event's request, one after the other."""
    costs: list[Cost] = []
    for event in tqdm(session, desc=TITLE, unit="key"):
        result = await completer.complete(request_for(event))
        costs.append(
            Cost(
                kind=event.kind,
                encoded=result.encoded_tokens,
                context=result.context.tokens,
                ms=result.ms,
            )
        )
    return costs


def request_for(event: Event) -> InfillRequest:
    """The language server's request for an event, with its settings as they come."""
    settings = Settings()
    context = context_at(
        event.text,
        event.cursor,
        language=event.language,
        **window_sizes(settings),
    )
    return infill_request(
        context, settings, explicit=False, document=event.document, client="bench"
    )


# ---- figures ---------------------------------------------------------------------------------


def summary(costs: Sequence[Cost]) -> Figures:
    """Tokens encoded an event, share of the context found in the cache, milliseconds."""
    encoded = [cost.encoded for cost in costs]
    context = sum(cost.context for cost in costs)
    times = [cost.ms for cost in costs]
    return {
        "events": len(costs),
        "tokens_per_keystroke": share(sum(encoded), len(costs)),
        "encoded_p50": percentile(encoded, 50),
        "encoded_max": max(encoded),
        "cache_hit_rate": share(context - sum(encoded), context),
        "context_tokens_mean": share(context, len(costs)),
        "ms_p50": percentile(times, 50),
        "ms_p95": percentile(times, 95),
    }


def by_kind(costs: Sequence[Cost]) -> dict[str, Figures]:
    """The same for each kind of event, with its share of all encoded tokens."""
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        groups.setdefault(cost.kind, []).append(cost)
    total = sum(cost.encoded for cost in costs)
    return {
        name: {
            **summary(group),
            "share_of_encoded": share(sum(cost.encoded for cost in group), total),
        }
        for name, group in sorted(groups.items())
    }


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    on_cpu = not setting.on_cuda
    typed: Figures = figures["kinds"].get("type", {})
    table = [
        Row("tokens encoded a typed key", typed.get("encoded_p50"), "", Goal("at most", 2)),
        Row("tokens encoded an event, mean", figures["tokens_per_keystroke"]),
        Row("context found in the cache", figures["cache_hit_rate"]),
        Row("cache", round(figures["cache_bytes"] / 1e6, 1), "MB"),
        Row("median", figures["ms_p50"], "ms", Goal("at most", 300) if on_cpu else None),
        Row("95th percentile", figures["ms_p95"], "ms"),
    ]
    for name, kind in figures["kinds"].items():
        note = (
            f"{kind['events']} events, {kind['share_of_encoded'] or 0:.0%} of all encoded, "
            f"half of them {kind['encoded_p50']:.0f}, at most {kind['encoded_max']}; "
            f"{kind['ms_p50']:.1f} ms, 95 % within {kind['ms_p95']:.1f} ms"
        )
        table.append(Row(f"  {name}", kind["tokens_per_keystroke"], "tokens", note=note))
    return table
