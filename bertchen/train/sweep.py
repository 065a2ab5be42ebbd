"""A sweep over models, tasks and seeds: each a run of `main.py` in a process of its own, none of them twice."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertchen.config import Config, load_config
from bertchen.config.load import nearest
from bertchen.config.schema_evaluate import EvaluateConfig
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import AGAIN_EXIT_CODE, Stop, UserError
from bertchen.train.finetune_checks import check_data, check_settings, default_folder
from bertchen.train.finetune_results import config_hash, missing_splits
from bertchen.train.finetune_tasks import as_overrides, find_task, task_names
from bertchen.train.run_folder import BEST_FILE

MAIN = Path(__file__).resolve().parents[2] / "main.py"
ALL = "all"
FIRST_SEED = 42
GOES_ON = "the same command goes on from there"

_WEIGHTS = ("ep*-ba*-rank*.pt", "latest-rank*.pt", BEST_FILE)
# What a sweep decides for its runs.
_OWN_KEYS = ("results", "save_folder", "autoresume", "overwrite", "dry_run", "seed", "model")
_DIE_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Run:
    """A fine-tuning of the sweep.

    Attributes:
        arguments: of main.py.
        config: what they make.
        hash: of the configuration, by which its records are known.
    """

    arguments: list[str]
    config: Config[FinetuneConfig]
    hash: str

    @property
    def missing(self) -> list[str]:
        """Splits that have no record yet."""
        return missing_splits(self.config.value, self.hash)

    @property
    def folder(self) -> Path:
        return Path(str(self.config.value.save_folder))

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def __str__(self) -> str:
        cfg = self.config.value
        return f"{cfg.name}, {cfg.model}{' with random weights' if cfg.random_weights else ''}, seed {cfg.seed}"


def plan(config: Config[EvaluateConfig]) -> list[Run]:
    """The runs of a sweep or of its `part`, seed by seed: stopped, it has compared all models on what it has.

    Raises:
        UserError: an unknown task, a wrong value, or data that isn't there; nothing has been started then.
    """
    cfg = config.value
    if cfg.processes < 1:
        config.fail("processes", "should be at least 1")
    part, parts = _part(config)
    yamls, models = _yamls(config), _models(config)
    runs = [_run(config, yaml, model, seed) for seed in _seeds(config) for yaml in yamls for model in models]
    hashes = [run.hash for run in runs]
    twice = next((run for run in runs if hashes.count(run.hash) > 1), None)
    if twice is not None:
        raise UserError(f"the sweep has {twice} twice: name each model, task and seed once")
    runs = runs[part - 1 :: parts]
    _check_data_once(runs)
    return runs


def sweep(runs: Sequence[Run], config: Config[EvaluateConfig], show: Callable[[str], None]) -> list[Run]:
    """Starts each run that isn't done, one after the other. Returns those that failed; what they say is in their logs.

    Args:
        runs: the plan.
        config: of the sweep.
        show: prints a line.

    Raises:
        Stop: a run was stopped and can go on later, and so can the sweep.
    """
    failed = []
    for number, run in enumerate(runs, start=1):
        where = f"{number}/{len(runs)} {run}"
        if not run.missing:
            show(f"{where}: done before")
        else:
            show(f"{where}: {run.log}")
            code = _start(run, config.value.processes)
            if code == AGAIN_EXIT_CODE:
                raise Stop(f"{where}: {_last_line(run.log).removeprefix('error: ')}; {GOES_ON}", code)
            if code or run.missing:
                failed.append(run)
                show(f"{where}: failed with exit code {code}: {_last_line(run.log)}")
                continue
        if not config.value.keep_weights:
            _drop_weights(run.folder)
    return failed


def _yamls(config: Config[EvaluateConfig]) -> list[str]:
    tasks = config.value.tasks
    names = task_names() if tasks == ALL else [tasks] if isinstance(tasks, str) else tasks
    if not isinstance(names, list) or not names:
        config.fail("tasks", "should be all, or a list of names of yamls/finetune/ or paths")
    found = [(name, find_task(str(name))) for name in names]
    for name, path in found:
        if path is None:
            config.fail("tasks", f"no such YAML file; {nearest(str(name), task_names())}", name)
    return [path for _, path in found if path is not None]


def _models(config: Config[EvaluateConfig]) -> list[dict[str, Any]]:
    models = []
    for given in config.value.models:
        model = given if isinstance(given, Mapping) else {"model": given}
        if not isinstance(model.get("model"), str):
            config.fail("models", "each should be a name, or a mapping with `model: …` in it", given)
        models.append(dict(model))
    if not models:
        config.fail("models", "should name at least one")
    return models


def _seeds(config: Config[EvaluateConfig]) -> list[int]:
    given = config.value.seeds
    seeds = list(range(FIRST_SEED, FIRST_SEED + given)) if isinstance(given, int) else given
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        config.fail("seeds", "should be how many, or a list of them")
    return seeds


def _part(config: Config[EvaluateConfig]) -> tuple[int, int]:
    """Which part of how many: 1 of 1 is all."""
    given = config.value.part
    if given is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", given)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        config.fail("part", "should be which part of how many, as 1/4 to 4/4")
    return int(found[1]), int(found[2])


def _run(config: Config[EvaluateConfig], yaml: str, model: Mapping[str, Any], seed: int) -> Run:
    cfg = config.value
    chosen = {**cfg.set, **{key: value for key, value in model.items() if key != "model"}}
    for key in _OWN_KEYS:
        if key in chosen:
            config.fail("set" if key in cfg.set else "models", f"{key} is the sweep's own to decide", chosen[key])
    given = {
        "progress_bar": False,
        "export": cfg.keep_weights,
        **chosen,
        "model": model["model"],
        "seed": seed,
        "results": cfg.results,
        "autoresume": True,
    }
    arguments = [yaml, *as_overrides(given)]
    made = load_config(FinetuneConfig, arguments, "set and models of the sweep")
    hash_ = config_hash(made.to_dict())
    task, name = Path(default_folder(made.value)).parts[-2:]
    arguments += as_overrides({"save_folder": os.path.join(cfg.save_folder, task, f"{name}-{hash_}")})
    made = load_config(FinetuneConfig, arguments, "set and models of the sweep")
    run = Run(arguments, made, hash_)
    if made.value.global_train_batch_size % cfg.processes:
        config.fail("processes", f"{task} has global_train_batch_size={made.value.global_train_batch_size}")
    check_settings(made)
    return run


def _check_data_once(runs: Iterable[Run]) -> None:
    """Reads the data of each task once. Where that of several is missing, one message names them all."""
    problems: dict[str, str] = {}
    good: set[str] = set()
    checked: set[str] = set()
    for run in runs:
        cfg = run.config.value
        key = json.dumps([cfg.task, cfg.labels, run.config.to_dict()["data"]], sort_keys=True)
        if key in checked or not run.missing:
            continue
        checked.add(key)
        try:
            check_data(run.config)
            good.add(cfg.name)
        except UserError as error:
            problems[cfg.name] = str(error)
    if problems:
        rest = f" Without these: tasks=[{','.join(sorted(good))}]." if good else ""
        told = " ".join(f"{name}: {problem}." for name, problem in problems.items())
        raise UserError(f"{told.rstrip('.')}.{rest}" if rest else told.rstrip("."))


def _start(run: Run, processes: int) -> int:
    """Runs it to its end; it ends with this process, however that ends. Returns its exit code."""
    command, farewell = [sys.executable], signal.SIGTERM
    if processes > 1:  # the launcher ends its processes when it is interrupted, not when it is terminated
        command, farewell = [str(Path(sys.executable).with_name("composer")), "-n", str(processes)], signal.SIGINT
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        process = subprocess.Popen(
            [*command, str(MAIN), *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent(farewell),
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.send_signal(farewell)
                process.wait()


def _end_with_parent(farewell: signal.Signals) -> Callable[[], None] | None:
    """What a child calls before it begins: on Linux it is sent a signal when its parent has ended."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: between fork and exec little is safe

    def call() -> None:
        signal.signal(farewell, signal.SIG_DFL)  # a shell's background jobs are deaf to Ctrl-C
        prctl(_DIE_WITH_PARENT, farewell)

    return call


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def _drop_weights(folder: Path) -> None:
    for pattern in _WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()
