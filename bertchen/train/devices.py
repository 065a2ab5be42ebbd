"""What follows from the device: precision, compilation, peak FLOP/s, loader workers."""

from __future__ import annotations

import re

import torch

from bertchen.processes import available_cores

# Dense bfloat16 peaks [FLOP/s] from the vendors' data sheets. The first name that occurs in the device's name counts,
# so that variants stand before their family. The V100 has no bfloat16; its figure is float16's.
PEAK_FLOPS = {
    "B200": 2250e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
}

PRECISIONS = ("auto", "fp32", "amp_bf16")


def device_name() -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_flops(name: str) -> float | None:
    """Peak of a device in dense bfloat16 [FLOP/s] by its name; None if it isn't known."""
    # As a word of its own, for an RTX A4000 is no A40, and not as a variant's first word.
    variant = r"(?! (?:Ti|D|SUPER|Laptop)\b)"
    known = (peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b{variant}", name, re.IGNORECASE))
    return next(known, None)


def resolve_precision(precision: str) -> str:
    """Composer's name: `auto` is amp_bf16 on a GPU that has bfloat16, else fp32.

    Raises:
        ValueError: an unknown precision, or one that the device doesn't have.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown; known: {', '.join(PRECISIONS)}")
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if precision == "auto":
        return "amp_bf16" if has_bf16 else "fp32"
    if precision == "amp_bf16" and not has_bf16:
        raise ValueError(
            f"{device_name()} can't run it (Composer has bfloat16 autocast on GPUs alone); use auto or fp32"
        )
    return precision


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products under a resolved precision."""
    return torch.bfloat16 if precision == "amp_bf16" else torch.float32


def default_num_workers() -> int:
    """0 on one or two cores, where a worker would compete with the step, else half the cores up to 4."""
    cores = available_cores()
    return 0 if cores <= 2 else min(4, cores // 2)
