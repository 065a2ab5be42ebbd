"""The jobs of scripts/slurm/ against an `srun` and a `scontrol` that record what they are given; no Slurm is needed.

`tests/end_to_end/test_slurm.py` runs them on a real one. Containers are tested here alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "scripts/slurm"
BASH = shutil.which("bash")
SECRET = "hf_0123456789"
AGAIN = 75
# What Slurm says of a job of two nodes with two tasks on each.
JOB = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "3"}
TASK = {
    "SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_CPUS_PER_TASK": "3",
}  # fmt: skip

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

# `srun` ends as it is told; `scontrol` only writes down.
_SRUN = """#!/bin/sh
read -r _ _ _ JOB_SCRIPT _ < /proc/$PPID/stat  # the parent of what waits for srun
printf '%s\\0' "$@" > "$RECORD/srun"
printf '%s:%s' "$MASTER_ADDR" "$MASTER_PORT" > "$RECORD/master"
{action}
exit {code}
"""
_SCONTROL = """#!/bin/sh
echo "$@" > "$RECORD/scontrol"
"""


class Jobs:
    """Runs the scripts as Slurm does, from the checkout, with commands that record."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.record = folder / "bin", folder / "record"
        self.bin.mkdir()
        self.record.mkdir()
        self._write("scontrol", _SCONTROL)

    def _write(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def __call__(
        self, script: str, *arguments: str, code: int = 0, action: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        self._write("srun", _SRUN.format(action=action, code=code))
        return self._run([BASH, str(SLURM / script), *arguments], {**JOB, **environment})

    def task(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._run([BASH, str(SLURM / "task.sh"), *arguments], {**TASK, **environment})

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "RECORD": str(self.record), **environment}
        return subprocess.run(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def step(self) -> tuple[list[str], list[str]]:
        """Options of the `srun` that was started, and the command after task.sh."""
        given = (self.record / "srun").read_text().split("\0")[:-1]
        begin = given.index("scripts/slurm/task.sh")
        assert given[begin - 1] == "bash"
        return given[: begin - 1], given[begin + 1 :]

    def requeued(self) -> str | None:
        path = self.record / "scontrol"
        return path.read_text().strip() if path.exists() else None


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def test_what_follows_the_script_s_name_is_main_s(jobs: Jobs) -> None:
    given = ["yamls/pretrain.yaml", "save_folder=a b", "curriculum.static={lengths: [64, 512]}", "x=$HOME"]
    assert jobs("pretrain.sbatch", *given, PYTHON="my-python").returncode == 0
    options, command = jobs.step()
    assert command == ["process", "my-python", "main.py", *given, "autoresume=true"]
    assert "--cpus-per-task=3" in options
    assert "--label" in options
    host, _, port = (jobs.record / "master").read_text().partition(":")
    assert host == os.uname().nodename
    assert 10_000 <= int(port) < 30_000


def test_other_jobs_start_their_commands(jobs: Jobs) -> None:
    assert jobs("convert.sbatch", "a.yaml", "out=mds", PYTHON="p").returncode == 0
    assert jobs.step()[1] == ["alone", "p", "scripts/convert_dataset.py", "workers=3", "a.yaml", "out=mds"]
    assert jobs("finetune_sweep.sbatch", "b.yaml", PYTHON="p").returncode == 0
    assert jobs.step()[1] == ["part", "p", "scripts/evaluate.py", "b.yaml"]
    assert jobs("command.sbatch", "report", "results.jsonl", PYTHON="p").returncode == 0
    assert jobs.step()[1] == ["alone", "p", "scripts/report.py", "results.jsonl"]
    failed = jobs("command.sbatch", "reprot")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: reprot: no command of scripts/")


@pytest.mark.parametrize("code", [0, 1, 2, 137, 143])
def test_the_step_s_exit_code_is_the_job_s(jobs: Jobs, code: int) -> None:
    assert jobs("pretrain.sbatch", code=code).returncode == code
    assert jobs.requeued() is None


def test_requeued_where_the_command_was_stopped(jobs: Jobs) -> None:
    done = jobs("pretrain.sbatch", code=AGAIN, SLURM_RESTART_COUNT="2")
    assert done.returncode == AGAIN
    assert jobs.requeued() == "requeue 20007"
    assert "restart 3 of 20" in done.stderr


def test_restarts_have_a_limit(jobs: Jobs) -> None:
    done = jobs("pretrain.sbatch", code=AGAIN, SLURM_RESTART_COUNT="3", MAX_RESTARTS="3")
    assert done.returncode == AGAIN
    assert jobs.requeued() is None
    assert "MAX_RESTARTS" in done.stderr


_WAITING = "n=0; while [ $n -lt 600 ]; do sleep 0.1; n=$((n + 1)); done"
# A step that hears a signal, after it has sent it to the job's script.
_SIGNALLED = "trap 'echo heard {name} >&2; exit 75' {name}; kill -s {name} $JOB_SCRIPT; " + _WAITING


def test_time_limit_is_passed_on_and_the_job_begins_again(jobs: Jobs) -> None:
    done = jobs("pretrain.sbatch", action=_SIGNALLED.format(name="USR1"))
    assert "heard USR1" in done.stderr
    assert done.returncode == AGAIN
    assert jobs.requeued() == "requeue 20007"


@pytest.mark.parametrize(("asked", "code"), [(True, AGAIN), (False, 128 + signal.SIGUSR1)])
def test_a_step_that_the_signal_itself_has_ended_goes_on_later(jobs: Jobs, asked: bool, code: int) -> None:
    """As in the seconds of its imports. Without a question from Slurm it has failed."""
    action = f"kill -s USR1 $JOB_SCRIPT; {_WAITING}" if asked else "kill -s USR1 $$"
    assert jobs("convert.sbatch", action=action).returncode == code
    assert jobs.requeued() == ("requeue 20007" if asked else None)


def test_a_cancelled_job_does_not_come_back(jobs: Jobs) -> None:
    """Nor is one that was preempted requeued twice: Slurm does so by itself. It has told the step too."""
    done = jobs("pretrain.sbatch", action="kill -s TERM $JOB_SCRIPT", code=AGAIN)
    assert done.returncode == AGAIN
    assert jobs.requeued() is None
    assert "Slurm has ended job 20007" in done.stderr


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({"SLURM_NTASKS": "3"}, "--ntasks-per-node"),
        ({"SLURM_GPUS_ON_NODE": "8"}, "--ntasks-per-node=8"),
        ({"SLURM_JOB_ID": ""}, "sbatch"),
    ],
)
def test_refused_with_one_message(jobs: Jobs, environment: dict[str, str], advice: str) -> None:
    done = jobs("pretrain.sbatch", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert advice in done.stderr
    assert not (jobs.record / "srun").exists()


def test_container(jobs: Jobs) -> None:
    image = {"CONTAINER": "/images/bertchen.sqsh", "CONTAINER_MOUNTS": "/data:/data,/scratch:/scratch"}
    done = jobs("pretrain.sbatch", "a.yaml", **image, HF_TOKEN=SECRET)
    assert done.returncode == 0
    options, command = jobs.step()
    assert command[:3] == ["process", "python", "main.py"], "the image's Python"
    assert "--container-image=/images/bertchen.sqsh" in options
    assert f"--container-mounts={ROOT}:{ROOT},/data:/data,/scratch:/scratch" in options
    assert f"--container-workdir={ROOT}" in options
    assert SECRET not in (jobs.record / "srun").read_text() + done.stdout + done.stderr
    assert jobs("pretrain.sbatch", "a.yaml", PYTHON="p").returncode == 0
    assert not [option for option in jobs.step()[0] if "container" in option]


PRINT = ("env", "-0")


def environment_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(item.split("=", 1) for item in done.stdout.split("\0") if item)


def test_a_process_knows_its_place(jobs: Jobs) -> None:
    master = {"MASTER_ADDR": "node1", "MASTER_PORT": "10007"}
    env = environment_of(jobs.task("process", *PRINT, **master))
    place = {name: env[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")}
    assert place == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "1"}
    assert env["OMP_NUM_THREADS"] == "3"
    assert master.items() <= env.items()
    alone = environment_of(jobs.task("alone", *PRINT, **master))
    assert not {*place, *master} & alone.keys()


def test_parts_of_an_array_of_jobs(jobs: Jobs) -> None:
    """Three jobs of four tasks: twelve parts, each once, and a GPU for each task of a node."""
    array = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"}
    parts = []
    for element in (5, 6, 7):
        for rank in range(4):
            more = {"SLURM_ARRAY_TASK_ID": str(element), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2)}
            script = ("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES" "$1"', "sh")
            gpu, part = jobs.task("part", *script, **array, **more, CUDA_VISIBLE_DEVICES="6,7").stdout.split()
            assert gpu == str(6 + rank % 2)
            parts.append(part)
    assert parts == [f"part={number}/12" for number in range(1, 13)]
