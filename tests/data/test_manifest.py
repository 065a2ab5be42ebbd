"""The manifest: what can't be read is named, what is written is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertchen.data.manifest import VERSION, read_manifest, write_manifest
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
