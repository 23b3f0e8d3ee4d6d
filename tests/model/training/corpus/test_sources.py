from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from model.training.corpus.sources import find_source, folder_licence

MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy"
BSD_3 = "Redistribution and use in source and binary forms ... Neither the name of"
GPL = "GNU GENERAL PUBLIC LICENSE\nVersion 3"
Write = Callable[[Path, dict[str, str | bytes]], Path]


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("LICENSE", MIT, "MIT"),
        ("LICENCE.txt", BSD_3, "BSD-3-Clause"),
        ("COPYING", GPL, "LicenseRef-GPL"),
        ("UNLICENSE", "This is free and unencumbered software released into the public domain",
         "Unlicense"),
        ("LICENSE.md", "All rights reserved.", "unknown"),
        ("README.md", MIT, "unknown"),
        ("license.py", MIT, "unknown"),
        ("package.json", '{"license": "ISC"}', "ISC"),
        ("Cargo.toml", '[package]\nlicense = "MIT OR Apache-2.0"\n', "MIT OR Apache-2.0"),
        ("pyproject.toml", '[project]\nlicense = {text = "MIT License"}\n', "MIT"),
        ("pyproject.toml", '[project]\nlicense = "Apache-2.0"\n', "Apache-2.0"),
    ],
)  # fmt: skip
def test_a_folder_states_its_licence_in_many_ways(
    tmp_path: Path, write: Write, name: str, text: str, licence: str
) -> None:
    assert find_source(write(tmp_path, {name: text})).licence == licence


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: BSD-3-Clause\n", "BSD-3-Clause"),
        ("License: MIT\n", "MIT"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
        ("Classifier: License :: OSI Approved\nClassifier: License :: OSI Approved :: ISC License",
         "ISC"),
        ("License: Dual\nClassifier: License :: Other/Proprietary License\n", "LicenseRef-GPL"),
        # The whole text, in which a wheel lists what its binaries hold: the classifier is shorter.
        (f"License: {BSD_3}\n {GPL[:24]} Version 3\nClassifier: License :: OSI Approved :: Expat",
         "MIT"),
        (f"License: {MIT}\n", "MIT"),
    ],
)  # fmt: skip
def test_package_metadata_comes_before_a_licence_file(
    tmp_path: Path, write: Write, metadata: str, licence: str
) -> None:
    files: dict[str, str | bytes] = {"x-1.0.dist-info/METADATA": metadata, "LICENSE": GPL}
    assert find_source(write(tmp_path, files)).licence == licence


@pytest.mark.parametrize(
    ("text", "licence"),
    [(BSD_3, "BSD-3-Clause"), (MIT, "LicenseRef-BSD"), (BSD_3 + GPL, "LicenseRef-BSD")],
)
def test_the_licence_file_says_which_bsd_licence_the_metadata_means(
    tmp_path: Path, write: Write, text: str, licence: str
) -> None:
    files: dict[str, str | bytes] = {
        "x-1.0.dist-info/METADATA": "Classifier: License :: OSI Approved :: BSD License\n",
        "x-1.0.dist-info/licenses/LICENSE": text,
    }
    source = find_source(write(tmp_path, files))
    assert (source.licence, source.permissive) == (licence, True)


def test_several_licence_files_all_have_to_be_permissive(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"LICENSE-MIT": MIT, "LICENSE-APACHE": "Apache License\nVersion 2.0"})
    assert folder_licence(tmp_path) == "Apache-2.0 AND MIT"
    assert find_source(tmp_path).permissive
    write(tmp_path, {"COPYING": GPL})
    assert not find_source(tmp_path).permissive


def test_a_wheel_is_known_by_its_metadata(tmp_path: Path, write: Write) -> None:
    metadata = (
        "Name: Flask\nVersion: 3.1\nProject-URL: Changes, https://x/changes\n"
        "Project-URL: Source, https://x/source\nLicense-Expression: MIT\n\nDescription: License: no"
    )
    folder = write(tmp_path / "flask", {"Flask-3.1.dist-info/METADATA": metadata})
    source = find_source(folder)
    assert (source.name, source.version, source.url) == ("Flask", "3.1", "https://x/source")


def test_a_checkout_is_known_by_its_commit_and_a_mirror_by_its_folder(
    tmp_path: Path, write: Write
) -> None:
    folder = write(
        tmp_path / "tokio-rs+tokio",
        {".git/HEAD": "ref: refs/heads/main\n", ".git/refs/heads/main": "abc123\n"},
    )
    assert (find_source(folder).name, find_source(folder).version) == ("tokio-rs/tokio", "abc123")
    write(folder, {".git/HEAD": "def456\n"})
    assert find_source(folder).version == "def456"
    assert find_source(write(tmp_path / "c++", {"a.c": ""})).name == "c++"


def test_a_statement_overrides_what_the_folder_says(tmp_path: Path, write: Write) -> None:
    stated = {"name": "mine", "licence": "MIT", "version": "7", "url": "https://x"}
    source = find_source(write(tmp_path, {"LICENSE": GPL, "SOURCE.json": json.dumps(stated)}))
    assert (source.name, source.licence, source.version, source.url) == tuple(stated.values())
    write(tmp_path, {"SOURCE.json": '{"version": "8"}'})
    assert (find_source(tmp_path).licence, find_source(tmp_path).version) == ("LicenseRef-GPL", "8")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "SOURCE.json is no JSON"),
        ("[]", "must be an object of strings; its fields are name, licence"),
        ('{"license": "MIT"}', "its fields are name, licence"),
        ('{"version": 7}', "object of strings"),
        ('{"licence": "whatever"}', "'whatever' is no SPDX expression"),
    ],
)
def test_a_bad_statement_is_refused_by_name(
    tmp_path: Path, write: Write, text: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        find_source(write(tmp_path, {"SOURCE.json": text}))


def test_the_current_folder_has_its_real_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_source(Path()).name == tmp_path.name
