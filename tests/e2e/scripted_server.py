"""The real language server, except that the engine it starts is `scripted_engine.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from lsp_server.engine_link import engine_process
from lsp_server.launch import run_stdio

engine_process.ENGINE_COMMAND = (
    sys.executable,
    str(Path(__file__).with_name("scripted_engine.py")),
)

if __name__ == "__main__":
    sys.exit(run_stdio())
