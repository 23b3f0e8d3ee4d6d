"""`mezzotint bench keystrokes`: what every key costs in an editing session.

Each event of the session is the request that the language server would make, its windows cut as the
language server cuts them. What is counted is how many context tokens the engine had to encode for
it, because no cache held them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from lsp_server.completion import infill_request, window_sizes
from lsp_server.context import context_at
from lsp_server.settings import Settings
from model.api import Completer, InfillRequest
from model.benchmarks.session import Event, EventKind, events
from model.benchmarks.setting import Setting
from model.benchmarks.table import Goal, Row
from model.evaluation.report import Figures, percentile, share
from model.infill import fitted, prefix_stream, suffix_stream

TITLE = "An editing session, key by key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one event cost."""

    kind: EventKind
    encoded: int
    """Context tokens that no cache held."""
    context: int
    """Tokens of both streams, as the model reads them."""
    moved: bool
    """Whether a stream begins at another place than at the document's last event."""
    ms: float


async def measure(setting: Setting, num_events: int) -> Figures:
    """Replay a session. Raises `CompletionError`, `OSError` and `ValueError`."""
    session = events(setting.sources, num_events, setting.seed)
    completer = setting.open_completer()
    try:
        costs = await replay(setting, completer, session)
        cache_bytes = completer.engine.runner.cache_bytes
    finally:
        await completer.close()
    return {**summary(costs), "cache_bytes": cache_bytes, "kinds": by_kind(costs)}


async def replay(setting: Setting, completer: Completer, session: Sequence[Event]) -> list[Cost]:
    """Every event's request, one after the other."""
    edges: dict[str, tuple[list[int], list[int]]] = {}
    costs: list[Cost] = []
    for event in tqdm(session, desc=TITLE, unit="key"):
        request = request_for(event)
        streams = _streams(setting, request)
        edge = (streams[0][:_EDGE_TOKENS], streams[1][:_EDGE_TOKENS])
        result = await completer.complete(request)
        costs.append(
            Cost(
                kind=event.kind,
                encoded=result.encoded_tokens,
                context=len(streams[0]) + len(streams[1]),
                moved=edges.get(event.document, edge) != edge,
                ms=result.ms,
            )
        )
        edges[event.document] = edge
    return costs


_EDGE_TOKENS = 8
"""Far enough from the edge to tell one place in a file from another."""


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


def _streams(setting: Setting, request: InfillRequest) -> tuple[list[int], list[int]]:
    """Both streams of a request, as long as the model reads them."""
    tokenizer, limit = setting.tokenizer, setting.shape.max_context
    prefix = prefix_stream(
        tokenizer,
        tokenizer.encode(request.prefix),
        request.language,
        starts_file=request.starts_file,
    )
    suffix = suffix_stream(
        tokenizer, tokenizer.encode(request.suffix), request.language, ends_file=request.ends_file
    )
    return fitted(prefix, limit), fitted(suffix, limit)


# ---- figures ---------------------------------------------------------------------------------


def summary(costs: Sequence[Cost]) -> Figures:
    """Tokens encoded an event, share of the context found in the cache, milliseconds."""
    encoded = sum(cost.encoded for cost in costs)
    context = sum(cost.context for cost in costs)
    times = [cost.ms for cost in costs]
    return {
        "events": len(costs),
        "tokens_per_keystroke": share(encoded, len(costs)),
        "cache_hit_rate": share(context - encoded, context),
        "context_tokens_mean": share(context, len(costs)),
        "ms_p50": percentile(times, 50),
        "ms_p95": percentile(times, 95),
    }


def by_kind(costs: Sequence[Cost]) -> dict[str, Figures]:
    """The same for each kind of event, and for those at which a stream's far edge moved, with
    their share of all encoded tokens."""
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        moved = cost.moved and cost.kind != "open"
        groups.setdefault(f"{cost.kind}, window moved" if moved else cost.kind, []).append(cost)
    total = sum(cost.encoded for cost in costs)
    return {
        name: {
            **summary(group),
            "share_of_encoded": share(sum(cost.encoded for cost in group), total),
            "encoded_max": max(cost.encoded for cost in group),
        }
        for name, group in sorted(groups.items())
    }


def rows(figures: Figures, setting: Setting) -> list[Row]:
    """The lines of the table."""
    on_cpu = not setting.on_cuda
    table = [
        Row("tokens encoded a key", figures["tokens_per_keystroke"], "", Goal("at most", 4)),
        Row("context found in the cache", figures["cache_hit_rate"]),
        Row("cache", round(figures["cache_bytes"] / 1e6, 1), "MB"),
        Row("median", figures["ms_p50"], "ms", Goal("at most", 100) if on_cpu else None),
        Row("95th percentile", figures["ms_p95"], "ms", Goal("at most", 250) if on_cpu else None),
    ]
    for name, kind in figures["kinds"].items():
        note = (
            f"{kind['events']} events, {kind['share_of_encoded'] or 0:.0%} of all encoded, at most "
            f"{kind['encoded_max']}; {kind['ms_p50']:.1f} ms, 95 % within {kind['ms_p95']:.1f} ms"
        )
        table.append(Row(f"  {name}", kind["tokens_per_keystroke"], "tokens", note=note))
    return table
