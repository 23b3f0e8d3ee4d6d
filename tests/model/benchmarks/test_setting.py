"""What the parts of a benchmark share."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.benchmarks.setting import Setting, shuffled_rounds


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others(setting: Setting) -> None:
    prompts = setting.prompts(6)
    assert prompts == replace(setting).prompts(6)
    assert prompts != replace(setting, seed=1).prompts(6)
    text = setting.sources[0].text
    assert all(p.request.prefix + p.middle + p.request.suffix in text for p in prompts)


def test_prompts_come_from_an_infilling_file_where_one_is_named(
    checkpoint: Path, tmp_path: Path
) -> None:
    record = {
        "task_id": "SingleLineInfilling/HumanEval/1/L0",
        "entry_point": "one",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "suffix": "\n",
        "test": "assert one() == 1\n",
    }
    data = tmp_path / "problems.jsonl.gz"
    data.write_bytes(gzip.compress(json.dumps(record).encode()))
    (prompt,) = Setting(model=checkpoint, data=data).prompts(5)
    assert prompt.middle == "    return 1\n"
    assert prompt.request.prefix.endswith("def one():\n")


def test_two_places_for_prompts_and_a_device_that_is_not_there_are_refused(source: Path) -> None:
    with pytest.raises(ValueError, match="--data or from PATHS"):
        Setting(model=source, data=source, paths=(source,))
    with pytest.raises(ValueError, match="'abacus' is not known"):
        _ = Setting(model=source, device="abacus").torch_device
    with pytest.raises(ValueError, match="'cuda:99' is not there"):
        _ = Setting(model=source, device="cuda:99").torch_device


def test_a_model_that_verifies_nothing_is_told_which_parts_it_has(
    setting: Setting, tmp_path: Path
) -> None:
    setting.require_backbone()
    with pytest.raises(ValueError, match="--parts clients,memory"):
        replace(setting, model=tmp_path).require_backbone()


def test_a_longer_text_than_the_files_have_begins_them_again(setting: Setting) -> None:
    source = setting.sources[0].text
    assert setting.text(2 * len(source)) == 2 * source


def test_fresh_texts_have_the_length_asked_for_and_begin_differently(setting: Setting) -> None:
    texts = setting.fresh_texts(5, 40)
    assert all(36 <= len(setting.tokenizer.encode(text)) <= 48 for text in texts)
    beginnings = {tuple(setting.tokenizer.encode(text)[:4]) for text in texts}
    assert len(beginnings) == 5


def test_every_round_holds_every_name_once_in_an_order_of_its_own() -> None:
    names = ["a", "b", "c", "d"]
    plan = shuffled_rounds(names, 8, seed=0)
    rounds = [plan[start : start + 4] for start in range(0, 32, 4)]
    assert all(sorted(one) == names for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
