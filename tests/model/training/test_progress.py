from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.denoiser import Denoiser
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training.data import NO_TARGET, Batch
from model.training.progress import held_out_scores, one_step_fill, sample_fills


class Fixed:
    """A denoiser that predicts the same canvases whatever it is given."""

    is_compiled = False

    def __init__(self, predicted: Tensor, vocab_size: int, runner_up: Tensor | None = None) -> None:
        self.canvases = F.one_hot(predicted, vocab_size).float().flatten(1, 2)
        if runner_up is not None:
            self.canvases += 0.5 * F.one_hot(runner_up, vocab_size).float().flatten(1, 2)
        self.embedding = SimpleNamespace(weight=torch.zeros(1))
        self.seen: list[Tensor] = []

    def encode(self, ids: Tensor, *_: object) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        hidden = torch.zeros(*ids.shape, self.canvases.shape[-1])
        return hidden, [(hidden, hidden)]

    def denoise(self, ids: Tensor, *_: object, **__: object) -> Tensor:
        self.seen.append(ids)
        return self.canvases

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.clone()


def fixed(predicted: Tensor, tokenizer: CodeTokenizer, runner_up: Tensor | None = None) -> Denoiser:
    return cast("Denoiser", Fixed(predicted, tokenizer.vocab_size, runner_up))


def batch_of(targets: Tensor, weights: Tensor, prefix: list[int]) -> Batch:
    """One window, whose canvases all lie behind `prefix`."""
    ids = torch.tensor([prefix])
    nothing = torch.full_like(ids, NO_TARGET)
    nothing[0, 0] = prefix[-1]
    return Batch(
        prefix_ids=ids,
        suffix_ids=ids,
        prefix_targets=nothing,
        suffix_targets=nothing,
        prefix_seen=torch.full((1, targets.shape[1]), len(prefix)),
        suffix_seen=torch.ones(1, targets.shape[1], dtype=torch.int64),
        canvas_targets=targets,
        canvas_weights=weights,
    )


@pytest.fixture
def letters(tokenizer: CodeTokenizer) -> list[int]:
    """The tokens a, b, c, d and the end."""
    return [*(tokenizer.encode(letter)[0] for letter in "abcd"), tokenizer.end_id]


@pytest.fixture
def batch(letters: list[int]) -> Batch:
    """Six canvases of five slots: two short holes, an empty one, one cut at its canvas's end,
    two holes with a clamped c between them, and an unused place."""
    a, b, c, d, end = letters
    targets = [
        [a, b, end, end, end],
        [a, end, end, end, end],
        [end, end, end, end, end],
        [a, b, c, d, a],
        [a, end, c, b, end],
        [a, a, a, a, a],
    ]
    weights = torch.ones(1, 6, 5)
    weights[0, 4, 2] = 0.0
    weights[0, 5] = 0.0
    return batch_of(torch.tensor([targets]), weights, [a, b])


@pytest.fixture
def predicted(letters: list[int]) -> Tensor:
    a, b, c, d, end = letters
    rows = [
        [a, b, end, d, end],  # right: nothing after the end is shown
        [a, b, end, end, end],  # wrong: too long
        [end, a, b, c, d],  # right
        [a, b, c, d, a],  # right
        [a, end, d, b, end],  # right: the clamped slot is not predicted
        [b, b, b, b, b],  # no hole
    ]
    return torch.tensor([rows])


def test_exact_is_the_share_of_holes_right_up_to_their_end(
    tokenizer: CodeTokenizer, batch: Batch, predicted: Tensor
) -> None:
    model = fixed(predicted, tokenizer)
    scores = held_out_scores(model, tokenizer, LinearSchedule(), [batch, batch])
    assert scores.exact == pytest.approx(4 / 5)


def test_accuracy_is_the_share_of_tokens_and_first_ends_that_are_right(
    tokenizer: CodeTokenizer, batch: Batch, predicted: Tensor
) -> None:
    model = fixed(predicted, tokenizer)
    scores = held_out_scores(model, tokenizer, LinearSchedule(), [batch, batch])
    # Of 3 + 2 + 1 + 5 + 4 slots, the end of the second canvas is missed.
    assert scores.accuracy == pytest.approx(14 / 15)


@pytest.mark.parametrize(("canvas", "slot"), [(0, 2), (3, 4), (4, 0), (4, 4), (2, 0)])
def test_one_wrong_slot_before_the_end_makes_a_hole_wrong(
    tokenizer: CodeTokenizer, letters: list[int], batch: Batch, canvas: int, slot: int
) -> None:
    almost = batch.canvas_targets.clone()
    model = fixed(almost, tokenizer)
    assert held_out_scores(model, tokenizer, LinearSchedule(), [batch]).exact == 1.0
    almost[0, canvas, slot] = letters[2]
    model = fixed(almost, tokenizer)
    assert held_out_scores(model, tokenizer, LinearSchedule(), [batch]).exact == 4 / 5


def test_losses_are_means_over_the_batches(
    tokenizer: CodeTokenizer, batch: Batch, predicted: Tensor
) -> None:
    model = fixed(predicted, tokenizer)
    one, two = (
        held_out_scores(model, tokenizer, LinearSchedule(), [batch] * num) for num in (1, 2)
    )
    assert two.context == pytest.approx(one.context)
    assert one.context == pytest.approx(torch.tensor(float(tokenizer.vocab_size)).log().item())
    assert 0 < two.diffusion < 2 * one.diffusion


def test_a_fill_starts_from_masks_alone_and_leaves_clamped_slots_untouched(
    tokenizer: CodeTokenizer, batch: Batch, predicted: Tensor
) -> None:
    model = Fixed(predicted, tokenizer.vocab_size)
    filled = one_step_fill(cast("Denoiser", model), tokenizer, batch)
    seen = model.seen[0].view_as(filled)
    clamped = batch.canvas_weights == 0
    assert (seen[~clamped] == tokenizer.mask_id).all()
    for ids in (seen, filled):
        assert ids[clamped].equal(batch.canvas_targets[clamped])
    assert filled[~clamped].equal(predicted[~clamped])


def test_a_fill_never_holds_a_special_token_but_the_end(
    tokenizer: CodeTokenizer, batch: Batch, predicted: Tensor
) -> None:
    for special in tokenizer.special_ids - {tokenizer.end_id}:
        first_choice = torch.full_like(predicted, special)
        model = fixed(first_choice, tokenizer, runner_up=predicted)
        filled = one_step_fill(model, tokenizer, batch)
        holes = batch.canvas_weights > 0
        assert filled[holes].equal(predicted[holes])


def test_samples_show_the_first_hole_of_each_window_up_to_its_end(
    tokenizer: CodeTokenizer, letters: list[int]
) -> None:
    a, b, c, d, end = letters
    batch = batch_of(torch.tensor([[[c, d, end]]]), torch.ones(1, 1, 3), [a, b])
    model = fixed(torch.tensor([[[c, end, b]]]), tokenizer)
    assert sample_fills(model, tokenizer, batch) == [{"before": "ab", "true": "cd", "filled": "c"}]
    model = fixed(torch.tensor([[[c, d, b]]]), tokenizer)
    assert sample_fills(model, tokenizer, batch)[0]["filled"] == "cdb"
