"""Shared memory that a killed run has left is removed by the next one; that of live runs, and of others, is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bertchen.data import shared_memory
from bertchen.data.shared_memory import note_segments, remove_left_over


@pytest.fixture
def segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Path]]:
    """Makes what Streaming makes for a number: segments, and files that it locks."""
    memory, temporary = tmp_path / "shm", tmp_path / "tmp"
    memory.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(shared_memory, "_SHARED_MEMORY", str(memory))
    monkeypatch.setattr(shared_memory.tempfile, "gettempdir", lambda: str(temporary))

    def make(number: int) -> list[Path]:
        made = [memory / f"{number:06d}_{name}" for name in ("locals", "barrier", "shard_states")]
        made += [temporary / f"{number:06d}_{name}_filelock" for name in ("barrier", "cache")]
        for path in made:
            path.write_bytes(b"\0")
        return made

    return make


@pytest.fixture
def by_a_process_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Notes a number as if a process had done so that was killed then."""

    def note(number: int) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            with monkeypatch.context() as patch:
                patch.setattr(shared_memory.os, "getpid", lambda: process.pid)
                note_segments(number)
            process.kill()

    return note


def exist(paths: list[Path]) -> set[bool]:
    return {path.exists() for path in paths}


@pytest.mark.fault("shared memory left over by a killed run")
def test_only_what_belongs_to_a_process_that_is_gone_is_removed(
    segments: Callable[[int], list[Path]],
    by_a_process_that_is_gone: Callable[[int], None],
    tmp_path: Path,
    attempt: int,
) -> None:
    left, live, foreign = map(segments, (0, 1, 2))
    by_a_process_that_is_gone(0)
    note_segments(1)
    remove_left_over()
    assert [exist(paths) for paths in (left, live, foreign)] == [{False}, {True}, {True}]
    assert [note.name[-6:] for note in (tmp_path / "tmp").glob("bertchen-*")] == ["000001"]


def test_a_number_that_another_run_has_taken_since_is_left_to_it(
    segments: Callable[[int], list[Path]], by_a_process_that_is_gone: Callable[[int], None], tmp_path: Path
) -> None:
    """After a restart of the machine, say, which empties the memory and not the disk."""
    memory = segments(0)
    by_a_process_that_is_gone(0)
    memory[0].rename(tmp_path / "kept")  # so that the next file is another one
    memory = segments(0)
    remove_left_over()
    assert exist(memory) == {True}
    assert not list((tmp_path / "tmp").glob("bertchen-*"))


def test_a_note_that_was_cut_short_does_no_harm(segments: Callable[[int], list[Path]]) -> None:
    memory = segments(0)
    note_segments(0)
    (note,) = Path(shared_memory.tempfile.gettempdir()).glob("bertchen-*")
    note.write_text("12")
    remove_left_over()
    assert exist(memory) == {True}
