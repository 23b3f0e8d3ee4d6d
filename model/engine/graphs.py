"""A step that is recorded once and then replayed as a whole (a CUDA graph).

A step of a small model consists of a hundred kernels that each take less time than Python needs to
start one. Recorded, they are one launch. The price: a step works on the same tensors each time,
which the caller fills and reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)

WARM_UPS = 2
"""Runs before recording: kernels compile and libraries take their workspaces then."""


class GraphedStep:
    """Calls `step`; on CUDA by replaying a recording of it.

    `step` takes and returns nothing, allocates only what it keeps nothing of, and never waits for
    the device. Making one runs it `WARM_UPS` times, so its inputs must be harmless then.
    """

    def __init__(
        self,
        step: Callable[[], None],
        device: torch.device,
        memory: Any = None,
    ) -> None:
        """`memory` (`torch.cuda.graph_pool_handle()`, whose type has no public name) is where
        recordings that are never replayed at once put their intermediate results."""
        self._step, self._memory = step, memory
        self._graph: torch.cuda.CUDAGraph | None = None
        self.problem: str | None = None
        """Why a CUDA device does without a recording."""
        if device.type == "cuda":
            try:
                self._graph = self._recorded(device)
            except torch.OutOfMemoryError:
                raise  # a smaller batch may fit
            except RuntimeError as error:
                logger.exception("a step could not be recorded: it runs kernel by kernel, slowly")
                self.problem = f"a step could not be recorded: {error}"

    def __call__(self) -> None:
        """Start the step; its results are there once the device gets to it."""
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def _recorded(self, device: torch.device) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._step()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads of the process do with the device must not break the recording.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            self._step()
        return graph
