"""The CUDA runner with plain calls in the place of recordings, against the runner it stands for."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from canvases import between_random_streams

from model.api import CompletionError
from model.denoiser import Denoiser, Role
from model.engine.assembly import engine_for
from model.engine.engine import Engine
from model.engine.graphed_runner import GraphedRunner, Shape
from model.engine.kv_cache import PageTable
from model.engine.model_runner import ModelRunner
from model.engine.n_grams import Strength
from model.engine.sampler import Vocabulary
from model.engine.sequence import Fill, FilledHoles, SamplingParams, Sequence
from model.infill import CanvasLayout
from model.tokenizer import CodeTokenizer


def mixed_batch(mask_id: int) -> list[Sequence]:
    sizes = [(40, 3, 16), (1, 50, 16), (33, 20, 32)]
    return [
        between_random_streams(seed, mask_id, prefix=prefix, suffix=suffix, size=size)
        for seed, (prefix, suffix, size) in enumerate(sizes)
    ]


def graphed(model: Denoiser, tokenizer: CodeTokenizer, *, is_float8: bool = False) -> GraphedRunner:
    rules = Vocabulary.of(tokenizer, model.config.vocab_size, torch.device("cpu"))
    return GraphedRunner(copy.deepcopy(model), rules, is_float8=is_float8)


def logits_of(runner: ModelRunner, batch: list[Sequence]) -> list[torch.Tensor]:
    """Each sequence's own logits, with its context opened for it."""
    assert runner.open_contexts(batch) == batch
    logits = runner.denoise(batch)
    found = [logits[row, : len(s.canvas)].clone() for row, s in enumerate(batch)]
    for s in batch:
        runner.close_context(s)
    return found


def test_a_mixed_batch_over_pages_gives_the_plain_runners_logits(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    batch = mixed_batch(tokenizer.mask_id)
    expected = logits_of(ModelRunner(model), batch)
    found = logits_of(graphed(model, tokenizer), batch)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_one_shape_serves_changing_canvases_and_changing_contexts(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    plain, runner = ModelRunner(model), graphed(model, tokenizer)
    for seed, prefix in enumerate([40, 41, 7]):
        batch = [between_random_streams(seed, tokenizer.mask_id, prefix=prefix, suffix=9, size=16)]
        for _ in range(2):
            expected, found = logits_of(plain, batch), logits_of(runner, batch)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            batch[0].canvas[5] = 120 + seed
    assert len(runner._steps) == 1


def test_the_models_own_projections_become_views_of_the_joint_ones(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    before = [p.clone() for p in model.parameters()]
    runner = graphed(model, tokenizer)
    mine = runner.model
    joint = runner.denoiser._layers[0].qkv
    assert isinstance(joint, torch.Tensor)
    q = mine.blocks[0].attention.q_proj.weight
    assert q.untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()
    for a, b in zip(mine.parameters(), before, strict=True):
        assert a.equal(b)


def test_a_float8_models_beliefs_stay_near_the_full_ones(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    batch = mixed_batch(tokenizer.mask_id)
    exact = logits_of(graphed(model, tokenizer), batch)
    rounded = logits_of(graphed(model, tokenizer, is_float8=True), batch)
    for a, b in zip(rounded, exact, strict=True):
        assert not a.equal(b)
        assert torch.cosine_similarity(a, b, dim=-1).min() > 0.98


@pytest.mark.parametrize(("rows", "size", "shape"), [
    (1, 16, Shape(1, 16, 32)), (3, 48, Shape(4, 64, 32)), (5, 128, Shape(8, 128, 32)),
])  # fmt: skip
def test_a_batch_is_padded_to_the_next_powers_of_two(
    model: Denoiser, tokenizer: CodeTokenizer, rows: int, size: int, shape: Shape
) -> None:
    runner = ModelRunner(model)
    batch = [
        between_random_streams(seed, tokenizer.mask_id, prefix=20, suffix=5, size=size)
        for seed in range(rows)
    ]
    runner.open_contexts(batch)
    assert Shape.of(batch) == shape


def run_plainly(engine: Engine, fill: Fill) -> list[FilledHoles]:
    return engine.submit(fill).result(timeout=60)


def fill_of(seed: int, params: tuple[SamplingParams, ...], **options: object) -> Fill:
    draw = random.Random(seed)
    streams = [[draw.randrange(100, 300) for _ in range(n)] for n in (30, 12)]
    return Fill(
        prefix=streams[0],
        suffix=streams[1],
        layout=CanvasLayout.for_holes(16),
        params=params,
        max_new_tokens=24,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def both_engines(
    model: Denoiser, tokenizer: CodeTokenizer, make_engine: Callable[..., Engine]
) -> tuple[Engine, Engine]:
    """An engine whose runner decides nothing, and one whose runner does as on CUDA."""
    plain, ahead = make_engine(), make_engine()
    ahead.runner = graphed(model, tokenizer)
    return plain, ahead


@pytest.mark.parametrize("params", [
    SamplingParams(threshold=0.5),
    SamplingParams(policy="entropy", entropy_bound=1.0),
    SamplingParams(policy="left-to-right"),
    SamplingParams(steps=3),
    SamplingParams(temperature=0.7, seed=5),
    SamplingParams(length=20, threshold=0.3),
])  # fmt: skip
def test_an_engine_that_runs_ahead_gives_the_same_fills_in_as_many_forwards(
    both_engines: tuple[Engine, Engine], params: SamplingParams
) -> None:
    plain, ahead = both_engines
    for seed in range(3):
        expected, found = fill_of(seed, (params,)), fill_of(seed, (params,))
        outputs = run_plainly(plain, expected)[0], run_plainly(ahead, found)[0]
        assert outputs[1].holes == outputs[0].holes
        assert outputs[1].probabilities == pytest.approx(outputs[0].probabilities, abs=1e-4)
        assert found.forwards == expected.forwards


def test_what_the_document_repeats_is_weighed_on_the_host(
    model: Denoiser, tokenizer: CodeTokenizer
) -> None:
    engines = [engine_for(model, tokenizer, strengths=[Strength(1, 1e-3)]) for _ in range(2)]
    engines[1].runner = graphed(model, tokenizer)
    ids, outputs = tokenizer.encode("self.items.append(item)\n" * 3), []
    for engine in engines:
        fill = fill_of(1, (SamplingParams(threshold=0.5),))
        assert engine.n_grams is not None
        fill.document = (engine.n_grams.text(ids, precedes_hole=True),)
        outputs += run_plainly(engine, fill)
        assert not engine.runner.decides(fill.sequences[0])
        engine.close()
    assert outputs[0].holes == outputs[1].holes


def test_a_fill_normally_needs_one_look(
    both_engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine = both_engines
    looks: list[int] = []
    decide = GraphedRunner.decide

    def counted(runner: GraphedRunner, batch: list[Sequence], num_steps: int) -> object:
        looks.append(num_steps)
        return decide(runner, batch, num_steps)

    monkeypatch.setattr(GraphedRunner, "decide", counted)
    one_canvas = SamplingParams(length=10, threshold=0.0)
    for seed in range(8):
        assert run_plainly(engine, fill_of(seed, (one_canvas,)))[0].finished
    assert len(looks) == 8


def test_whoever_watches_sees_every_step_of_an_engine_that_runs_ahead(
    both_engines: tuple[Engine, Engine],
) -> None:
    seen: list[list[list[int]]] = []
    for engine in both_engines:
        frames: list[list[int]] = []
        fill = fill_of(1, (SamplingParams(policy="left-to-right"),))
        fill.on_step = lambda s, frames=frames: frames.append(list(s.canvas))
        run_plainly(engine, fill)
        seen.append(frames)
    assert seen[0] == seen[1]


def test_a_fill_whose_logits_break_fails_and_the_one_beside_it_does_not(
    both_engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = both_engines[1].runner
    encode = runner._encode

    def poisoned(role: Role, tokens: list[int], past: PageTable, row: int) -> object:
        hidden, caches = encode(role, tokens, past, row)
        if tokens[0] == 99:
            caches = [(keys * float("nan"), values) for keys, values in caches]
        return hidden, caches

    monkeypatch.setattr(runner, "_encode", poisoned)
    broken, whole = (fill_of(seed, (SamplingParams(),)) for seed in (1, 2))
    broken.prefix[0] = 99
    futures = [both_engines[1].submit(fill) for fill in (broken, whole)]
    with pytest.raises(CompletionError, match="non-finite"):
        futures[0].result(timeout=60)
    assert futures[1].result(timeout=60)[0].holes == run_plainly(both_engines[0], whole)[0].holes
