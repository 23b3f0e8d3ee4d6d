from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from model.checkpoint import n_gram_strengths
from model.evaluation.__main__ import main
from model.evaluation.n_grams import ORDERS, START, Place, fitted_strengths


def place(chance: float, times: int) -> Place:
    counts = ((times, 8, 2), (0, 0, 0), (0, 0, 0))
    return Place(file="a", is_first=False, is_end=False, chance=chance, counts=counts)


def drawn_places(trust: float) -> list[Place]:
    """Places whose true tokens were drawn from the corrected chances, order 1 alone having seen
    anything: of two tokens that followed it, one seven times."""
    draw, places = random.Random(3), list[Place]()
    for _ in range(4000):
        prior = draw.uniform(0.05, 0.6)
        chance = (7 + trust * 2 * prior) / (8 + trust * 2)
        is_it = draw.random() < chance
        if is_it:
            places.append(place(prior, 7))
        else:  # one of all the others, as likely as not seen
            places.append(place(1 - prior, 1))
    return places


def test_the_fit_finds_what_the_tokens_were_drawn_with() -> None:
    for trust in (0.8, 6.0):
        strengths = fitted_strengths(drawn_places(trust))
        assert strengths[0] == pytest.approx(trust, rel=0.3)
        assert strengths[1:] == list(map(pytest.approx, START[1:])), "nothing speaks of them"


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path: Path, code: str) -> list[str]:
        paths = [tmp_path / f"{name}.py" for name in "abcd"]
        for path in paths:
            path.write_text(code, encoding="utf-8")
        return list(map(str, paths))

    def test_strengths_are_fitted_and_go_into_the_checkpoint(
        self, checkpoint: Path, files: list[str], tmp_path: Path
    ) -> None:
        report = tmp_path / "report.json"
        argv = ["n-grams", "--model", str(checkpoint), "--limit", "40", "--out", str(report)]
        assert main([*argv, "--data", *files]) == 0
        assert n_gram_strengths(checkpoint) == []
        figures = json.loads(report.read_text())["figures"]
        assert figures["tried on"]["tokens"] > 20
        assert figures["tried on"]["nats with"] < figures["tried on"]["nats without"] - 0.5
        assert main([*argv, "--data", *files, "--save"]) == 0
        saved = n_gram_strengths(checkpoint)
        assert [order for order, _ in saved] == list(ORDERS)
        given = {str(order): pytest.approx(strength, abs=0.01) for order, strength in saved}
        assert figures["strengths"] == given

    def test_one_file_is_too_few(
        self, checkpoint: Path, files: list[str], tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        argv = ["n-grams", "--model", str(checkpoint), "--limit", "5"]
        assert main([*argv, "--out", str(tmp_path / "r.json"), "--data", files[0]]) == 1
        assert "all in one file; name more files" in capsys.readouterr().err
