"""What `/metrics` counts, in Prometheus' text format. Labels never hold anything of a request."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.api import CompletionError, InfillResult
from model.serving.protocol import encode_error

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one engine."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "mezzotint_http_requests", "Answers by route.", ("route", "status"), registry=registry
        )
        self.running = Gauge("mezzotint_fills_running", "Infills at work.", registry=registry)
        self._fills = Counter(
            "mezzotint_fills", "Infills by how they ended.", ("outcome",), registry=registry
        )
        self._fill_seconds = Histogram(
            "mezzotint_fill_seconds",
            "Time of an infill, the wait for its turn included.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._tokens = Counter(
            "mezzotint_tokens",
            "Tokens of finished infills: read, encoded because no cache held them, generated.",
            ("kind",),
            registry=registry,
        )
        self._forwards = Counter(
            "mezzotint_forwards",
            "Passes over drafts and canvases.",
            registry=registry,
        )

    def saw_fill(self, outcome: InfillResult | CompletionError | None, seconds: float) -> None:
        """Count an infill; None: cancelled, because the client hung up or had enough."""
        if isinstance(outcome, InfillResult):
            self._fill_seconds.observe(seconds)
            self._tokens.labels("read").inc(outcome.context.tokens)
            self._tokens.labels("encoded").inc(outcome.encoded_tokens)
            self._tokens.labels("generated").inc(outcome.tokens)
            self._forwards.inc(outcome.forwards)
            kind = "finished"
        else:
            kind = "cancelled" if outcome is None else encode_error(outcome)["kind"]
        self._fills.labels(kind).inc()

    def saw_answer(self, route: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()

    async def respond(self, _: Request) -> Response:
        """`GET /metrics`."""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")


class Metered:
    """Counts the answers of the application inside; paths that are no route count as `other`."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.saw_answer(route, message["status"])
            await send(message)

        await self._app(scope, receive, counting)
