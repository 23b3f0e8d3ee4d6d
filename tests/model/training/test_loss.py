from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.denoiser import Denoiser, Role
from model.noise_schedule import LinearSchedule
from model.tokenizer import CodeTokenizer
from model.training.corpus import Document
from model.training.data import NO_TARGET, Batch, BatchShape, WindowSampler
from model.training.loss import add_noise, certainty_loss, joint_loss

VOCAB, MASK, END, LANGUAGE = 40, 0, 1, 2
SCHEDULE = LinearSchedule()
ALL_MASKED = LinearSchedule(min_time=1 - 1e-6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def window(prefix: Sequence[int], hole: Sequence[int], suffix: Sequence[int]) -> Batch:
    """A batch of one window with one hole and a canvas of four slots."""
    length = 24
    tokens = [*prefix, *hole, *suffix]

    def stream(ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        padding = length - len(ids)
        targets = [*ids[1:], *[NO_TARGET] * (padding + 1)]
        return torch.tensor([[*ids, *[MASK] * padding]]), torch.tensor([targets])

    forward, forward_targets = stream([LANGUAGE, *tokens])
    backward, backward_targets = stream([LANGUAGE, *reversed(tokens)])
    return Batch(
        prefix_ids=forward,
        suffix_ids=backward,
        prefix_targets=forward_targets,
        suffix_targets=backward_targets,
        prefix_seen=torch.tensor([[1 + len(prefix)]]),
        suffix_seen=torch.tensor([[1 + len(suffix)]]),
        canvas_targets=torch.tensor([[[*hole, END, END, END, END][:4]]]),
        canvas_weights=torch.ones(1, 1, 4),
    )


def with_canvases(targets: list[list[int]], weights: list[list[float]]) -> Batch:
    """One window whose canvases are given, each seeing one token of both streams."""
    one = window([3], [4], [5])
    seen = torch.ones(1, len(targets), dtype=torch.int64)
    return dataclasses.replace(
        one,
        prefix_seen=seen,
        suffix_seen=seen,
        canvas_targets=torch.tensor([targets]),
        canvas_weights=torch.tensor([weights]),
    )


class Recorder:
    """A denoiser that remembers what its canvases came to."""

    is_compiled = False

    def __init__(self, model: Denoiser) -> None:
        self.encode, self.logits, self._denoise = model.encode, model.logits, model.denoise

    def denoise(self, ids: Tensor, *args: object, **options: object) -> Tensor:
        self.canvas_ids = ids
        self.canvas_hidden = self._denoise(ids, *args, **options)
        return self.canvas_hidden


class Oracle:
    """Its hidden states are the logits: `certainty` nats above the rest for the right token of a
    stream, and of the canvas slots in `knows`."""

    is_compiled = False

    def __init__(self, batch: Batch, certainty: float, knows: Tensor | None = None) -> None:
        streams = torch.cat((batch.prefix_targets, batch.suffix_targets))
        self.streams = certainty * F.one_hot(streams.clamp(0), VOCAB).float()
        self.canvases = certainty * F.one_hot(batch.canvas_targets, VOCAB).float()
        if knows is not None:
            self.canvases *= knows[..., None]

    def encode(self, *_: object) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        return self.streams, [(self.streams, self.streams)]

    def denoise(self, *_: object, **__: object) -> Tensor:
        return self.canvases.flatten(1, 2)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class TestNoise:
    BATCH = with_canvases([[5, 6, 7, 8]] * 2, [[1.0, 0.5, 0.0, 1.0]] * 2)

    def test_clamped_slots_are_never_masked_and_weigh_nothing(self) -> None:
        for seed in range(50):
            noisy, weights = add_noise(self.BATCH, MASK, SCHEDULE, seeded(seed))
            assert (noisy[..., 2] == 7).all()
            assert (weights[..., 2] == 0).all()

    def test_exactly_the_masked_slots_carry_loss(self) -> None:
        for seed in range(50):
            noisy, weights = add_noise(self.BATCH, MASK, SCHEDULE, seeded(seed))
            assert ((noisy == MASK) == (weights > 0)).all()
            assert ((noisy == MASK) | (noisy == self.BATCH.canvas_targets)).all()

    def test_at_time_one_everything_free_is_masked_at_its_own_weight(self) -> None:
        noisy, weights = add_noise(self.BATCH, MASK, ALL_MASKED, seeded(0))
        assert noisy[0, 0].tolist() == [MASK, MASK, 7, MASK]
        torch.testing.assert_close(weights, self.BATCH.canvas_weights, rtol=1e-4, atol=0)

    def test_weights_average_to_the_slots_shares(self) -> None:
        """Rarely masked slots weigh more when they are: the loss is an unbiased bound."""
        many = with_canvases([[5, 6]] * 5000, [[1.0, 0.5]] * 5000)
        _, weights = add_noise(many, MASK, SCHEDULE, seeded(0))
        # One weight has a deviation of 1.25; the mean of 5000, of 0.018.
        assert weights[0].mean(0).tolist() == pytest.approx([1.0, 0.5], abs=0.07)

    def test_a_seeded_generator_gives_the_same_noise(self) -> None:
        (a, wa), (b, wb) = (add_noise(self.BATCH, MASK, SCHEDULE, seeded(3)) for _ in range(2))
        assert a.equal(b)
        assert wa.equal(wb)


class TestJointLoss:
    def loss(self, model: object, batch: Batch, **options: object):
        defaults = {"mask_id": MASK, "schedule": ALL_MASKED, "context_weight": 0.5}
        return joint_loss(model, batch, generator=seeded(0), **{**defaults, **options})

    BATCH = with_canvases([[5, 6, 7], [8, 9, 9]], [[1.0, 1.0, 0.5], [1.0, 0.0, 0.0]])

    def test_of_a_model_that_is_certain_and_right_is_zero(self) -> None:
        terms = self.loss(Oracle(self.BATCH, certainty=100.0), self.BATCH)
        assert terms.total.item() == pytest.approx(0.0, abs=1e-6)

    def test_of_a_model_that_is_certain_and_wrong_is_its_certainty(self) -> None:
        oracle = Oracle(self.BATCH, certainty=100.0)
        oracle.canvases = oracle.canvases.roll(1, dims=-1)
        assert self.loss(oracle, self.BATCH).diffusion.item() == pytest.approx(100.0, rel=1e-4)

    def test_of_a_model_that_knows_nothing_is_the_log_of_the_vocabulary(self) -> None:
        terms = self.loss(Oracle(self.BATCH, certainty=0.0), self.BATCH)
        assert terms.diffusion.item() == pytest.approx(math.log(VOCAB), rel=1e-4)
        assert terms.context.item() == pytest.approx(math.log(VOCAB), rel=1e-4)

    def test_is_the_mean_over_slots_by_their_shares(self) -> None:
        """By hand: the model knows all but the slots of shares 1 and 0.5 out of 3.5."""
        knows = torch.tensor([[[1, 0, 0], [1, 0, 0]]])
        terms = self.loss(Oracle(self.BATCH, certainty=100.0, knows=knows), self.BATCH)
        assert terms.diffusion.item() == pytest.approx(1.5 / 3.5 * math.log(VOCAB), rel=1e-4)

    def test_total_is_diffusion_and_the_share_of_context(self) -> None:
        terms = self.loss(Oracle(self.BATCH, certainty=1.0), self.BATCH, context_weight=0.25)
        expected = terms.diffusion.item() + 0.25 * terms.context.item()
        assert terms.total.item() == pytest.approx(expected)

    def test_what_stands_in_weightless_slots_and_padding_does_not_matter(
        self, make_denoiser: Callable[..., Denoiser]
    ) -> None:
        model = make_denoiser(VOCAB).requires_grad_(False)
        empty_place = [[1.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
        one = with_canvases([[5, 6, 7], [8, 9, 9]], empty_place)
        other = with_canvases([[5, 6, 7], [11, 12, 13]], empty_place)
        padded = [one.prefix_ids.clone(), one.suffix_ids.clone()]
        for ids in padded:
            ids[:, 4:] = 17
        other = dataclasses.replace(other, prefix_ids=padded[0], suffix_ids=padded[1])
        a, b = self.loss(model, one), self.loss(model, other)
        assert a.diffusion.item() == pytest.approx(b.diffusion.item(), rel=1e-12)
        assert a.context.item() == pytest.approx(b.context.item(), rel=1e-12)

    def test_a_batch_without_any_hole_has_a_context_loss_and_no_diffusion_loss(
        self, make_denoiser: Callable[..., Denoiser]
    ) -> None:
        batch = with_canvases([[0, 0, 0]], [[0.0, 0.0, 0.0]])
        terms = self.loss(make_denoiser(VOCAB), batch)
        terms.total.backward()
        assert terms.diffusion.item() == 0.0
        assert terms.context.item() > 0.0

    def test_context_loss_does_not_depend_on_the_canvases(
        self, make_denoiser: Callable[..., Denoiser]
    ) -> None:
        model = make_denoiser(VOCAB).requires_grad_(False)
        other = dataclasses.replace(self.BATCH, canvas_targets=self.BATCH.canvas_targets + 10)
        assert self.loss(model, self.BATCH).context.equal(self.loss(model, other).context)
        assert not self.loss(model, self.BATCH).diffusion.equal(self.loss(model, other).diffusion)

    @pytest.mark.parametrize("context_weight", [0.0, 0.5])
    def test_gradient_reaches_every_parameter(
        self, make_denoiser: Callable[..., Denoiser], context_weight: float
    ) -> None:
        model = make_denoiser(VOCAB)
        batch = window([3, 4, 5], [6, 7], [8, 9, 10])
        self.loss(model, batch, context_weight=context_weight).total.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            if name == "role_embedding.weight":
                assert (parameter.grad.abs().amax(dim=1) > 0).all()  # all three roles
            assert parameter.grad.abs().max() > 0, name


class TestCertaintyLoss:
    def test_is_the_tempered_entropy_of_right_slots_by_their_shares(self) -> None:
        """Two tokens, of odds 3 to 1: at temperature 0.5, 9 to 1. The second slot is wrong."""
        logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])
        loss = certainty_loss(logits, torch.tensor([0, 1, 0]), torch.tensor([0.5, 1.0, 0.25]))
        entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
        assert loss.item() == pytest.approx(0.5 * entropy + 0.25 * math.log(2))

    def test_makes_right_slots_surer_and_leaves_wrong_ones_alone(self) -> None:
        logits = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]], requires_grad=True)
        certainty_loss(logits, torch.tensor([0, 1]), torch.ones(2)).backward()
        gradient = logits.grad
        assert gradient is not None
        assert gradient[0, 0] < 0  # descent raises the right one
        assert (gradient[0, 1:] > 0).all()
        assert (gradient[1] == 0).all()

    def test_is_added_by_its_weight_and_is_zero_without_one(self) -> None:
        batch = TestJointLoss.BATCH
        knows = torch.tensor([[[1, 0, 0], [1, 0, 0]]])
        oracle = Oracle(batch, certainty=2.0, knows=knows)
        loss = TestJointLoss().loss
        without, given = loss(oracle, batch), loss(oracle, batch, certainty_weight=0.25)
        assert without.certainty.item() == 0.0
        # Slots of share 1 each, out of 3.5, that are known, odds e^4 to 1 against 39 others.
        sure = math.exp(4) / (math.exp(4) + VOCAB - 1)
        rest = (1 - sure) / (VOCAB - 1)
        entropy = -(sure * math.log(sure) + (VOCAB - 1) * rest * math.log(rest))
        assert given.certainty.item() == pytest.approx(2 * entropy / 3.5, rel=1e-4)
        expected = without.total.item() + 0.25 * given.certainty.item()
        assert given.total.item() == pytest.approx(expected)
        assert given.diffusion.equal(without.diffusion)


class TestTrainingSeesWhatInferenceSees:
    def test_canvases_of_a_real_batch_equal_each_canvas_alone_between_its_streams(
        self, tokenizer: CodeTokenizer, code: str, make_denoiser: Callable[..., Denoiser]
    ) -> None:
        shape = BatchShape(windows=2, stream_tokens=128, canvases=4, canvas_sizes=(8,))
        sampler = WindowSampler([Document(code, "python", "")], tokenizer, shape, seed=0)
        batch = sampler.batch(0)
        model = make_denoiser(tokenizer.vocab_size).requires_grad_(False)
        recorder = Recorder(model)
        joint_loss(
            recorder,  # pyright: ignore[reportArgumentType]
            batch,
            mask_id=tokenizer.mask_id,
            schedule=SCHEDULE,
            context_weight=0.0,
            generator=seeded(0),
        )
        canvases, hidden = (
            t.unflatten(1, (4, 8)) for t in (recorder.canvas_ids, recorder.canvas_hidden)
        )
        slots = torch.arange(8)[None]
        for b, k in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
            num_prefix, num_suffix = batch.prefix_seen[b, k], batch.suffix_seen[b, k]
            alone = model.denoise(
                canvases[b, k][None],
                batch.prefix_ids[b, num_prefix - 1].view(1, 1),
                num_prefix + slots,
                num_suffix.expand(1, 8),
                model.encode(batch.prefix_ids[b : b + 1, :num_prefix], Role.PREFIX)[1],
                model.encode(batch.suffix_ids[b : b + 1, :num_suffix], Role.SUFFIX)[1],
                canvas_size=8,
            )
            torch.testing.assert_close(hidden[b, k], alone[0])

    def test_a_canvas_cannot_tell_how_long_its_hole_is(
        self, make_denoiser: Callable[..., Denoiser]
    ) -> None:
        """The same surroundings, a hole of no, two or nine tokens: the blank canvas is one."""
        model = make_denoiser(VOCAB).requires_grad_(False)
        found = []
        for hole in ([], [6, 7], [11, 12, 13, 14, 15, 16, 17, 18, 19]):
            recorder = Recorder(model)
            joint_loss(
                recorder,  # pyright: ignore[reportArgumentType]
                window([3, 4, 5], hole, [8, 9, 10]),
                mask_id=MASK,
                schedule=ALL_MASKED,
                context_weight=0.0,
                generator=seeded(0),
            )
            assert (recorder.canvas_ids == MASK).all()
            found.append(recorder.canvas_hidden)
        torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)
