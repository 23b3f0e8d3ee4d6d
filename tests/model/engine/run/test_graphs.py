"""What is recorded, and what becomes of what cannot be."""

from __future__ import annotations

import pytest
import torch

from model.engine.run.graphs import CudaRecorder, PlainRecorder, Work, recorder_for

CUDA = torch.device("cuda")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> CudaRecorder:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return CudaRecorder(CUDA)


def test_without_graphs_work_stays_what_it_is() -> None:
    def work() -> None:
        raise AssertionError("it need not run to be recorded")

    recorder = recorder_for(torch.device("cpu"))
    assert isinstance(recorder, PlainRecorder)
    assert recorder.recorded(work) is work
    assert recorder.problems == []


def test_a_recording_is_replayed_in_the_place_of_the_work(
    recorder: CudaRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[int] = []

    class Graph:
        def replay(self) -> None:
            replays.append(1)

    monkeypatch.setattr(recorder, "_graph", lambda _: Graph())
    recorded = recorder.recorded(lambda: None)
    recorded()
    recorded()
    assert len(replays) == 2
    assert recorder.problems == []


def test_what_cannot_be_recorded_runs_all_the_same_and_says_why(
    recorder: CudaRecorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Work) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorder, "_graph", fail)
    ran: list[int] = []
    recorder.recorded(lambda: ran.append(1))()
    assert ran == [1]
    assert "not permitted" in recorder.problems[0]
    assert "kernel by kernel" in caplog.text


def test_memory_that_runs_out_is_the_callers_to_handle(
    recorder: CudaRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Work) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(recorder, "_graph", fail)
    with pytest.raises(torch.OutOfMemoryError):
        recorder.recorded(lambda: None)
    assert recorder.problems == []
