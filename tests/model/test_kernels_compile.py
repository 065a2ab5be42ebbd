"""The kernels compile for GPUs, of which this needs none: A100 and H100; and what their machine code looks like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
# What a program may take there: 163 and 227 KB.
SHARED_MEMORY = {"80": 163 << 10, "90": 227 << 10}


@pytest.mark.parametrize("capability", [pytest.param("80", marks=pytest.mark.slow), "90"])
def test_all_compile_and_fit(capability: str, tmp_path: Path) -> None:
    environment = {
        **os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), capability], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["kernel"] for line in lines}) == (10 if capability == "80" else 11)
    for line in lines:
        assert line["shared"] <= SHARED_MEMORY[capability], line
        # Registers that don't fit cost memory traffic. Without a stack its register means nothing: machine code that
        # reads it is wrong (ptxas 12.8 made such of 16-bit halves that are joined and used apart too).
        assert line["stack"] == line["reads_stack_register"] == 0, line
