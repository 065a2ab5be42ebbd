"""A disk that is full ends a command with one message, and costs nothing that was complete."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from running import LATEST, PYTHON, Prepared, assert_same_state, checkpoints, exact, run, tree

from bertchen.train.run_folder import damage

Usage = namedtuple("Usage", "total used free")


pytestmark = pytest.mark.slow


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk looks large before the run, and something else fills it later."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 1 << 40))


def test_too_small_a_disk_is_refused_before_the_run(
    prepared: Prepared, mounted: Callable[[int], Path], in_process: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mounted(600)
    with pytest.raises(SystemExit, match="2"):
        in_process(*prepared.overrides(folder / "run"))
    message = capsys.readouterr().err
    assert message.startswith(
        f"error: save_folder={folder / 'run'} (from the command line): no space left: 3 checkpoints"
    )
    assert "save_num_checkpoints_to_keep" in message
    assert tree(folder) == {}


TO_THE_END = ("max_duration=14ba", "eval.interval=7ba", "save_num_checkpoints_to_keep=1")


@pytest.fixture(scope="module")
def undisturbed(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, in_process: Callable) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    in_process(*prepared.overrides(folder, *TO_THE_END))
    return folder


# The second checkpoint is written before the first is removed: room for a part of the first, for one and a part of the
# second, for all but the directory at the second's end.
@pytest.mark.fault("the disk of checkpoints is full")
@pytest.mark.parametrize("room", [0.6, 1.6, 2.0])
@pytest.mark.usefixtures("unchecked")
def test_full_while_a_checkpoint_is_written(
    prepared: Prepared, undisturbed: Path, tmp_path: Path, mounted: Callable, in_process: Callable,
    capsys: pytest.CaptureFixture[str], room: float,
) -> None:  # fmt: skip
    disk = mounted(int((undisturbed / LATEST).stat().st_size * room) // 1024)
    with pytest.raises(SystemExit, match="2"):
        in_process(*prepared.overrides(disk / "run", *TO_THE_END))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no space left" in errors[0]
    assert str(disk / "run") in errors[0]

    # What the link names is whole, and with more room the run goes on as if the disk had never been full.
    roomy = tmp_path / "roomy"
    shutil.copytree(disk / "run", roomy, symlinks=True)
    assert [damage(str(roomy / name)) for name in checkpoints(roomy)] == [None] * int(room > 1)
    assert not list(roomy.glob(".*")), "what was cut off is removed"
    assert (roomy / LATEST).exists() == (room > 1)
    in_process(*prepared.overrides(roomy, *TO_THE_END, "autoresume=true"))
    assert exact(roomy) == exact(undisturbed)
    assert checkpoints(roomy) == checkpoints(undisturbed)
    assert_same_state(roomy / LATEST, undisturbed / LATEST)


@pytest.mark.fault("the disk of checkpoints is full")
@pytest.mark.usefixtures("unchecked")
def test_full_while_the_model_is_exported(
    prepared: Prepared, mounted: Callable, in_process: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mounted(600)
    with pytest.raises(SystemExit, match="2"):
        in_process(*prepared.overrides(disk / "run", "max_duration=3ba", "eval.interval=3ba", "export=true"))
    assert "no space left" in capsys.readouterr().err.splitlines()[-1]
    names = {path.name for path in (disk / "run").iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", LATEST, "ep0-ba3-rank0.pt"}
    assert damage(str(disk / "run" / LATEST)) is None


def test_scripts(prepared: Prepared, mounted: Callable[[int], Path]) -> None:
    for kibibytes, command in (
        (16, ("scripts/train_tokenizer.py", "yamls/tokenizer.yaml", f"input={prepared.corpus}", "vocab_size=400")),
        (40, ("scripts/convert_dataset.py", "yamls/data/local.yaml", f"source.path={prepared.corpus}",
              f"tokenizer={prepared.tokenizer}", "block_size=64", "val_blocks=22")),
    ):  # fmt: skip
        disk = mounted(kibibytes)
        done = run(PYTHON, *command, f"out={disk / 'out'}")
        assert done.returncode == 2, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ")
        assert "no space left" in last
        assert str(disk / "out") in last
        assert tree(disk) == {}
