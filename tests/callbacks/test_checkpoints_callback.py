"""Checkpoints that a process beside the training writes: as they were when they were taken, and whole or not there."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger

from bertchen.callbacks import Checkpoints, MetricsFile, checkpoints
from bertchen.callbacks.checkpoints import SECONDS, HostMemory, Saved, begin_writing, on_cpu
from bertchen.errors import UserError

MakeTrainer = Callable[..., Trainer]


def saver(folder: Path, on_saved: Callable[[Saved], None] = lambda saved: None, interval: str = "4ba") -> Checkpoints:
    return Checkpoints(
        str(folder), "ep{epoch}-ba{batch}-rank{rank}.pt", "latest-rank{rank}.pt", interval, 2,
        [folder / "metrics.jsonl"], on_saved,
    )  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Weights(Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, torch.Tensor]] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        named = state.model.state_dict().items()
        self.at[state.timestamp.batch.value] = {name: value.clone() for name, value in named}


def test_a_checkpoint_has_the_state_of_its_step(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Training changes the weights while they are written."""
    weights, saved = Weights(), []
    trainer = make_trainer("10ba", callbacks=[weights, saver(tmp_path, saved.append)])
    trainer.fit()
    assert [each.step for each in saved] == [4, 8, 10]
    assert names(tmp_path) == {"ep0-ba8-rank0.pt", "ep0-ba10-rank0.pt", "latest-rank0.pt"}
    assert (tmp_path / "latest-rank0.pt").resolve() == tmp_path / "ep0-ba10-rank0.pt"
    for step in (8, 10):
        held = torch.load(tmp_path / f"ep0-ba{step}-rank0.pt", weights_only=False)["state"]["model"]
        assert held.keys() == weights.at[step].keys()
        assert all(torch.equal(held[name], value) for name, value in weights.at[step].items())
    assert len({tuple(each["layers.2.bias"].tolist()) for each in weights.at.values()}) >= 9, (
        "the last step's rate is 0"
    )


def test_composer_goes_on_from_it(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer("10ba", callbacks=[saver(tmp_path / "whole")])
    whole.fit()
    resumed = make_trainer("10ba", load_path=str(tmp_path / "whole/ep0-ba8-rank0.pt"))
    assert resumed.state.timestamp.batch == 8
    resumed.fit()
    for name, value in whole.state.model.state_dict().items():
        assert torch.equal(resumed.state.model.state_dict()[name], value)


def test_the_logs_that_belong_to_it_are_measured_when_it_is_taken(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    log, saved = MetricsFile(tmp_path / "metrics.jsonl"), []
    make_trainer("10ba", callbacks=[saver(tmp_path, saved.append)], loggers=[log]).fit()
    lines = log.path.read_bytes().splitlines(keepends=True)
    for each in saved[1:]:
        pending = torch.load(each.path, weights_only=False)["state"]["callbacks"]["MetricsFile"]["pending"]["step"]
        assert each.step - 1 <= pending <= each.step
        assert each.logs == {log.path: sum(len(line) for line in lines if json.loads(line)["step"] < pending)}
    assert sum(SECONDS.encode() in line for line in lines) >= len(saved) - 1, "the last line is written at the end"


def slowly(monkeypatch: pytest.MonkeyPatch, gate: Path) -> None:
    """Writing waits until a file is there."""
    write = checkpoints._write

    def wait_and_write(content: Any, path: Path) -> None:
        while not gate.exists():
            time.sleep(0.01)
        write(content, path)

    monkeypatch.setattr(checkpoints, "_write", wait_and_write)


def test_training_goes_on_meanwhile_and_what_is_written_has_no_name(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch, tmp_path / "gate")
    folder, seen = tmp_path / "run", {}

    class Look(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            seen[state.timestamp.batch.value] = names(folder)
            if state.timestamp.batch == 7:
                (tmp_path / "gate").touch()

    make_trainer("10ba", callbacks=[Look(), saver(folder)]).fit()
    assert seen[5] | seen[6] | seen[7] <= {".ep0-ba4-rank0.pt.tmp"}
    assert names(folder) == {"ep0-ba8-rank0.pt", "ep0-ba10-rank0.pt", "latest-rank0.pt"}


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    values = torch.arange(100_000.0)
    writing = begin_writing({"values": values, "same": values[:10]}, tmp_path / "x.pt", HostMemory())
    values.zero_()
    writing.wait()
    writing.give_name()
    held = torch.load(tmp_path / "x.pt")
    assert torch.equal(held["values"], torch.arange(100_000.0))
    assert held["same"].untyped_storage().data_ptr() == held["values"].untyped_storage().data_ptr()
    assert names(tmp_path) == {"x.pt"}


def test_the_writer_of_a_killed_run_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on writing, to a file that has no name any longer, while the next run writes the same checkpoint."""
    slowly(monkeypatch, tmp_path / "gate")
    orphan = begin_writing({"values": torch.zeros(10)}, tmp_path / "x.pt", HostMemory())
    monkeypatch.undo()
    writing = begin_writing({"values": torch.ones(10)}, tmp_path / "x.pt", HostMemory())
    writing.wait()
    (tmp_path / "gate").touch()
    orphan.wait()
    writing.give_name()
    assert torch.equal(torch.load(tmp_path / "x.pt")["values"], torch.ones(10))


@pytest.mark.fault("disk full while a checkpoint is written")
def test_a_full_disk_ends_training_and_leaves_the_one_before(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoints._write

    def fail(content: Any, path: Path) -> None:
        path.write_bytes(b"PK")
        if "ba8" in path.name:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904, as torch.save does
        path.unlink()
        write(content, path)

    monkeypatch.setattr(checkpoints, "_write", fail)
    with pytest.raises(UserError, match=r"no space left.*ep0-ba8-rank0\.pt"):
        make_trainer("10ba", callbacks=[saver(tmp_path)]).fit()
    assert names(tmp_path) == {"ep0-ba4-rank0.pt", "latest-rank0.pt"}
    assert torch.load(tmp_path / "latest-rank0.pt", weights_only=False)["state"]["model"]


def test_any_other_failure_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: Any, path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "_write", fail)
    writing = begin_writing({}, tmp_path / "x.pt", HostMemory())
    writing.wait()
    with pytest.raises(OSError, match=r"x\.pt can't be written: PermissionError: .*Permission denied"):
        writing.give_name()


def test_a_writer_that_was_killed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_write", lambda content, path: os.kill(os.getpid(), 9))
    writing = begin_writing({}, tmp_path / "x.pt", HostMemory())
    writing.wait()
    with pytest.raises(OSError, match=r"the writer ended with -9"):
        writing.give_name()


def test_without_forking_it_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints.sys, "platform", "darwin")
    writing = begin_writing({"a": torch.ones(3)}, tmp_path / "x.pt", HostMemory())
    assert writing.has_ended()
    writing.give_name()
    assert torch.equal(torch.load(tmp_path / "x.pt")["a"], torch.ones(3))


def test_what_lies_in_the_main_memory_is_not_copied() -> None:
    weights = torch.ones(3)
    given = {"state": {"w": weights, "list": [weights, (weights, 1)], "integrations": {"merges": ["a b"]}}, "name": "x"}
    copied = on_cpu(given, HostMemory())
    assert copied == given
    assert copied["state"]["integrations"] is given["state"]["integrations"]
    assert copied["state"]["list"][1][0] is weights


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors a forked process can't read; a CPU plays one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.setattr(checkpoints, "lies_elsewhere", lambda tensor: True)
    return torch.device(request.param)


def test_what_lies_elsewhere_is_copied_once(device: torch.device) -> None:
    weights = torch.arange(12.0, device=device).view(3, 4)
    given = {"w": weights, "row": weights[1], "turned": weights.T, "empty": weights[:0], "other": weights.bool()}
    copied = on_cpu(given, HostMemory())
    weights.zero_()
    expected = torch.arange(12.0).view(3, 4)
    assert torch.equal(copied["w"], expected)
    assert torch.equal(copied["row"], expected[1])
    assert torch.equal(copied["turned"], expected.T)
    assert torch.equal(copied["other"], expected.bool())
    assert copied["empty"].shape == (0, 4)
    assert len({copied[name].untyped_storage().data_ptr() for name in ("w", "row", "turned")}) == 1
    assert copied["w"].untyped_storage().nbytes() == 48, "a file holds whole storages"


def test_what_lies_elsewhere_is_written_as_it_was(device: torch.device, tmp_path: Path) -> None:
    """Twice with the same memory, while the values change, and once more with more than it has room for."""
    memory = HostMemory()
    values = torch.arange(5000.0, device=device)
    addresses = set()
    for turn in range(3):
        content = {"values": values, "more": torch.full((turn // 2 * 10_000,), 7.0, device=device)}
        addresses.add(on_cpu(content, memory)["values"].data_ptr())
        writing = begin_writing(content, tmp_path / "x.pt", memory)
        values += 1
        writing.wait()
        writing.give_name()
        held = torch.load(tmp_path / "x.pt")
        assert torch.equal(held["values"], torch.arange(5000.0) + turn)
        assert torch.equal(held["more"], torch.full((turn // 2 * 10_000,), 7.0))
        if turn < 2:
            assert len(addresses) == 1
    memory.release()


def test_memory_that_was_released_serves_again(device: torch.device) -> None:
    memory = HostMemory()
    for value in (1.0, 2.0):
        assert on_cpu([torch.full((3,), value, device=device)], memory)[0].tolist() == [value] * 3
        memory.release()
