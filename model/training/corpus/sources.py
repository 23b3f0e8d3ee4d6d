"""What a folder of code is: its name, origin, version and licence, as its own metadata has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

from model.training.corpus import licences
from model.training.corpus.filters import LANGUAGE_OF_SUFFIX

LICENCE_FILES = re.compile(r"(?i)(un)?licen[cs]e([.-].*)?|copying([.-].*)?")
_MANIFESTS = {
    "package.json": re.compile(r'"license"\s*:\s*"([^"]+)"'),
    "Cargo.toml": re.compile(r'(?m)^license\s*=\s*"([^"]+)"'),
    "pyproject.toml": re.compile(r'(?m)^license\s*=\s*(?:\{\s*text\s*=\s*)?"([^"]+)"'),
}
_VERSIONS = {
    "package.json": re.compile(r'(?m)^\s*"version"\s*:\s*"([^"]+)"'),
    "Cargo.toml": re.compile(r'(?m)^version\s*=\s*"([^"]+)"'),
    "pyproject.toml": re.compile(r'(?m)^version\s*=\s*"([^"]+)"'),
}
STATEMENT = "SOURCE.json"
"""A file of a folder's root that states what its own metadata does not: any of these fields."""
_STATED = ("name", "licence", "version", "url")


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of code; `licence` is an SPDX expression or "unknown"."""

    path: Path
    name: str
    licence: str
    version: str | None = None
    """A release or a commit, where one is stated."""
    url: str | None = None

    @property
    def permissive(self) -> bool:
        """Whether we may train on it."""
        return licences.is_permissive(self.licence)


def find_source(path: Path) -> Source:
    """Describe a folder: its SOURCE.json first, then package metadata, then licence files.

    Raises `ValueError` for a SOURCE.json that does not hold what it should.
    """
    stated = _statement(path / STATEMENT)
    metadata = next(_package_metadata(path), None)
    folder = path.resolve().name  # "." has none
    name = re.sub(r"^([\w.-]+)\+([\w.-]+)$", r"\1/\2", folder)  # owner+name, as mirrors have it
    licence, version = _manifest_licence(path), _manifest_version(path) or _commit(path)
    url = None
    if metadata is not None:
        name, version = metadata["Name"] or name, metadata["Version"] or version
        licence = _metadata_licence(metadata)
        url = metadata["Home-page"] or _project_url(metadata)
    if licence in (licences.UNKNOWN, licences.SOME_BSD):
        in_files = folder_licence(path)
        if licence == licences.UNKNOWN or licences.names_a_bsd(in_files):
            licence = in_files
    if "licence" in stated:
        licence = licences.named(stated["licence"])
        if licence == licences.UNKNOWN:
            raise ValueError(f"{path / STATEMENT}: {stated['licence']!r} is no SPDX expression")
    return Source(
        path,
        stated.get("name", name),
        licence,
        stated.get("version", version),
        stated.get("url", url),
    )


def folder_licence(path: Path) -> str:
    """The SPDX expression of the licence files in one folder, or `UNKNOWN`.

    Several files are joined by AND, though they may be a choice: only metadata can say that.
    """
    files = [p for p in sorted(path.iterdir()) if LICENCE_FILES.fullmatch(p.name) and p.is_file()]
    for folder in sorted(path.glob("*.dist-info")):
        inside = sorted((*folder.glob("*"), *folder.glob("licenses/*")))
        files += [p for p in inside if LICENCE_FILES.fullmatch(p.name) and p.is_file()]
    found = {licences.in_text(_read(f)) for f in files if f.suffix not in LANGUAGE_OF_SUFFIX}
    found.discard(licences.UNKNOWN)
    return " AND ".join(sorted(found)) or licences.UNKNOWN  # each is itself a name or names by AND


def _statement(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        fields = json.loads(_read(file))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    good = isinstance(fields, dict) and all(
        key in _STATED and isinstance(value, str) for key, value in fields.items()
    )
    if not good:
        raise ValueError(
            f"{file} must be an object of strings; its fields are {', '.join(_STATED)}"
        )
    return fields


def _package_metadata(path: Path) -> Iterator[Message]:
    for pattern in ("*.dist-info/METADATA", "PKG-INFO", "*.egg-info/PKG-INFO"):
        for file in sorted(path.glob(pattern)):
            yield message_from_string(_read(file))


def _metadata_licence(metadata: Message) -> str:
    """From the fields, most exact first. A licence's whole text comes last: it is the one place
    where wheels also list the licences of the binary libraries in them."""
    short = [metadata["License-Expression"], metadata["License"]]
    classifiers = [c.split(" :: ") for c in metadata.get_all("Classifier", [])]
    names = [c[-1] for c in classifiers if c[0] == "License" and c[1:] != ["OSI Approved"]]
    in_classifiers = {licences.named(name) for name in names} or {licences.UNKNOWN}
    for licence in (
        *(licences.named(value) for value in short if value),
        licences.UNKNOWN if licences.UNKNOWN in in_classifiers else " AND ".join(in_classifiers),
        licences.in_text(metadata["License"] or ""),
    ):
        if licence != licences.UNKNOWN:
            return licence
    return licences.UNKNOWN


def _project_url(metadata: Message) -> str | None:
    urls = metadata.get_all("Project-URL", [])
    chosen = [u for u in urls if re.match(r"(?i)(source|repository|homepage|code|github)", u)]
    return (chosen or urls)[0].split(",", 1)[-1].strip() if urls else None


def _manifest_licence(path: Path) -> str:
    value = _first_match(path, _MANIFESTS)
    return licences.named(value) if value else licences.UNKNOWN


def _manifest_version(path: Path) -> str | None:
    return _first_match(path, _VERSIONS)


def _first_match(path: Path, patterns: dict[str, re.Pattern[str]]) -> str | None:
    for name, pattern in patterns.items():
        if (path / name).is_file() and (match := pattern.search(_read(path / name))):
            return match.group(1)
    return None


def _commit(path: Path) -> str | None:
    """The commit that a git checkout stands at, if its files say so plainly."""
    head = path / ".git" / "HEAD"
    if not head.is_file():
        return None
    ref = _read(head).strip()
    if not ref.startswith("ref: "):
        return ref
    file = path / ".git" / ref.removeprefix("ref: ")
    return _read(file).strip() if file.is_file() else None


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
