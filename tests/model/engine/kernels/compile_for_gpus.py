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

BF16, FP32, INT = "*bf16", "*fp32", "*i32"
TILES = {"top_ptr": FP32, "token_ptr": INT, "total_ptr": FP32, "moment_ptr": FP32}
POINTERS = {
    "pages_ptr": INT, "lengths_ptr": INT, "canvas_lengths_ptr": INT, "partial_ptr": FP32,
    "lse_ptr": FP32, "order_ptr": INT, "num_wanted_ptr": INT, "no_end_ptr": "*u8",
    "forbidden_ptr": "*u8", "tokens_ptr": "*i64", "confidence_ptr": FP32, "entropy_ptr": FP32,
    "left_cos_ptr": FP32, "left_sin_ptr": FP32, "right_cos_ptr": FP32, "right_sin_ptr": FP32,
    **TILES,
}  # fmt: skip
KERNELS = [
    (paged_attention._attend_split, {"DIM": 64, "ROWS": 64, "KEYS": 64, "PAGE": 16}),
    (paged_attention._attend_split, {"DIM": 128, "ROWS": 32, "KEYS": 64, "PAGE": 16}),
    (paged_attention._combine, {"DIM": 64, "ROWS": 16}),
    (head._head_tile, {"ROWS": 32, "TOKENS": 64, "DIMS": 64}),
    (head._merge, {"TILES": 128}),
    (layer._split_rotate, {"HALF": 32, "NORM": True}),
    (layer._split_rotate, {"HALF": 64, "NORM": False}),
    (layer._add_norm, {"SIZE": 256}),
    (layer._swiglu, {"SIZE": 1024}),
]


def compile_kernel(kernel, constants: dict[str, int], capability: int):  # type: ignore[no-untyped-def]
    """Compile for bf16 weights and 32-bit numbers."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, BF16)
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
    aligned = [i for i, name in enumerate(kernel.arg_names) if name.endswith("_ptr")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def main() -> None:
    capability = int(sys.argv[1])
    for kernel, constants in KERNELS:
        compiled = compile_kernel(kernel, constants, capability)
        print(kernel.fn.__name__, compiled.metadata.shared)


if __name__ == "__main__":
    main()
