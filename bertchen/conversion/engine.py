"""Who runs the phases of a conversion: this machine, or one of datatrove's executors on many."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import socket
import sys
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

import bertchen
from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.phases import arrange_work, finish_work, tokenize_work, write_work
from bertchen.conversion.slurm import ACTIVATIONS, submit, venv_script
from bertchen.conversion.tasks import PHASES, RayStep, Step, error_folder, log_folder, run_phase
from bertchen.conversion.work import Output, Work
from bertchen.errors import UserError
from bertchen.processes import available_cores, end_with, worker_pool

Engine = Callable[[Work, ConvertConfig], dict[str, Any] | None]

# Tasks that engine.tasks=0 makes at most: each takes seconds to begin.
MOST_TASKS = 256
CONNECTION_SECONDS = 10.0

# Class in datatrove.executor of each engine that has one.
_EXECUTORS = {
    "datatrove_local": "LocalPipelineExecutor",
    "slurm": "SlurmPipelineExecutor",
    "ray": "RayPipelineExecutor",
}
# Arguments of the executors that are set here, or that the phases of a conversion have no use for.
_NO_OPTIONS = frozenset(
    {
        "self", "pipeline", "tasks", "logging_dir", "skip_completed", "depends", "depends_job_id",
        "job_id_retriever", "nodes_per_task", "start_method", "local_tasks", "local_rank_offset",
        "max_array_launch_parallel", "stagger_max_array_jobs", "run_on_dependency_fail", "slurm_logs_folder",
    }
)  # fmt: skip
_COUNTS = ("workers", "cpus_per_task", "mem_per_cpu_gb", "tasks_per_job", "max_array_size")
_MAY_BE_UNLIMITED = ("workers", "max_array_size")


def run_local(work: Work, settings: ConvertConfig) -> dict[str, Any]:
    """All phases, one after the other, in processes of this machine."""
    workers = settings.workers or available_cores()
    tokenize_work(work, workers)
    arrange_work(work)
    write_work(work, workers)
    return finish_work(work)


def run_datatrove_local(work: Work, settings: ConvertConfig) -> dict[str, Any]:
    """The tasks that a cluster would run, in processes of this machine."""
    options = dict(settings.engine.options)
    workers = options.pop("workers", None) or settings.workers or available_cores()
    for name, tasks in _tasks(work, settings):
        processes = tasks if workers == -1 else min(workers, tasks)
        label = PHASES[name].label
        with (
            worker_pool(processes, _begin_local_worker) as pool,
            tqdm(total=tasks, unit=" tasks", desc=label) as bar,
        ):
            # A pool of ours around the executor: its own waits for ever for a task whose process was killed.
            for task in as_completed(
                [pool.submit(_run_local_task, work.folder, name, tasks, rank, options) for rank in range(tasks)]
            ):
                task.result()
                bar.update()
    return run_phase(work, "finish", 1)


def run_ray(work: Work, settings: ConvertConfig) -> dict[str, Any]:
    """The tasks on a Ray cluster, that of RAY_ADDRESS; without it, the one on this machine or a new one.

    Raises:
        UserError: the cluster can't be reached; a task failed.
    """
    options = settings.engine.options
    with _ray_cluster(), _quiet_datatrove():
        from datatrove.executor import RayPipelineExecutor

        _tell_of_waiting(options)
        for name, tasks in _tasks(work, settings):
            shutil.rmtree(error_folder(work.folder, name), ignore_errors=True)
            logs = log_folder(work.folder, name)
            print(f"{PHASES[name].label}: {tasks} tasks on Ray, logs in {logs}", file=sys.stderr, flush=True)
            RayPipelineExecutor(
                [RayStep(str(work.folder), name, options.get("cpus_per_task", 1))],
                tasks=tasks,
                logging_dir=str(logs),
                skip_completed=False,
                **options,
            ).run()
            _raise_noted_error(work.folder, name)
    return run_phase(work, "finish", 1)


def run_slurm(work: Work, settings: ConvertConfig) -> None:
    """Submits all phases to Slurm, and leaves them to it."""
    with _quiet_datatrove():
        submit(work, _task_count(work, settings), settings.engine.options)


ENGINES: dict[str, Engine] = {
    "local": run_local,
    "datatrove_local": run_datatrove_local,
    "slurm": run_slurm,
    "ray": run_ray,
}


def check_engine(config: Config[ConvertConfig]) -> None:
    """Checks all keys under `engine`.

    Raises:
        UserError: one is wrong or missing, or the machine lacks what the engine needs.
    """
    engine = config.value.engine
    if engine.name not in ENGINES:
        config.fail("engine.name", f"unknown; {nearest(engine.name, ENGINES)}")
    if engine.tasks < 0:
        config.fail("engine.tasks", "should be a number of tasks, or 0 for as many as the input makes sensible")
    if engine.name not in _EXECUTORS:
        if engine.tasks or engine.options:
            key = f"engine.options.{next(iter(engine.options))}" if engine.options else "engine.tasks"
            config.fail(key, f"engine.name={engine.name} has no tasks and no options (`workers` is what it knows)")
        return
    _check_options(config)
    if engine.name in _NEEDS:
        _NEEDS[engine.name](config)


def _check_options(config: Config[ConvertConfig]) -> None:
    import datatrove.executor

    engine = config.value.engine
    executor = getattr(datatrove.executor, _EXECUTORS[engine.name])
    arguments = inspect.signature(executor.__init__).parameters
    kinds = typing.get_type_hints(executor.__init__)
    known = {name: argument for name, argument in arguments.items() if name not in _NO_OPTIONS}
    for name, value in engine.options.items():
        key = f"engine.options.{name}"
        if name not in known:
            config.fail(
                key, f"unknown with engine.name={engine.name}; {nearest(name, known, 'engine.options.')}", value
            )
        if not _fits(value, kinds.get(name)):
            hint = ', in quotes: "10:00:00" (without them YAML reads a number)' if name == "time" else ""
            config.fail(key, f"wrong type, should be {_in_words(kinds[name])}{hint}", value)
        if name in _COUNTS and not (value > 0 or (value == -1 and name in _MAY_BE_UNLIMITED)):
            config.fail(key, f"should be at least 1{', or -1 for no limit' * (name in _MAY_BE_UNLIMITED)}", value)
    for name, argument in known.items():
        if argument.default is argument.empty and engine.options.get(name) is None:
            raise UserError(
                f"engine.options.{name} is not set: engine.name={engine.name} needs it, "
                f"in a YAML or as engine.options.{name}=… on the command line"
            )


def _check_slurm(config: Config[ConvertConfig]) -> None:
    engine = config.value.engine
    options = engine.options
    if shutil.which("sbatch") is None:
        config.fail("engine.name", "there is no sbatch here: give the command on a login node of the cluster")
    given = [name for name in ACTIVATIONS if options.get(name)]
    if len(given) > 1:
        config.fail(f"engine.options.{given[1]}", f"give this or {given[0]}, not both")
    if options.get("venv_path") and not venv_script(options["venv_path"]).is_file():
        config.fail("engine.options.venv_path", "should be a virtual environment or its bin/activate")
    most = options.get("max_array_size", 1001) * options.get("tasks_per_job", 1)
    if 0 < most < (engine.tasks or MOST_TASKS):
        config.fail(
            "engine.tasks",
            f"one array of jobs has room for {most}: give fewer (not 0), or raise engine.options.tasks_per_job",
        )
    folder = Output.of(config.value).work
    if shlex.quote(str(folder)) != str(folder):
        raise UserError(
            f"work={folder}: datatrove's scripts for Slurm take no spaces or quotes in it: give another work"
        )


def _check_ray(config: Config[ConvertConfig]) -> None:
    if find_spec("ray") is None:
        config.fail("engine.name", "needs Ray, which isn't installed here: pip install 'ray[default]'")
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECTION_SECONDS).close()
    except OSError as error:  # Ray itself would try for many minutes
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from None


_NEEDS: dict[str, Callable[[Config[ConvertConfig]], None]] = {"slurm": _check_slurm, "ray": _check_ray}


def _fits(value: Any, kind: Any) -> bool:
    kinds = typing.get_args(kind) or (kind,)
    if value is None or not all(isinstance(each, type) for each in kinds):
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}
    kinds = [each for each in (typing.get_args(kind) or (kind,)) if each is not type(None)]
    return " or ".join(words.get(each, str(each)) for each in kinds)


def _task_count(work: Work, settings: ConvertConfig) -> int:
    return settings.engine.tasks or min(len(work.plan.units), MOST_TASKS)


def _tasks(work: Work, settings: ConvertConfig) -> list[tuple[str, int]]:
    """Number of tasks of all phases but the last, which this process runs to return what it returns."""
    tasks = _task_count(work, settings)
    return [(name, tasks if phase.is_divided else 1) for name, phase in PHASES.items() if name != "finish"]


def _run_local_task(folder: Path, phase: str, tasks: int, rank: int, options: dict[str, Any]) -> None:
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(
        [Step(str(folder), phase, workers=1)],
        tasks=tasks,
        workers=1,
        local_tasks=1,
        local_rank_offset=rank,
        logging_dir=str(log_folder(folder, phase)),
        skip_completed=False,
        **options,
    ).run()


def _begin_local_worker() -> None:
    import multiprocess.util

    # datatrove logs to the terminal too, whatever happens; it stands in the log folder as well.
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    # The executor starts a process that would outlive this one if it were killed.
    multiprocess.util.register_after_fork(_end_with_local_worker, lambda end: end())


def _end_with_local_worker() -> None:
    import multiprocess

    end_with(multiprocess.parent_process())


@contextmanager
def _quiet_datatrove() -> Iterator[None]:
    from datatrove.utils.logging import logger

    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


@contextmanager
def _ray_cluster() -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    paths = [str(Path(bertchen.__file__).absolute().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}})
    except (ConnectionError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "not set")
        raise UserError(f"no Ray cluster can be reached (RAY_ADDRESS: {address}): {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _tell_of_waiting(options: dict[str, Any]) -> None:
    """Ray waits without a word for a machine with room for a task; one that scales may yet get it."""
    import ray

    cpus = options.get("cpus_per_task", 1)
    gigabytes = options.get("mem_per_cpu_gb", 2) * cpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("memory", 0) >= gigabytes * 2**30 for node in nodes):
        print(
            f"no machine of the Ray cluster has {cpus} cores and {gigabytes} GB for a task (engine.options."
            "cpus_per_task, mem_per_cpu_gb): waiting for one",
            file=sys.stderr,
            flush=True,
        )


def _raise_noted_error(folder: Path, phase: str) -> None:
    notes = sorted(error_folder(folder, phase).glob("*.json"))
    for note in notes[:1]:
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["is_user_error"]:
            raise UserError(found["message"])
        raise RuntimeError(f"task {int(note.stem)} of the phase {phase}: {found['message']}; see {folder}/logs/{phase}")
