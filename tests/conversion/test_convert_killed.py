"""The command as a process among others: killed, interrupted, robbed of its workers; and how much memory it takes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from converting import ROOT, converted, some_texts, write_corpus

PATIENCE = 300  # seconds that anything may take, on a machine however busy
SOURCES = 32
KILLS = 20


def segments_in(work: Path) -> int:
    return len(list(work.glob("segments/*.json")))


def parts_in(work: Path) -> int:
    return segments_in(work) + len(list(work.glob("groups/*.npz")))


class Command:
    """`scripts/convert_dataset.py` in a session of its own, so that it can be killed with all that it started."""

    def __init__(self, folder: Path, tokenizer: str, *arguments: str, out: str = "out") -> None:
        self.work = folder / f"{out}.partial"
        command = [
            sys.executable, "scripts/convert_dataset.py", str(folder / "sources.yaml"), f"tokenizer={tokenizer}",
            f"out={folder / out}", "block_size=16", "val_blocks=3", "shard_size=1152", "workers=2", *arguments,
        ]  # fmt: skip
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait_until(self, is_time: Callable[[], bool]) -> bool:
        """Returns as soon as it is time; False where the command ended before."""
        until = time.monotonic() + PATIENCE
        while not is_time():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.002)
        return True

    def workers(self) -> list[psutil.Process]:
        """Those of its processes that work: Python's helper that cleans up is none."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in self.ps().children(recursive=True):
                if "spawn_main" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def ps(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def kill_all(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a YAML of many sources: a segment is as large as a small source at most, so there are as many of them."""
    for number in range(SOURCES):
        write_corpus(tmp_path / f"in/{number}.jsonl", some_texts(12, seed=number))
    sources = {f"s{number}": {"path": str(tmp_path / f"in/{number}.jsonl")} for number in range(SOURCES)}
    (tmp_path / "sources.yaml").write_text(json.dumps({"sources": sources, "interleave": True}))
    return tmp_path


Start = Callable[..., Command]


@pytest.fixture
def start(folder: Path, tokenizer_folder: str) -> Iterator[Start]:
    started: list[Command] = []

    def begin(*arguments: str, out: str = "out") -> Command:
        started.append(Command(folder, tokenizer_folder, *arguments, out=out))
        return started[-1]

    yield begin
    for command in started:
        if command.process.poll() is None:
            command.kill_all()


def assert_all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert alive == []


def succeed(command: Command) -> None:
    assert command.end() == 0, command.log.read_text()


@pytest.mark.slow
def test_twenty_kills_at_random_moments(folder: Path, start: Start) -> None:
    """By turns after some progress, and after some time or progress, so that some are while the command starts."""
    succeed(start(out="whole"))
    expected = converted(folder / "whole")
    numbers, kills, kept = random.Random(7), 0, set()
    while kills < KILLS:
        command = start()
        goal, seconds = parts_in(command.work) + numbers.randint(0, 8), 4 * numbers.random()
        until = time.monotonic() + (seconds if kills % 2 else PATIENCE)
        if command.wait_until(partial(is_time_to_kill, command.work, goal, until)):
            processes = [command.ps(), *command.ps().children(recursive=True)]
            command.kill_all()
            kills += 1
            assert_all_gone(processes)
            kept |= {path.parent.name for path in command.work.rglob("*") if path.is_file()}
        else:  # too fast for it
            succeed(command)
            assert converted(folder / "out") == expected
            shutil.rmtree(folder / "out")
    assert kept >= {"segments", "groups"}
    succeed(start())
    assert converted(folder / "out") == expected
    assert {path.name for path in folder.iterdir()} == {"in", "log", "out", "sources.yaml", "whole"}


def is_time_to_kill(work: Path, parts: int, until: float) -> bool:
    return parts_in(work) > parts or time.monotonic() > until


def test_workers_end_with_the_command(folder: Path, start: Start) -> None:
    """When it alone is killed, as the kernel does for want of memory."""
    command = start()
    assert command.wait_until(lambda: segments_in(command.work) > 3)
    workers = command.workers()
    assert len(workers) >= 1
    command.process.kill()
    command.process.wait()
    assert_all_gone(workers)
    assert "Traceback" not in command.log.read_text()
    succeed(start())


@pytest.mark.parametrize("phase", [pytest.param("tokenizing", marks=pytest.mark.slow), "writing"])
def test_a_worker_is_killed(folder: Path, start: Start, phase: str) -> None:
    command = start()
    begun = "segments/*.json" if phase == "tokenizing" else "groups/*.npz"
    assert command.wait_until(lambda: any(command.work.glob(begun)) and bool(command.workers()))
    for worker in command.workers():
        worker.kill()
    assert command.end() == 2
    lines = command.log.read_text().replace("\r", "\n").splitlines()
    assert lines[-1] == (
        "error: a worker process was killed, likely for want of memory: fewer than workers=2 need less (what is done "
        f"is kept in {command.work}, and the command goes on from there)"
    )
    assert "Traceback" not in command.log.read_text()
    succeed(start())
    succeed(start(out="whole"))
    assert converted(folder / "out") == converted(folder / "whole")


@pytest.mark.parametrize("moment", ["start", pytest.param("tokenizing", marks=pytest.mark.slow), "writing"])
def test_ctrl_c(folder: Path, start: Start, moment: str) -> None:
    """Which a terminal sends to all processes of the command."""
    command = start()
    is_time = {
        "start": lambda: bool(command.workers()),  # the tokenizer is being loaded
        "tokenizing": lambda: segments_in(command.work) > 3,
        "writing": lambda: any(command.work.glob("groups/*.npz")),
    }[moment]
    assert command.wait_until(is_time)
    workers = command.workers()
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end() == 130
    assert_all_gone(workers)
    said = command.log.read_text().replace("\r", "\n").splitlines()
    assert "Traceback" not in command.log.read_text()
    if moment == "start":
        assert said[-1] == "interrupted"
        assert not command.work.exists()
        return
    assert said[-1] == f"interrupted: what is done is kept in {command.work}, and the command goes on from there"
    succeed(start())


def test_a_second_process(folder: Path, start: Start) -> None:
    first = start()
    assert first.wait_until(lambda: (first.work / "plan.json").exists())
    os.kill(first.process.pid, signal.SIGSTOP)
    try:
        second = start()
        assert second.end() == 2
        assert f"error: another process is converting into {first.work}: " in second.log.read_text()
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    succeed(first)
