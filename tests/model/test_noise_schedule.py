from __future__ import annotations

import pytest
import torch

from model.noise_schedule import LinearSchedule

SCHEDULE = LinearSchedule(min_time=0.1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_everything_is_masked_at_time_one_and_min_time_of_it_at_the_other_end() -> None:
    ends = SCHEDULE.mask_probability(torch.tensor([SCHEDULE.min_time, 1.0]))
    assert ends.tolist() == pytest.approx([SCHEDULE.min_time, 1.0])


def test_mask_probability_grows_with_time() -> None:
    rates = SCHEDULE.mask_probability(torch.linspace(0.1, 1, 50))
    assert (rates.diff() > 0).all()


def test_loss_weight_is_the_derivative_of_the_log_of_the_mask_probability() -> None:
    times = torch.linspace(0.1, 1, 40, dtype=torch.float64)
    step = 1e-6
    above, below = (SCHEDULE.mask_probability(times + d).log() for d in (step, -step))
    torch.testing.assert_close(SCHEDULE.loss_weight(times), (above - below) / (2 * step))


@pytest.mark.parametrize("num", [1, 2, 7, 80])
def test_a_batch_has_one_time_in_each_stratum(num: int) -> None:
    for seed in range(20):
        times = SCHEDULE.sample_times(num, seeded(seed))
        strata = ((times - 0.1) / 0.9 * num).sort().values
        assert strata.tolist() == pytest.approx(
            [strata[0].item() + i for i in range(num)], abs=1e-4
        )
        assert SCHEDULE.min_time <= times.min()
        assert times.max() <= 1.0


def test_times_come_in_random_order() -> None:
    times = SCHEDULE.sample_times(64, seeded(0))
    assert not (times.diff() > 0).all()
    assert not (times.diff() < 0).all()


def test_stratified_times_have_the_mean_of_the_uniform_distribution() -> None:
    # One draw of 100 strata is within half a stratum of the mean; independent draws are not.
    assert SCHEDULE.sample_times(100, seeded(1)).mean().item() == pytest.approx(0.55, abs=0.0046)


def test_sampling_is_reproducible() -> None:
    draws = [SCHEDULE.sample_times(9, seeded(3)) for _ in range(2)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(SCHEDULE.sample_times(9, seeded(4)))


@pytest.mark.parametrize("min_time", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_a_smallest_time_outside_the_open_unit_interval_is_refused(min_time: float) -> None:
    with pytest.raises(ValueError, match="min_time is"):
        LinearSchedule(min_time=min_time)
