"""The kernels compile for real GPUs, which the interpreter cannot tell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_for_gpus.py")
ROOT = SCRIPT.parents[4]
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""What a program may use (CUDA C++ programming guide, table "Technical specifications")."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_compiles_and_fits_the_shared_memory(capability: int, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(capability)],
        env=environment, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert len(kernels) == (8 if capability < 89 else 9)
    for name, shared in kernels:
        assert int(shared) <= SHARED_BYTES[capability], name
