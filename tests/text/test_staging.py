"""A staged folder appears whole or not at all, and replaces only a folder of its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertchen.errors import UserError
from bertchen.text.staging import staged_folder


def write(out: Path | str, overwrite: bool = False, fail: bool = False) -> None:
    with staged_folder(str(out), holds="*.data", overwrite=overwrite) as folder:
        (folder / "new.data").write_text("new")
        if fail:
            raise RuntimeError("stopped")


def test_folder_appears_at_the_end_only(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with staged_folder(str(out) + "/", holds="*.data") as folder:
        (folder / "new.data").write_text("new")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in out.iterdir()] == ["new.data"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        write(tmp_path / "out", fail=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fail", [False, True])
def test_overwriting_replaces_all_or_nothing(tmp_path: Path, fail: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.data").write_text("old")
    with pytest.raises(UserError, match="is not empty"):
        write(out)
    if fail:
        with pytest.raises(RuntimeError):
            write(out, overwrite=True, fail=True)
    else:
        write(out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["old.data" if fail else "new.data"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_empty_folder_is_taken_and_a_foreign_one_never(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty" / "new.data").exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not replaced"):
        write(tmp_path / "foreign", overwrite=True)
    assert (tmp_path / "foreign" / "thesis.tex").exists()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    for out, message in {
        "file": "is a file",
        "file/out": "can't be written",
        "dangling": "leads nowhere",
    }.items():
        with pytest.raises(UserError, match=message):
            write(tmp_path / out)
    with pytest.raises(UserError, match="out is empty"):
        write("")


def test_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new.data").exists()
