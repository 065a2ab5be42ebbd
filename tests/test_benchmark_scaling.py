"""The benchmark of scaling: what it starts, reads and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import load_script

from bertchen.config import load_config
from bertchen.config.schema_benchmark_scaling import BenchmarkScalingConfig
from bertchen.errors import UserError

MODEL = (
    "train.model.hidden_size=32", "train.model.num_hidden_layers=1", "train.model.num_attention_heads=2",
    "train.model.intermediate_size=48", "train.data.num_workers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_scaling")


@pytest.mark.slow
def test_two_processes(
    benchmark: ModuleType,
    tiny_data: Path,
    tiny_tokenizer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark.main(
        [
            f"train.data.local={tiny_data}", f"train.tokenizer={tiny_tokenizer}", f"folder={tmp_path}", "processes=[2]",
            "warmup=1", "steps=3", "train.sequence_length=32", "train.eval.lengths=[32]",
            "train.global_train_batch_size=8", "train.microbatch_tokens=128", *MODEL,
        ]
    )  # fmt: skip
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["processes"] == 2
    assert line["tokens_per_step"] == 8 * 32
    assert line["steps"] == 3
    assert 0 < line["slowest_fastest"][0] <= line["tokens_per_second"] <= line["slowest_fastest"][1]
    assert (line["times_first"], line["efficiency"], line["same_blocks"]) == (1.0, 1.0, True)


def test_rates_are_those_of_the_steps_after_the_warm_up(benchmark: ModuleType) -> None:
    ends = [(2.0, 100), (4.0, 200), (5.0, 300), (5.5, 400)]
    rows = [{"step": 0, "time/token": 0}]
    rows += [{"throughput/seconds": seconds, "time/token": tokens} for seconds, tokens in ends]
    assert benchmark.rates(rows, 0) == [50, 50, 100, 200]
    assert benchmark.rates(rows, 2) == [100, 200]


def fake_measure(rates: dict[int, int], blocks: dict[int, str]) -> Any:
    return lambda cfg, processes, repetition: (
        {"processes": processes, "tokens_per_second": rates[processes]},
        blocks[processes],
    )


def test_numbers_of_processes_are_compared_with_the_first(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = {2: "those", 4: "those", 8: "others"}
    monkeypatch.setattr(benchmark, "measure", fake_measure({2: 1000, 4: 1900, 8: 3000}, blocks))
    benchmark.main(["processes=[2,4,8]", "train.data.local=x"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["times_first"] for line in lines] == [1.0, 1.9, 3.0]
    assert [line["efficiency"] for line in lines] == [1.0, 0.95, 0.75]
    assert [line["same_blocks"] for line in lines] == [True, True, False]


@pytest.mark.slow
def test_a_run_that_fails_says_why(benchmark: ModuleType, tmp_path: Path) -> None:
    arguments = [f"folder={tmp_path}", "train.data.local=/no/such/place", "train.tokenizer=/none", "processes=[1]"]
    with pytest.raises(UserError, match=r"1 processes: .*error: .*/none.*says more"):
        benchmark.main(arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [("processes=[]", "numbers of processes"), ("processes=[0]", "from 1 on"), ("steps=1", "at least 2")],
)
def test_wrong_values(benchmark: ModuleType, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.check(load_config(BenchmarkScalingConfig, ["train.seed=1", override], "usage"))
