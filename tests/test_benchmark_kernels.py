"""The benchmark of kernels: what it measures, and what it refuses."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch
from script_modules import load_script

from bertchen.errors import UserError
from bertchen.model import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = kernels.why_unable(DEVICE)
SMALL = (
    "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=48", "model.vocab_size=96",
    "tokens=64", "length=32", "repetitions=2", "warmup=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_kernels")


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_a_line_for_each_pass(benchmark: ModuleType, dropout: float, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main([*SMALL, "backends=[sdpa]", f"dropout={dropout}", "compile=false"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["kernel"], line["by"], line["pass"]) for line in lines] == [
        *(("attention", by, which) for by in ("triton", "sdpa") for which in ("forward", "backward")),
        *((kernel, by, which) for kernel in ("embeddings", "glu", "add_norm") for by in ("triton", "torch")
          for which in ("forward", "backward")),
        ("cross_entropy", "triton", "both"), ("cross_entropy", "torch", "forward"),
        ("cross_entropy", "torch", "backward"), ("attention_float8", "triton", "backward"),
        ("quantize", "triton", "forward"),
        ("glu_float8", "triton", "forward"), ("glu_float8", "triton", "backward"),
    ]  # fmt: skip
    for line in lines:
        assert 0 < line["fastest_slowest"][0] <= line["microseconds"] <= line["fastest_slowest"][1]
    forward = {line["kernel"]: line for line in lines if line["by"] == "triton" and line["pass"] == "forward"}
    size = 2 if DEVICE.type == "cuda" else 4
    moved = {"glu": 64 * 3 * 48 * size, "add_norm": 64 * 3 * 32 * size, "quantize": 64 * 32 * (size + 2)}
    moved["embeddings"] = 64 * 32 * (4 + size)
    for kernel, number in moved.items():
        line = forward[kernel]
        assert line["gb_per_second"] == pytest.approx(number / line["microseconds"] / 1e3, rel=0.05, abs=0.1)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_what_cant_run_says_why(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main([*SMALL, "kernels=[attention,quantize,attention_float8]", "backends=[fast]", "length=2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    errors = [line.get("error") for line in lines]
    assert [error is None for error in errors] == [True, True, False, True, False]
    assert "there is no such backend" in errors[2]
    assert errors[4] == "gradients of rows of 2 tokens can't be written in 8 bits"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("kernels=[gul]", "kernels.*'gul' is unknown.*glu"),
        ("dropout=1", "dropout.*below 1"),
        ("tokens=65", "tokens.*multiple of length"),
        ("repetitions=0", "repetitions"),
    ],
)
def test_refuses(benchmark: ModuleType, wrong: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main([*SMALL, wrong])


def test_refuses_where_there_are_no_kernels(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "why_unable", lambda device: "no GPU")
    with pytest.raises(UserError, match="can't be timed here: no GPU"):
        benchmark.main([*SMALL])
