"""Which way a backbone is run here, and what is remembered of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from backbones import causal, positions, some_ids, tiny

from model.engine.run import cpu_choice
from model.engine.run.cpu_choice import (
    BUDGET_S,
    CLEARLY,
    FILE,
    ROWS,
    Choice,
    cpu_forward,
    fastest,
    read_choice,
    write_choice,
)
from model.engine.run.openvino_forward import OpenVinoForward
from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer

Way = tuple[str, int]


class Machine:
    """Ways that take so many milliseconds a row, by threads; making one takes a while."""

    def __init__(self, ms: dict[Way, float], making_s: float = 0.5) -> None:
        self.ms, self.making_s = ms, making_s
        self.now, self.tried = 0.0, list[Way]()

    def make(self, way: str, threads: int) -> Way:
        self.now += self.making_s
        self.tried.append((way, threads))
        return way, threads

    def measure(self, forwards: Sequence[Way]) -> list[tuple[dict[int, float], float]]:
        return [({rows: self.ms[way] * rows for rows in ROWS}, self.ms[way]) for way in forwards]

    def chosen(self, ways: Sequence[str], threads: int) -> Way:
        forward, choice = fastest(
            self.make, ways, threads, measure=self.measure, clock=lambda: self.now
        )
        assert forward == (choice.arithmetic, choice.threads)
        assert choice.costs == self.measure([forward])[0][0]
        return forward


class TestTrials:
    def test_the_fastest_way_is_taken_on_all_threads_or_half(self) -> None:
        ms = {("a", 4): 3.0, ("b", 4): 2.0, ("b", 2): 2.5}
        machine = Machine(ms)
        assert machine.chosen(["a", "b"], 4) == ("b", 4)
        assert machine.tried == [("a", 4), ("b", 4), ("b", 2)]
        assert Machine({**ms, ("b", 2): 1.0}).chosen(["a", "b"], 4) == ("b", 2)
        assert Machine({**ms, ("a", 4): 1.0, ("a", 2): 2.0}).chosen(["a", "b"], 4) == ("a", 4)

    def test_another_way_has_to_be_clearly_faster(self) -> None:
        for ms, taken in ((CLEARLY * 0.99, "a"), (CLEARLY * 1.01, "b")):
            machine = Machine({("a", 1): ms, ("b", 1): 1.0})
            assert machine.chosen(["a", "b"], 1) == (taken, 1)

    def test_fewer_threads_are_not_tried_when_the_time_is_up(self) -> None:
        machine = Machine({("a", 4): 3.0, ("b", 4): 2.0}, making_s=BUDGET_S)
        assert machine.chosen(["a", "b"], 4) == ("b", 4)

    def test_one_core_has_no_choice_of_threads(self) -> None:
        assert Machine({("a", 1): 3.0}).chosen(["a"], 1) == ("a", 1)


class TestMemory:
    def test_a_choice_is_what_was_written_unless_the_stamp_differs(self, tmp_path: Path) -> None:
        choice = Choice("int8", 2, {1: 27.5, 8: 33.25}, 99.0)
        write_choice(tmp_path / FILE, choice, {"cpu": "this"})
        assert read_choice(tmp_path / FILE, {"cpu": "this"}) == choice
        assert read_choice(tmp_path / FILE, {"cpu": "another"}) is None

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"stamp": {}, "costs": {"x": 1}}'])
    def test_a_damaged_one_is_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / FILE).write_text(content)
        assert read_choice(tmp_path / FILE, {}) is None
        assert read_choice(tmp_path / "nothing", {}) is None

    def test_a_folder_that_cannot_be_written_is_no_failure(self, tmp_path: Path) -> None:
        write_choice(tmp_path / "nothing" / FILE, Choice("int8", 2, {}, 1.0), {})


def not_called() -> Transformer:
    raise AssertionError("the weights were read again")


class TestForward:
    def test_the_second_load_reads_no_weights_and_measures_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, told = tmp_path / "model.gguf", list[float]()
        first = cpu_forward(path, "digest", tiny, progress=told.append)
        assert isinstance(first, OpenVinoForward)
        assert first.problems == []
        assert told[-1] == 1.0
        assert first.costs.keys() == set(ROWS)
        assert all(ms > 0 for ms in first.costs.values())
        monkeypatch.setattr(cpu_choice, "measured", None)
        second = cpu_forward(path, "digest", not_called)
        assert isinstance(second, OpenVinoForward)
        assert second.costs == first.costs
        assert (second.arithmetic, second.threads) == (first.arithmetic, first.threads)
        given = some_ids(1, 5), positions(1, 0, 5), None, causal(1, 0, 5)
        torch.testing.assert_close(second.rows(*given).hidden, first.rows(*given).hidden)

    def test_other_weights_of_the_same_name_are_packed_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        cpu_forward(path, "digest", tiny)
        other = cpu_forward(path, "other", lambda: tiny(seed=1))
        given = some_ids(1, 5), positions(1, 0, 5), None, causal(1, 0, 5)
        expected = TorchForward(tiny(seed=1)).rows(*given).hidden
        assert (other.rows(*given).hidden - expected).norm() < 0.03 * expected.norm()

    @pytest.mark.parametrize("failure", ["compiling", "missing", "wrong"])
    def test_an_openvino_that_fails_or_is_wrong_is_left_aside_and_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
    ) -> None:
        def fail(*_: object) -> object:
            if failure == "wrong":
                return TorchForward(tiny(seed=1))
            if failure == "missing":
                raise ImportError("No module named 'openvino'")
            raise RuntimeError("no kernel\nfor this processor")

        monkeypatch.setattr(cpu_choice, "_by_openvino", fail)
        forward = cpu_forward(tmp_path / "model.gguf", "digest", tiny, tapped_layers=(1,))
        assert isinstance(forward, TorchForward)
        assert forward.tapped_layers == (1,)
        why = {
            "compiling": "no kernel for this processor",
            "missing": "No module named 'openvino'",
            "wrong": "computes something else",
        }
        (problem,) = forward.problems
        assert problem.startswith("OpenVINO does not run this model here, so torch does: ")
        assert why[failure] in problem

    def test_a_full_disk_leaves_torch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("model.engine.run.packed_weights.save_file", full)
        forward = cpu_forward(tmp_path / "model.gguf", "digest", tiny)
        assert isinstance(forward, TorchForward)
        assert "No space left" in forward.problems[0]
        assert not list((tmp_path / "model.gguf.packed").glob("*.safetensors*"))

    def test_what_the_checkpoint_itself_lacks_is_raised(self, tmp_path: Path) -> None:
        def broken() -> Transformer:
            raise LookupError("no such weights")

        with pytest.raises(LookupError, match="no such weights"):
            cpu_forward(tmp_path / "model.gguf", "digest", broken)

    def test_what_is_written_is_readable(self, tmp_path: Path) -> None:
        cpu_forward(tmp_path / "model.gguf", "digest", tiny)
        found = json.loads((tmp_path / "model.gguf.packed" / FILE).read_text())
        assert found["stamp"]["digest"] == "digest"
