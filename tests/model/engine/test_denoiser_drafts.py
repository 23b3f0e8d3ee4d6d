"""A random denoiser drafts: nothing changes but the number of forwards, and ends it is sure of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from model.denoiser.config import DenoiserConfig
from model.denoiser.network import Denoiser
from model.engine.draft.denoiser_drafter import DenoiserDrafter
from model.engine.draft.stream import BackboneFill, Stream
from model.engine.draft.verify import VerifyingDecoder
from model.engine.engine import Engine
from model.engine.fill import SamplingParams, Sequence
from model.engine.run.backbone_runner import BackboneRunner
from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer

Make = Callable[..., Engine]
PROMPT = tuple(range(1, 51))


@pytest.fixture
def make(model: Transformer, letters: Any) -> Iterator[Make]:
    engines: list[Engine] = []

    def engine(**thresholds: float) -> Engine:
        torch.manual_seed(5)
        config = DenoiserConfig.of(model.config, num_layers=1, taps=(0, 1))
        denoiser = Denoiser.of(config, model, torch.arange(56))
        denoiser.start_from(model)
        denoiser.requires_grad_(False).eval()
        forward = TorchForward(model, tapped_layers=config.taps, num_kv_layers=3)
        runner = BackboneRunner(forward, denoiser=denoiser, cache_bytes=1 << 22)
        drafters = [DenoiserDrafter(runner, denoiser)]
        decoder = VerifyingDecoder(runner, letters.vocabulary, letters, drafters, **thresholds)
        engines.append(Engine(decoder))
        return engines[-1]

    yield engine
    for each in engines:
        each.close()


def fill_of(seed: int, policy: str = "verified", **options: object) -> BackboneFill:
    params = (SamplingParams(policy=policy),)  # type: ignore[arg-type]
    return BackboneFill(
        prompt=PROMPT[seed % 7 : 20 + seed], params=params, max_new_tokens=16, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_what_is_written_stays_the_backbones_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.engine.draft.denoiser_drafter.LEAST_LIKELY", 0.0)
    drafted: list[int] = []

    def see(sequence: Sequence) -> None:
        assert isinstance(sequence, Stream)
        drafted.append(len(sequence.drafted))

    alone, drafting = make(), make()
    for seed in range(20):
        expected = alone.submit(fill_of(seed, "autoregressive")).result(60)
        found = drafting.submit(fill_of(seed, on_step=see)).result(60)
        assert [output.holes for output in found] == [output.holes for output in expected]
    assert max(drafted) == 7


def test_the_same_canvas_is_seen_whether_its_context_was_cached_or_not(make: Make) -> None:
    engine = make()
    runner = engine.decoder.runner  # type: ignore[attr-defined]
    canvases, seen = runner.canvases, list[torch.Tensor]()

    def kept(streams: list[Stream], size: int) -> torch.Tensor | None:
        hidden = canvases(streams, size)
        if hidden is not None:
            seen.append(hidden.clone())
        return hidden

    runner.canvases = kept
    engine.submit(fill_of(3)).result(60)
    first, count = list(seen), len(seen)
    engine.submit(fill_of(3)).result(60)
    again = seen[count:]
    assert count
    # Of a prompt that the cache held, the first canvas has to wait for a forward.
    for one, other in zip(reversed(first), reversed(again), strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_end_that_it_is_sure_of_is_one(make: Make) -> None:
    never, always = make(end_threshold=1.0), make(end_threshold=-1.0)
    (written,) = never.submit(fill_of(4)).result(60)
    (ended,) = always.submit(fill_of(4)).result(60)
    assert len(written.holes[0]) > 0
    assert (ended.holes, ended.finished) == (((),), True)
    (healed,) = always.submit(fill_of(4, heal=b"ab")).result(60)
    assert healed.holes[0]  # what has to be written is written first
    (known,) = always.submit(fill_of(4, length=3)).result(60)
    assert len(known.holes[0]) == 3


def test_a_token_that_the_canvas_puts_behind_the_end_is_taken_back(make: Make) -> None:
    """What a token of the backbone's own ended on is not in the answer."""
    never, always = make(), make(canvas_end_threshold=-1.0)
    (written,) = never.submit(fill_of(4)).result(60)
    (ended,) = always.submit(fill_of(4)).result(60)
    assert len(written.holes[0]) > 0
    assert (ended.holes, ended.finished) == (((),), True)
    assert len(ended.probabilities) == 1
    (healed,) = always.submit(fill_of(4, heal=b"ab")).result(60)
    assert healed.holes[0]
    (known,) = always.submit(fill_of(4, length=3)).result(60)
    assert len(known.holes[0]) == 3
    engine = always.decoder
    engine.check_integrity()
