from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.backbone.checkpoint import Backbone
from model.denoiser import Denoiser, save_denoiser
from model.denoiser.checkpoint import read_config
from model.engine.run.torch_forward import TorchForward
from model.training import progress as progress_module
from model.training.corpus import Document, write_shard
from model.training.progress import draft, end_scores, held_out_scores, main, prepare
from model.training.windows import WindowSampler, WindowShape

SHAPE = WindowShape(
    far_tokens=32, suffix_tokens=16, plain_tokens=48, branches=2, canvases=12, slots=4
)


@pytest.fixture
def windows(backbone: Backbone, model: Denoiser, document: Document):
    forward = TorchForward(backbone.model, tapped_layers=model.config.taps)
    sampler = WindowSampler([document], backbone.tokenizer, SHAPE, 3, draft_only=True)
    return [prepare(forward, sampler.window(i)) for i in range(4)]


@pytest.mark.parametrize("right", [0, 1, 3])
def test_a_run_of_right_slots_counts_up_to_the_first_error(
    model: Denoiser, windows, right: int, monkeypatch: pytest.MonkeyPatch
):
    def drafted(_model, hidden, first, *, follows):
        held = next(h for h in windows if len(h.own) == len(hidden) and not used(h))
        if follows is False:
            seen.append(id(held))
        found = held.own.clone()
        found[:, 1 + right : 2 + right] += 1  # one error; all behind it is right again
        return found

    seen: list[int] = []
    monkeypatch.setattr(progress_module, "draft", drafted)
    used = lambda held: id(held) in seen  # noqa: E731
    scores = held_out_scores(model, windows)
    assert scores.tokens_per_forward == pytest.approx(1 + right)
    assert scores.parallel == pytest.approx(1 + right)


def test_a_draft_that_is_told_each_token_uses_what_it_chose(model: Denoiser):
    torch.manual_seed(0)
    torch.nn.init.normal_(model.follower.out.weight)
    hidden, first = torch.randn(3, 4, 64), torch.tensor([5, 6, 7])
    alone = draft(model, hidden, first, follows=False)
    told = draft(model, hidden, first, follows=True)
    assert alone[:, 0].equal(first)
    assert told[:, 0].equal(first)
    state = model.follow(hidden[:, 2], told[:, 1])
    assert told[:, 2].equal(model.logits(state).argmax(dim=-1))
    assert not told.equal(alone)


def test_the_ends_threshold_is_where_it_tells_most():
    holes = [
        (torch.tensor([1.0, -1.0, 3.0]), torch.tensor([False, False, True])),
        (torch.tensor([2.0, 0.5]), torch.tensor([False, True])),
        (torch.tensor([-2.0, 0.0]), torch.tensor([False, True])),
    ]
    scores = end_scores(holes)
    assert scores.threshold == pytest.approx(0.5)
    assert (scores.precision, scores.recall) == (pytest.approx(0.6), 1.0)
    assert scores.exact == pytest.approx(1 / 3)  # the others would end too soon
    assert scores.f1 == pytest.approx(0.75)
    none = end_scores([])
    assert (none.recall, none.f1, none.exact) == (0.0, 0.0, 0.0)


def test_a_checkpoint_is_scored_and_keeps_its_thresholds(
    model: Denoiser, backbone: Backbone, document: Document, tmp_path: Path, capsys
):
    corpus, checkpoint = tmp_path / "corpus", tmp_path / "denoiser"
    corpus.mkdir()
    write_shard(corpus / "heldout.jsonl.gz", [document])
    save_denoiser(checkpoint, model, backbone, training={"steps": 5})
    arguments = [str(checkpoint), "--backbone", str(backbone.path), "--corpus", str(corpus)]
    assert main([*arguments, "--windows", "2", "--save"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["tokens_per_forward"] >= 1
    config = read_config(checkpoint)
    assert config["thresholds"]["end"] == pytest.approx(scores["end"]["threshold"], abs=1e-4)
    assert config["training"] == {"steps": 5}
    (corpus / "heldout.jsonl.gz").unlink()
    assert main(arguments) == 1
    assert "has no files" in capsys.readouterr().err
