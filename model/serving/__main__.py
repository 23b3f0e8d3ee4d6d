"""`python -m model.serving` and `mezzotint serve`: run an engine until it is told to stop.

With `--endpoint` it is the engine that a user's editors share: it listens on a socket that only
the user can open, tells in the endpoint file where, and leaves when the last editor has. Without,
it serves `--host` and `--port` until it is interrupted: this machine alone, unless a token was
chosen for others to know.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import ipaddress
import json
import logging
import math
import os
import secrets
import signal
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from model.api import Completer
from model.backbone.catalogue import DEFAULT
from model.serving.protocol import PROTOCOL_VERSION

# Linux takes 107 bytes, macOS 103.
_MAX_SOCKET_PATH_BYTES = 100
_MIN_SHARED_TOKEN = 16
"""Characters of a token that other machines may try to guess."""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the model that `argv` names; returns the exit status."""
    args = parse_args(argv)

    def load(model: str) -> Completer:
        from model.serving.loading import load_completer  # imports torch: the engine listens first

        return load_completer(
            model, device=args.device, dtype=args.dtype, context_cache=args.context_cache
        )

    return run(args, load)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits on a wrong one."""
    parser = argparse.ArgumentParser(prog="mezzotint serve", description="Run the HTTP engine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8731, help="port (%(default)s); 0 takes any")
    parser.add_argument(
        "--model",
        default=DEFAULT,
        help="name, file, folder or hub id (%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float8, int8")
    parser.add_argument(
        "--context-cache",
        choices=("none", "dual"),
        default="none",
        help="of full-attention checkpoints: dual is faster and approximate (%(default)s)",
    )
    parser.add_argument(
        "--endpoint", type=Path, metavar="FILE", help="serve this user's editors; say where in FILE"
    )
    parser.add_argument(
        "--idle-unload-minutes",
        type=float,
        default=0.0,
        metavar="N",
        help="with --endpoint: leave after N minutes without a request (0: never)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name that clients may call this machine by; may be repeated",
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate chain: HTTPS")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its key, if not in that file")
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit on flags that do not go together."""
    if args.idle_unload_minutes and args.endpoint is None:
        parser.error("--idle-unload-minutes needs --endpoint: nothing would start the engine again")
    if args.tls_key and not args.tls_cert:
        parser.error("--tls-key needs --tls-cert")
    if args.endpoint and (args.tls_cert or args.allow_host):
        parser.error("--tls-cert and --allow-host are for --host; --endpoint is a private socket")


def run(args: argparse.Namespace, load: Callable[[str], Completer]) -> int:
    """Serve what `load` makes of models, as `args` from `parse_args` say; returns the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    # uvicorn hands a signal back once it has shut down; this lets the cleaning up happen.
    signal.signal(signal.SIGTERM, _exit)
    try:
        if args.endpoint is None:
            return _serve_network(args, load)
        return _serve_editors(args, load)
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(f"mezzotint serve: {error}", file=sys.stderr)
        return 1


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


def _serve_network(args: argparse.Namespace, load: Callable[[str], Completer]) -> int:
    from model.serving.http_server import Access, Lifetime, serve

    token = os.environ.get("MEZZOTINT_TOKEN", "")
    is_private = _is_loopback(args.host)
    if not is_private and len(token) < _MIN_SHARED_TOKEN:
        raise OSError(
            f"--host {args.host} can be reached from other machines; choose a token of at least "
            f"{_MIN_SHARED_TOKEN} characters and set MEZZOTINT_TOKEN to it"
        )
    _check_certificate(args)
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.create_server((args.host, args.port), family=family)
    if not token:
        token = secrets.token_urlsafe(32)
        print(f"MEZZOTINT_TOKEN={token}", file=sys.stderr)
    if not is_private and not args.tls_cert:
        logger.warning("Everybody on the way can read what is sent; --tls-cert encrypts it")
    logger.info("Listening on %s", _address(listener, is_tls=args.tls_cert is not None))
    own_names = [args.host] if is_private else [args.host, socket.gethostname()]
    access = Access(
        token=token,
        hosts=[*own_names, *args.allow_host],
        certificate=args.tls_cert,
        key=args.tls_key,
    )
    with contextlib.closing(listener):
        failure = asyncio.run(
            serve(listener, access=access, load=load, model=args.model, lifetime=Lifetime())
        )
    if failure is not None:
        print(f"mezzotint serve: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`. Raises `OSError` for no address."""
    found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)} if host else {"0.0.0.0"}
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def _check_certificate(args: argparse.Namespace) -> None:
    """Raise `OSError` for a certificate that cannot be used; uvicorn would end in a traceback."""
    if args.tls_cert is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A key that wants a passphrase would have it asked for on the terminal.
        context.load_cert_chain(args.tls_cert, args.tls_key, password="")
    except (OSError, ValueError) as error:
        raise OSError(f"--tls-cert {args.tls_cert} cannot be used: {error}") from error


def _serve_editors(args: argparse.Namespace, load: Callable[[str], Completer]) -> int:
    endpoint: Path = args.endpoint.absolute()
    _require_private_directory(endpoint.parent)
    lock = FileLock(endpoint.with_suffix(".lock"), timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        logger.info("Another engine serves %s already", endpoint)
        return 0
    # Only the winner pays for these imports.
    from model.serving.http_server import Access, Lifetime, serve

    idle_s = args.idle_unload_minutes * 60 or math.inf
    token = secrets.token_urlsafe(32)
    with lock, _announced_listener(endpoint, token) as listener:
        lifetime = Lifetime(leased=True, idle_s=idle_s)
        # No browser reaches a Unix socket, whatever host its request names.
        is_unix = _address(listener).startswith("unix:")
        access = Access(token=token, hosts=None if is_unix else ())
        asyncio.run(serve(listener, access=access, load=load, model=args.model, lifetime=lifetime))
    return 0


@contextlib.contextmanager
def _announced_listener(endpoint: Path, token: str) -> Generator[socket.socket]:
    """A listening socket that the file `endpoint` describes; both go away with the context.

    The caller holds the endpoint's lock, so whatever lies there is left from a killed engine.
    """
    endpoint.unlink(missing_ok=True)
    listener = _listen_privately(endpoint)
    address = _address(listener)
    try:
        description = {
            "protocol": PROTOCOL_VERSION,
            "version": version("mezzotint"),
            "socket": address,
            "token": token,
            "pid": os.getpid(),
        }
        _write_privately(endpoint, json.dumps(description))
        yield listener
    finally:
        listener.close()
        endpoint.unlink(missing_ok=True)
        if address.startswith("unix:"):
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)


def _socket_path(endpoint: Path) -> Path:
    """A path for the socket: beside `endpoint`, unless that is longer than the kernel takes."""
    path = endpoint.with_suffix(".sock")
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        return path
    directory = Path(tempfile.gettempdir(), f"mezzotint-{os.getuid()}")
    _require_private_directory(directory)
    path = directory / f"{hashlib.sha256(os.fsencode(endpoint)).hexdigest()[:16]}.sock"
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise OSError(f"{path} is too long for a socket; set TMPDIR to a shorter directory")
    return path


def _listen_privately(endpoint: Path) -> socket.socket:
    if sys.platform == "win32":
        return socket.create_server(("127.0.0.1", 0))
    path = _socket_path(endpoint)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(umask)
    listener.listen()
    return listener


def _require_private_directory(directory: Path) -> None:
    """Make `directory`, or check that nobody but this user can look into it.

    Raises `OSError`.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        status = directory.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if not is_ours or status.st_mode & 0o077:
            raise OSError(f"{directory} must be a directory of yours with mode 0700 (chmod it)")


def _write_privately(path: Path, text: str) -> None:
    """Write `path` in one piece, for this user's eyes only."""
    draft = path.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _address(listener: socket.socket, *, is_tls: bool = False) -> str:
    """What `model.engines.connect` takes to reach `listener`."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
