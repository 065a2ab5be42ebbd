"""The benchmark of streaming on a tiny data set: what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import load_script

from bertchen.errors import UserError


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_streaming")


def lines_of(benchmark: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    benchmark.main(list(arguments))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def rates_of(line: dict[str, Any]) -> dict[str, float]:
    assert line["versions"]["mosaicml-streaming"]
    return line["tokens_per_second"]


@pytest.mark.usefixtures("shared_memory_given_back", "faulty_store")
def test_reading(benchmark: ModuleType, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(
        benchmark, capsys, "parts=[read]", f"data={tiny_data}", "repetitions=1", "warm_up=2", "read.blocks_per_batch=8",
        f"scratch={tmp_path}",
    )  # fmt: skip
    assert [(line["part"], line["from"]) for line in lines] == [("read", "local"), ("read", "store")]
    for line in lines:
        assert rates_of(line)["smallest"] > 0
        assert line["seconds_to_first_batch"]["median"] > 0
    assert lines[0]["to_local"]["median"] == 1
    assert list(tmp_path.glob("*/train")) == [], "caches are removed"


@pytest.mark.usefixtures("shared_memory_given_back")
def test_resuming(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines_of(
        benchmark, capsys, "parts=[resume]", "resume.shards=30", "resume.blocks_per_shard=8", "resume.block_size=16",
        "resume.blocks_per_batch=4", "repetitions=2", f"scratch={tmp_path}",
    )  # fmt: skip
    assert (line["shards"], line["blocks"], line["repetitions"]) == (30, 240, 2)
    parts = [line[name]["median"] for name in line if name.startswith("seconds_for_")]
    assert len(parts) == 3
    assert line["seconds"]["largest"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parts=[nothing]"], "nothing is unknown, should be some of: read, train, resume"),
        (["parts=[read]", "data=nowhere"], "data=nowhere .*name the folder of a converted data set"),
    ],
)
def test_what_is_wrong_is_told(benchmark: ModuleType, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main(arguments)
