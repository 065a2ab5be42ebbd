"""Runs that are told to end, or lose a part of themselves: what was trained is kept, and they go on exactly."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import psutil
import pytest
from forked import forked
from running import (
    COMPOSER,
    LATEST,
    PATIENCE,
    Prepared,
    assert_same_state,
    checkpoints,
    exact,
    losses,
    metrics,
    started,
)

from bertchen.callbacks import StepSeed
from bertchen.data.blocks import BlockDataset
from bertchen.errors import AGAIN_EXIT_CODE, EXIT_CODE, FAILED_EXIT_CODE
from bertchen.train import builders, finish
from bertchen.train.composer_model import ComposerMaskedLM

pytestmark = pytest.mark.slow

STEPS = 12  # with an epoch's end at 15 out of reach; evaluated every 5, saved every 4 and at the end


def arguments(prepared: Prepared, folder: Path, *more: str) -> list[str]:
    return prepared.overrides(folder, f"max_duration={STEPS}ba", "autoresume=true", *more)


@pytest.fixture(scope="module")
def undisturbed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, in_process: Callable) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    in_process(*arguments(prepared, folder))
    return folder


def assert_same_end(folder: Path, undisturbed: Path) -> None:
    assert exact(folder) == exact(undisturbed)
    assert len(checkpoints(folder)) == len(checkpoints(undisturbed))
    assert checkpoints(folder)[-1] == checkpoints(undisturbed)[-1]
    assert_same_state(folder / LATEST, undisturbed / LATEST)


class Signals:
    """Lets this process get signals in the middle of a function, one call of which is chosen."""

    def __init__(self, patch: pytest.MonkeyPatch, place: Place, *signals: int) -> None:
        self.place = place
        self.left = list(signals)
        self.original = getattr(place.owner, place.name)
        patch.setattr(place.owner, place.name, lambda *args, **options: self.send_and_do(*args, **options))

    def send_and_do(self, *args: Any, **options: Any) -> Any:
        if self.left and self.place.is_it(*args, **options):
            while self.left:
                os.kill(os.getpid(), self.left.pop(0))
        return self.original(*args, **options)


@dataclass(frozen=True)
class Place:
    """A function, which of its calls counts, and the step whose checkpoint is there afterwards; None: no folder is."""

    owner: Any
    name: str
    is_it: Callable[..., bool]
    saved: int | None


def any_call(*args: Any, **options: Any) -> bool:
    return True


def in_step(step: int) -> Place:
    return Place(StepSeed, "batch_start", lambda self, state, logger: state.timestamp.batch.value == step, step + 1)


def call_in_training(number: int) -> Callable[..., bool]:
    calls = itertools.count(1)
    return lambda self, numbers: self.shuffle and next(calls) == number


PLACES = {
    "before training": lambda: Place(builders, "build_model", any_call, None),
    "in the first step": lambda: in_step(0),
    "in a step that is evaluated": lambda: in_step(9),
    "in a step that is saved": lambda: in_step(7),
    "in the last step": lambda: in_step(STEPS - 1),
    "in an evaluation": lambda: Place(ComposerMaskedLM, "eval_forward", any_call, 5),
    "waiting for data": lambda: Place(BlockDataset, "read", call_in_training(7), 6),
    "in the export": lambda: Place(finish, "export_checkpoint", any_call, STEPS),
}


@pytest.mark.fault("SIGTERM")
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_a_run_that_goes_on_exactly(
    prepared: Prepared, undisturbed: Path, tmp_path: Path, in_process: Callable, monkeypatch: pytest.MonkeyPatch,
    place: str, attempt: int,
) -> None:  # fmt: skip
    """The second signal, which the launcher sends when the first process has ended, changes nothing."""
    chosen = PLACES[place]()
    folder = tmp_path / "run"
    export = f"export={str(place == 'in the export').lower()}"
    with monkeypatch.context() as patch:
        Signals(patch, chosen, signal.SIGUSR1, signal.SIGTERM)
        with pytest.raises(SystemExit) as ending:
            in_process(*arguments(prepared, folder, export))
    assert ending.value.code == AGAIN_EXIT_CODE
    if chosen.saved is None:
        assert not folder.exists()
    else:
        assert re.fullmatch(rf"ep\d-ba{chosen.saved}-rank0\.pt", checkpoints(folder)[-1])
        assert (folder / LATEST).resolve() == folder / checkpoints(folder)[-1]

    in_process(*arguments(prepared, folder, export))
    assert_same_end(folder, undisturbed)


# What one of two processes meets in step 7, its exit code, and what the first process says.
IN_LOADER = {
    "store_gone": (AGAIN_EXIT_CODE, "downloading s3://bucket/train/shard.00001.mds has failed for 300 s"),
    "shard_damaged": (EXIT_CODE, "s3://bucket/train/shard.00001.mds is damaged"),
    "bug_in_loader": (FAILED_EXIT_CODE, "ZeroDivisionError: division by zero"),
}


def two_processes(prepared: Prepared, folder: Path, *more: str) -> list[list[str]]:
    return [arguments(prepared, folder, *more)] * 2


def assert_goes_on(prepared: Prepared, folder: Path, undisturbed: Path, in_process: Callable) -> None:
    """By one process, whose sums have another order."""
    in_process(*arguments(prepared, folder))
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-5)


@pytest.mark.fault("the loader fails on one of two processes")
@pytest.mark.parametrize(
    ("fault", "workers", "rank"), [("store_gone", 2, 1), ("shard_damaged", 0, 0), ("bug_in_loader", 2, 1)]
)
def test_loader_that_fails_on_one_process_ends_all_of_them(
    prepared: Prepared,
    undisturbed: Path,
    tmp_path: Path,
    in_process: Callable,
    fault: str,
    workers: int,
    rank: int,
    attempt: int,
) -> None:
    code, reason = IN_LOADER[fault]
    folder = tmp_path / "run"
    met = [getattr(faults, fault) if each == rank else None for each in range(2)]
    with forked(two_processes(prepared, folder, f"data.num_workers={workers}"), tmp_path / "log", met) as run:
        assert run.end() == [code, code], run.says(0) + run.says(1)
        (error,) = run.errors(0)
        assert run.errors(1) == []
    assert f"the loader of process {rank} failed: {reason}; " in error
    assert len(losses(folder)) == (faults.READS - 1) * max(workers, 1)
    assert checkpoints(folder)[-1] == f"ep0-ba{len(losses(folder))}-rank0.pt"
    assert metrics(folder)[-1]["event"] == "stop"
    assert_goes_on(prepared, folder, undisturbed, in_process)


@pytest.mark.fault("one of two processes dies")
@pytest.mark.parametrize(("fault", "rank"), [("killed", 0), ("killed", 1), ("bug_in_step", 1)])
def test_process_whose_other_dies_ends_with_the_reason(
    prepared: Prepared, undisturbed: Path, tmp_path: Path, in_process: Callable, fault: str, rank: int, attempt: int
) -> None:
    folder = tmp_path / "run"
    met = [getattr(faults, fault) if each == rank else None for each in range(2)]
    with forked(two_processes(prepared, folder), tmp_path / "log", met) as run:
        codes = run.end()
        (error,) = run.errors(1 - rank)
    assert codes[rank] == (-signal.SIGKILL if fault == "killed" else FAILED_EXIT_CODE)
    assert codes[1 - rank] == FAILED_EXIT_CODE
    assert f"process {rank} " in error
    assert ("ZeroDivisionError" in error) == (fault == "bug_in_step")
    assert checkpoints(folder) == ["ep0-ba4-rank0.pt"]
    assert_goes_on(prepared, folder, undisturbed, in_process)


@pytest.mark.fault("SIGTERM")
def test_a_signal_to_one_process_ends_both(
    prepared: Prepared, undisturbed: Path, tmp_path: Path, in_process: Callable, attempt: int
) -> None:
    folder = tmp_path / "run"
    with forked(two_processes(prepared, folder), tmp_path / "log", [None, faults.terminated]) as run:
        assert run.end() == [AGAIN_EXIT_CODE] * 2, run.says(0) + run.says(1)
        assert run.errors(0) == ["error: stopped by SIGTERM; 7 steps are saved, and autoresume=true goes on from there"]
    assert checkpoints(folder)[-1] == "ep0-ba7-rank0.pt"
    assert_goes_on(prepared, folder, undisturbed, in_process)


@pytest.mark.fault("the loss becomes NaN or jumps")
def test_loss_that_is_nan_on_one_process_is_skipped_by_both(prepared: Prepared, tmp_path: Path, attempt: int) -> None:
    """And the blocks of both are kept: those that the step was made of."""
    folder = tmp_path / "run"
    given = two_processes(prepared, folder, "algorithms.loss_guard={on_bad: skip}", "callbacks.sample_ids={}")
    with forked(given, tmp_path / "log", [None, faults.loss_is_nan]) as run:
        assert run.end() == [0, 0], run.says(0) + run.says(1)
    (bad,) = (json.loads(line) for line in (folder / "bad_batches.jsonl").read_text().splitlines())
    assert (bad["step"], bad["action"], bad["loss"]) == (faults.STEP - 1, "skip", "nan")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [line["blocks"] for line in samples if line["step"] == bad["step"]] == [bad["blocks"]]
    by_step = [line["loss/train/total"] for line in metrics(folder) if "loss/train/total" in line]
    assert [step for step, loss in enumerate(by_step) if loss is None] == [bad["step"]]
    assert len(by_step) == STEPS


@pytest.mark.fault("SIGTERM")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["told to end", "killed alone"])
def test_launcher_that_ends_ends_its_processes(prepared: Prepared, tmp_path: Path, how: int, attempt: int) -> None:
    """It hands SIGTERM on and returns their code. Killed, it can't; they see that it is gone, and save all the same."""
    folder, log = tmp_path / "run", tmp_path / "log"
    endless = arguments(prepared, folder, "max_duration=100000ba", "eval.interval=1000000ba")
    with started(endless, log, (COMPOSER, "-n", "2")) as run:
        run.wait_for_step(2)
        processes = psutil.Process(run.process.pid).children()
        os.kill(run.process.pid, how)
        assert run.wait() == (AGAIN_EXIT_CODE if how == signal.SIGTERM else -signal.SIGKILL), log.read_text()
        assert not psutil.wait_procs(processes, timeout=PATIENCE)[1]
    last = metrics(folder)[-1]
    assert last["event"] == "stop"
    assert last["reason"].startswith("stopped by SIGTERM; ")
    assert checkpoints(folder)[-1].endswith(f"-ba{last['step']}-rank0.pt")
