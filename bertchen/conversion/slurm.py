"""Conversion on a Slurm cluster: submits a job for each phase, each to begin when the one before it has succeeded.

The jobs outlive the command, so the lock of the work folder can't say that they are at work; a list of them in it does.
"""

from __future__ import annotations

import atexit
import getpass
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bertchen
from bertchen.conversion.light_streaming import import_streaming_lightly
from bertchen.conversion.tasks import PHASES, Step, log_folder, open_work, run_phase
from bertchen.conversion.work import JOBS, PLAN, Work, remove_work
from bertchen.errors import UserError, user_errors

# How the options of datatrove's executor, of which a job uses one, make a Python environment the job's.
ACTIVATIONS: dict[str, Callable[[str], str]] = {
    "env_command": str,
    "venv_path": lambda path: f"source {shlex.quote(str(venv_script(path)))}",
    "condaenv": lambda name: f'eval "$(conda shell.bash hook)"\nconda activate {shlex.quote(name)}',
}
_DEFAULTS = {"job_name": "bertchen", "qos": ""}  # an empty one is the cluster's own default
_SBATCH_DEFAULTS = {"kill-on-invalid-dep": "yes"}  # or jobs after one that failed wait in the queue for ever


@dataclass(frozen=True)
class SlurmStep(Step):
    """A step that is all that its process does: what a user can mend ends it with one line and exit code 2."""

    def __call__(self, documents: Any, rank: int, world_size: int) -> None:
        with user_errors():
            if self.phase != "finish":
                super().__call__(documents, rank, world_size)
                return
            import_streaming_lightly()  # the process is this step's alone
            folder = Path(self.folder)
            # The waiting counts too.
            waited = time.time() - json.loads((folder / JOBS).read_text())["submitted"]
            work = replace(open_work(folder), begin=time.monotonic() - waited)
            run_phase(work, self.phase, self.workers)
            # datatrove writes into its log folder once more, and so makes the folder anew that was removed.
            atexit.register(_remove_if_done, folder)
            print(f"written to {work.plan.settings.out}")


def submit(work: Work, tasks: int, options: dict[str, Any]) -> None:
    """Submits the four jobs and says so on the terminal.

    Args:
        tasks: of the phases that are divided.
        options: for datatrove's executor, checked.

    Raises:
        UserError: Slurm refused a job; those before it are cancelled.
    """
    from datatrove.executor import SlurmPipelineExecutor

    jobs: dict[str, str] = {}
    for name, phase in PHASES.items():
        count = tasks if phase.is_divided else 1
        executor = SlurmPipelineExecutor(
            [SlurmStep(str(work.folder), name, options.get("cpus_per_task", 1))],
            tasks=count,
            depends_job_id=list(jobs.values())[-1] if jobs else None,
            logging_dir=str(log_folder(work.folder, name)),
            skip_completed=False,  # a task knows better what there is to do than the marks of an earlier submission
            **_executor_options(options, name),
        )
        executor.launch_merge_stats = _no_statistics  # a job of its own for each phase, about nothing
        try:
            executor.launch_job()
        except (OSError, subprocess.CalledProcessError) as error:
            _cancel(jobs)
            raise UserError(
                f"Slurm refused the job of the phase {name} ({error}; what sbatch says stands above): "
                "mend engine.options"
            ) from None
        jobs[name] = str(executor.job_id)
        _note_jobs(work.folder, jobs)
    listed = ", ".join(f"{number} ({name})" for name, number in jobs.items())
    out = work.plan.settings.out
    print(f"submitted to Slurm, {tasks} tasks for each phase that is divided: {listed}")
    print(f"{out} appears when the last job ends; logs: {log_folder(work.folder, '<phase>')}/slurm_logs")


def check_idle(folder: Path) -> None:
    """Raises a `UserError` while jobs that were submitted for a work folder are in the queue or running."""
    try:
        jobs = json.loads((folder / JOBS).read_text())["jobs"]
    except (FileNotFoundError, NotADirectoryError):
        return
    numbers = " ".join(jobs.values())
    try:
        # Of all jobs, because squeue fails for one that it has forgotten. %F is the number of the whole array.
        command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%F"]
        queue = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"the Slurm jobs {numbers} were submitted for {folder}, and whether they have ended can't be told "
            f"({error}): give this command where Slurm is, or remove {folder / JOBS} if they have"
        ) from None
    if there := [number for number in jobs.values() if number in queue]:
        raise UserError(
            f"Slurm jobs of this conversion wait or run: {' '.join(there)} (work folder {folder}). When they have "
            f"ended, or after `scancel {' '.join(there)}`, the same command goes on from what is done"
        )


def venv_script(path: str) -> Path:
    """The script that activates a virtual environment, given that or its folder."""
    given = Path(path).expanduser().absolute()
    return given / "bin" / "activate" if given.is_dir() else given


def _executor_options(options: dict[str, Any], phase: str) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if name not in ACTIVATIONS}
    merged = {**_DEFAULTS, **kept}
    return {
        **merged,
        "job_name": f"{merged['job_name']}-{phase}",
        "env_command": "\n".join(_environment(options)),
        "sbatch_args": {**_SBATCH_DEFAULTS, **options.get("sbatch_args", {})},
    }


def _environment(options: dict[str, Any]) -> list[str]:
    """Shell commands after which a job finds the executables of datatrove and imports this package."""
    lines = [activate(options[name]) for name, activate in ACTIVATIONS.items() if options.get(name)]
    if not lines:
        lines = [f"export PATH={shlex.quote(os.path.dirname(os.path.abspath(sys.executable)))}:$PATH"]
    root = Path(bertchen.__file__).absolute().parents[1]
    if root.name != "site-packages":  # a checkout
        lines.append(f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return [*lines, "export TQDM_MININTERVAL=60"]


def _note_jobs(folder: Path, jobs: dict[str, str]) -> None:
    temporary = folder / f"{JOBS}.tmp"
    temporary.write_text(json.dumps({"submitted": time.time(), "jobs": jobs}))
    os.replace(temporary, folder / JOBS)


def _cancel(jobs: dict[str, str]) -> None:
    if jobs:
        subprocess.run(["scancel", *jobs.values()], check=False)


def _no_statistics() -> None:
    """In place of a method of datatrove's executor."""


def _remove_if_done(folder: Path) -> None:
    if not (folder / PLAN).exists():
        remove_work(folder)
