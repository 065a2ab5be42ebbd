"""Starting the project's commands as a user does, stopping them as a bad day does, and reading what they left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
COMPOSER = str(Path(sys.executable).with_name("composer"))
LATEST = "latest-rank0.pt"
PATIENCE = 600  # seconds that any command may take, on a machine however busy
BLOCK_SIZE = 64
BATCH = 16  # blocks a step
LENGTHS = (32, 64)
OF_PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")

# What differs from run to run because it measures time or memory. The other time/… keys count steps, rows and tokens.
MEASURED = ("throughput/", "memory/", "time/remaining_seconds")

NOUNS = ["Hund", "Baum", "Wagen", "Lehrer", "Vogel", "Brief", "Garten", "Fluss"]
VERBS = ["sieht", "sucht", "findet", "trägt", "vergisst", "liebt"]
ADJECTIVES = ["großen", "kleinen", "alten", "neuen", "schönen", "grünen"]
PLACES = ("heute", "gestern", "immer", "nie", "im Garten", "am Fluss", "über der Straße")


def german_documents(count: int, seed: int) -> list[str]:
    """Documents of 3 to 25 sentences of one form, which the smallest model learns in a hundred steps."""
    rng = random.Random(seed)

    def sentence() -> str:
        subject, verb, kind, thing, place = map(rng.choice, (NOUNS, VERBS, ADJECTIVES, NOUNS, PLACES))
        return f"Der {subject} {verb} den {kind} {thing} {place}."

    return [" ".join(sentence() for _ in range(rng.randint(3, 25))) for _ in range(count)]


@dataclass(frozen=True)
class Prepared:
    """What a training needs, made by the project's own commands."""

    corpus: Path
    tokenizer: Path
    mds: Path

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.mds / "manifest.json").read_text())

    def steps_an_epoch(self) -> int:
        return self.manifest()["splits"]["train"]["blocks"] // BATCH

    def overrides(self, save_folder: Path, *more: str) -> list[str]:
        """Arguments of main.py for a model that trains in seconds; later ones win."""
        return [
            "yamls/pretrain.yaml",
            f"data.local={self.mds}",
            f"tokenizer={self.tokenizer}",
            f"save_folder={save_folder}",
            "data.num_workers=0",
            "model.hidden_size=32",
            "model.num_hidden_layers=2",
            "model.num_attention_heads=4",
            "model.intermediate_size=64",
            f"sequence_length={BLOCK_SIZE}",
            f"eval.lengths=[{','.join(map(str, LENGTHS))}]",
            "eval.interval=5ba",
            "max_duration=6ba",
            "stop_after=null",
            f"global_train_batch_size={BATCH}",
            f"microbatch_tokens={8 * BLOCK_SIZE}",
            "save_interval=4ba",
            "progress_bar=false",
            "console_log_interval=100ba",
            "export=false",
            *more,
        ]


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: one thread, nothing of a process group that a test may have started here."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_PROCESS_GROUP}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **more}


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, without a terminal or anything to read from."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def succeed(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same for a command that must succeed."""
    done = run(*command, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


class Started:
    """`python main.py …` in a session of its own, so that it can be killed with everything that it started.

    `launcher` stands in the place of `python`, to start several processes.
    """

    def __init__(self, arguments: list[str], log: Path, launcher: Sequence[str] = (PYTHON,)) -> None:
        self.folder = Path(next(item for item in arguments if item.startswith("save_folder=")).partition("=")[2])
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [*launcher, "main.py", *arguments],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for_step(self, step: int) -> None:
        """Returns as soon as `step` stands in the run's metrics.jsonl."""
        until = time.monotonic() + PATIENCE
        while all(line.get("step", -1) < step for line in metrics(self.folder)):
            assert self.process.poll() is None, f"ended before step {step}:\n{self.log.read_text()[-5000:]}"
            assert time.monotonic() < until, f"step {step} isn't reached"
            time.sleep(0.005)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def succeed(self) -> None:
        assert self.wait() == 0, self.log.read_text()[-5000:]

    def kill_all(self) -> None:
        """SIGKILL to the whole session, helpers and loader workers included: nobody is left to clean up."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_alone(self) -> None:
        """SIGKILL to the training process only, as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()


@contextmanager
def started(arguments: list[str], log: Path, launcher: Sequence[str] = (PYTHON,)) -> Iterator[Started]:
    """A run that doesn't outlive the test."""
    run_ = Started(arguments, log, launcher)
    try:
        yield run_
    finally:
        if run_.process.poll() is None:
            run_.kill_all()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that is just being written is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def exact(folder: Path) -> list[dict[str, Any]]:
    """The same without what is measured: losses, metrics, learning rates and counts, as they were written."""
    return [{key: value for key, value in line.items() if not key.startswith(MEASURED)} for line in metrics(folder)]


def losses(folder: Path) -> list[float]:
    """Training losses, a step each."""
    return [line["loss/train/total"] for line in metrics(folder) if "loss/train/total" in line]


def samples(folder: Path) -> list[list[int]]:
    """The blocks of each step in samples.jsonl, whose lines must be those of all steps in their order."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["blocks"] for line in lines]


def validation(folder: Path, length: int = BLOCK_SIZE) -> dict[int, float]:
    """Validation loss by step."""
    key = f"metrics/eval_{length}/MaskedCrossEntropy"
    return {line["step"]: line[key] for line in metrics(folder) if key in line}


def checkpoints(folder: Path) -> list[str]:
    """Names of a run's checkpoints, the link to the latest left out, by step."""
    names = [path.name for path in folder.glob("ep*-ba*-rank0.pt")]
    return sorted(names, key=lambda name: int(name.partition("-ba")[2].partition("-")[0]))


def assert_same_state(one: Path, other: Path) -> None:
    """Weights and the optimizer's state of two checkpoints are equal bit by bit."""
    first, second = (torch.load(path, weights_only=False)["state"] for path in (one, other))
    for name in ("model", "optimizers"):
        assert_same(first[name], second[name], name)


def assert_same(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    else:
        assert one == other, where


def names_in_shared_memory(folder: Path) -> list[Path]:
    """Streaming's `locals` segments in which a folder's path stands."""
    found = []
    for segment in Path("/dev/shm").glob("*_locals"):
        with suppress(FileNotFoundError):
            if os.fsencode(folder) in segment.read_bytes():
                found.append(segment)
    return found


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder: contents by path, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
