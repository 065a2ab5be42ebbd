"""Runs that are told to end, or lose a part of themselves: what was trained is kept, and they go on exactly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import LATEST, Prepared, assert_same_state, checkpoints, exact, metrics

from bertchen.callbacks import StepSeed
from bertchen.data.blocks import BlockDataset
from bertchen.errors import AGAIN_EXIT_CODE
from bertchen.train import finish
from bertchen.train.composer_model import ComposerMaskedLM

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


def signalled(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], *signals: int) -> None:
    """Lets this process get signals in the middle of a function, as soon as its arguments are those."""
    original = getattr(owner, name)
    left = list(signals)

    def send_and_do(*args: Any, **options: Any) -> Any:
        if left and when(*args, **options):
            while left:
                os.kill(os.getpid(), left.pop(0))
        return original(*args, **options)

    patch.setattr(owner, name, send_and_do)


def in_step(step: int) -> Callable[..., bool]:
    return lambda self, state, logger: state.timestamp.batch.value == step


PLACES = {
    "the first step": (StepSeed, "batch_start", in_step(0), "ep0-ba1"),
    "a step": (StepSeed, "batch_start", in_step(6), "ep0-ba7"),
    "a step that is evaluated": (StepSeed, "batch_start", in_step(9), "ep0-ba10"),
    "a step that is saved": (StepSeed, "batch_start", in_step(7), "ep0-ba8"),
    "the last step": (StepSeed, "batch_start", in_step(STEPS - 1), f"ep0-ba{STEPS}"),
    "evaluation": (ComposerMaskedLM, "eval_forward", lambda *args, **options: True, "ep0-ba5"),
    "export": (finish, "export_checkpoint", lambda *args, **options: True, f"ep0-ba{STEPS}"),
}


@pytest.mark.fault("SIGTERM")
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_a_run_that_goes_on_exactly(
    prepared: Prepared, undisturbed: Path, tmp_path: Path, in_process: Callable, place: str, attempt: int
) -> None:
    owner, name, when, saved = PLACES[place]
    folder = tmp_path / "run"
    export = f"export={str(place == 'export').lower()}"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ending:
        signalled(patch, owner, name, when, signal.SIGTERM)
        in_process(*arguments(prepared, folder, export))
    assert ending.value.code == AGAIN_EXIT_CODE
    assert checkpoints(folder)[-1] == f"{saved}-rank0.pt"
    assert (folder / LATEST).resolve() == folder / checkpoints(folder)[-1]

    in_process(*arguments(prepared, folder, export))
    assert_same_end(folder, undisturbed)
