"""OpenVINO, and nothing else.

`import openvino` by itself reports to Google Analytics, unasked, wherever the package
`openvino_telemetry` can be imported, and pip installs that along. Nothing of Mezzotint's leaves the
machine, so that import is made to fail, which OpenVINO is prepared for. Import it from here only.
"""

from __future__ import annotations

import sys
from typing import Any, cast

cast("dict[str, Any]", sys.modules)["openvino_telemetry"] = None

import openvino  # noqa: E402  # pyright: ignore[reportMissingImports]

__all__ = ["openvino"]
