"""The runner over pages, with a stand-in for graphs, against the runner whose keys lie in one
piece."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from backbones import tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.denoiser.config import DenoiserConfig
from model.denoiser.network import Denoiser
from model.engine.draft.choice import BackboneVocabulary
from model.engine.draft.drafters import GuessDrafter
from model.engine.draft.stream import BackboneFill, Stream
from model.engine.draft.verify import VerifyingDecoder
from model.engine.engine import Engine
from model.engine.fill import SamplingParams
from model.engine.run import cuda_runner
from model.engine.run.backbone_runner import BackboneRunner, NewRows
from model.engine.run.cuda_forward import CudaForward
from model.engine.run.cuda_runner import CudaRunner, Shape
from model.engine.run.graphs import WARM_UPS, PlainRecorder, Work
from model.engine.run.torch_forward import TorchForward

PAGE_BYTES = 16 * 2 * 3 * 2 * 16 * 4


@pytest.fixture(autouse=True)
def _short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch pays for pages that are not there."""
    monkeypatch.setattr(cuda_runner, "MIN_PAGES", 4)


class _NothingWaits(TorchDispatchMode):
    """Refuses what a recording cannot hold: numbers from the host, and looks at the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        refused = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique")
        assert not any(part in name for part in refused), f"{name} in a recording"
        return func(*args, **(kwargs or {}))


class StrictRecorder(PlainRecorder):
    """Runs work as a recording would be made and replayed, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.num_made = self.num_replayed = 0

    def recorded(self, work: Work) -> Work:
        self.num_made += 1
        for _ in range(WARM_UPS):
            work()

        def replay() -> None:
            self.num_replayed += 1
            with _NothingWaits():
                work()

        return replay


def runners(num_pages: int = 64, **kind: object) -> tuple[BackboneRunner, CudaRunner]:
    """The plain runner and the one over pages, of the same backbone."""
    cache_bytes = num_pages * PAGE_BYTES
    plain = BackboneRunner(TorchForward(tiny(**kind)), cache_bytes=cache_bytes)
    forward = CudaForward(tiny(**kind))
    return plain, CudaRunner(forward, cache_bytes=cache_bytes, recorder=StrictRecorder())


def stream(ids: list[int]) -> Stream:
    fill = BackboneFill(prompt=tuple(ids))
    return Stream(fill=fill, params=SamplingParams(), ids=list(ids), num_prompt=len(ids), rest=b"")


def text(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(320) for _ in range(length)]


class Both:
    """The same requests to both runners; what they say is compared."""

    def __init__(self, plain: BackboneRunner, paged: CudaRunner) -> None:
        self.runners = (plain, paged)
        self.streams: dict[str, tuple[Stream, Stream]] = {}

    def open(self, name: str, ids: list[int]) -> None:
        self.streams[name] = (stream(ids), stream(ids))
        for runner, each in zip(self.runners, self.streams[name], strict=True):
            runner.open(each)

    def close(self, name: str) -> None:
        for runner, each in zip(self.runners, self.streams.pop(name), strict=True):
            runner.close(each)

    def read(self, names: list[str], drafts: list[tuple[list[int], list[int]]]) -> list[Tensor]:
        """Run what is unread and drafts (tokens, parents) behind it; logits of all drafts."""
        results = []
        for side, runner in enumerate(self.runners):
            batch = []
            for name, (tokens, parents) in zip(names, drafts, strict=True):
                each = self.streams[name][side]
                unread = each.ids[len(each.ids) - each.unread :]
                chain = list(range(-1, len(unread) - 1))
                below = [len(unread) + parent for parent in parents]
                batch.append(
                    NewRows(each, [*unread, *tokens], [*chain, *below], num_logits=1 + len(tokens))
                )
            results.append([verdict.logits.clone() for verdict in runner.run(batch)])
        for found, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
        return results[0]

    def keep(self, index: int, name: str, tokens: list[int], rows: list[int]) -> None:
        """Decide tokens, of which those of `rows` were drafted, and keep these."""
        for runner, each in zip(self.runners, self.streams[name], strict=True):
            num_unread = each.unread
            each.ids += tokens
            runner.keep(index, [*range(num_unread), *(num_unread + row for row in rows)])
            runner.check_integrity()


@pytest.mark.parametrize("kind", [{}, {"qkv_bias": False, "qk_norm": True}], ids=["bias", "norms"])
def test_over_many_steps_it_says_what_the_plain_runner_says(kind: dict[str, object]) -> None:
    """Streams that come and go, share beginnings, are drafted as trees, and fill the cache."""
    draw = random.Random(5)
    both = Both(*runners(num_pages=24, **kind))
    begun = text(draw, 40)
    for number in range(30):
        while len(both.streams) < 3:
            cut = draw.randrange(1, 40)
            both.open(f"{number}.{len(both.streams)}", begun[:cut] + text(draw, draw.randrange(9)))
        names = draw.sample(sorted(both.streams), draw.randrange(1, 4))
        drafts = []
        for _ in names:
            count = draw.randrange(5)
            drafts.append((text(draw, count), [draw.randrange(-1, n) for n in range(count)]))
        both.read(names, drafts)
        for index, name in enumerate(names):
            if any(each.table is None for each in both.streams[name]):
                continue  # it has lost its place to another one
            tokens, parents = drafts[index]
            path = path_to(parents, draw.randrange(-1, len(tokens)))
            both.keep(index, name, [*(tokens[row] for row in path), draw.randrange(320)], path)
        for name in sorted(both.streams):
            lost = any(each.table is None for each in both.streams[name])
            if lost or len(both.streams[name][0].ids) > 90 or draw.random() < 0.1:
                both.close(name)


def path_to(parents: list[int], node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


def test_candidates_that_part_in_a_page_have_a_page_each() -> None:
    both = Both(*runners())
    prompt = text(random.Random(1), 21)
    for name in "abc":
        both.open(name, prompt)
    for token in range(30):  # past the next page's end
        both.read(list("abc"), [([], [])] * 3)
        for index, name in enumerate("abc"):
            both.keep(index, name, [100 * index + token], [])


def test_what_was_kept_last_is_there_for_the_next_request() -> None:
    both = Both(*runners())
    ids = text(random.Random(2), 30)
    both.open("first", ids)
    both.read(["first"], [([7, 8], [-1, 0])])
    both.keep(0, "first", [7, 8, 9], [0, 1])
    both.close("first")
    both.open("again", [*ids, 7, 8])  # begins in pages that are still to be written
    assert both.streams["again"][1].num_cached == 32
    assert both.streams["again"][1].unread == 1
    both.read(["again"], [([9], [-1])])


def test_a_page_that_changes_hands_before_it_is_written_is_written_by_its_new_owner_alone() -> None:
    plain, paged = runners(num_pages=8)
    both = Both(plain, paged)
    draw = random.Random(3)
    both.open("a", text(draw, 32))  # two pages
    both.open("b", text(draw, 80))  # and five
    both.read(["a", "b"], [([], []), ([], [])])
    both.keep(0, "a", [1], [])
    both.keep(1, "b", [2], [])
    both.read(["a", "b"], [([], []), ([], [])])
    both.keep(0, "a", [3], [])  # the last free page
    both.close("a")  # which is the next to go
    both.keep(1, "b", [4], [])
    places = [(each.page, each.place) for each in paged._unwritten]
    assert len(places) == len(set(places)) == 1
    for _ in range(3):
        both.read(["b"], [([], [])])
        both.keep(0, "b", [draw.randrange(320)], [])


def test_one_recording_serves_every_batch_of_its_shape() -> None:
    _, paged = runners()
    recorder = paged._recorder
    assert isinstance(recorder, StrictRecorder)
    for seed in range(4):
        each = stream(text(random.Random(seed), 3 + seed // 2))
        paged.open(each)
        count = len(each.ids)
        paged.run([NewRows(each, each.ids, list(range(-1, count - 1)), num_logits=1)])
        paged.keep(0, range(count))
        paged.close(each)
    assert recorder.num_replayed == 4
    assert recorder.num_made == 1


def test_recordings_that_nobody_needs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runner, "MAX_RECORDINGS", 2)
    _, paged = runners()
    for num_rows in (1, 2, 1, 4, 1):
        paged.step(num_rows, 20)
    assert [shape.rows for shape in paged._recordings] == [4, 1]
    assert isinstance(paged._recorder, StrictRecorder)
    assert paged._recorder.num_made == 3


@pytest.mark.parametrize(("lengths", "num_rows", "shape"), [
    ([5], 1, Shape(1, 1, 4)), ([5, 1030, 1], 9, Shape(4, 16, 128)),
    ([16 * 64] * 5, 128, Shape(8, 128, 64)),
])  # fmt: skip
def test_a_batch_is_padded_to_the_next_powers_of_two(
    lengths: list[int], num_rows: int, shape: Shape
) -> None:
    tables = [
        cuda_runner.PageTable(tuple(range(-(-length // 16))), length) for length in lengths
    ]  # fmt: skip
    assert Shape.of(tables, num_rows) == shape


def test_a_step_to_be_measured_gives_logits_and_leaves_what_is_cached() -> None:
    both = Both(*runners())
    both.open("a", text(random.Random(4), 30))
    both.read(["a"], [([], [])])
    both.keep(0, "a", [5], [])
    assert both.runners[1].step(2, 100)().shape == (2, 320)  # type: ignore[attr-defined]
    both.read(["a"], [([6], [-1])])


def test_what_a_denoiser_wants_to_know_comes_along() -> None:
    """Tapped states, and room for keys of its own that are kept beside the backbone's."""
    num_layers, taps = 5, (2, 0)
    cache_bytes = 64 * PAGE_BYTES
    found = []
    for kind, runner_kind in ((TorchForward, BackboneRunner), (CudaForward, CudaRunner)):
        forward = kind(tiny(), tapped_layers=taps, num_kv_layers=num_layers)
        runner = runner_kind(forward, cache_bytes=cache_bytes)  # type: ignore[arg-type]
        each = stream(text(random.Random(6), 20))
        runner.open(each)
        runner.run([NewRows(each, each.ids, list(range(-1, 19)), num_logits=1)])
        assert runner._ran is not None
        assert runner._ran.taps is not None
        with torch.inference_mode():
            runner._ran.kv[3:, :, :, :, :20] = torch.arange(20.0)[:, None]
            taps_seen = runner._ran.taps[0, :20].clone()
        runner.keep(0, range(20))
        each.ids.append(1)
        runner.run([NewRows(each, [1], [-1], num_logits=1)])
        assert each.table is not None
        pages = runner._pool.read(each.table.pages)[3:].flatten(3, 4)[:, :, :, :20]
        assert pages[..., 0].eq(torch.arange(20.0)).all()
        found.append(taps_seen)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_denoisers_canvases_see_what_was_kept_last() -> None:
    found = []
    for kind, runner_kind in ((TorchForward, BackboneRunner), (CudaForward, CudaRunner)):
        model = tiny()
        config = DenoiserConfig.of(model.config, num_layers=2, taps=(0, 2))
        denoiser = Denoiser.of(config, model, torch.arange(320)).requires_grad_(False)
        draw = torch.Generator().manual_seed(0)
        for parameter in denoiser.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
        forward = kind(model, tapped_layers=config.taps, num_kv_layers=5)
        runner = runner_kind(forward, denoiser=denoiser, cache_bytes=64 * PAGE_BYTES)  # type: ignore[arg-type]
        streams = [stream(text(random.Random(seed), 10 + 9 * seed)) for seed in (8, 9)]
        for each in streams:
            runner.open(each)
        canvases = []
        for _ in range(3):
            batch = [
                NewRows(s, s.ids[-s.unread :], list(range(-1, s.unread - 1)), num_logits=1)
                for s in streams
            ]
            runner.run(batch)
            for index, (each, new) in enumerate(zip(streams, batch, strict=True)):
                runner.keep(index, range(len(new.tokens)))
                each.ids.append(5)
            hidden = runner.canvases(streams, 4)
            assert hidden is not None
            canvases.append(hidden.clone())
        found.append(canvases)
    for paged, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(paged, plain, atol=2e-4, rtol=2e-4)


def test_the_models_own_projections_become_views_of_the_joint_ones() -> None:
    model = tiny()
    before = [parameter.clone() for parameter in model.parameters()]
    forward = CudaForward(model)
    joint = forward._layers[0].qkv
    assert isinstance(joint, Tensor)
    q = model.layers[0].q_proj.weight
    assert q.untyped_storage().data_ptr() == joint.untyped_storage().data_ptr()
    for a, b in zip(model.parameters(), before, strict=True):
        assert a.equal(b)


def logits_of(runner: BackboneRunner, ids: list[int]) -> Tensor:
    each = stream(ids)
    runner.open(each)
    count = len(ids)
    (verdict,) = runner.run([NewRows(each, ids, list(range(-1, count - 1)), num_logits=count)])
    return verdict.logits.clone()


def test_weights_in_float8_are_the_models_too_and_stay_near_the_full_ones() -> None:
    ids = text(random.Random(7), 50)
    cache_bytes = 64 * PAGE_BYTES
    exact = logits_of(CudaRunner(CudaForward(tiny()), cache_bytes=cache_bytes), ids)
    forward = CudaForward(tiny(), is_float8=True)
    rounded = logits_of(CudaRunner(forward, cache_bytes=cache_bytes), ids)
    assert not rounded.equal(exact)
    assert torch.cosine_similarity(rounded, exact, dim=-1).min() > 0.97
    plain = logits_of(BackboneRunner(TorchForward(forward.model), cache_bytes=cache_bytes), ids)
    assert torch.cosine_similarity(rounded, plain, dim=-1).min() > 0.99
    assert "float8" in forward.runtime


def test_sizes_that_float8_cannot_have_change_nothing() -> None:
    model = tiny(ffn_size=100)
    with pytest.raises(ValueError, match=r"\(100, 64\).*use dtype bfloat16"):
        CudaForward(model, is_float8=True)
    assert isinstance(model.layers[0].q_proj, torch.nn.Linear)


def test_what_cannot_be_recorded_is_told_with_the_forwards_problems() -> None:
    recorder = StrictRecorder()
    forward = CudaForward(tiny())
    CudaRunner(forward, cache_bytes=64 * PAGE_BYTES, recorder=recorder)
    recorder.problems.append("a forward could not be recorded: it is too long")
    assert forward.problems == ["a forward could not be recorded: it is too long"]


class NoBytes:
    """A tokenizer of which no fill here asks anything."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token % 256])

    def allowed_after(self, rest: bytes) -> list[int]:
        raise AssertionError


@pytest.fixture
def both_engines() -> Iterator[tuple[Engine, Engine]]:
    engines = []
    for runner in runners(num_pages=128):
        vocabulary = BackboneVocabulary(
            end_ids=frozenset({319}), forbidden=torch.zeros(0, dtype=torch.long)
        )
        engines.append(Engine(VerifyingDecoder(runner, vocabulary, NoBytes(), [GuessDrafter()])))
    yield engines[0], engines[1]
    for engine in engines:
        engine.close()


def ask(
    engine: Engine, prompt: list[int], params: SamplingParams, guess: list[int]
) -> BackboneFill:
    """A fill of two candidates, filled; the first one is `params`' and may be guessed."""
    other = replace(params, temperature=0.5, seed=params.seed + 50)
    fill = BackboneFill(
        prompt=tuple(prompt), params=(params, other), max_new_tokens=16, guess=tuple(guess)
    )
    engine.submit(fill).result(60)
    return fill


def written(fill: BackboneFill) -> list[tuple[int, ...]]:
    """What each candidate became."""
    outputs = [sequence.output for sequence in fill.sequences]
    return [output.holes[0] for output in outputs if output is not None]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verified_text_is_what_the_plain_runner_writes_alone(
    both_engines: tuple[Engine, Engine], temperature: float
) -> None:
    plain, paged = both_engines
    num_saved = 0
    for seed in range(6):
        draw = random.Random(seed)
        prompt = text(draw, draw.randrange(1, 150))
        params = SamplingParams(policy="autoregressive", temperature=temperature, seed=seed)
        alone = ask(plain, prompt, params, [])
        guess = [token if draw.random() < 0.8 else 3 for token in written(alone)[0]]
        fill = ask(paged, prompt, replace(params, policy="verified"), guess)
        assert written(fill) == written(alone)
        first, first_alone = fill.sequences[0], alone.sequences[0]
        num_saved += first_alone.step - first.step
    assert num_saved > 0
