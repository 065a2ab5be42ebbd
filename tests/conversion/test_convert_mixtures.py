"""Every way of choosing and packing: the same bytes for any number of workers, and figures that add up."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import BLOCK, blocks_of, converted, reference, run, some_texts, write_corpus
from streaming import StreamingDataset

from bertchen.data.shards import check_shards

CASES = {
    "naive": [],
    "split by block": ["split_by=block"],
    "sorted": ["strategy=sorted"],
    "sorted, split by block": ["strategy=sorted", "split_by=block"],
    "not packed": ["strategy=not_packed", "lengths=[4,16]"],
    "stages": ["stages={4: 0.15, 8: 0.3, 16: 0.55}"],
    "stages of sorted": ["stages={4: 0.15, 8: 0.3, 16: 0.55}", "strategy=sorted", "split_by=block"],
    "interleaved": ["interleave=true"],
    "weights": ["interleave=true", "sources.a.weight=1", "sources.b.weight=2.5", "sources.c.weight=0.5"],
    "fraction": ["sources.a.sample.fraction=0.5", "sources.c.sample={fraction: 0.5, by: file}"],
    "documents": ["sources.a.sample.documents=60", "sources.b.sample.documents=1"],
    "tokens": ["sources.a.sample.tokens=900", "sources.b.sample.tokens=500", "interleave=true"],
    "sample and weights": [
        "sources.a.sample.tokens=1500", "sources.a.weight=0.3", "sources.b.weight=0.3", "sources.c.weight=0.4",
    ],
    "clean": ["clean={exact_duplicates: {}, near_duplicates: {}, length: {min_words: 3}}"],
    "clean and sample": [
        "clean={near_duplicates: {}, length: {max_words: 50}}", "sources.b.sample.fraction=0.7", "strategy=sorted",
        "compression=zstd",
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources with bad rows, the same documents, and some that are nearly the same."""
    folder = tmp_path_factory.mktemp("corpora")
    texts = {"a": some_texts(150), "b": some_texts(60, seed=1), "c": some_texts(90, seed=2)}
    texts["b"] += texts["a"][:20]
    texts["c"] += [f"{text} balde" for text in texts["a"] if len(text) > 200][:20]
    for number in range(3):
        write_corpus(folder / f"c/{number}.jsonl", [*texts["c"][number::3], "", " "])
    for name in ("a", "b"):
        path = write_corpus(folder / name / "all.jsonl", texts[name])
        lines = path.read_text().splitlines()
        random.Random(3).shuffle(lines)
        first = {"a": '{"body": "x"}', "b": '{"text": "x", "note": "x"}'}[name]
        path.write_text("\n".join([first, *lines[:9], "{", '{"text": 3}', *lines[9:]]))
    sources: dict[str, Any] = {name: {"path": str(folder / name)} for name in texts}
    sources["b"]["drop_rows"] = {"column": "note", "values": ["x"]}
    (folder / "sources.yaml").write_text(json.dumps({"sources": sources, "on_bad_rows": "skip"}))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_same_bytes_and_figures_that_add_up(
    tmp_path: Path, corpora: Path, tokenizer_folder: str, small_parts: None, name: str
) -> None:
    found = {}
    for workers in (1, 2, 3) if name in ("tokens", "clean and sample") else (1, 2):
        manifest = run(
            None, tokenizer_folder, tmp_path / str(workers), str(corpora / "sources.yaml"), f"workers={workers}",
            "shard_size=2000", *CASES[name],
        )  # fmt: skip
        found[workers] = converted(tmp_path / str(workers))
    assert all(files == found[1] for files in found.values())
    check_figures(manifest)
    out = tmp_path / "2"
    assert {path.name for path in out.iterdir()} == {"manifest.json", *manifest["splits"]}
    for split, figures in manifest["splits"].items():
        check_shards(out / split, hashes=True)
        index = json.loads((out / split / "index.json").read_text())
        assert sum(shard["samples"] for shard in index["shards"]) == figures["blocks"] > 0


@pytest.mark.parametrize("name", ["naive", "stages", "not packed"])
@pytest.mark.usefixtures("shared_memory_given_back")
def test_streaming_reads_every_split(tmp_path: Path, corpora: Path, tokenizer_folder: str, name: str) -> None:
    manifest = run(None, tokenizer_folder, tmp_path / "out", str(corpora / "sources.yaml"), *CASES[name])
    assert len(manifest["splits"]) == {"naive": 2, "stages": 4, "not packed": 3}[name]
    for split, figures in manifest["splits"].items():
        dataset = StreamingDataset(local=str(tmp_path / "out"), split=split, shuffle=False, batch_size=1)
        assert len(dataset) == figures["blocks"]
        assert [tuple(sample["input_ids"].tolist()) for sample in dataset] == blocks_of(tmp_path / "out" / split)


def check_figures(manifest: dict[str, Any]) -> None:
    """What was read is what was kept, bad or dropped; the sources are together the whole, and so are the splits."""
    sources, splits = manifest["sources"].values(), manifest["splits"]
    for figures in (manifest, *sources):
        documents = figures["documents"]
        lost = sum(figures["bad_rows"].values()) + sum(figures["dropped_documents"].values())
        assert documents["read"] == documents["kept"] + lost
        assert figures["tokens"] == sum(split["tokens"] for split in figures["splits"].values())
        assert sum(figures["documents_by_length"].values()) == documents["kept"]
    for name in ("read", "kept"):
        assert manifest["documents"][name] == sum(source["documents"][name] for source in sources)
    for name in ("tokens", "characters"):
        assert manifest[name] == sum(source[name] for source in sources)
    for name in ("bad_rows", "dropped_documents", "dropped_tokens"):
        assert +Counter(manifest[name]) == sum((Counter(source[name]) for source in sources), Counter())
    for name, split in splits.items():
        assert split["tokens"] == split["blocks"] * BLOCK
        for what in ("tokens", "documents"):
            assert split[what] == sum(source["splits"][name][what] for source in sources)
        shares = [source["splits"][name]["blocks"] for source in sources]
        assert max(shares) <= split["blocks"] <= sum(shares)


def test_what_each_source_is_told_to_have(
    tmp_path: Path, corpora: Path, tokenizer_folder: str, small_parts: None
) -> None:
    """Against what Hugging Face's tokenizer makes of the texts: counts, and rows that were bad."""
    manifest = run(None, tokenizer_folder, tmp_path / "out", str(corpora / "sources.yaml"), "split_by=block")
    sources = manifest["sources"]
    assert sources["a"]["bad_rows"] == {"no text column": 1, "not JSON": 1, "not a string": 1}
    assert sources["b"]["bad_rows"] == {"not JSON": 1, "not a string": 1}
    assert sources["b"]["dropped_documents"].get("drop_rows: x") == 1
    assert sources["c"]["bad_rows"] == {"empty": 6}
    assert [sources[name]["files"] for name in "abc"] == [1, 1, 3]
    texts = {"a": some_texts(150), "b": [*some_texts(60, seed=1), *some_texts(150)[:20]]}
    for name, expected in texts.items():
        assert sources[name]["tokens"] == len(reference(tokenizer_folder, expected))
        assert sources[name]["characters"] == sum(map(len, expected))


def test_weights_are_shares_of_the_tokens(tmp_path: Path, corpora: Path, tokenizer_folder: str) -> None:
    manifest = run(
        None, tokenizer_folder, tmp_path / "out", str(corpora / "sources.yaml"), "split_by=block", *CASES["weights"]
    )
    tokens = {name: source["tokens"] for name, source in manifest["sources"].items()}
    shares = np.array([tokens[name] for name in "abc"]) / sum(tokens.values())
    longest = manifest["tokens_per_document"]["max"]
    assert shares == pytest.approx([0.25, 0.625, 0.125], abs=2 * longest / sum(tokens.values()))
    # None has more than there is, and one is used up.
    assert "not sampled" not in manifest["sources"]["b"]["dropped_documents"]


def test_a_sample_does_not_depend_on_the_other_sources(tmp_path: Path, corpora: Path, tokenizer_folder: str) -> None:
    """The same documents of a source alone, in another order of reading, and among others."""
    texts = some_texts(150)
    options = ["split_by=block", "sources.a.sample.documents=40", "strategy=sorted"]
    for name, order in (("forward", texts), ("backward", texts[::-1])):
        source = write_corpus(tmp_path / f"{name}.jsonl", order)
        run(None, tokenizer_folder, tmp_path / name, f"sources.a.path={source}", *options)
    counts = [
        Counter(token for split in ("train", "val") for block in blocks_of(tmp_path / name / split) for token in block)
        for name in ("forward", "backward")
    ]
    # Of equally long documents the order differs, so what is in the remainder may too.
    assert sum(((counts[0] - counts[1]) + (counts[1] - counts[0])).values()) < 2 * BLOCK


def test_duplicates_are_dropped_over_all_sources(
    tmp_path: Path, corpora: Path, tokenizer_folder: str, small_parts: None
) -> None:
    manifest = run(None, tokenizer_folder, tmp_path / "out", str(corpora / "sources.yaml"), "split_by=block",
                   "clean={exact_duplicates: {}}")  # fmt: skip
    assert manifest["sources"]["b"]["dropped_documents"]["exact duplicate"] == 20
    assert manifest["dropped_documents"]["exact duplicate"] == 20
    manifest = run(None, tokenizer_folder, tmp_path / "near", str(corpora / "sources.yaml"), "split_by=block",
                   "clean={exact_duplicates: {}, near_duplicates: {}}")  # fmt: skip
    assert manifest["dropped_documents"]["exact duplicate"] == 20
    near = {name: source["dropped_documents"].get("near duplicate", 0) for name, source in manifest["sources"].items()}
    assert near["c"] >= 15  # MinHash finds nearly all
    check_figures(manifest)
