"""W&B without a key and TensorBoard: neither asks, waits or fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import PYTHON, Prepared, environment, losses, succeed


@pytest.fixture(scope="module")
def logged(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that logs to both, without a key for W&B and with nobody to ask."""
    folder = tmp_path_factory.mktemp("logged")
    env = environment(HOME=str(folder / "home"))
    for name in [name for name in env if name.startswith("WANDB_")]:
        del env[name]
    succeed(
        PYTHON, "main.py", *prepared.overrides(folder / "run", "max_duration=4ba"), "loggers.wandb={project: x}",
        "loggers.tensorboard={}", env=env,
    )  # fmt: skip
    return folder / "run"


def test_wandb_writes_offline(logged: Path) -> None:
    assert list((logged / "wandb").glob("offline-run-*/*.wandb"))


def test_tensorboard_holds_every_step_s_loss(logged: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(logged / "tensorboard" / "run")).Reload()
    scalars = accumulator.Scalars("loss/train/total")
    assert [scalar.step for scalar in scalars] == [0, 1, 2, 3]
    assert [scalar.value for scalar in scalars] == pytest.approx(losses(logged), rel=1e-6)


def test_own_metrics_are_written_beside_them(logged: Path) -> None:
    assert len(losses(logged)) == 4
