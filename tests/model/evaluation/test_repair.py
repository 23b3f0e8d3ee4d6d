"""How often a completion breaks the syntax, and what a second denoising mends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.api import Candidate, InfillRequest, InfillResult
from model.evaluation import repair
from model.evaluation.__main__ import main

SOURCE = "alpha = compute(1)\n"


class Scripted:
    """Breaks the syntax of every hole, and mends it when asked again if it `mends`."""

    def __init__(self, *, mends: bool) -> None:
        self._mends = mends

    async def complete(self, request: InfillRequest, *, on_frame: Any = None) -> InfillResult:
        again = bool(request.typed or request.between)
        text = f"{request.typed})" if again and self._mends else f"{request.typed}f(a"
        texts = (text, *[""] * len(request.between))
        made = (Candidate(texts=texts, confidence=0.5),)
        return InfillResult(candidates=made, forwards=1, tokens=1, encoded_tokens=0, ms=1.0)

    async def close(self) -> None: ...


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(("mends", "rounds"), [(True, 2), (False, 2), (True, 0)])
def test_what_is_broken_is_repaired_or_dropped_and_nothing_broken_is_shown(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], mends: bool, rounds: int,
):  # fmt: skip
    monkeypatch.setattr(repair, "open_completer", lambda args: Scripted(mends=mends))
    out = tmp_path / "report"
    arguments = ["--data", str(source), "--limit", "6", "--rounds", str(rounds)]
    # An engine elsewhere: no checkpoint is described in the report.
    status = main(["repair", *arguments, "--out", str(out), "--engine", "http://x", "--json"])
    assert status == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["holes"] == 6
    assert figures["broken"] == figures["repaired"] + figures["dropped"] > 0
    assert (figures["repaired"] > 0) == (mends and rounds > 0)
    assert figures["shown_new_errors"] == 0
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["figures"] == figures == report["languages"]["python"]


@pytest.mark.parametrize(
    ("option", "value"), [("--limit", "0"), ("--rounds", "9"), ("--rounds", "-1")]
)
def test_a_wrong_option_ends_with_two(source: Path, option: str, value: str):
    with pytest.raises(SystemExit) as ended:
        main(["repair", "--data", str(source), option, value])
    assert ended.value.code == 2
