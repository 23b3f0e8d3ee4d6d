"""Packing: sources by licence -> clean, distinct, decontaminated files -> shards and manifest."""

from __future__ import annotations

import datetime
import json
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from model.tokenizer import CodeTokenizer
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
from model.training.corpus.shards import FORMAT, Document, write_shard
from model.training.corpus.sources import STATEMENT, Source, folder_licence
from model.training.spans import syntax_spans

HELD_OUT_PERCENT = 1
SHARD_FILES = 4096
CHARS_PER_TOKEN = 3.3
"""Of our corpus and tokenizer: the manifest's token counts where no tokenizer is given."""


@dataclass(slots=True)
class _Tally:
    """What packing left out and scrubbed."""

    left_out: Counter[str] = field(default_factory=Counter)
    scrubbed: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)


def pack(
    sources: Sequence[Source],
    out: Path,
    benchmarks: Sequence[Path] = (),
    *,
    any_licence: bool = False,
    tokenizer: CodeTokenizer | None = None,
) -> dict[str, object]:
    """Write shards and `manifest.json` to `out`; returns the manifest.

    Sources without a permissive licence are left out (unless `any_licence`: for code that is
    one's own). Files are scrubbed, decontaminated against `benchmarks`, freed of near-duplicates,
    shuffled, and one in a hundred (by its content's hash, so the choice is stable) is held out of
    training. A corpus already in `out` is replaced only when the new one is complete. Raises
    `ValueError` when nothing is left, `OSError` when writing fails.
    """
    taken = [s for s in sources if any_licence or s.permissive]
    tally = _Tally()
    documents = _collect(taken, benchmarks, tally, any_licence)
    if not documents:
        raise ValueError(_nothing_left(sources, taken, tally))
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        held = content_digest(document.text)[0] * 100 < 256 * HELD_OUT_PERCENT
        (held_out if held else train).append(document)
    if not train:
        train, held_out = held_out, []
    random.Random(0).shuffle(train)
    manifest: dict[str, object] = {
        "format": FORMAT,
        "packed": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "files": len(train),
        "held_out_files": len(held_out),
        "chars": sum(len(d.text) for d in train),
        **_statistics(train, taken, tokenizer),
        "left_out": dict(tally.left_out.most_common()),
        "left_out_sources": [
            {"name": s.name, "licence": s.licence, "version": s.version}
            for s in sources
            if s not in taken
        ],
        "scrubbed": dict(tally.scrubbed),
        "decontamination": {file.name: tally.contaminated[file.name] for file in benchmarks},
    }
    _write(out, train, held_out or train[:1], manifest)
    return manifest


def _collect(
    sources: Sequence[Source], benchmarks: Sequence[Path], tally: _Tally, any_licence: bool
) -> list[Document]:
    forbidden = benchmark_ngrams(benchmarks)
    finder = DuplicateFinder()
    documents: list[Document] = []
    with tqdm(sources, desc="packing", unit="folder") as progress:
        for source in progress:
            for document in read_files(source, tally.left_out, any_licence=any_licence):
                text, scrubbed = scrub(document.text)
                ngrams = word_ngrams(text) if forbidden else set()
                shared = [name for name, grams in forbidden.items() if not grams.isdisjoint(ngrams)]
                tally.contaminated.update(shared)
                reason = "shares text with a benchmark" if shared else finder.seen(text)
                if reason:
                    tally.left_out[reason] += 1
                    continue
                tally.scrubbed.update(scrubbed)
                spans = tuple((s.start, s.end) for s in syntax_spans(text, document.language))
                documents.append(Document(text, document.language, source.name, spans))
            progress.set_postfix(files=len(documents))
    return documents


def read_files(
    source: Source, left_out: Counter[str], *, any_licence: bool = False
) -> Iterator[Document]:
    """The source's code files in a stable order; counts in `left_out` what it skips and why."""
    for folder, folders, files in os.walk(source.path):
        folders[:] = sorted(filter(_holds_code, folders))
        if not any_licence and Path(folder) != source.path:
            licence = folder_licence(Path(folder))  # a part may have a licence of its own
            if licence != licences.UNKNOWN and not licences.is_permissive(licence):
                left_out["licence of a folder"] += 1
                folders.clear()
                continue
        for name in sorted(files):
            path = Path(folder, name)
            language = LANGUAGE_OF_SUFFIX.get(path.suffix)
            if language is None or path.is_symlink():
                continue
            text = _read(path, left_out)
            if text is None:
                continue
            reason = why_left_out(text, language)
            if not any_licence and licences.forbidden_header(text):
                reason = "licence header"
            if reason:
                left_out[reason] += 1
            else:
                yield Document(text, language, source.name)


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


def _statistics(
    train: Sequence[Document], sources: Sequence[Source], tokenizer: CodeTokenizer | None
) -> dict[str, object]:
    """Files, characters and tokens of each language and of each source."""
    languages: defaultdict[str, Counter[str]] = defaultdict(Counter)
    of_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
    tokens_of_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for document in tqdm(train, desc="counting", unit="file"):
        chars = len(document.text)
        tokens = len(tokenizer.encode(document.text)) if tokenizer else chars / CHARS_PER_TOKEN
        for counter in (languages[document.language], of_source[document.source]):
            counter.update(files=1, chars=chars)
        tokens_of_source[document.source][document.language] += tokens  # type: ignore[assignment]
        languages[document.language]["tokens"] += tokens  # type: ignore[assignment]
    total = sum(c["tokens"] for c in languages.values())
    ordered = sorted(languages.items(), key=lambda item: -item[1]["tokens"])
    return {
        "tokens": round(total),
        "tokens_are": "counted" if tokenizer else f"estimated at {CHARS_PER_TOKEN} characters each",
        "languages": {
            language: {
                "files": c["files"],
                "chars": c["chars"],
                "tokens": round(c["tokens"]),
                "share": round(c["tokens"] / total, 4),
            }
            for language, c in ordered
        },
        "sources": [
            {
                "name": s.name,
                "licence": s.licence,
                "version": s.version,
                "url": s.url,
                "files": of_source[s.name]["files"],
                "chars": of_source[s.name]["chars"],
                "tokens_of_language": {
                    language: round(n) for language, n in tokens_of_source[s.name].most_common()
                },
            }
            for s in sources
        ],
    }


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
