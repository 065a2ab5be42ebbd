"""The benchmark of fine-tuning on a tiny model: what it prints, and that its ways differ in padding alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import load_script

from bertchen.errors import UserError

SMALL = [
    "examples=48", "max_length=64", "batch_size=8", "steps=2", "warmup=1", "repetitions=2", "vocab_size=400",
    "padded_to=[batch,longest,80]", "model.hidden_size=32", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.intermediate_size=48",
]  # fmt: skip
WAYS = ["training, unpadded", "training, padded to batch", "training, padded to longest", "training, padded to 80"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_finetune")


def lines_of(benchmark: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    benchmark.main(list(arguments))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_lines(lines: list[dict[str, Any]], examples: int) -> None:
    assert [line["what"] for line in lines] == ["reading alone", "encoding alone", "collating alone", *WAYS]
    for line in lines:
        rate = line["samples_per_second"]
        assert 0 < rate["smallest"] <= rate["median"] <= rate["largest"]
        assert line["examples"] == examples
        assert line["device"]
    trained = {line["what"]: line for line in lines[3:]}
    unpadded, batch, longest, fixed = (trained[way] for way in WAYS)
    assert unpadded["tokens_per_sample"] < batch["tokens_per_sample"] <= longest["tokens_per_sample"]
    assert longest["tokens_per_sample"] == longest["longest_input"] <= 64
    assert fixed["tokens_per_sample"] == 80
    assert "unpadded_to_this" not in unpadded
    for line in (batch, longest, fixed):
        assert line["unpadded_to_this"]["median"] > 0


def test_generated_posts(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    check_lines(lines_of(benchmark, capsys, *SMALL), 48)


def test_texts_of_a_file(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], tiny_tokenizer: str, tmp_path: Path
) -> None:
    texts = ["der die das", "und in den von zu mit sich auf für ist im nicht", "ein"] * 16
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    arguments = [f"texts={tmp_path / 'posts.jsonl'}", "text_column=body", f"tokenizer={tiny_tokenizer}"]
    check_lines(lines_of(benchmark, capsys, *SMALL, *arguments), 48)


def test_generated_posts_are_a_function_of_the_seed(benchmark: ModuleType) -> None:
    def some(seed: int) -> list[str]:
        posts = benchmark.posts(seed)
        return [next(posts) for _ in range(40)]

    assert some(1) == some(1) != some(2)
    words = [len(post.split()) for post in some(1)]
    assert min(words) >= 1
    assert max(words) > 2 * sorted(words)[len(words) // 2]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("steps=0", "steps=0 .*at least 1"),
        ("padded_to=[32]", "padded_to=.*32: should be batch, longest or at least max_length=64"),
        ("batch_size=100", "batch_size=100 .*only 48 texts"),
        ("precision=fp8", "precision=fp8 .*unknown"),
    ],
)
def test_wrong_values(benchmark: ModuleType, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main([*SMALL, argument])
