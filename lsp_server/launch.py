"""Builds the server with all its handlers, and serves one client with it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from lsprotocol import types

from lsp_server import code_actions, commands, handlers
from lsp_server.ask.session import EngineSource
from lsp_server.engine_link.api_keys import ApiKeys
from lsp_server.engine_link.engine_process import EngineProcess, EngineState
from lsp_server.server import EngineFactory, MezzotintServer
from lsp_server.settings import Settings
from model.api import EngineAddress

logger = logging.getLogger(__name__)


def engine_of(
    keys: ApiKeys, settings: Settings, on_state: Callable[[EngineState], None]
) -> EngineSource:
    """The engine that the settings name, else the process that all of the user's windows share."""
    named = partial(_address, keys, settings) if settings.engine.url else None
    return EngineProcess(
        model_path=settings.model.path,
        device=settings.model.device,
        dtype=settings.model.dtype,
        address=named,
        idle_unload_minutes=settings.engine.idle_unload_minutes,
        on_state=on_state,
    )


def _address(keys: ApiKeys, settings: Settings) -> EngineAddress:
    """Raises `InvalidRequestError` for an address that cannot be used."""
    engine = settings.engine
    return EngineAddress(
        url=engine.url,
        kind=engine.kind,
        key=keys.key_for(engine.url),
        token=os.environ.get("MEZZOTINT_TOKEN", ""),
        model=engine.model,
        fim_template=engine.fim_template,
        allow_plain_http=engine.allow_plain_http,
    )


def create_server(make_engine: EngineFactory | None = None) -> MezzotintServer:
    """Build a server with all its handlers; it talks to nobody yet."""
    keys = ApiKeys()
    made = MezzotintServer(make_engine or partial(engine_of, keys), keys)
    for method, handler, options in (
        (types.INITIALIZE, handlers.on_initialize, None),
        (types.INITIALIZED, handlers.on_initialized, None),
        (types.SHUTDOWN, handlers.on_shutdown, None),
        (types.WORKSPACE_DID_CHANGE_CONFIGURATION, handlers.on_configuration, None),
        (types.TEXT_DOCUMENT_DID_OPEN, handlers.on_open, None),
        (types.TEXT_DOCUMENT_DID_CHANGE, handlers.on_change, None),
        (types.TEXT_DOCUMENT_DID_CLOSE, handlers.on_close, None),
        (types.NOTEBOOK_DOCUMENT_DID_OPEN, handlers.on_open_notebook, None),
        (types.NOTEBOOK_DOCUMENT_DID_CHANGE, handlers.on_change_notebook, None),
        (types.NOTEBOOK_DOCUMENT_DID_CLOSE, handlers.on_close_notebook, None),
        # Without options, pygls does not advertise it.
        (
            types.TEXT_DOCUMENT_INLINE_COMPLETION,
            handlers.on_inline_completion,
            types.InlineCompletionOptions(),
        ),
    ):
        made.feature(method, options)(handler)
    commands.register(made)
    code_actions.register(made)
    return made


def run_stdio(make_engine: EngineFactory | None = None) -> int:
    """Serve one client on stdin and stdout until it says `exit`; the process's exit code."""
    _log_to_stderr()
    # Only the protocol may write to the client: whatever else prints, here or in a child
    # process, reaches stderr.
    protocol_fd = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python's own way would wait for the thread that reads stdin, until the client closes it.
        # Nothing is lost: the kernel ends the engine's lease, as after SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    made = create_server(make_engine)
    made.start_io(sys.stdin.buffer, os.fdopen(protocol_fd, "wb"))
    return made.protocol.exit_code


def run_tcp(host: str, port: int, make_engine: EngineFactory | None = None) -> int:
    """Serve one client over TCP, to debug with; the process's exit code."""
    _log_to_stderr()
    made = create_server(make_engine)
    try:
        made.start_tcp(host, port)
    except SystemExit:
        logger.info("the client said exit")
    return made.protocol.exit_code


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
