"""Runs the kernels without a GPU: triton's interpreter, which must be chosen before their import.

Without triton (it ships for Linux alone) there is nothing to run, and the tests say so.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton, which ships for Linux alone, is not installed")


@pytest.fixture(autouse=True)
def _bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bf16 as its bits, and multiplies those as whole numbers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = np.asarray(handle.data, dtype=np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest, _original=create_dot):  # type: ignore[no-untyped-def]
        return _original(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(autouse=True)
def _float8_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter loses the carry of a float8 that is rounded up to a power of two."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_fp_to_fp = InterpreterBuilder.create_fp_to_fp

    def create_fp_to_fp(self, src, dst_type, *rest, _original=create_fp_to_fp):  # type: ignore[no-untyped-def]
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.float8e4nv):
            return _original(self, src, dst_type, *rest)
        rows = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.float8_e4m3fn)
        return TensorHandle(rows.view(torch.uint8).numpy(), dst_type.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", create_fp_to_fp)
