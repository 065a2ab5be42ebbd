"""Stand-ins for Slurm's commands: `sbatch` keeps the jobs, and the test says when they run, on a machine like this one.

They are as strict as Slurm where it matters: a job gets its directives, the environment that was exported with it and
nothing else; a job whose dependency can't be fulfilled any more leaves the queue.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

_SBATCH = f"""#!{sys.executable} -S
import json, os, sys
from pathlib import Path

folder = Path(__file__).resolve().parent.parent / "jobs"
number = 101 + len(list(folder.iterdir()))
if (folder.parent / "full").exists() and number > 101:
    sys.exit("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
*arguments, script = sys.argv[1:]
options = dict(item[2:].split("=", 1) for item in arguments)
exported = options["export"].split(",")
assert exported[0] == "ALL"
environment = {{**os.environ, **dict(item.split("=", 1) for item in exported[1:])}}
job = {{"script": Path(script).read_text(), "environment": environment, "state": "PENDING",
       "dependency": options.get("dependency", "")}}
(folder / str(number)).write_text(json.dumps(job))
print("Submitted batch job", number)
"""
_SQUEUE = f"""#!{sys.executable} -S
import json, sys
from pathlib import Path

assert "--format=%F" in sys.argv
for path in sorted((Path(__file__).resolve().parent.parent / "jobs").iterdir()):
    if json.loads(path.read_text())["state"] in ("PENDING", "RUNNING"):
        print(path.name)
"""
_SCANCEL = f"""#!{sys.executable} -S
import json, sys
from pathlib import Path

for number in sys.argv[1:]:
    path = Path(__file__).resolve().parent.parent / "jobs" / number
    path.write_text(json.dumps({{**json.loads(path.read_text()), "state": "CANCELLED"}}))
"""
_SRUN = """#!/bin/sh
[ "$1 $2 $3" = "-l -n 1" ] || exit 99
shift 3
exec "$@"
"""
_SCONTROL = """#!/bin/sh
[ "$1 $2" = "show hostnames" ] && echo "$3"
"""


class FakeSlurm:
    """A cluster in a folder.

    Attributes:
        folder: of this cluster.
        path: what PATH is where it has its commands and nothing of this project.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._jobs, commands = folder, folder / "jobs", folder / "bin"
        self._jobs.mkdir(parents=True)
        commands.mkdir()
        scripts = {"sbatch": _SBATCH, "squeue": _SQUEUE, "scancel": _SCANCEL, "srun": _SRUN, "scontrol": _SCONTROL}
        for name, script in scripts.items():
            (commands / name).write_text(script)
            (commands / name).chmod(0o755)
        self.path = f"{commands}:/usr/bin:/bin"

    def limit_to_one_job(self) -> None:
        """Lets it refuse all jobs after the first."""
        (self.folder / "full").touch()

    def states(self) -> list[str]:
        """States of all jobs, in the order of their numbers, which begin at 101."""
        return [self._job(path)["state"] for path in sorted(self._jobs.iterdir())]

    def run_jobs(self, heeds_dependencies: bool = True) -> None:
        """Runs what is in the queue, job after job."""
        for path in sorted(self._jobs.iterdir()):
            if self._job(path)["state"] != "PENDING":
                continue
            kind, _, before = self._job(path)["dependency"].partition(":")
            assert kind in ("", "afterok")
            if before and heeds_dependencies and self._job(self._jobs / before)["state"] != "COMPLETED":
                assert "#SBATCH --kill-on-invalid-dep=yes" in self._job(path)["script"]
                self._set_state(path, "CANCELLED")
            else:
                self._set_state(path, "RUNNING")
                self._set_state(path, "COMPLETED" if self._run(path) else "FAILED")

    def _run(self, path: Path) -> bool:
        job = self._job(path)
        directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", job["script"], re.MULTILINE))
        assert {"partition", "time", "cpus-per-task", "mem-per-cpu", "job-name"} <= directives.keys()
        last = int(re.fullmatch(r"0-(\d+)(%\d+)?", directives["array"])[1])  # type: ignore[index]
        script = self.folder / f"script-{path.name}"
        script.write_text(job["script"])
        codes = []
        for index in range(last + 1):
            environment = {
                **job["environment"],
                "SLURM_JOB_ID": path.name,
                "SLURM_ARRAY_JOB_ID": path.name,
                "SLURM_ARRAY_TASK_ID": str(index),
                "SLURM_NODELIST": "node1",
            }
            log = directives["output"].replace("%A", path.name).replace("%a", str(index))
            with open(log, "w") as file:
                codes.append(
                    subprocess.run(
                        ["bash", script], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=file,
                        stderr=subprocess.STDOUT, check=False,
                    ).returncode
                )  # fmt: skip
        return not any(codes)

    @staticmethod
    def _job(path: Path) -> dict:
        return json.loads(path.read_text())

    def _set_state(self, path: Path, state: str) -> None:
        temporary = self.folder / "state.tmp"
        temporary.write_text(json.dumps({**self._job(path), "state": state}))
        os.replace(temporary, path)
