"""Runs on one machine share its memory file system: one's remains bar no other, and no cache serves two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from running import LATEST, Prepared, assert_same_state, exact, names_in_shared_memory, started

pytestmark = pytest.mark.slow


def with_cache(prepared: Prepared, folder: Path, remote: Path, *more: str) -> list[str]:
    return prepared.overrides(
        folder / "run", f"data.remote={remote}", f"data.local={folder / 'cache'}", "max_duration=12ba",
        "eval.interval=10ba", "autoresume=true", *more,
    )  # fmt: skip


@pytest.mark.fault("shared memory left over by a killed run")
def test_remains_of_a_killed_run_dont_bar_its_cache(prepared: Prepared, tmp_path: Path, in_process: Callable) -> None:
    """Killed before its first evaluation, such a run is what Streaming takes for one that still uses the cache."""
    with started(with_cache(prepared, tmp_path, prepared.mds), tmp_path / "log") as run:
        run.wait_for_step(6)
        run.kill_all()
    assert names_in_shared_memory(tmp_path / "cache")
    in_process(*with_cache(prepared, tmp_path, prepared.mds))

    in_process(*prepared.overrides(tmp_path / "local", "max_duration=12ba", "eval.interval=10ba"))
    assert exact(tmp_path / "run") == exact(tmp_path / "local")
    assert_same_state(tmp_path / "run" / LATEST, tmp_path / "local" / LATEST)


def test_cache_of_a_live_run_is_refused(
    prepared: Prepared, tmp_path: Path, in_process: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    with started(with_cache(prepared, tmp_path, prepared.mds, "max_duration=100000ba"), tmp_path / "log") as run:
        run.wait_for_step(1)
        before = {segment: segment.read_bytes() for segment in names_in_shared_memory(cache)}
        with pytest.raises(SystemExit, match="2"):
            in_process(*with_cache(prepared, tmp_path, prepared.mds), f"save_folder={tmp_path / 'second'}")
        assert f"data.local={cache} is the cache of another run" in capsys.readouterr().err
        assert {segment: segment.read_bytes() for segment in names_in_shared_memory(cache)} == before
        assert not (tmp_path / "second").exists()
