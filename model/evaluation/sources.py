"""Source files to measure with: which ones folders hold, and their texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lsp_server.document.context import DocumentError, read_document
from lsp_server.languages import language_of
from model.evaluation.problems import read_records

logger = logging.getLogger(__name__)

CODE_LANGUAGES = frozenset({
    "python", "javascript", "javascriptreact", "typescript", "typescriptreact", "go", "rust",
    "java", "c", "cpp", "csharp", "ruby", "php", "shellscript",
})  # fmt: skip
"""What is taken from a folder. A file that is named itself is taken in any language."""

MAX_FILE_KB = 1024


@dataclass(frozen=True, slots=True)
class SourceText:
    """One source file; its lines end in `\\n`."""

    name: str
    language: str
    text: str


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths` and the code in their folders, without hidden ones; sorted.

    Raises `DocumentError` for a path that does not exist.
    """
    files: set[Path] = set()
    for path in paths:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders[:] = [f for f in folders if not f.startswith((".", "__pycache__"))]
                files.update(Path(folder, n) for n in names if language_of(n) in CODE_LANGUAGES)
        elif path.exists():
            files.add(path)
        else:
            raise DocumentError(f"{path} does not exist; name files or folders")
    return sorted(files)


def load_sources(paths: Iterable[Path]) -> list[SourceText]:
    """The texts of source files, of those that lie in folders, and of packed corpus files
    (`.jsonl[.gz]` with `text` and `language`, as `heldout.jsonl.gz`). A file of a folder that
    cannot be used is named and left out.

    Raises `OSError`, `DocumentError`, and `ValueError` naming what is wrong with which file.
    """
    sources: list[SourceText] = []
    for path in paths:
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            sources += _read_packed(path)
        elif path.is_dir():
            for file in find_files([path]):
                try:
                    sources.append(_read(file))
                except DocumentError as error:
                    logger.warning("skipped: %s", error)
        else:
            sources.append(_read(path))
    sources = [source for source in sources if source.text.strip()]
    if not sources:
        raise ValueError("there is no source text in " + ", ".join(map(str, paths)))
    return sources


def of_languages(sources: Iterable[SourceText], languages: Iterable[str]) -> list[SourceText]:
    """The sources in these languages. Raises `ValueError` naming a language that none is in."""
    sources, languages = list(sources), set(languages)
    there = {source.language for source in sources}
    if missing := languages - there:
        raise ValueError(
            f"no file is in {', '.join(sorted(missing))}; there are {', '.join(sorted(there))}"
        )
    return [source for source in sources if source.language in languages]


def _read(path: Path) -> SourceText:
    text = read_document(path, MAX_FILE_KB).replace("\r\n", "\n").replace("\r", "\n")
    return SourceText(str(path), language_of(str(path)), text)


def _read_packed(path: Path) -> list[SourceText]:
    sources: list[SourceText] = []
    for where, record in read_records(path):
        if "format" in record and not sources:
            continue  # the shard's own header
        for field in ("text", "language"):
            if not isinstance(record.get(field), str):
                raise ValueError(f"{where}: the field {field!r} is missing or no text")
        sources.append(SourceText(where, record["language"], record["text"]))
    return sources
