"""Peak memory against what the kernel says."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bertchen.callbacks import PeakMemory
from bertchen.callbacks.peak_memory import peak_memory

STATUS = Path("/proc/self/status")


def kernel_says(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024  # type: ignore[index]


@pytest.mark.skipif(torch.cuda.is_available() or not STATUS.exists(), reason="needs Linux without a GPU")
def test_peak_is_the_most_that_was_resident() -> None:
    before = peak_memory()
    block = torch.ones((before - kernel_says("VmRSS") + 50_000_000) // 4)  # more than ever before
    assert peak_memory() == pytest.approx(kernel_says("VmHWM"), rel=0.02)
    assert peak_memory() > before
    peak = peak_memory()
    del block
    assert peak_memory() >= peak


def test_it_is_logged_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertchen.callbacks.peak_memory.peak_memory", lambda: 2_500_000_000)
    logged: dict[str, Any] = {}
    PeakMemory().batch_end(None, SimpleNamespace(log_metrics=logged.update))  # type: ignore[arg-type]
    assert logged == {"memory/peak_gb": 2.5}
