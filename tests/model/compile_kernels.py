"""Compiles every kernel for GPUs that need not be there; a process of its own, as Triton's interpreter must be off.

python compile_kernels.py 80 90: prints a JSON object for each kernel and compute capability.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bertchen.model import attention_kernels, embedding_kernels, float8, kernels, narrow, norm_kernels

OF_ATTENTION = ("log_sums", "deltas", "slopes", "query_sums")
OF_WORDS = ("words", "type_row", "of_words")
POINTERS = {
    "*bf16": ("gated", "grad", "more", "x", "residual", "of_x", "of_residual", "logits", "qkv", "of_qkv"),
    "*fp32": ("bias", "weight", "shift", "moments", "sums", "largest", "losses", "unit", *OF_ATTENTION, *OF_WORDS),
    "*i64": ("seed", "labels", "ids", "sorted_ids", "order"),
    "*i32": ("cu_seqlens", "turned", "reach"),
    "i32": ("tokens", "width", "classes", "ignore_index", "quarter", "columns", "vocabulary", "padding"),
    "fp32": ("eps", "scale", "scale2"),
}
TYPES = {name: kind for kind, names in POINTERS.items() for name in names}
DROPOUT = {"DROP": 6554, "SCALE": 1.1}
HEADS = {"HEADS": 12, "WIDTH": 64, "BLOCK": 64, "OWN": attention_kernels.OWN, "OWNERS": 8}
NORM = {**DROPOUT, "WIDTH": 768, "PIECES": 3, "PIECE": 256}
EIGHT_BITS = {"QUADS": 8, "WIDE": 128}
ATTENTION = {
    attention_kernels._forward: attention_kernels.FORWARD,
    attention_kernels._of_queries: attention_kernels.QUERIES,
    attention_kernels._of_keys: attention_kernels.KEYS,
}
# What is launched: the kernel, the dtype of `out`, constants, warps, stages.
KERNELS: list[tuple[Any, str, dict[str, Any], int, int]] = [
    (kernels._glu, "*bf16", {**DROPOUT, "BLOCK": 1024}, 4, 3),
    (kernels._glu_backward, "*bf16", {**DROPOUT, "BLOCK": 1024}, 4, 3),
    (norm_kernels._add_norm, "*bf16", NORM, 1, 3),
    (norm_kernels._add_norm_backward, "*bf16", {**NORM, "MORE": True}, 4, 3),
    (embedding_kernels._embed, "*bf16", NORM, 1, 3),
    (embedding_kernels._embed_backward, "*bf16", NORM, 2, 3),
    (kernels._cross_entropy, "*bf16", {"BLOCK": 8192}, 16, 3),
    *(
        (kernel, "*bf16", {**HEADS, "PASS": shape.pass_by, "MASKED": masked, "NARROW": False}, *shape[1:])
        for kernel, shape in ATTENTION.items()
        for masked in (False, True)
    ),
]
KERNELS_OF_8_BITS: list[tuple[Any, str, dict[str, Any], int, int]] = [
    (narrow._quantize, "*i8", {**EIGHT_BITS, "E4M3": True}, 4, 3),
    (float8._glu, "*i8", {**EIGHT_BITS, **DROPOUT, "E4M3": True}, 4, 3),
    (float8._glu_backward, "*i8", {**EIGHT_BITS, **DROPOUT, "E4M3": False}, 8, 3),
    *(
        (kernel, "*bf16", {**HEADS, "PASS": shape.pass_by, "MASKED": False, "NARROW": True}, *shape[1:])
        for kernel, shape in ATTENTION.items()
        if "NARROW" in kernel.arg_names
    ),
]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_for(
    capability: int, kernel: Any, out: str, constants: dict[str, Any], warps: int, stages: int
) -> dict[str, Any]:
    """What the machine code takes: bytes of shared memory and of stack; and whether it reads where a stack would be."""
    types = {**TYPES, "out": out, **({"of_qkv": "*i8"} if constants.get("NARROW") else {})}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    values = {(place,): constants[name] for place, name in enumerate(kernel.arg_names) if name in constants}
    # Tensors and widths are multiples of 16, as launching finds out.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or signature[name] == "i32"
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, values, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", file.name], text=True)
        code = subprocess.check_output([TOOLS / "nvdisasm", "-c", file.name], text=True)
    instructions = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", code, re.MULTILINE)
    of_stack = [instruction for instruction in instructions if re.search(r"\bR1\b", instruction)]
    return {
        "shared": compiled.metadata.shared,
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "stack": int(re.findall(r"STACK:(\d+)", usage)[-1]),
        "reads_stack_register": sum("c[0x0][0x28]" not in instruction for instruction in of_stack),
        "instructions": len(instructions),
    }


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        has_8_bits = capability >= 10 * float8.MIN_CAPABILITY[0] + float8.MIN_CAPABILITY[1]
        for kernel, *how in KERNELS + (KERNELS_OF_8_BITS if has_8_bits else []):
            line = {"capability": capability, "kernel": kernel.__name__, **compile_for(capability, kernel, *how)}
            print(json.dumps(line), flush=True)
