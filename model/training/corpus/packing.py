"""Packing: sources by licence -> clean, distinct, decontaminated files -> shards and manifest."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from model.backbone.tokenizer import BackboneTokenizer
from model.training.corpus import licences
from model.training.corpus.benchmarks import benchmark_ngrams, word_ngrams
from model.training.corpus.duplicates import DuplicateFinder, content_digest
from model.training.corpus.filters import (
    LANGUAGE_OF_SUFFIX,
    MAX_FILE_BYTES,
    SKIPPED_FOLDERS,
    is_generated_name,
    scrub,
    why_left_out,
)
from model.training.corpus.manifest import header, statistics
from model.training.corpus.shards import Document, write_shard
from model.training.corpus.sources import STATEMENT, Source, folder_licence
from model.training.spans import syntax_spans

HELD_OUT_PERCENT = 1
SHARD_FILES = 4096


@dataclass(slots=True)
class _Tally:
    """What packing left out and scrubbed, and what each benchmark file kept out."""

    left_out: Counter[str] = field(default_factory=Counter)
    scrubbed: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)

    def contamination(self, text: str, forbidden: Mapping[str, set[int]]) -> str | None:
        """Why a file that shares text with a benchmark is left out, or None."""
        if not forbidden:
            return None
        ngrams = word_ngrams(text)
        shared = [name for name, theirs in forbidden.items() if not theirs.isdisjoint(ngrams)]
        self.contaminated.update(shared)
        return "shares text with a benchmark" if shared else None


def pack(
    sources: Sequence[Source],
    out: Path,
    benchmarks: Sequence[Path] = (),
    *,
    any_licence: bool = False,
    held_out: Sequence[str] = (),
    tokenizer: BackboneTokenizer | None = None,
) -> dict[str, object]:
    """Write shards and `manifest.json` to `out`; returns the manifest.

    Sources without a permissive licence are left out (unless `any_licence`: for code that is
    one's own). Files are scrubbed, decontaminated against `benchmarks`, freed of near-duplicates,
    shuffled, and the sources named in `held_out` are kept out of training; where none is named,
    one file in a hundred, by its content's hash, so the choice is stable. A corpus already in
    `out` is replaced only when the new one is complete. Raises `ValueError` when nothing is left or
    a source to hold out is not there, `OSError` when writing fails.
    """
    named = _with_names_of_their_own(sources)
    absent = sorted(set(held_out) - {s.name for s in named})
    if absent:
        raise ValueError(f"no source is named {', '.join(absent)}; it cannot be held out")
    taken = [s for s in named if any_licence or s.permissive]
    tally = _Tally()
    documents = _collect(taken, benchmarks, tally, any_licence)
    if not documents:
        raise ValueError(_nothing_left(named, taken, tally))
    train, aside = _split(documents, frozenset(held_out))
    manifest = {
        **header(),
        "held_out_files": len(aside),
        "held_out_sources": sorted(held_out),
        **statistics(train, taken, tokenizer),
        "left_out": dict(tally.left_out.most_common()),
        "left_out_sources": [
            {"name": s.name, "licence": s.licence, "version": s.version}
            for s in named
            if s not in taken
        ],
        "scrubbed": dict(tally.scrubbed),
        "decontamination": {file.name: tally.contaminated[file.name] for file in benchmarks},
    }
    _write(out, train, aside or train[:1], manifest)
    return manifest


def _split(
    documents: Sequence[Document], sources: frozenset[str]
) -> tuple[list[Document], list[Document]]:
    """(train, held out); train is shuffled, and not empty."""
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        if sources:
            held = document.source in sources
        else:
            held = content_digest(document.text)[0] * 100 < 256 * HELD_OUT_PERCENT
        (held_out if held else train).append(document)
    if not train:
        train, held_out = held_out, []
    random.Random(0).shuffle(train)
    return train, held_out


def _with_names_of_their_own(sources: Sequence[Source]) -> list[Source]:
    """The sources, the second "src" renamed "src (2)": documents know their source by its name."""
    times: Counter[str] = Counter()
    named: list[Source] = []
    for source in sources:
        times[source.name] += 1
        again = times[source.name] > 1
        name = f"{source.name} ({times[source.name]})" if again else source.name
        named.append(replace(source, name=name))
    return named


def _collect(
    sources: Sequence[Source], benchmarks: Sequence[Path], tally: _Tally, any_licence: bool
) -> list[Document]:
    forbidden = benchmark_ngrams(benchmarks)
    finder = DuplicateFinder()
    documents: list[Document] = []
    files = [
        (source, path)
        for source in sources
        for path in code_files(source.path, tally.left_out, any_licence=any_licence)
    ]
    for source, path in tqdm(files, desc="packing", unit="file"):
        text = _read(path, tally.left_out)
        if text is None:
            continue
        language = LANGUAGE_OF_SUFFIX[path.suffix]
        reason = why_left_out(text, language)
        if not any_licence and licences.forbidden_header(text):
            reason = "licence header"
        text, scrubbed = scrub(text)
        reason = reason or tally.contamination(text, forbidden) or finder.seen(text)
        if reason:
            tally.left_out[reason] += 1
            continue
        tally.scrubbed.update(scrubbed)
        spans = tuple((s.start, s.end) for s in syntax_spans(text, language))
        documents.append(Document(text, language, source.name, spans))
    return documents


def code_files(
    folder: Path, left_out: Counter[str], *, any_licence: bool = False
) -> Iterator[Path]:
    """The code files under a folder in a stable order, without third-party and hidden folders and,
    unless `any_licence`, without parts whose own licence is not permissive."""

    def unreadable(_: OSError) -> None:
        left_out["unreadable folder"] += 1

    for name, folders, files in os.walk(folder, onerror=unreadable):
        part = Path(name)
        folders[:] = sorted(filter(_holds_code, folders))
        if not any_licence and part != folder and _is_forbidden(part):
            left_out["licence of a folder"] += 1
            folders.clear()
            continue
        for file in sorted(files):
            path = part / file
            if path.suffix in LANGUAGE_OF_SUFFIX and not path.is_symlink():
                yield path


def _is_forbidden(part: Path) -> bool:
    licence = folder_licence(part)
    return licence != licences.UNKNOWN and not licences.is_permissive(licence)


def _holds_code(folder: str) -> bool:
    return folder not in SKIPPED_FOLDERS and folder[0] != "." and ".dist-info" not in folder


def _read(path: Path, left_out: Counter[str]) -> str | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            left_out["too large"] += 1
        elif is_generated_name(path):
            left_out["generated"] += 1
        else:
            return path.read_text(encoding="utf-8")  # universal newlines
    except UnicodeDecodeError:
        left_out["not UTF-8"] += 1
    except OSError:
        left_out["unreadable"] += 1
    return None


def _nothing_left(sources: Sequence[Source], taken: Sequence[Source], tally: _Tally) -> str:
    if not taken:
        refused = ", ".join(f"{s.path} ({s.licence})" for s in sources)
        return (
            f"no permissive licence found in {refused}; state one in a {STATEMENT} "
            '{"licence": "MIT"} of the folder, or take code of your own with --any-licence'
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in tally.left_out.most_common())
    return (
        f"no code files to train on in {', '.join(str(s.path) for s in taken)}; "
        f"known suffixes are {' '.join(LANGUAGE_OF_SUFFIX)}; left out: {reasons or 'none'}"
    )


def _write(
    out: Path, train: Sequence[Document], held_out: Sequence[Document], manifest: dict[str, object]
) -> None:
    """Write everything aside, then put it in the place of what was there, the manifest last."""
    aside = out / ".packing"
    shutil.rmtree(aside, ignore_errors=True)  # of a packing that was interrupted
    try:
        aside.mkdir(parents=True)
        starts = range(0, len(train), SHARD_FILES)
        for index, start in enumerate(tqdm(starts, desc="writing", unit="shard")):
            write_shard(aside / f"train-{index:03d}.jsonl.gz", train[start : start + SHARD_FILES])
        write_shard(aside / "heldout.jsonl.gz", held_out)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (aside / "manifest.json").write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(
            f"cannot write the corpus: {error}; what was in {out} is untouched"
        ) from error
    # Without a manifest this is no corpus: from here to the last line an interruption shows.
    for stale in (*out.glob("manifest.json"), *out.glob("train-*.jsonl.gz")):
        stale.unlink()
    for file in sorted(aside.iterdir(), key=lambda f: f.name == "manifest.json"):
        file.replace(out / file.name)
    aside.rmdir()
