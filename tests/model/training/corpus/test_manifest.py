from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.training.corpus.manifest import main, render_card

MANIFEST = {
    "format": 2,
    "packed": "2026-01-02",
    "held_out_files": 3,
    "held_out_sources": ["flask"],
    "files": 1234,
    "chars": 5_600_000,
    "tokens": 1_700_000,
    "tokens_are": "counted",
    "languages": {"python": {"share": 0.9}, "go": {"share": 0.1}},
    "sources": [
        {
            "name": "flask",
            "licence": "BSD-3-Clause",
            "version": None,
            "files": 1234,
            "tokens_of_language": {"python": 1_530_000, "go": 170_000},
        }
    ],
    "left_out": {"too short": 7},
    "left_out_sources": [{"name": "hypothesis", "licence": "MPL-2.0", "version": "6"}],
    "scrubbed": {"secrets": 1, "e-mail addresses": 2},
    "decontamination": {"HumanEval.jsonl.gz": 4},
}


def test_the_card_repeats_the_manifest() -> None:
    card = render_card(MANIFEST)
    for said in (
        "1,234 files, 5.6 M characters, 1.7 M tokens (counted), packed 2026-01-02",
        "python 90.0 %, go 10.0 %",
        "7 too short",
        "hypothesis (MPL-2.0)",
        "1 secrets, 2 e-mail addresses",
        "HumanEval.jsonl.gz (4 files)",
        "| flask |  | BSD-3-Clause | 1,234 | 1.70 |\n",
    ):
        assert said in card


def test_the_command_prints_the_card_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == render_card(MANIFEST)


@pytest.mark.parametrize(
    ("text", "why"), [('{"files": 1}', "not of format 2; pack it again"), ("{", "manifest: ")]
)
def test_another_manifest_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert main([str(tmp_path)]) == 1
    assert why in capsys.readouterr().err


def test_a_folder_without_a_manifest_and_no_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "manifest.json" in capsys.readouterr().err
    assert main([]) == 1
    assert "give the folder" in capsys.readouterr().err
