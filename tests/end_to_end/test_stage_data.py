"""A folder a stage: each step reads the folder of its stage, and a run broken off anywhere reads on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import (
    BATCH,
    BLOCK_SIZE,
    COMPOSER,
    LATEST,
    PYTHON,
    Prepared,
    assert_same_state,
    exact,
    losses,
    metrics,
    started,
    succeed,
    tree,
)

from bertchen.algorithms.curricula import Dynamic, MotionState, Progress
from bertchen.data.stages import StageBlocks

STEPS = 18
SHORT, LONG = "train_32", "train_64"
STATIC = ("curriculum.static.lengths=[32,64]", "curriculum.static.begins=[0ba,7ba]")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_memory_given_back")]


@pytest.fixture(scope="module")
def staged(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The same corpus, divided: 4 steps of blocks for rows of 32, 11 for rows of 64. Don't change it."""
    mds = tmp_path_factory.mktemp("staged") / "mds"
    succeed(
        PYTHON, "scripts/convert_dataset.py", "yamls/data/local.yaml", f"source.path={prepared.corpus}",
        f"tokenizer={prepared.tokenizer}", f"out={mds}", f"block_size={BLOCK_SIZE}", "val_blocks=22", "shard_size=4096",
        "stages.32=0.3", "stages.64=0.7",
    )  # fmt: skip
    made = replace(prepared, mds=mds)
    assert [made.manifest()["splits"][split]["blocks"] // BATCH for split in (SHORT, LONG)] == [4, 11]
    return made


def arguments(staged: Prepared, folder: Path, *more: str) -> list[str]:
    """Every step is saved, and all checkpoints are kept: so a run can be taken up at any of them."""
    return staged.overrides(
        folder, f"data.stage_splits=[{SHORT},{LONG}]", f"max_duration={STEPS}ba", "optimizer.lr=5e-3",
        "save_interval=1ba", "save_num_checkpoints_to_keep=100", *more,
    )  # fmt: skip


def events(folder: Path) -> list[tuple[int, str, Any]]:
    """What happened to the data: step, event, and the reason or the folder."""
    lines = [line for line in metrics(folder) if line.get("event") in ("switch", "data_starts_over")]
    return [(line["step"], line["event"], line.get("reason", line.get("split"))) for line in lines]


def stages(folder: Path) -> list[int]:
    """The stage of each step."""
    return [line["curriculum/stage"] for line in metrics(folder) if "curriculum/stage" in line]


def broken_off(whole: Path, step: int, folder: Path) -> Path:
    """The run as a kill after the checkpoint of `step` leaves it, with lines of later steps in metrics.jsonl."""
    shutil.copytree(whole, folder, symlinks=True)
    (folder / LATEST).unlink()
    for path in folder.glob("ep*.pt"):
        if int(path.name.partition("-ba")[2].partition("-")[0]) > step:
            path.unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-2]))
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    assert exact(one) == exact(other)
    assert_same_state(one / LATEST, other / LATEST)


@pytest.fixture(scope="module")
def whole(staged: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, through the end of both folders."""
    folder = tmp_path_factory.mktemp("whole")
    with started(arguments(staged, folder / "run", *STATIC), folder / "log") as run_:
        run_.succeed()
    log = (folder / "log").read_text()
    assert f"the data of {SHORT} ran out" in log
    assert f"the data of {LONG} starts over" in log
    return folder / "run"


def test_data_that_runs_out_leads_to_the_next_stage_and_the_last_starts_over(whole: Path) -> None:
    assert events(whole) == [(4, "switch", f"the data of {SHORT} ran out"), (15, "data_starts_over", LONG)]
    assert stages(whole) == [0] * 4 + [1] * 14
    assert len(set(losses(whole))) == STEPS
    last = metrics(whole)[-2]
    assert (last["time/epoch"], last["time/batch"], last["time/sample"]) == (0, STEPS, STEPS * BATCH)


@pytest.mark.parametrize(
    ("step", "workers"),
    [(2, 0), (4, 0), (5, 2), (9, 2), (15, 0)],
    ids=["in a stage", "before a switch", "after a switch", "in the next stage", "before it starts over"],
)
def test_broken_off_run_goes_on_as_if_nothing_had_happened(
    staged: Prepared, whole: Path, tmp_path: Path, in_process: Callable[..., None], step: int, workers: int
) -> None:
    folder = broken_off(whole, step, tmp_path / "run")
    in_process(*arguments(staged, folder, *STATIC, "autoresume=true", f"data.num_workers={workers}"))
    assert_same_run(folder, whole)


def test_killed_run_with_loader_processes(staged: Prepared, whole: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = arguments(staged, folder, *STATIC, "autoresume=true", "data.num_workers=2")
    for step in (3, 8):
        with started(command, log) as run_:
            run_.wait_for_step(step)
            run_.kill_all()
        assert metrics(folder)[-1]["step"] < STEPS, "ended before it could be killed"
    with started(command, log) as run_:
        run_.succeed()
    assert_same_run(folder, whole)


def test_a_stage_that_starts_over_stays_until_the_curriculum_leaves_it(
    staged: Prepared, tmp_path: Path, in_process: Callable[..., None]
) -> None:
    more = (*STATIC, "data.when_stage_ends=restart", "max_duration=9ba", "eval.interval=100ba")
    in_process(*arguments(staged, tmp_path / "run", *more))
    assert events(tmp_path / "run") == [
        (4, "data_starts_over", SHORT),
        (7, "switch", "it begins at 7ba"),
    ]
    folder = broken_off(tmp_path / "run", 5, tmp_path / "again")
    in_process(*arguments(staged, folder, *more, "autoresume=true"))
    assert_same_run(folder, tmp_path / "run")


def test_data_that_runs_out_while_a_plateau_is_waited_for(
    staged: Prepared, tmp_path: Path, in_process: Callable[..., None]
) -> None:
    """The evaluation after step 4 is the first of three without an improvement; after that step the data is over."""
    hybrid = [f"curriculum.hybrid.{item}" for item in ("lengths=[32,64]", "patience=3", "delta=100")]
    command = [*hybrid, "eval.interval=2ba", "max_duration=7ba"]
    in_process(*arguments(staged, tmp_path / "run", *command))
    assert events(tmp_path / "run") == [(4, "switch", f"the data of {SHORT} ran out")]
    waiting = [line["curriculum/waiting"] for line in metrics(tmp_path / "run") if "curriculum/waiting" in line]
    assert waiting == [0] * 7, "what was waited for belongs to the stage that was left"
    folder = broken_off(tmp_path / "run", 4, tmp_path / "again")
    in_process(*arguments(staged, folder, *command, "autoresume=true"))
    assert_same_run(folder, tmp_path / "run")


def test_stages_that_come_back_go_on_where_they_were(
    staged: Prepared, tmp_path: Path, in_process: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back and forth at known steps, whatever the loss does. Seen without loader processes, resumed with two."""
    switches = (3, 5, 6, 10)

    def after_step(self: Dynamic, state: MotionState, now: Progress, loss: float) -> tuple[MotionState, str | None]:
        return (state.moved_to(1 - state.stage, now.steps), "it is time") if now.steps in switches else (state, None)

    monkeypatch.setattr(Dynamic, "after_step", after_step)
    command = ["curriculum.dynamic.lengths=[32,64]", "max_duration=13ba"]
    read: list[str] = []
    with monkeypatch.context() as patch:
        plain = StageBlocks.read
        patch.setattr(StageBlocks, "read", lambda self, numbers: read.append(self.split) or plain(self, numbers))
        in_process(*arguments(staged, tmp_path / "run", *command))
    assert stages(tmp_path / "run") == [1] * 3 + [0] * 2 + [1] + [0] * 4 + [1] * 3
    assert read == [(SHORT, LONG)[stage] for stage in stages(tmp_path / "run")]
    happened = [(step, kind) for step, kind, _ in events(tmp_path / "run")]
    assert happened == [(3, "switch"), (5, "switch"), (6, "switch"), (8, "data_starts_over"), (10, "switch")]
    for step in (4, 5, 7):
        folder = broken_off(tmp_path / "run", step, tmp_path / f"from{step}")
        in_process(*arguments(staged, folder, *command, "data.num_workers=2", "autoresume=true"))
        assert_same_run(folder, tmp_path / "run")


def test_two_processes_switch_at_the_same_step_and_go_on_likewise(
    staged: Prepared, tmp_path: Path, in_process: Callable[..., None]
) -> None:
    """Without dropout, which each process draws for itself, a step of two is a step of one: of the same blocks."""
    more = (*STATIC, "model.hidden_dropout_prob=0", "data.num_workers=2")
    one, two = tmp_path / "one", tmp_path / "two"
    in_process(*arguments(staged, one, *more))
    succeed(COMPOSER, "-n", "2", "main.py", *arguments(staged, two, *more))
    assert events(two) == events(one)
    assert stages(two) == stages(one)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)

    again = broken_off(two, 4, tmp_path / "again")
    succeed(COMPOSER, "-n", "2", "main.py", *arguments(staged, again, *more, "autoresume=true"))
    assert_same_run(again, two)


def test_stages_are_fetched_from_a_remote(
    staged: Prepared, whole: Path, tmp_path: Path, in_process: Callable[..., None]
) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "run"
    remote = (*STATIC, f"data.remote={staged.mds}", f"data.local={cache}", "max_duration=6ba")
    in_process(*arguments(staged, folder, *remote))
    fetched = [sorted(path.name for path in (cache / split).rglob("*.mds")) for split in (SHORT, LONG)]
    assert all(fetched)
    assert stages(folder) == stages(whole)[:6]


def test_a_dry_run_says_what_each_stage_has(
    staged: Prepared, tmp_path: Path, in_process: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    in_process(*arguments(staged, tmp_path / "run", *STATIC, "dry_run=true"))
    assert f"data a stage: {SHORT} 4 steps, {LONG} 11 steps" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [f"[{LONG},{SHORT}]", "[]"])
def test_a_checkpoint_of_other_stages_is_refused(
    staged: Prepared,
    whole: Path,
    tmp_path: Path,
    in_process: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    given: str,
) -> None:
    folder = broken_off(whole, 2, tmp_path / "run")
    before = tree(folder)
    splits = (f"data.stage_splits={given}", f"data.train_split={LONG}")
    with pytest.raises(SystemExit) as caught:
        in_process(*arguments(staged, folder, *STATIC, "autoresume=true", *splits))
    assert caught.value.code == 2
    assert f"data.stage_splits={given}: the checkpoint is of a run with [{SHORT},{LONG}]" in capsys.readouterr().err
    assert tree(folder) == before
