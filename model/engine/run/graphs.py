"""Work that is recorded once and then replayed as a whole (CUDA graphs).

A forward consists of hundreds of kernels that each take less time than Python needs to start one.
Recorded, they are one launch. The price: it works on the same tensors each time, which the caller
fills and reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch

logger = logging.getLogger(__name__)

WARM_UPS = 2
"""Runs before recording: kernels compile and libraries take their workspaces then."""

Work = Callable[[], None]
"""Takes and returns nothing, keeps nothing that it allocates, and never waits for the device."""


class Recorder(Protocol):
    """Makes work quick to do again."""

    problems: list[str]
    """Why something is slower than it should be."""

    def recorded(self, work: Work) -> Work:
        """The same work. It may be run `WARM_UPS` times on the way, so its inputs must be harmless.

        Recordings are never replayed at once. Raises what `work` raises.
        """
        ...


class PlainRecorder:
    """Records nothing, where there are no graphs."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def recorded(self, work: Work) -> Work:
        """See `Recorder.recorded`."""
        return work


class CudaRecorder:
    """Records CUDA graphs, whose intermediate results share one place in memory."""

    def __init__(self, device: torch.device) -> None:
        self.problems: list[str] = []
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()

    def recorded(self, work: Work) -> Work:
        """See `Recorder.recorded`; work that cannot be recorded stays what it is."""
        try:
            graph = self._graph(work)
        except torch.OutOfMemoryError:
            raise  # a smaller batch may fit
        except RuntimeError as error:
            logger.exception("a forward could not be recorded: it runs kernel by kernel, slowly")
            self.problems.append(f"a forward could not be recorded: {error}")
            return work
        return graph.replay

    def _graph(self, work: Work) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads of the process do with the device must not break the recording.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            work()
        return graph


def recorder_for(device: torch.device) -> Recorder:
    """What records on a device."""
    return CudaRecorder(device) if device.type == "cuda" else PlainRecorder()
