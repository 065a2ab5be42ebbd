"""Engines: what is wrong is said before any work, no phase begins on an incomplete one, tasks give the same bytes."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from bertchen.config import load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion import convert as convert_module
from bertchen.conversion.convert import convert
from bertchen.conversion.engine import MOST_TASKS, check_engine
from bertchen.conversion.slurm import check_idle
from bertchen.conversion.tasks import PHASES, open_work, run_phase
from bertchen.conversion.work import JOBS, Work
from bertchen.errors import UserError

SLURM = ("engine.name=slurm", "engine.options.partition=cpu", "engine.options.time=1-00:00:00")


def config_of(*overrides: str) -> Any:
    return load_config(ConvertConfig, ["out=mds", "tokenizer=none", "source.path=none", *overrides], "usage")


def add_command(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for commands that the tests make up; PATH has no others."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    add_command(tmp_path / "bin", "sbatch", "exit 1")
    return tmp_path / "bin"


# What is given, and what the message must say.
WRONG = {
    "unknown engine": (["engine.name=slrum"], ["engine.name=slrum", "did you mean slurm?"]),
    "negative tasks": (["engine.tasks=-1"], ["engine.tasks=-1"]),
    "tasks for this machine": (["engine.tasks=3"], ["engine.tasks=3", "local", "`workers`"]),
    "options for this machine": (["engine.options.workers=3"], ["engine.options.workers=3", "local"]),
    "misspelt option": (
        [*SLURM, "engine.options.cpus_per_taks=2"],
        ["engine.options.cpus_per_taks=2", "the command line", "did you mean engine.options.cpus_per_task?"],
    ),
    "option of another engine": (
        ["engine.name=datatrove_local", "engine.options.partition=cpu"],
        ["engine.options.partition=cpu", "datatrove_local", "engine.options.workers"],
    ),
    "option that is ours": ([*SLURM, "engine.options.logging_dir=x"], ["engine.options.logging_dir=x", "unknown"]),
    "missing option": ([*SLURM[:2]], ["engine.options.time is not set", "engine.name=slurm"]),
    "option of nothing": ([*SLURM, "engine.options.partition=null"], ["engine.options.partition is not set"]),
    "time that YAML reads as a number": (
        [*SLURM, "engine.options.time=10:00:00"],
        ["engine.options.time=36000", "should be text", '"10:00:00"'],
    ),
    "word for a number": ([*SLURM, "engine.options.cpus_per_task=many"], ["cpus_per_task=many", "a whole number"]),
    "fraction for a number": ([*SLURM, "engine.options.mem_per_cpu_gb=1.5"], ["mem_per_cpu_gb=1.5", "whole number"]),
    "truth for a number": ([*SLURM, "engine.options.cpus_per_task=true"], ["cpus_per_task=True", "whole number"]),
    "word for a mapping": ([*SLURM, "engine.options.sbatch_args=x"], ["sbatch_args=x", "a mapping"]),
    "no cores": ([*SLURM, "engine.options.cpus_per_task=0"], ["cpus_per_task=0", "at least 1"]),
    "no workers": (
        ["engine.name=datatrove_local", "engine.options.workers=0"],
        ["engine.options.workers=0", "at least 1, or -1 for no limit"],
    ),
    "two environments": (
        [*SLURM, "engine.options.venv_path=.", "engine.options.env_command=module load python"],
        ["engine.options.venv_path", "env_command", "not both"],
    ),
    "environment that isn't one": (
        [*SLURM, "engine.options.venv_path=/nowhere"],
        ["engine.options.venv_path=/nowhere", "bin/activate"],
    ),
    "more tasks than an array has": (
        [*SLURM, "engine.tasks=5000", "engine.options.tasks_per_job=3"],
        ["engine.tasks=5000", "room for 3003", "tasks_per_job"],
    ),
    "small array": ([*SLURM, "engine.options.max_array_size=100"], ["engine.tasks=0", "room for 100"]),
    "folder with a space": ([*SLURM, "work=a b"], ["a b", "spaces"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_keys(commands: Path, case: str) -> None:
    overrides, said = WRONG[case]
    with pytest.raises(UserError) as error:
        check_engine(config_of(*overrides))
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["engine.name=datatrove_local"],
        ["engine.name=datatrove_local", "engine.tasks=100000", "engine.options.workers=-1"],
        [*SLURM, "engine.tasks=1001"],
        [*SLURM, "engine.tasks=100000", "engine.options.max_array_size=-1"],
        [*SLURM, "engine.options.tasks_per_job=2", f"engine.tasks={2 * MOST_TASKS}", "engine.options.workers=64"],
        [*SLURM, "engine.options.sbatch_args={account: me, constraint: cpu}", "engine.options.qos=null"],
        [*SLURM, "engine.options.env_command=module load python", "engine.options.srun_args={mpi: none}"],
    ],
)
def test_right_keys(commands: Path, overrides: list[str]) -> None:
    check_engine(config_of(*overrides))


def test_machine_that_lacks_the_engine(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (commands / "sbatch").unlink()
    with pytest.raises(UserError, match=r"engine\.name=slurm .*no sbatch here: .*login node"):
        check_engine(config_of(*SLURM))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"engine\.name=ray .*pip install 'ray\[default\]'"):
        check_engine(config_of("engine.name=ray"))


def test_ray_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertchen.conversion.engine.find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", address := f"127.0.0.1:{server.getsockname()[1]}")
        check_engine(config_of("engine.name=ray"))
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there"):
        check_engine(config_of("engine.name=ray"))


def test_jobs_that_are_still_there(commands: Path, tmp_path: Path) -> None:
    check_idle(tmp_path)
    (tmp_path / JOBS).write_text(json.dumps({"jobs": {"tokenize": "12", "arrange": "13"}, "submitted": 0}))
    with pytest.raises(UserError, match=r"jobs 12 13 .* can't be told .*squeue.* remove .*slurm\.json"):
        check_idle(tmp_path)
    add_command(commands, "squeue", "echo 11; echo 13; echo 13; echo 112")
    with pytest.raises(UserError, match=r"wait or run: 13 .*scancel 13`"):
        check_idle(tmp_path)
    add_command(commands, "squeue", "echo 11; echo 112")
    check_idle(tmp_path)


def write_corpus(path: Path, count: int) -> None:
    words = re.findall(r"\w+", "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch")
    texts = [" ".join(words[number % 7 : 7 + number % 6]) + f" {number}" for number in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def arguments_for(folder: Path, tokenizer: str, out: str = "mds") -> list[str]:
    return [
        f"source.path={folder}/*.jsonl", f"tokenizer={tokenizer}", f"out={folder / out}", "block_size=16",
        "val_blocks=3", "shard_size=2048", "workers=1",
    ]  # fmt: skip


@pytest.fixture
def unfinished(tokenizer_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder in which only the last phase is left to do."""

    def all_but_the_last(work: Work, _settings: ConvertConfig) -> None:
        for phase in ("tokenize", "arrange", "write"):
            run_phase(work, phase, 1)
        raise UserError("stop")

    write_corpus(tmp_path / "a.jsonl", 300)
    write_corpus(tmp_path / "b.jsonl", 60)
    monkeypatch.setitem(convert_module.ENGINES, "local", all_but_the_last)
    monkeypatch.setattr("bertchen.conversion.work._MIN_UNIT_BYTES", 1)
    with pytest.raises(UserError, match="stop"):
        convert(load_config(ConvertConfig, arguments_for(tmp_path, tokenizer_folder), "usage"))
    return tmp_path / "mds.partial"


def test_no_phase_begins_on_an_incomplete_one(unfinished: Path) -> None:
    def message(phase: str) -> str:
        with pytest.raises(UserError) as error:
            run_phase(open_work(unfinished), phase, 1)
        return str(error.value)

    for phase in PHASES.values():
        phase.check(open_work(unfinished))

    group = sorted((unfinished / "groups").iterdir())[-1]
    os.rename(group, unfinished / "away")
    assert f"groups of shards, from {group.stem} on: missing after the phase write" in message("finish")
    os.rename(unfinished / "away", group)

    os.rename(unfinished / "arrangement", unfinished / "away")
    for phase in ("write", "finish"):
        assert "missing after the phase arrange" in message(phase)
    assert not (unfinished / "arrangement").exists(), "a task of another phase doesn't arrange"

    segment = sorted((unfinished / "segments").glob("*.json"))[-1]
    segment.unlink()
    said = message("arrange")
    assert "1 of 2 parts of the input" in said
    assert f"{unfinished.parent}/b.jsonl on: missing after the phase tokenize" in said
    assert f"{unfinished}/logs/tokenize" in said


def test_folder_without_a_conversion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no conversion"):
        open_work(tmp_path)


def files_in(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which tells times."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["manifest.json"]
    return files


def test_tasks_give_the_same_bytes(tokenizer_folder: str, tmp_path: Path) -> None:
    """More tasks than there are parts of the input, and a bad row in a task."""
    write_corpus(tmp_path / "a.jsonl", 400)
    tasks = ["engine.name=datatrove_local", "engine.tasks=3", "engine.options.workers=1"]

    def run(out: str, *more: str) -> dict[str, Any] | None:
        return convert(load_config(ConvertConfig, [*arguments_for(tmp_path, tokenizer_folder, out), *more], "usage"))

    run("mds")
    assert run("tasks", *tasks)["splits"] == json.loads((tmp_path / "mds/manifest.json").read_text())["splits"]
    assert files_in(tmp_path / "tasks") == files_in(tmp_path / "mds")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 401: not JSON"):
        run("bad", *tasks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "mds", "tasks"]
