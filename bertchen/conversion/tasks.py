"""The phases of a conversion as steps of datatrove's pipelines, which other processes and machines run.

A step holds the path of the work folder, on a file system that all machines share, and finds the rest in it. It begins
by looking whether the phase before it is complete: an engine may go on where one of its tasks has failed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertchen.conversion.groups import WriteJob, group_count
from bertchen.conversion.light_streaming import import_streaming_lightly
from bertchen.conversion.pack import load_arrangement
from bertchen.conversion.phases import arrange_work, finish_work, tokenize_work, write_work
from bertchen.conversion.segments import segments_of_unit
from bertchen.conversion.work import LOGS, Work, read_plan
from bertchen.errors import UserError
from bertchen.processes import end_with


@dataclass(frozen=True)
class Phase:
    """A phase of a conversion.

    Attributes:
        label: for the terminal.
        check: raises a `UserError` where the phase before it isn't complete.
        run: does the part of it that falls to a rank: (work, workers, rank, world size).
        is_divided: whether several tasks share it.
    """

    label: str
    check: Callable[[Work], None]
    run: Callable[[Work, int, int, int], Any]
    is_divided: bool


@dataclass(frozen=True)
class Step:
    """A phase in a pipeline of datatrove's.

    Attributes:
        folder: the work folder.
        phase: which of `PHASES`.
        workers: processes that a task has; 1 works in the task's own.
    """

    folder: str
    phase: str
    workers: int

    def __call__(self, _documents: Any, rank: int, world_size: int) -> None:
        # The tokenizer's threads would be as many as the machine has cores, in each of the processes on it.
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        run_phase(open_work(Path(self.folder)), self.phase, self.workers, rank, world_size)


@dataclass(frozen=True)
class RayStep(Step):
    """A step that leaves a note of its error: datatrove's executor for Ray tells only that there was one."""

    def __call__(self, documents: Any, rank: int, world_size: int) -> None:
        import multiprocess

        # The executor forks a process for the task. Ray gives the task to another machine when the forking one dies.
        end_with(multiprocess.parent_process())
        try:
            super().__call__(documents, rank, world_size)
        except Exception as error:
            folder = error_folder(Path(self.folder), self.phase)
            folder.mkdir(parents=True, exist_ok=True)
            note = {"is_user_error": isinstance(error, UserError), "message": str(error) or type(error).__name__}
            (folder / f"{rank:05d}.json").write_text(json.dumps(note), encoding="utf-8")
            raise


def open_work(folder: Path) -> Work:
    """The work that was begun in a folder.

    Raises:
        UserError: none was.
    """
    plan = read_plan(folder)
    if plan is None:
        raise UserError(f"{folder} holds no conversion (any more), or this machine doesn't see it")
    return Work(folder, plan)


def run_phase(work: Work, phase: str, workers: int, rank: int = 0, world_size: int = 1) -> Any:
    """Does the part of a phase that falls to a rank.

    Raises:
        UserError: the phase before it isn't complete; and what the phase itself raises.
    """
    PHASES[phase].check(work)
    return PHASES[phase].run(work, workers, rank, world_size)


def log_folder(folder: Path, phase: str) -> Path:
    """Where datatrove keeps its files of a phase."""
    return folder / LOGS / phase


def error_folder(folder: Path, phase: str) -> Path:
    """Where the tasks of a phase leave notes of their errors, for an engine that doesn't tell them."""
    return log_folder(folder, phase) / "errors"


def check_tokenized(work: Work) -> None:
    """Raises a `UserError` unless every unit has a last segment."""
    plan = work.plan
    missing = []
    for unit in plan.units:
        there = segments_of_unit(work.segments_folder, unit.number)
        if not (there and there[-1].last):
            missing.append(unit)
    if missing:
        file = plan.sources[missing[0].source].files[missing[0].first]
        raise _incomplete(
            work, "tokenize", f"{len(missing)} of {len(plan.units)} parts of the input, from {file.path} on"
        )


def check_arranged(work: Work) -> None:
    """Raises a `UserError` unless it is decided which documents make which blocks."""
    if load_arrangement(work.arrangement_folder) is None:
        raise _incomplete(work, "arrange", f"the arrangement in {work.arrangement_folder}")


def check_written(work: Work) -> None:
    """Raises a `UserError` unless all groups of shards are written."""
    check_arranged(work)
    arrangement = load_arrangement(work.arrangement_folder)
    assert arrangement is not None
    job = WriteJob(work.segments(), work.folder, work.plan.settings, work.plan.output.remote)
    groups = [
        job.figures_file(split, group)
        for split in arrangement.splits.values()
        for group in range(group_count(split, job.segments.dtype, job.settings))
    ]
    missing = [path for path in groups if not path.exists()]
    if missing:
        raise _incomplete(work, "write", f"{len(missing)} of {len(groups)} groups of shards, from {missing[0].stem} on")


def _incomplete(work: Work, phase: str, missing: str) -> UserError:
    return UserError(
        f"{missing}: missing after the phase {phase}. A task of it has failed or was ended, see its log in "
        f"{log_folder(work.folder, phase)}; the command that began the conversion goes on from there"
    )


def _write(work: Work, workers: int, rank: int, world_size: int) -> None:
    import_streaming_lightly()  # a task has its process for itself
    write_work(work, workers, rank, world_size)


def _check_nothing(_work: Work) -> None:
    """Nothing comes before the first phase."""


PHASES: dict[str, Phase] = {
    "tokenize": Phase("tokenizing", _check_nothing, tokenize_work, is_divided=True),
    "arrange": Phase("arranging", check_tokenized, lambda work, *_: arrange_work(work), is_divided=False),
    "write": Phase("writing", check_arranged, _write, is_divided=True),
    "finish": Phase("finishing", check_written, lambda work, *_: finish_work(work), is_divided=False),
}
