"""One name for a language, whatever a client calls it."""

from __future__ import annotations

import pytest

from lsp_server.languages import canonical, language_called, language_of
from lsp_server.settings import parse_settings
from model.grammars import GRAMMARS


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("/a/main.py", "python"),
        ("C:\\src\\View.TSX", "typescriptreact"),
        ("lib/app.d.ts", "typescript"),
        ("Makefile", "makefile"),
        ("/a/Dockerfile", "dockerfile"),
        ("/repo/tsconfig.json", "jsonc"),
        ("run.sh", "shellscript"),
        ("Program.cs", "csharp"),
        ("notes", ""),
        ("archive.xyz", ""),
        ("", ""),
    ],
)
def test_file_names_speak_for_their_language(path: str, language: str):
    assert language_of(path) == language


@pytest.mark.parametrize(
    ("called", "language"),
    [
        ("python", "python"),
        ("Python", "python"),
        (" PYTHON ", "python"),
        ("python-ts-mode", "python"),
        ("python.django", "python"),
        ("js", "javascript"),
        ("js-mode", "javascript"),
        ("jsx", "javascriptreact"),
        ("javascript.jsx", "javascriptreact"),
        ("tsx", "typescriptreact"),
        ("tsx-ts-mode", "typescriptreact"),
        ("typescript.tsx", "typescriptreact"),
        ("c++", "cpp"),
        ("c++-ts-mode", "cpp"),
        ("cuda", "cuda-cpp"),
        ("cuda-cpp", "cuda-cpp"),
        ("objc", "objective-c"),
        ("objective-c", "objective-c"),
        ("golang", "go"),
        ("go.mod", "go.mod"),
        ("sh", "shellscript"),
        ("zsh", "shellscript"),
        ("bash-ts-mode", "shellscript"),
        ("cs", "csharp"),
        ("csharp-mode", "csharp"),
        ("jsonc", "jsonc"),
        ("js-json-mode", "json"),
        ("yml", "yaml"),
        ("dockerfile", "dockerfile"),
        ("Dockerfile", "dockerfile"),
        ("text", "plaintext"),
        ("brand-new", "brand-new"),
        ("", ""),
    ],
)
def test_a_language_has_one_name(called: str, language: str):
    assert canonical(called) == language
    assert canonical(canonical(called)) == language


def test_every_language_with_a_grammar_is_known_by_a_name_that_has_one():
    assert all(canonical(name) in GRAMMARS for name in GRAMMARS)


@pytest.mark.parametrize(
    ("called", "path", "language"),
    [
        ("", "/a/b.py", "python"),
        ("brand-new", "/a/b.go", "go"),
        ("brand-new", "/a/b", "brand-new"),
        ("golang", "/a/b.txt", "go"),
        ("plaintext", "/a/b.py", "plaintext"),  # somebody has said so
    ],
)
def test_where_nobody_knows_the_name_the_file_name_counts(called: str, path: str, language: str):
    assert language_called(called, path) == language


@pytest.mark.parametrize("written", ["python", "Python", "py", "python-mode"])
def test_a_language_is_switched_off_by_any_of_its_names(written: str):
    settings, problems = parse_settings({"languages": {written: False}})
    assert not problems
    assert not settings.enabled_for("python")
    assert settings.enabled_for("go")
