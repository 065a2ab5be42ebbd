"""Two processes make the run of one: the same blocks in each step, the same loss, the same validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from running import COMPOSER, LATEST, LENGTHS, Prepared, checkpoints, losses, metrics, succeed, validation

STEPS = 20  # more than an epoch


def arguments(prepared: Prepared, folder: Path) -> list[str]:
    """Without dropout, which each process draws for itself."""
    return prepared.overrides(
        folder, f"max_duration={STEPS}ba", "model.hidden_dropout_prob=0", "eval.interval=1ba", "eval.at_start=true",
        "eval.blocks=21", "optimizer.lr=5e-3", "save_interval=10ba", "export=true",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, in_process: Callable) -> tuple[Path, Path]:
    """Folders of the same run by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    one, two = folder / "one", folder / "two"
    in_process(*arguments(prepared, one))
    succeed(COMPOSER, "-n", "2", "main.py", *arguments(prepared, two))
    return one, two


def test_each_step_s_loss_is_the_same(runs: tuple[Path, Path], prepared: Prepared) -> None:
    """The mean over all masked tokens of the global batch: another batch, or another mean, would differ in percents."""
    one, two = map(losses, runs)
    assert len(one) == STEPS > prepared.steps_an_epoch()
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_validation_is_the_same(runs: tuple[Path, Path], length: int) -> None:
    """Of 21 blocks one process has 11 and the other 10, and what fills up their last batches must not count."""
    one, two = (validation(folder, length) for folder in runs)
    assert list(one) == list(range(STEPS + 1))
    assert two[0] == pytest.approx(one[0], rel=1e-7)  # the same weights: what differs is the order of a sum
    assert two == pytest.approx(one, rel=1e-5)
    for name in ("MaskedAccuracy", "MaskedPerplexity"):
        first, second = ([line[f"metrics/eval_{length}/{name}"] for line in metrics(folder)[:-1]] for folder in runs)
        assert second[0] == pytest.approx(first[0], rel=1e-6)
        assert second == pytest.approx(first, rel=1e-3, abs=0.01)


def test_counts_are_the_same(runs: tuple[Path, Path]) -> None:
    for name in ("time/sample", "time/token", "time/epoch"):
        one, two = ([line.get(name) for line in metrics(folder)] for folder in runs)
        assert one == two


def test_one_process_writes(runs: tuple[Path, Path]) -> None:
    one, two = runs
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert checkpoints(two) == ["ep0-ba10-rank0.pt", "ep1-ba20-rank0.pt"]
    assert (two / LATEST).exists()
    assert (two / "hf" / "model.safetensors").exists()
