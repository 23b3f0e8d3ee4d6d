"""A file from an HTTP server that goes on where it broke off."""

from __future__ import annotations

import errno
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from model.api import CheckpointError
from model.network import following_the_environment

CONNECT_S = 5.0
STALL_S = 30.0
"""How long a server may send nothing."""
_PAUSES_S = (0.5, 2.0, 5.0)
"""Before another try, as long as none brings a byte more."""

_UNREACHED = httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class SourceError(CheckpointError):
    """A source does not have the file, or not as it should; another may."""


class _BrokeOffError(Exception):
    """An answer ended early. Its text says how; another try may bring the rest."""


def http_client(*, proxy: str | None = None, certificates: str | None = None) -> httpx2.Client:
    """A client for large files, which minds the proxies and certificates of the environment.

    `certificates` is a file or a folder of them. Raises `SourceError`.
    """
    trusted = True if certificates is None else _trusting(certificates)
    with following_the_environment(SourceError):
        return httpx2.Client(
            proxy=proxy,
            verify=trusted,
            timeout=httpx2.Timeout(CONNECT_S, read=STALL_S),
            follow_redirects=True,
            # A packed answer would have no byte ranges to go on from.
            headers={"Accept-Encoding": "identity"},
        )


def _trusting(certificates: str) -> ssl.SSLContext:
    try:
        if Path(certificates).is_dir():
            return ssl.create_default_context(capath=certificates)
        return ssl.create_default_context(cafile=certificates)
    except OSError as error:
        raise SourceError(f"the certificates in {certificates} cannot be read ({error})") from error


def fetch(
    client: httpx2.Client,
    url: httpx2.URL | str,
    file: Path,
    *,
    num_bytes: int | None,
    on_bytes: Callable[[int, int], None],
    auth: tuple[str, str] | None = None,
) -> None:
    """Make `file` hold what is at `url`; of what it holds already, nothing is asked for again.

    `num_bytes` is how long it has to be, where that is known. `on_bytes` is told how many are
    there, and of how many. Whatever interrupts this leaves a file to go on with.
    Raises `SourceError`, and `OSError` where it cannot be written.
    """
    answers = _Answers(client, httpx2.URL(url), file, num_bytes, on_bytes, auth)
    furthest, pauses = _length(file), list(_PAUSES_S)
    while True:
        try:
            answers.take()
            return
        except (httpx2.TransportError, _BrokeOffError) as error:
            if (length := _length(file)) > furthest:
                furthest, pauses = length, list(_PAUSES_S)
            # A server that was never reached is left for the next source at once.
            is_unreached = isinstance(error, _UNREACHED) and not answers.has_begun
            if is_unreached or not pauses:
                raise SourceError(f"{answers.host} {_what_broke(error)}") from error
            time.sleep(pauses.pop(0))
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise SourceError(f"{answers.host} cannot be used ({_reason(error)})") from error


class _Answers:
    """What a server answers, one try after another."""

    def __init__(
        self,
        client: httpx2.Client,
        url: httpx2.URL,
        file: Path,
        num_bytes: int | None,
        on_bytes: Callable[[int, int], None],
        auth: tuple[str, str] | None,
    ) -> None:
        self._client = client
        self._url = url
        self._file = file
        self._num_bytes = num_bytes
        self._on_bytes = on_bytes
        self._auth = auth
        self.host = url.host
        self.has_begun = False

    def take(self) -> None:
        """Ask for what is missing, and append it as it comes."""
        start = _length(self._file)
        if self._num_bytes is not None and start > self._num_bytes:
            self._file.unlink()
            start = 0
        if start == self._num_bytes:
            self._on_bytes(start, start)
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        auth = httpx2.USE_CLIENT_DEFAULT if self._auth is None else self._auth
        with self._client.stream("GET", self._url, headers=headers, auth=auth) as response:
            self.has_begun = True
            if response.status_code == 416 and _ranges_total(response) == start > 0:
                self._on_bytes(start, start)
                return
            self._append(response, self._start(response, start))

    def _start(self, response: httpx2.Response, wanted: int) -> int:
        """Where in the file this answer begins; what lies behind goes."""
        status = response.status_code
        if status in _RETRIED:
            raise _BrokeOffError(f"answers with status {status}")
        if status == 416:  # what is here is no beginning of what is there
            self._file.unlink(missing_ok=True)
            raise _BrokeOffError("has another file than before")
        if status == 206 and wanted:
            if not (response.headers.get("Content-Range") or "").startswith(f"bytes {wanted}-"):
                self._file.unlink(missing_ok=True)
                raise _BrokeOffError("sends another part of the file than was asked for")
            return wanted
        if status != 200:
            raise SourceError(f"{self.host} answers with status {status} for {self._url.path}")
        return 0

    def _append(self, response: httpx2.Response, start: int) -> None:
        total = self._total(response)
        with self._file.open("r+b" if start else "wb") as file:
            file.seek(start)
            here = start
            self._on_bytes(here, total)
            for chunk in response.iter_raw():
                if here + len(chunk) > total:
                    file.truncate(0)
                    raise SourceError(f"{self.host} sends more than the {total:,} bytes it told")
                file.write(chunk)
                here += len(chunk)
                self._on_bytes(here, total)
        if here < total:
            raise _BrokeOffError(f"broke off after {here:,} of {total:,} bytes")

    def _total(self, response: httpx2.Response) -> int:
        """How long the whole file is."""
        if response.status_code == 206:
            told = _ranges_total(response)
        else:
            length = response.headers.get("Content-Length") or ""
            told = int(length) if length.isdecimal() else None
        if told is not None and self._num_bytes is not None and told != self._num_bytes:
            raise SourceError(
                f"{self.host} has another file than is wanted: {told:,} bytes, where "
                f"{self._num_bytes:,} were expected"
            )
        total = self._num_bytes if told is None else told
        if total is None:
            raise SourceError(f"{self.host} does not tell how long {self._url.path} is")
        return total


def _ranges_total(response: httpx2.Response) -> int | None:
    match = re.fullmatch(r"bytes .*/(\d+)", response.headers.get("Content-Range") or "")
    return None if match is None else int(match[1])


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _what_broke(error: Exception) -> str:
    if isinstance(error, _BrokeOffError):
        return str(error)
    if isinstance(error, httpx2.ConnectTimeout):
        return f"does not answer within {CONNECT_S:.0f} s"
    if isinstance(error, httpx2.TimeoutException):
        return f"has sent nothing for {STALL_S:.0f} s"
    if isinstance(error, _UNREACHED | httpx2.UnsupportedProtocol):
        return f"cannot be reached ({_reason(error)})"
    return f"broke off ({_reason(error)})"


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def is_full(error: OSError) -> bool:
    """Whether it says that the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
