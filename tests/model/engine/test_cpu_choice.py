from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from model.engine.model_runner import ModelRunner

from model.denoiser import Denoiser, Role
from model.engine import cpu_choice
from model.engine.cpu_choice import BUDGET_S, cpu_runner, fastest_threads, lay_out_for_products


class Machine:
    """A clock that `run` moves on by what a step takes on so many threads."""

    def __init__(self, *seconds_by_threads: float) -> None:
        self.seconds = dict(zip((1, 2, 4, 6), seconds_by_threads, strict=False))
        self.now, self.threads, self.tried = 0.0, 0, list[int]()

    def set_threads(self, count: int) -> None:
        self.threads = count
        self.tried.append(count)

    def run(self) -> None:
        self.now += self.seconds[self.threads]

    def chosen(self, most: int) -> tuple[int, float]:
        count, seconds = fastest_threads(
            self.run, most, set_threads=self.set_threads, clock=lambda: self.now
        )
        return count, round(seconds, 6)


class TestThreads:
    def test_the_fastest_number_is_taken(self) -> None:
        machine = Machine(0.020, 0.012, 0.008, 0.006)
        assert machine.chosen(6) == (6, 0.006)
        assert machine.tried == [1, 2, 4, 6]

    def test_more_are_not_tried_where_they_no_longer_help(self) -> None:
        machine = Machine(0.020, 0.030, 0.001, 0.001)
        assert machine.chosen(6) == (1, 0.020)
        assert machine.tried == [1, 2]

    def test_a_slow_step_is_not_measured_for_long(self) -> None:
        machine = Machine(BUDGET_S, BUDGET_S / 2)
        assert machine.chosen(2) == (1, BUDGET_S)
        assert machine.now == 2 * BUDGET_S

    def test_one_core_has_no_choice(self) -> None:
        assert Machine(0.02).chosen(1) == (1, 0.02)


@pytest.fixture
def own_model(model: Denoiser) -> Denoiser:
    """A copy: its weights are laid out anew."""
    return copy.deepcopy(model)


class TestLayout:
    @torch.inference_mode()
    def test_the_results_stay_and_each_column_is_in_one_piece(
        self, model: Denoiser, own_model: Denoiser
    ) -> None:
        lay_out_for_products(own_model)
        ids = torch.arange(20)[None]
        for one, other in zip(
            model.encode(ids, Role.PREFIX)[0], own_model.encode(ids, Role.PREFIX)[0], strict=True
        ):
            torch.testing.assert_close(own_model.logits(other), model.logits(one))
        assert own_model.embedding.weight.stride(0) == 1
        assert own_model.state_dict().keys() == model.state_dict().keys()


class TestRuntime:
    def test_without_openvino_torch_runs_and_nothing_is_wrong(
        self, own_model: Denoiser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpu_choice, "find_spec", lambda _: None)
        runner = cpu_runner(own_model)
        assert type(runner) is ModelRunner
        assert runner.problems == []
        assert runner.runtime.startswith("torch ")

    @pytest.mark.parametrize("failure", ["compiling", "another release", "logits"])
    def test_an_openvino_that_fails_or_is_wrong_is_left_aside_and_named(
        self, own_model: Denoiser, monkeypatch: pytest.MonkeyPatch, failure: str
    ) -> None:
        class Failing(ModelRunner):
            def __init__(self, model: Denoiser, *, cache_bytes: int | None) -> None:
                if failure == "compiling":
                    raise RuntimeError("no kernel\nfor this processor")
                if failure == "another release":
                    raise AttributeError("no opset13")
                super().__init__(model, cache_bytes=cache_bytes)

            def canvas_logits(self, *args: object) -> torch.Tensor:
                return super().canvas_logits(*args) + 1  # type: ignore[arg-type]

        monkeypatch.setattr(cpu_choice, "find_spec", lambda _: object())
        module = SimpleNamespace(OpenVinoRunner=Failing)
        monkeypatch.setitem(sys.modules, "model.engine.openvino_runner", module)
        runner = cpu_runner(own_model)
        assert type(runner) is ModelRunner
        why = {
            "compiling": "no kernel for this processor",
            "another release": "no opset13",
            "logits": "not close",
        }
        assert why[failure] in runner.problems[0]

    def test_other_dtypes_stay_with_torch(
        self, make_denoiser: Callable[..., Denoiser], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpu_choice, "find_spec", lambda _: object())
        assert type(cpu_runner(make_denoiser(50, dtype=torch.bfloat16))) is ModelRunner

    @pytest.mark.parametrize(("slower", "is_taken"), [(1.9, True), (2.1, False)])
    def test_openvino_is_taken_unless_it_is_far_slower(
        self,
        own_model: Denoiser,
        monkeypatch: pytest.MonkeyPatch,
        slower: float,
        is_taken: bool,
    ) -> None:
        class Compiled(ModelRunner):
            def __init__(self, model: Denoiser, *, cache_bytes: int | None) -> None:
                super().__init__(model, cache_bytes=cache_bytes)

        monkeypatch.setattr(cpu_choice, "find_spec", lambda _: object())
        module = SimpleNamespace(OpenVinoRunner=Compiled)
        monkeypatch.setitem(sys.modules, "model.engine.openvino_runner", module)
        monkeypatch.setattr(cpu_choice, "fastest_threads", lambda *_: (1, 1.0))
        seconds = iter([slower, 1.0])
        monkeypatch.setattr(cpu_choice, "shortest_s", lambda _: next(seconds))
        assert isinstance(cpu_runner(own_model), Compiled) is is_taken
