from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.backbone.checkpoint import Backbone
from model.training.corpus import is_packed, packing, read_shard
from model.training.corpus.__main__ import main
from model.training.corpus.filters import MAX_FILE_BYTES
from model.training.corpus.manifest import CHARS_PER_TOKEN
from model.training.corpus.packing import pack
from model.training.corpus.sources import find_source
from model.training.spans import syntax_spans

MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy"
GPL = "GNU GENERAL PUBLIC LICENSE\nVersion 3"
SourceCode = Callable[[int], str]
Write = Callable[[Path, dict[str, str | bytes]], Path]


def packed(folder: Path, out: Path, *benchmarks: Path, **options: Any) -> dict[str, Any]:
    """Pack one folder of our own; returns the manifest, which is also in its file."""
    manifest = pack([find_source(folder)], out, benchmarks, **{"any_licence": True, **options})
    assert json.loads((out / "manifest.json").read_text()) == manifest
    return manifest


def texts(out: Path, pattern: str = "*.jsonl.gz") -> set[str]:
    return {d.text for shard in out.glob(pattern) for d in read_shard(shard)}


def test_named_sources_are_held_out_whole(
    tmp_path: Path, write: Write, source_code: SourceCode
) -> None:
    folders = [
        write(tmp_path / name, {f"{i}.py": source_code(10 * n + i) for i in range(3)})
        for n, name in enumerate(("first", "second"))
    ]
    manifest = pack(
        [find_source(folder) for folder in folders],
        tmp_path / "out",
        any_licence=True,
        held_out=["second"],
    )
    assert (manifest["files"], manifest["held_out_files"]) == (3, 3)
    assert manifest["held_out_sources"] == ["second"]
    held = read_shard(tmp_path / "out" / "heldout.jsonl.gz")
    assert {document.source for document in held} == {"second"}


class TestWhatIsPacked:
    def test_the_manifest_counts_every_reason(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(
            tmp_path / "code",
            {
                "good.py": source_code(0),
                "same.py": source_code(0).replace("\n\n", "\n\n\n"),
                "short.py": "pass\n",
                "latin.py": source_code(1).encode() + b"# caf\xe9\n",
                "large.py": source_code(2) * (MAX_FILE_BYTES // len(source_code(2)) + 1),
                "thing_pb2.py": source_code(3),
            },
        )
        manifest = packed(folder, tmp_path / "out")
        assert manifest["files"] + manifest["held_out_files"] == 1
        assert manifest["left_out"] == {
            "duplicate": 1,
            "too short": 1,
            "not UTF-8": 1,
            "too large": 1,
            "generated": 1,
        }

    def test_foreign_suffixes_hidden_and_third_party_folders_and_links_are_not_read(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(
            tmp_path / "code",
            {
                "kept.py": source_code(0),
                "notes.txt": source_code(1),
                ".git/hook.py": source_code(2),
                "pkg/node_modules/a.js": source_code(3),
                "vendor/b.go": source_code(4),
                "x-1.dist-info/c.py": source_code(5),
            },
        )
        (folder / "link.py").symlink_to(folder / "notes.txt")
        packed(folder, tmp_path / "out")
        assert texts(tmp_path / "out") == {source_code(0)}

    def test_windows_line_ends_become_newlines(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(tmp_path / "code", {"a.py": source_code(0).replace("\n", "\r\n")})
        packed(folder, tmp_path / "out")
        assert texts(tmp_path / "out") == {source_code(0)}

    def test_what_is_scrubbed_is_packed_scrubbed_with_the_spans_of_that_text(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(tmp_path / "code", {"a.py": "# jane@mail.org\n" + source_code(0)})
        manifest = packed(folder, tmp_path / "out")
        assert manifest["scrubbed"] == {"secrets": 0, "e-mail addresses": 1}
        (document,) = read_shard(tmp_path / "out" / "train-000.jsonl.gz")
        assert document.text == "# user@example.com\n" + source_code(0)
        expected = [(s.start, s.end) for s in syntax_spans(document.text, "python")]
        assert list(document.spans) == expected != []


class TestLicences:
    def test_only_permissive_sources_are_packed_and_the_others_are_named(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        for number, (name, licence) in enumerate({"m": MIT, "g": GPL, "none": ""}.items()):
            write(tmp_path / name, {"LICENSE": licence, "a.py": source_code(number)})
        sources = [find_source(tmp_path / name) for name in ("m", "g", "none")]
        manifest: dict[str, Any] = pack(sources, tmp_path / "out")
        assert texts(tmp_path / "out") == {source_code(0)}
        assert [(s["name"], s["licence"]) for s in manifest["sources"]] == [("m", "MIT")]
        assert [(s["name"], s["licence"]) for s in manifest["left_out_sources"]] == [
            ("g", "LicenseRef-GPL"),
            ("none", "unknown"),
        ]

    def test_parts_and_files_under_another_licence_are_left_out(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(
            tmp_path / "code",
            {
                "LICENSE": MIT,
                "a.py": source_code(0),
                "part/COPYING": GPL,
                "part/b.py": source_code(1),
                "part/deeper/c.py": source_code(2),
                "other/LICENSE": MIT,
                "other/d.py": source_code(3),
                "e.py": "# SPDX-License-Identifier: GPL-2.0-only\n" + source_code(4),
            },
        )
        manifest = packed(folder, tmp_path / "out", any_licence=False)
        assert texts(tmp_path / "out") == {source_code(0), source_code(3)}
        assert manifest["left_out"] == {"licence of a folder": 1, "licence header": 1}
        packed(folder, tmp_path / "out", any_licence=True)
        assert len(texts(tmp_path / "out")) == 5

    def test_without_any_licence_the_way_out_is_named(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(tmp_path / "code", {"a.py": source_code(0)})
        with pytest.raises(ValueError, match=r"code \(unknown\); state one in a SOURCE.json"):
            packed(folder, tmp_path / "out", any_licence=False)


class TestDecontamination:
    SOLUTION = (
        "    best = None\n    for one in many: best = one if best is None else max(best, one)\n"
    )

    def test_a_file_that_holds_a_bare_solution_is_left_out_and_counted_for_each_benchmark(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        files: dict[str, str | bytes] = {
            "clean.py": source_code(0),
            "leak.py": source_code(1) + "def f(many):\n" + self.SOLUTION + source_code(2),
        }
        row = {"prompt": "def most(many):\n", "canonical_solution": self.SOLUTION}
        other = {"prompt": "def other():\n", "canonical_solution": "    return 1\n"}
        write(tmp_path, {"b.jsonl": json.dumps(row), "c.jsonl": json.dumps(other)})
        folder = write(tmp_path / "code", files)
        benchmarks = (tmp_path / "b.jsonl", tmp_path / "c.jsonl")
        manifest = packed(folder, tmp_path / "out", *benchmarks)
        assert manifest["left_out"] == {"shares text with a benchmark": 1}
        assert manifest["decontamination"] == {"b.jsonl": 1, "c.jsonl": 0}
        assert texts(tmp_path / "out") == {source_code(0)}


class TestTheSplit:
    def test_it_is_disjoint_and_stable_under_more_files(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        for name, count in (("few", 300), ("more", 450)):
            write(tmp_path / name, {f"{i}.py": source_code(i) for i in range(count)})
            packed(tmp_path / name, tmp_path / f"out-{name}")
        held_few, held_more = (
            texts(tmp_path / f"out-{name}", "heldout.jsonl.gz") for name in ("few", "more")
        )
        assert 0 < len(held_few) <= 15
        assert held_few == held_more & {source_code(i) for i in range(300)}
        assert not held_more & texts(tmp_path / "out-more", "train-*")
        assert len(texts(tmp_path / "out-more")) == 450

    def test_no_near_duplicate_of_a_held_out_file_is_trained_on(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        files = {f"{i}.py": source_code(i) for i in range(300)}
        copies = {f"copy/{name}": "# copied\n" + text for name, text in files.items()}
        manifest = packed(write(tmp_path / "code", {**files, **copies}), tmp_path / "out")
        assert manifest["left_out"] == {"near-duplicate": 300}
        held_out = texts(tmp_path / "out", "heldout.jsonl.gz")
        train = texts(tmp_path / "out", "train-*")
        assert held_out
        assert not {f"# copied\n{text}" for text in held_out} & train

    def test_a_corpus_too_small_to_hold_a_file_out_still_has_something_to_evaluate_on(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(tmp_path / "code", {"a.py": source_code(0)})
        assert packed(folder, tmp_path / "out")["held_out_files"] == 0
        assert texts(tmp_path / "out", "heldout.jsonl.gz") == {source_code(0)}

    def test_packing_again_gives_the_same_bytes_and_an_order_that_is_not_the_files(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(tmp_path / "code", {f"{i:02}.py": source_code(i) for i in range(20)})
        for out in ("one", "two"):
            packed(folder, tmp_path / out)
        shards = [tmp_path / out / "train-000.jsonl.gz" for out in ("one", "two")]
        assert shards[0].read_bytes() == shards[1].read_bytes()
        assert [d.text for d in read_shard(shards[0])] != [source_code(i) for i in range(20)]


class TestTheManifest:
    def test_it_says_what_is_in_the_corpus(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        folder = write(
            tmp_path / "library",
            {"SOURCE.json": '{"licence": "ISC", "version": "2"}', "a.py": source_code(0),
             "b.rs": source_code(1)},
        )  # fmt: skip
        manifest = packed(folder, tmp_path / "out")
        train = read_shard(tmp_path / "out" / "train-000.jsonl.gz")
        chars = {d.language: len(d.text) for d in train}
        tokens = {name: round(n / CHARS_PER_TOKEN) for name, n in chars.items()}
        assert set(chars) == {"python", "rust"}
        assert (manifest["format"], manifest["files"]) == (2, len(train))
        assert manifest["chars"] == sum(chars.values())
        assert manifest["tokens_are"] == f"estimated at {CHARS_PER_TOKEN} characters each"
        shares = {name: row["share"] for name, row in manifest["languages"].items()}
        assert shares == pytest.approx({n: t / sum(tokens.values()) for n, t in tokens.items()})
        assert manifest["sources"] == [
            {
                "name": "library",
                "licence": "ISC",
                "version": "2",
                "url": None,
                "files": 2,
                "chars": sum(chars.values()),
                "tokens_of_language": tokens,
            }
        ]

    def test_tokens_are_counted_by_the_tokenizer_that_is_given(
        self, tmp_path: Path, write: Write, source_code: SourceCode, backbone: Backbone
    ) -> None:
        folder = write(tmp_path / "code", {"a.py": source_code(0)})
        manifest = packed(folder, tmp_path / "out", tokenizer=backbone.tokenizer)
        assert manifest["tokens"] == len(backbone.tokenizer.encode(source_code(0)))
        assert manifest["tokens_are"] == "counted"

    def test_two_sources_of_one_name_are_told_apart(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        sources = [
            find_source(write(tmp_path / name / "src", {"a.py": source_code(i)}))
            for i, name in enumerate("ab")
        ]
        manifest: dict[str, Any] = pack(sources, tmp_path / "out", any_licence=True)
        assert [(s["name"], s["files"]) for s in manifest["sources"]] == [
            ("src", 1),
            ("src (2)", 1),
        ]


class TestTheFolder:
    def test_a_smaller_packing_leaves_no_shard_of_a_larger_one_behind(
        self, tmp_path: Path, write: Write, source_code: SourceCode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(packing, "SHARD_FILES", 2)
        folder = write(tmp_path / "code", {f"{i}.py": source_code(i) for i in range(7)})
        packed(folder, tmp_path / "out")
        assert len(list((tmp_path / "out").glob("train-*"))) > 1
        for file in list(folder.iterdir())[1:]:
            file.unlink()
        packed(folder, tmp_path / "out")
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
            "heldout.jsonl.gz", "manifest.json", "train-000.jsonl.gz",
        ]  # fmt: skip
        assert len(texts(tmp_path / "out")) == 1

    def test_a_full_disk_leaves_the_old_corpus_as_it_was(
        self, tmp_path: Path, write: Write, source_code: SourceCode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, out = write(tmp_path / "code", {"a.py": source_code(0)}), tmp_path / "out"
        packed(folder, out)
        before = {p.name: p.read_bytes() for p in out.iterdir()}

        def full(path: Path, documents: object) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(packing, "write_shard", full)
        with pytest.raises(OSError, match=r"No space left on device; what was in .*/out is untou"):
            packed(write(folder, {"b.py": source_code(1)}), out)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    def test_a_packing_that_was_interrupted_does_not_hinder_the_next(
        self, tmp_path: Path, write: Write, source_code: SourceCode
    ) -> None:
        out = write(tmp_path / "out", {".packing/train-007.jsonl.gz": b"half"})
        packed(write(tmp_path / "code", {"a.py": source_code(0)}), out)
        assert is_packed(out)
        assert texts(out) == {source_code(0)}

    @pytest.mark.parametrize("files", [{}, {"notes.txt": "hello"}, {"short.py": "pass\n"}])
    def test_a_folder_without_code_is_refused_by_name(
        self, tmp_path: Path, write: Write, files: dict[str, str | bytes]
    ) -> None:
        (tmp_path / "empty").mkdir()
        folder = write(tmp_path / "empty", files)
        with pytest.raises(ValueError, match=r"no code files to train on in .*/empty; .*\.py"):
            packed(folder, tmp_path / "out")
        assert not is_packed(tmp_path / "out")


class TestTheCommand:
    def test_it_packs_and_says_how_much(
        self,
        tmp_path: Path,
        write: Write,
        source_code: SourceCode,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = write(tmp_path / "code", {"LICENSE": MIT, "a.py": source_code(0)})
        assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
        assert capsys.readouterr().out.startswith("1 files, ")
        assert is_packed(tmp_path / "out")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nowhere"], "not a folder: nowhere"),
            (["code"], "no permissive licence found in code (unknown)"),
            (["code", "--backbone", "code/none.gguf"], "there is no model at"),
            (["code", "--hold-out", "other"], "no source is named other"),
            (["code", "--any-licence", "--decontaminate", "no.jsonl"], "no.jsonl"),
        ],
    )
    def test_bad_input_ends_with_one_sentence_and_exit_code_1(
        self,
        tmp_path: Path,
        write: Write,
        source_code: SourceCode,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        message: str,
    ) -> None:
        write(tmp_path / "code", {"a.py": source_code(0)})
        monkeypatch.chdir(tmp_path)
        assert main([*arguments, "--out", "out"]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("packing: ")
        assert message in last
