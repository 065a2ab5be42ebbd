"""Segments: every document of the input once, in its order, whatever the workers and wherever it was interrupted."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bertchen.conversion import tokenizing
from bertchen.conversion.recipes import make_recipe
from bertchen.conversion.segments import Segments, document_type, segments_of_unit
from bertchen.conversion.tokenizing import Progress, make_units, tokenize_units
from bertchen.conversion.tokens import Recipe, document_key
from bertchen.errors import UserError
from bertchen.text import readers
from bertchen.text.documents import RowRules
from bertchen.text.sources import Source, SourceFile
from bertchen.tokenizer import load_tokenizer, separator_id

SEGMENT = 2000


def source_of(paths: list[Path], **options: object) -> Source:
    files = tuple(SourceFile(str(path), path.stat().st_size, "1") for path in paths)
    fields = {"fraction": None, "documents": None, "tokens": None, "weight": None, "revision": None, **options}
    return Source(name="a", files=files, rules=RowRules(), **fields)  # type: ignore[arg-type]


def write_file(path: Path, texts: list[str]) -> Path:
    raw = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.fixture
def texts() -> list[str]:
    numbers = random.Random(1)
    words = ["Über", "allen", "Gipfeln", "ist", "Ruh", "in", "allen", "Wipfeln", "spürest", "du", "kaum", "einen"]
    return [" ".join(numbers.choices(words, k=numbers.randint(1, 40))) for _ in range(300)]


@pytest.fixture
def paths(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The texts in four files, two of them small; chunks of a few documents."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 512)
    cuts = [(0, 150, "a.jsonl"), (150, 152, "b.jsonl.gz"), (152, 152, "c.jsonl"), (152, 300, "d.jsonl.gz")]
    return [write_file(tmp_path / name, texts[first:last]) for first, last, name in cuts]


@pytest.fixture
def recipe(tokenizer_folder: str) -> Recipe:
    return make_recipe(tokenizer_folder, load_tokenizer(tokenizer_folder), seed=42)


def run(
    folder: Path,
    source: Source,
    recipe: Recipe,
    workers: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
    skip: bool = False,
) -> Segments:
    folder.mkdir(exist_ok=True)
    units = make_units([source], unit_bytes=3000)
    tokenize_units(units, [source], recipe, folder, SEGMENT, skip, workers, on_progress)
    return Segments.load(folder, recipe.dtype, len(units))


def tokens_of(segments: Segments) -> list[int]:
    return [
        token
        for index in range(len(segments.infos))
        for token in np.fromfile(segments.token_path(index), segments.dtype).tolist()
    ]


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_progress(folder: Path) -> dict[str, object]:
    """What a segment says, but for the bytes read: going on reads some of them again."""
    found: dict[str, object] = dict(bytes_in(folder))
    for name in found:
        if name.endswith(".json"):
            found[name] = {**json.loads((folder / name).read_text()), "stored_bytes": 0}
    return found


def test_units_hold_every_file_once_in_order(paths: list[Path]) -> None:
    source = source_of(paths)
    for size in (1, 3000, 1 << 30):
        units = make_units([source, source], size)
        assert [unit.number for unit in units] == list(range(len(units)))
        for index in (0, 1):
            covered = [unit.first + place for unit in units if unit.source == index for place in range(unit.files)]
            assert covered == list(range(4))
    assert len(make_units([source], 1)) == 3  # the empty file goes with the next one
    assert len(make_units([source], 1 << 30)) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_all_documents_in_order(
    tmp_path: Path, paths: list[Path], texts: list[str], recipe: Recipe, tokenizer_folder: str, workers: int
) -> None:
    progress: list[Progress] = []
    segments = run(tmp_path / "segments", source_of(paths), recipe, workers, progress.append)
    tokenizer = load_tokenizer(tokenizer_folder)
    expected = [[*tokenizer(text, add_special_tokens=False).input_ids, separator_id(tokenizer)] for text in texts]
    assert tokens_of(segments) == [token for ids in expected for token in ids]
    documents = np.concatenate([found for *_, found in segments.each()])
    assert documents["length"].tolist() == [len(ids) for ids in expected]
    assert documents["key"].tolist() == [document_key(text, 42) for text in texts]
    assert (segments.token_starts[-1], segments.document_starts[-1]) == (documents["length"].sum(), 300)
    assert len(segments.infos) > 5
    assert sum(info.characters for info in segments.infos) == sum(map(len, texts))
    assert sum(each.stored_bytes for each in progress) == sum(path.stat().st_size for path in paths)
    assert sum(each.documents for each in progress) == 300
    by_file = {name: sum(info.by_file.get(name, 0) for info in segments.infos) for name in map(str, paths)}
    assert list(by_file.values()) == [150, 2, 0, 148]


def test_same_bytes_for_any_number_of_workers(tmp_path: Path, paths: list[Path], recipe: Recipe) -> None:
    for name, workers in (("one", 1), ("two", 2), ("three", 3)):
        run(tmp_path / name, source_of(paths), recipe, workers)
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "two") == bytes_in(tmp_path / "three")


def test_goes_on_behind_what_is_there(
    tmp_path: Path, paths: list[Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before every write in turn, half-written files included."""
    source = source_of(paths)
    run(tmp_path / "whole", source, recipe)
    folder = tmp_path / "interrupted"
    replace, writes = tokenizing.write_segment.__globals__["os"].replace, 0

    def fail_at_fourth(*names: object) -> None:
        nonlocal writes
        writes += 1
        if writes % 4 == 0:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr("bertchen.conversion.segments.os.replace", fail_at_fourth)
    interruptions = 0
    while True:
        try:
            run(folder, source, recipe)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 5
    assert without_progress(folder) == without_progress(tmp_path / "whole")


def test_what_is_there_is_not_read_again(tmp_path: Path, paths: list[Path], recipe: Recipe) -> None:
    source = source_of(paths)
    run(tmp_path / "segments", source, recipe)
    for path in paths:
        path.unlink()
    progress: list[Progress] = []
    run(tmp_path / "segments", source, recipe, on_progress=progress.append)
    assert not any(each.is_new for each in progress)
    assert sum(each.documents for each in progress) == 300


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows(tmp_path: Path, texts: list[str], recipe: Recipe, workers: int) -> None:
    lines = [json.dumps({"text": text}) for text in texts[:20]]
    lines[7:7] = ["{", '{"body": "x"}', '{"text": 3}', '{"text": ""}']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    source = source_of([tmp_path / "bad.jsonl"])
    with pytest.raises(UserError, match=r"bad\.jsonl, line 8: not JSON"):
        run(tmp_path / "failing", source, recipe, workers)
    assert not list((tmp_path / "failing").glob("*.json"))
    segments = run(tmp_path / "skipping", source, recipe, workers, skip=True)
    bad = {"not JSON": 1, "no text column": 1, "not a string": 1, "empty": 1}
    assert (segments.infos[0].bad, segments.infos[0].documents, segments.infos[0].read) == (bad, 20, 24)


def test_file_that_is_gone(tmp_path: Path, paths: list[Path], recipe: Recipe) -> None:
    source = source_of(paths)
    paths[3].unlink()
    with pytest.raises(UserError, match=r"d\.jsonl\.gz"):
        run(tmp_path / "segments", source, recipe)
    assert sum(info.documents for info in segments_of_unit(tmp_path / "segments", 0)) == 150


@pytest.mark.parametrize("options", [{"documents": 30}, {"tokens": 400}])
def test_a_sample_keeps_what_it_needs(
    tmp_path: Path, paths: list[Path], recipe: Recipe, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the documents with the smallest keys none is missing, however many of the others were left out."""
    everything = run(tmp_path / "all", source_of(paths), recipe)
    monkeypatch.setattr("bertchen.conversion.admission.BUFFER", 10)
    found = run(tmp_path / "part", source_of(paths, **options), recipe)
    documents, kept = (np.concatenate([found for *_, found in each.each()]) for each in (everything, found))
    smallest = np.sort(documents, order="key")
    sizes = smallest["length"] if "tokens" in options else np.ones(300, int)
    needed = smallest[: int(np.searchsorted(np.cumsum(sizes), next(iter(options.values())))) + 1]
    assert set(needed["key"]) <= set(kept["key"])
    assert len(kept) < 250
    assert sum(info.read for info in found.infos) == 300
    assert sum(info.dropped.get("not sampled", 0) for info in found.infos) == 300 - len(kept)


def test_fraction(tmp_path: Path, paths: list[Path], texts: list[str], recipe: Recipe) -> None:
    segments = run(tmp_path / "segments", source_of(paths, fraction=0.3), recipe)
    expected = [key for key in (document_key(text, 42) for text in texts) if key < 0.3 * 2**64]
    assert np.concatenate([found for *_, found in segments.each()])["key"].tolist() == expected
    assert 50 < len(expected) < 130


def test_no_document_at_all(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    segments = run(tmp_path / "segments", source_of([tmp_path / "empty.jsonl"]), recipe)
    assert [(info.documents, info.last) for info in segments.infos] == [(0, True)]
    assert segments.documents(0).dtype == document_type(0)


def test_parallelism_of_the_library_is_put_back(
    tmp_path: Path, paths: list[Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    run(tmp_path / "a", source_of(paths), recipe)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    run(tmp_path / "b", source_of(paths), recipe)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
