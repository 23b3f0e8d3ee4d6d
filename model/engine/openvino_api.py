"""OpenVINO, and nothing else.

Import it from here only, and compile by `compiled_for_cpu`.

`import openvino` by itself reports to Google Analytics, unasked, wherever the package
`openvino_telemetry` can be imported, and pip installs that along. Nothing of Mezzotint's leaves the
machine, so that import is made to fail, which OpenVINO is prepared for.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, cast

cast("dict[str, Any]", sys.modules)["openvino_telemetry"] = None

import openvino  # noqa: E402  # pyright: ignore[reportMissingImports]

__all__ = ["compiled_for_cpu", "cpu_has", "cpu_name", "openvino"]


def compiled_for_cpu(graph: openvino.Model, options: dict[str, Any]) -> Any:
    """A graph, compiled for the CPU. Raises OpenVINO's own `RuntimeError`s."""
    return _core().compile_model(graph, "CPU", options)


def cpu_has(capability: str) -> bool:
    """Whether OpenVINO makes use of something that this processor has: "BF16"."""
    return capability in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def cpu_name() -> str:
    """What this processor calls itself."""
    return str(_core().get_property("CPU", "FULL_DEVICE_NAME"))


@cache
def _core() -> openvino.Core:
    # One, and for good. The first use of its CPU plugin gives the thread an alternate signal stack,
    # and the plugin's end, in whatever thread that is, frees it: the next signal to the thread that
    # loaded a model, Ctrl-C say, would then end the process with a segmentation fault.
    return openvino.Core()
