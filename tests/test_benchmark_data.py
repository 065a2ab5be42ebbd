"""The benchmark of reading and converting on a tiny corpus: what it prints, and that all ways do the same work."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import load_script
from transformers import PreTrainedTokenizerBase

from bertchen.errors import UserError

BLOCK_SIZE = 32  # of `tiny_data`
WORDS = ["der", "die", "das", "und", "in", "den", "von", "zu", "mit", "sich", "auf", "für", "ist", "im", "nicht", "ein"]
TEXTS = [" ".join(WORDS[(number * place) % len(WORDS)] for place in range(1, 50)) for number in range(1, 61)]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_data")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(2):
        lines = [json.dumps({"text": text}) + "\n" for text in TEXTS[number::2]]
        (folder / f"{number}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def lines_of(benchmark: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    benchmark.main(list(arguments))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_common(line: dict[str, Any], repetitions: int) -> None:
    assert line["repetitions"] == repetitions
    rates = line["tokens_per_second"]
    assert 0 < rates["smallest"] <= rates["median"] <= rates["largest"]
    assert line["machine"]["cores"] >= 1
    assert line["versions"]["mosaicml-streaming"]


@pytest.mark.usefixtures("shared_memory_given_back")
def test_reading(benchmark: ModuleType, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(
        benchmark, capsys, "parts=[read]", f"read.data={tiny_data}", "read.workers=[0,1]", "repetitions=2",
        f"read.sequence_lengths=[{BLOCK_SIZE},8]", "read.blocks_per_batch=4", "read.blocks=24",
    )  # fmt: skip
    settings = [("bare", 32), ("ours, unmasked", 32), ("ours", 32), ("ours, unmasked", 8), ("ours", 8)]
    assert [(line["workers"], line["what"], line["sequence_length"]) for line in lines] == [
        (workers, *setting) for workers in (0, 1) for setting in settings
    ]
    for line in lines:
        check_common(line, 2)
        assert line["blocks"] == 24
        assert line["what"] != "bare" or line["to_bare"] == {"median": 1, "smallest": 1, "largest": 1}


def converting(corpus: Path, tokenizer: str, *more: str) -> list[str]:
    return [
        "parts=[convert]", f"convert.files={corpus}", f"convert.tokenizer={tokenizer}", "convert.cores=1",
        f"convert.block_size={BLOCK_SIZE}", "repetitions=1", "convert.sample_seconds=0.02", *more,
    ]  # fmt: skip


def expected_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS)


def test_bare_encoding(
    benchmark: ModuleType, corpus: Path, tiny_tokenizer: str, loaded_tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    [line] = lines_of(benchmark, capsys, *converting(corpus, tiny_tokenizer, "convert.ways=[encode]"))
    check_common(line, 1)
    assert line["tokens"] == expected_tokens(loaded_tokenizer)
    assert line["tokens_per_second"]["median"] == pytest.approx(line["tokens"] / line["seconds"]["median"], rel=0.05)
    assert 0.005 < line["peak_memory_gb"]["median"] < 2


@pytest.mark.slow
def test_all_ways_make_the_same_tokens(
    benchmark: ModuleType, corpus: Path, tiny_tokenizer: str, loaded_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each runs in a process of its own and leaves nothing behind."""
    lines = lines_of(
        benchmark, capsys,
        *converting(corpus, tiny_tokenizer, "convert.options=[val_blocks=3]", f"convert.scratch={tmp_path}"),
    )  # fmt: skip
    assert [line["what"] for line in lines] == ["encode", "datasets", "convert"]
    assert {line["tokens"] for line in lines} == {expected_tokens(loaded_tokenizer)}
    encode, mapped, convert = (line["tokens_per_second"]["median"] for line in lines)
    assert lines[2]["to_encode"]["median"] == pytest.approx(convert / encode, abs=0.002)
    assert lines[0]["to_datasets"]["median"] == pytest.approx(encode / mapped, rel=0.02)
    assert not list(tmp_path.iterdir())


WRONG = {
    "parts=[write]": "parts=.*write is unknown",
    "repetitions=0": "repetitions=0 .*at least 1",
    "parts=[read]": "read.data=.*name the folder",
    "parts=[convert]": "convert.files=.*should be given",
}


@pytest.mark.parametrize(("argument", "message"), WRONG.items(), ids=WRONG)
def test_wrong_values(benchmark: ModuleType, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main([argument])


WRONG_FOR_DATA = {
    "read.split=test": "the data has: train, val",
    "read.sequence_lengths=[7]": f"block size {BLOCK_SIZE}",
    "read.blocks_per_batch=1000": "two batches",
}


@pytest.mark.parametrize(("argument", "message"), WRONG_FOR_DATA.items(), ids=WRONG_FOR_DATA)
def test_values_that_do_not_suit_the_data(benchmark: ModuleType, tiny_data: Path, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main(["parts=[read]", f"read.data={tiny_data}", f"read.sequence_lengths=[{BLOCK_SIZE}]", argument])


@pytest.mark.parametrize(("argument", "message"), [("convert.ways=[spark]", "spark"), ("convert.cores=99999", "cores")])
def test_values_that_do_not_suit_the_machine(
    benchmark: ModuleType, corpus: Path, tiny_tokenizer: str, argument: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main([*converting(corpus, tiny_tokenizer), argument])


def test_a_way_that_fails_says_why(benchmark: ModuleType, corpus: Path, tiny_tokenizer: str) -> None:
    arguments = converting(corpus, tiny_tokenizer, "convert.ways=[encode]", "convert.text_column=body")
    with pytest.raises(UserError, match=r"encode ended with code 2: error: .*body"):
        benchmark.main(arguments)
