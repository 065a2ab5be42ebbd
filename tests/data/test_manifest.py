"""The manifest: what can't be read is named, and the entropy is that of the counts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertchen.data.manifest import VERSION, entropy, read_manifest, write_manifest
from bertchen.errors import UserError

GOOD = {"version": VERSION, "block_size": 512, "token_dtype": "uint16", "tokenizer": {}, "splits": {}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, {**GOOD, "name": "Köln"})
    assert read_manifest(str(tmp_path)) == {**GOOD, "name": "Köln"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"manifest\.json can't be read"),
        ("[]", r"manifest\.json is of version None"),
        (
            json.dumps({**GOOD, "version": VERSION + 1}),
            rf"is of version {VERSION + 1}, this code reads version",
        ),
        (json.dumps({"version": VERSION, "block_size": 8}), "lacks token_dtype, tokenizer, splits"),
    ],
)
def test_bad_manifest(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json is missing.*scripts/convert_dataset\.py"):
        read_manifest(tmp_path)


@given(st.lists(st.integers(0, 10**9), min_size=1).filter(any))
def test_entropy(counts: list[int]) -> None:
    total = sum(counts)
    expected = -math.fsum(count / total * math.log(count / total) for count in counts if count)
    assert entropy(np.array(counts)) == pytest.approx(expected, abs=1e-9)


def test_entropy_of_equal_counts_is_the_logarithm_of_their_number() -> None:
    assert entropy(np.full(32768, 7)) == pytest.approx(math.log(32768))
