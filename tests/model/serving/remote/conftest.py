"""Helpers of the tests beside this file; `importlib` mode puts no folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
