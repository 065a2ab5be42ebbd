"""Compiles every kernel for GPUs that need not be there; a process of its own, as Triton's interpreter must be off.

python compile_kernels.py 80 90: prints a line for each kernel and compute capability.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bertchen.model import attention_kernels, float8, kernels

POINTERS = {
    "*bf16": ("gated", "grad", "more", "x", "residual", "of_x", "of_residual", "logits", "qkv", "of_qkv"),
    "*fp32": ("bias", "weight", "shift", "moments", "sums", "losses", "log_sums", "deltas", "slopes", "unit"),
    "*i64": ("seed", "labels"),
    "*i32": ("cu_seqlens", "turned", "reach"),
    "i32": ("tokens", "width", "classes", "ignore_index", "quarter", "columns"),
    "fp32": ("eps", "scale", "scale2"),
}
TYPES = {name: kind for kind, names in POINTERS.items() for name in names}
DROPOUT = {"DROP": 6554, "SCALE": 1.1}
HEADS = {"HEADS": 12, "WIDTH": 64, "BLOCK": 64, "OWN": 64, "PASS": 32, "OWNERS": 8}
NORM = {**DROPOUT, "WIDTH": 768, "BLOCK": 1024}
EIGHT_BITS = {"QUADS": 8, "WIDE": 128}
KERNELS: list[tuple[Any, str, dict[str, Any]]] = [
    (kernels._glu, "*bf16", {**DROPOUT, "BLOCK": 1024}),
    (kernels._glu_backward, "*bf16", {**DROPOUT, "BLOCK": 1024}),
    (kernels._add_norm, "*bf16", NORM),
    (kernels._add_norm_backward, "*bf16", {**NORM, "MORE": True}),
    (kernels._cross_entropy, "*bf16", {"BLOCK": 8192}),
    *(
        (kernel, "*bf16", {**HEADS, "MASKED": masked})
        for kernel in (attention_kernels._forward, attention_kernels._of_queries, attention_kernels._of_keys)
        for masked in (False, True)
    ),
]
KERNELS_OF_8_BITS: list[tuple[Any, str, dict[str, Any]]] = [
    (float8._quantize, "*i8", {**EIGHT_BITS, "E4M3": True}),
    (float8._glu, "*i8", {**EIGHT_BITS, **DROPOUT, "E4M3": True}),
    (float8._glu_backward, "*i8", {**EIGHT_BITS, **DROPOUT, "E4M3": False}),
]


def compile_for(capability: int, kernel: Any, out: str, constants: dict[str, Any]) -> int:
    """Bytes of shared memory that the compiled kernel takes."""
    types = {**TYPES, "out": out}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    values = {(place,): constants[name] for place, name in enumerate(kernel.arg_names) if name in constants}
    compiled = triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", capability, 32))
    return compiled.metadata.shared


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        has_8_bits = capability >= 10 * float8.MIN_CAPABILITY[0] + float8.MIN_CAPABILITY[1]
        for kernel, out, constants in KERNELS + (KERNELS_OF_8_BITS if has_8_bits else []):
            print(capability, kernel.__name__, compile_for(capability, kernel, out, constants), flush=True)
