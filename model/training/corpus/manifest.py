"""What a packed corpus says of itself, and `python -m model.training.corpus.manifest`: the same as
the table that a model card repeats."""

from __future__ import annotations

import datetime
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.backbone.tokenizer import BackboneTokenizer
from model.training.corpus.shards import FORMAT, Document
from model.training.corpus.sources import Source

CHARS_PER_TOKEN = 3.7
"""Of our corpus and the default backbone: what tokens are estimated by where none is given."""


def header() -> dict[str, Any]:
    """The format and the day."""
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return {"format": FORMAT, "packed": today.isoformat()}


def statistics(
    train: Sequence[Document], sources: Sequence[Source], tokenizer: BackboneTokenizer | None
) -> dict[str, Any]:
    """Files, characters and tokens: in all, of each language and of each source."""
    of_language: defaultdict[str, Counter[str]] = defaultdict(Counter)
    of_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for document, tokens in zip(train, _token_counts(train, tokenizer), strict=True):
        numbers = {"files": 1, "chars": len(document.text), "tokens": tokens}
        of_language[document.language].update(numbers)
        of_source[document.source].update(numbers)
        of_source[document.source][f"tokens of {document.language}"] += tokens
    total = sum(of_language.values(), Counter[str]())
    languages = sorted(of_language, key=lambda name: -of_language[name]["tokens"])
    return {
        "files": len(train),
        "chars": total["chars"],
        "tokens": total["tokens"],
        "tokens_are": "counted" if tokenizer else f"estimated at {CHARS_PER_TOKEN} characters each",
        "languages": {
            name: {**of_language[name], "share": of_language[name]["tokens"] / total["tokens"]}
            for name in languages
        },
        "sources": [_source_row(s, of_source[s.name], languages) for s in sources],
    }


def _source_row(source: Source, count: Counter[str], languages: Sequence[str]) -> dict[str, Any]:
    tokens = {name: count[f"tokens of {name}"] for name in languages}
    return {
        "name": source.name,
        "licence": source.licence,
        "version": source.version,
        "url": source.url,
        "files": count["files"],
        "chars": count["chars"],
        "tokens_of_language": {name: number for name, number in tokens.items() if number},
    }


def _token_counts(train: Sequence[Document], tokenizer: BackboneTokenizer | None) -> list[int]:
    if tokenizer is None:
        return [round(len(d.text) / CHARS_PER_TOKEN) for d in train]
    return [len(tokenizer.encode(d.text)) for d in tqdm(train, desc="counting tokens")]


def render_card(manifest: dict[str, Any]) -> str:
    """Markdown: the totals, what was left out, and a table of the sources."""
    languages = manifest["languages"].items()
    shares = ", ".join(f"{name} {100 * row['share']:.1f} %" for name, row in languages)
    left_out = ", ".join(f"{count:,} {why}" for why, count in manifest["left_out"].items())
    scrubbed = ", ".join(f"{count:,} {what}" for what, count in manifest["scrubbed"].items())
    refused = ", ".join(f"{s['name']} ({s['licence']})" for s in manifest["left_out_sources"])
    held_out = ", ".join(manifest["held_out_sources"]) or "one in a hundred"
    benchmarks = ", ".join(f"{name} ({n} files)" for name, n in manifest["decontamination"].items())
    rows = [
        f"| {s['name']} | {s['version'] or ''} | {s['licence']} | {s['files']:,} "
        f"| {sum(s['tokens_of_language'].values()) / 1e6:.2f} |"
        for s in manifest["sources"]
    ]
    return "\n".join([
        f"{manifest['files']:,} files, {manifest['chars'] / 1e6:.1f} M characters, "
        f"{manifest['tokens'] / 1e6:.1f} M tokens ({manifest['tokens_are']}), packed "
        f"{manifest['packed']}; {manifest['held_out_files']:,} more files are held out: "
        f"{held_out}.",
        "",
        f"- By tokens: {shares}.",
        f"- Files left out: {left_out or 'none'}.",
        f"- Sources left out for their licence: {refused or 'none'}.",
        f"- Scrubbed: {scrubbed}.",
        f"- Files left out for sharing text with a benchmark: {benchmarks or 'none was named'}.",
        "",
        "| source | version | licence | files | M tokens |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the card of the corpus in the folder given; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) != 1:
            raise ValueError("give the folder of one packed corpus")
        text = Path(arguments[0], "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{arguments[0]} is not of format {FORMAT}; pack it again")
        sys.stdout.write(render_card(manifest))
    except (OSError, ValueError) as error:
        print(f"manifest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
