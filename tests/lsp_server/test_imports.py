"""The language server must start without what makes starting slow."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_server_leaves_torch_unimported():
    program = "import sys, lsp_server.launch; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_only_the_server_module_imports_the_lsp_libraries():
    program = (
        "import sys, lsp_server.ask.session;"
        "print(sorted({'pygls', 'lsprotocol'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
