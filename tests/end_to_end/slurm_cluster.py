"""A real Slurm of two nodes on this machine: its daemons, started by a test and ended with it.

The nodes `n1` and `n2` are two `slurmd` that share the processors. Each has a /dev/shm of its own, as two machines
have, and there its folder for temporary files.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from running import PATIENCE, ROOT, environment

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "unshare")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ctld}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
TaskProlog={folder}/task_prolog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=60
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{n1},{n2}] CPUs=4 RealMemory=4000
PartitionName=cpu Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=2
"""


class SlurmCluster:
    """Commands of a cluster that runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = environment(SLURM_CONF=str(folder / "slurm.conf"))

    def command(self, *command: str, cwd: Path = ROOT, **more: str) -> str:
        """What a command of Slurm prints, in this cluster and in the project's folder; it must succeed."""
        done = subprocess.run(
            command, cwd=cwd, env={**self._environment, **more}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str, **more: str) -> str:
        """Number of the job that is submitted; `more` is added to the environment."""
        return self.command("sbatch", "--parsable", *arguments, **more).strip()

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, …"""
        words = self.command("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str) -> str:
        """Returns the state that a job reaches, one of these."""
        until = time.monotonic() + PATIENCE
        while (state := self.facts(job)["JobState"]) not in states:
            assert state not in ENDED, f"{state}: {self.facts(job)}"
            assert time.monotonic() < until, f"still {state}, not {states}: {self.facts(job)}"
            time.sleep(0.1)
        return state

    def wait(self, job: str) -> str:
        """Returns how a job ended."""
        return self.wait_for(job, *ENDED)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Starts the daemons; skips the test where they aren't installed, or may not be started."""
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    missing = [name for name in COMMANDS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"needs Slurm (apt-get install slurm-wlm munge): no {', '.join(missing)}")
    if os.getuid() != 0:
        pytest.skip("needs to be root, as Slurm's daemons do")
    tried = subprocess.run([*_with_own_shared_memory(), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"needs to mount a tmpfs in a name space of its own: {tried.stderr.strip()}")
    _configure(folder)
    daemons = (
        ("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"),
        ("slurmctld", "-D", "-c"),
        *((*_with_own_shared_memory(), "slurmd", "-D", "-N", name) for name in ("n1", "n2")),
    )  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(daemons):
            with (folder / f"{number}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        command, env=environment(SLURM_CONF=f"{folder}/slurm.conf", PATH=path), cwd=folder, stdout=log,
                        stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
                    )
                )  # fmt: skip
            if number == 0:
                _until(lambda: (folder / "munge.socket").exists(), folder)
        cluster = SlurmCluster(folder)
        _until(lambda: _idle_nodes(folder) == ["n1", "n2"], folder)
        try:
            yield cluster
        finally:
            _cancel_all(cluster)
    finally:
        for daemon in reversed(started):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()


def _configure(folder: Path) -> None:
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    prolog = folder / "task_prolog"  # what it prints is added to the environment of each task
    prolog.write_text("#!/bin/sh\necho export TMPDIR=/dev/shm\n")
    prolog.chmod(0o755)
    ctld, n1, n2 = _free_ports(3)
    (folder / "slurm.conf").write_text(_CONF.format(host=socket.gethostname(), folder=folder, ctld=ctld, n1=n1, n2=n2))


def _free_ports(count: int) -> list[int]:
    with closing(socket.socket()) as first, closing(socket.socket()) as second, closing(socket.socket()) as third:
        sockets = (first, second, third)[:count]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _with_own_shared_memory() -> tuple[str, ...]:
    return ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")


def _idle_nodes(folder: Path) -> list[str]:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--partition=cpu", "--states=idle", "--format=%N"],
        env=environment(SLURM_CONF=f"{folder}/slurm.conf"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return sorted(done.stdout.split())


def _until(is_so: Callable[[], bool], folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not is_so():
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
        assert time.monotonic() < until, f"Slurm doesn't start:\n{logs}"
        time.sleep(0.1)


def _cancel_all(cluster: SlurmCluster) -> None:
    cluster.command("scancel", "--full", "--signal=KILL", "--user=root")
    cluster.command("scancel", "--user=root")
    _until(lambda: not cluster.command("squeue", "--noheader").strip(), cluster.folder)
