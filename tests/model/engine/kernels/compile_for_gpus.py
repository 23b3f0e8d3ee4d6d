"""Compiles every kernel for a GPU that need not be there: `compile_for_gpus.py CAPABILITY`.

Run in a process of its own, where triton does not interpret. The interpreter takes much that the
compiler does not: types that change in a loop, pointers of two kinds, shapes that do not fit.
Prints `NAME SHARED_BYTES` a kernel.
"""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.engine.kernels import head, layer, paged_attention
from model.engine.run.float8 import MIN_CAPABILITY

BF16, FP32, INT = "*bf16", "*fp32", "*i32"
POINTERS = {
    "pages_ptr": INT, "lengths_ptr": INT, "visible_ptr": "*u8", "partial_ptr": FP32,
    "lse_ptr": FP32, "logits_ptr": FP32, "cos_ptr": FP32, "sin_ptr": FP32, "scale_ptr": FP32,
    "rows_ptr": "*fp8e4nv",
}  # fmt: skip
FLOATS = ("scale", "eps", "largest_float8", "smallest_entry")
KERNELS = [
    (paged_attention._attend_split, {"DIM": 64, "ROWS": 64, "KEYS": 64, "PAGE": 16}),
    (paged_attention._attend_split, {"DIM": 128, "ROWS": 32, "KEYS": 64, "PAGE": 16}),
    (paged_attention._combine, {"DIM": 64, "ROWS": 16}),
    (head._head_tile, {"ROWS": 32, "TOKENS": 64, "DIMS": 64}),
    (layer._split_rotate, {"HALF": 32, "BLOCK": 32, "BIAS": True, "NORM": False}),
    (layer._split_rotate, {"HALF": 64, "BLOCK": 64, "BIAS": False, "NORM": True}),
    (layer._add_norm, {"SIZE": 1024}),
    (layer._swiglu, {"SIZE": 1024}),
]
FLOAT8_KERNELS = [(layer._quantised, {"SIZE": 1024})]


def compile_kernel(kernel, constants: dict[str, int], capability: int):  # type: ignore[no-untyped-def]
    """Compile for bf16 weights and 32-bit numbers."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, BF16)
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    aligned = [i for i, name in enumerate(kernel.arg_names) if name.endswith("_ptr")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def main() -> None:
    capability = int(sys.argv[1])
    has_float8 = capability >= 10 * MIN_CAPABILITY[0] + MIN_CAPABILITY[1]
    for kernel, constants in KERNELS + (FLOAT8_KERNELS if has_float8 else []):
        compiled = compile_kernel(kernel, constants, capability)
        print(kernel.fn.__name__, compiled.metadata.shared)


if __name__ == "__main__":
    main()
