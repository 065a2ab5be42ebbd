"""Killed and started again, a run goes on as if nothing had happened: every number and weight is the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from running import (
    LATEST,
    PATIENCE,
    Prepared,
    assert_same_state,
    checkpoints,
    exact,
    losses,
    metrics,
    names_in_shared_memory,
    started,
    validation,
)

EPOCHS = 3
# Saved every 4 steps and evaluated every 5: before the first checkpoint, then in the first, second and third epoch, the
# second and the last with an evaluation between the checkpoint and the kill.
KILLS = (2, 7, 18, 27)


def three_epochs(prepared: Prepared, folder: Path, *more: str) -> list[str]:
    """Dropout (0.1), several epochs, and rows of the last batch of each left over."""
    return prepared.overrides(folder, f"max_duration={EPOCHS}ep", "optimizer.lr=5e-3", *more)


@pytest.fixture(scope="module")
def uninterrupted(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed. Another ran beside it on the same data, with two loader processes: `beside`."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    alone, beside = folder / "run", folder / "beside"
    with (
        started(three_epochs(prepared, alone), folder / "run.log") as first,
        started(three_epochs(prepared, beside, "data.num_workers=2"), folder / "beside.log") as second,
    ):
        first.succeed()
        second.succeed()
    return alone


def test_the_reference_is_worth_comparing_to(uninterrupted: Path, prepared: Prepared) -> None:
    last = EPOCHS * prepared.steps_an_epoch()
    assert max(KILLS) < last - 10
    assert [line["step"] for line in metrics(uninterrupted)] == [*range(last + 1), last]
    assert len(set(losses(uninterrupted))) == last
    assert sorted(validation(uninterrupted)) == sorted({*range(5, last + 1, 5), last})
    assert len(checkpoints(uninterrupted)) == 2
    assert checkpoints(uninterrupted)[-1] == f"ep{EPOCHS}-ba{last}-rank0.pt"


def test_two_runs_at_once_on_one_data_set_dont_disturb_each_other(uninterrupted: Path) -> None:
    """Nor does it matter how many processes load: one had none, the other two."""
    beside = uninterrupted.with_name("beside")
    assert exact(beside) == exact(uninterrupted)
    assert_same_state(beside / LATEST, uninterrupted / LATEST)


@pytest.mark.fault("killed (-9)")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_goes_on_as_if_nothing_had_happened(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path, workers: int
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = three_epochs(prepared, folder, f"data.num_workers={workers}", "autoresume=true")
    for step in KILLS if workers == 0 else KILLS[2:]:
        with started(arguments, log) as run:
            run.wait_for_step(step)
            run.kill_all()
        reached = metrics(folder)[-1]["step"]
        assert reached < EPOCHS * prepared.steps_an_epoch(), "ended before it could be killed"
        _plant_partial_checkpoint(folder, reached)
    with started(arguments, log) as run:
        run.succeed()

    assert exact(folder) == exact(uninterrupted)
    assert checkpoints(folder) == checkpoints(uninterrupted)
    assert_same_state(folder / LATEST, uninterrupted / LATEST)
    assert log.read_text().count("resource_tracker") == 0


def _plant_partial_checkpoint(folder: Path, reached: int) -> None:
    """As a kill in the middle of saving leaves it: half a file that no link names, and metrics cut off in a line."""
    complete = checkpoints(folder)
    content = (folder / complete[-1]).read_bytes() if complete else b"PK"
    (folder / f"ep0-ba{reached + 1}-rank0.pt").write_bytes(content[: len(content) // 2])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "loss/tra')


@pytest.mark.fault("killed (-9)")
def test_link_lost_by_a_kill(prepared: Prepared, uninterrupted: Path, tmp_path: Path, in_process: Callable) -> None:
    """Composer removes the link to the latest checkpoint before it sets the new one: a kill can fall between."""
    folder = _copy(uninterrupted, tmp_path / "run")
    (folder / LATEST).unlink()
    cut_off = folder / checkpoints(folder)[-1]
    cut_off.write_bytes(cut_off.read_bytes()[:-100])
    in_process(*three_epochs(prepared, folder, "autoresume=true"))
    assert exact(folder) == exact(uninterrupted)
    assert_same_state(folder / LATEST, uninterrupted / LATEST)


def test_restart_of_a_run_that_has_ended_changes_nothing(
    prepared: Prepared, uninterrupted: Path, tmp_path: Path, in_process: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever restarts until the exit code is 0 must come to an end, even if the kill fell between save and end."""
    folder = _copy(uninterrupted, tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-2]))
    in_process(*three_epochs(prepared, folder, "autoresume=true", "export=true"))
    assert exact(folder) == exact(uninterrupted)
    assert checkpoints(folder) == checkpoints(uninterrupted)
    assert f"validation loss (eval_64): {list(validation(uninterrupted).values())[-1]:.4f}" in capsys.readouterr().out
    assert (folder / "hf" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.fault("killed (-9)")
def test_loader_processes_of_a_killed_run_end(prepared: Prepared, tmp_path: Path) -> None:
    mds = shutil.copytree(prepared.mds, tmp_path / "mds")  # of its own, to know its shared memory by
    arguments = three_epochs(prepared, tmp_path / "run", f"data.local={mds}", "data.num_workers=2")
    with started(arguments, tmp_path / "log") as run:
        run.wait_for_step(3)
        assert names_in_shared_memory(mds)
        children = psutil.Process(run.process.pid).children(recursive=True)
        loaders = [child for child in children if "main.py" in child.cmdline()]
        run.kill_alone()
        assert len(loaders) == 2
        assert not psutil.wait_procs(children, timeout=PATIENCE)[1]
    assert not names_in_shared_memory(mds)


def _copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to, symlinks=True)
    return to
