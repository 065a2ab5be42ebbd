"""What follows from the device's name and abilities."""

from __future__ import annotations

import os

import pytest
import torch

from bertchen.train.devices import compute_dtype, default_num_workers, peak_flops, resolve_precision


@pytest.mark.parametrize(
    ("name", "tflops"),
    [  # names as torch.cuda.get_device_name gives them; dense bfloat16 of the vendors' data sheets
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A30", 165),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("Tesla V100-SXM2-16GB", 125),
        ("nvidia a100-sxm4-40gb", 312),
    ],
)
def test_peak_by_name(name: str, tflops: float) -> None:
    assert peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    ["cpu", "", "Tesla T4", "NVIDIA RTX A4000", "NVIDIA RTX A1000", "NVIDIA RTX A3000 Laptop GPU", "NVIDIA RTX A400",
     "NVIDIA RTX 6000 Ada Generation", "NVIDIA H20", "NVIDIA GB200", "Quadro GV100", "NVIDIA GeForce GTX 1080",
     "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D"],
)  # fmt: skip
def test_unknown_devices_have_no_peak(name: str) -> None:
    """A wrong figure would be worse than none: MFU is then left out, and peak_flops can be given."""
    assert peak_flops(name) is None


def has_gpu(monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")


@pytest.mark.parametrize(
    ("gpu", "bf16", "asked", "resolved"),
    [
        (True, True, "auto", "amp_bf16"),
        (True, True, "amp_bf16", "amp_bf16"),
        (True, True, "fp32", "fp32"),
        (True, False, "auto", "fp32"),
        (False, True, "auto", "fp32"),
        (False, True, "fp32", "fp32"),
    ],
)
def test_precision(monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool, asked: str, resolved: str) -> None:
    has_gpu(monkeypatch, gpu, bf16)
    assert resolve_precision(asked) == resolved


@pytest.mark.parametrize(("gpu", "bf16", "name"), [(False, True, "cpu"), (True, False, "NVIDIA Test")])
def test_bfloat16_without_the_device_for_it(monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool, name: str) -> None:
    has_gpu(monkeypatch, gpu, bf16)
    with pytest.raises(ValueError, match=name):
        resolve_precision("amp_bf16")


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="known: auto, fp32, amp_bf16"):
        resolve_precision("fp16")


def test_dtypes() -> None:
    assert compute_dtype("amp_bf16") == torch.bfloat16
    assert compute_dtype("fp32") == torch.float32


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (3, 1), (4, 2), (8, 4), (64, 4)])
def test_workers_leave_room_for_the_step(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert default_num_workers() == workers
