"""Checkpoints that hold training up for no longer than it takes to copy the state: a process beside it writes them.

A thread would not do: `torch.save` keeps Python's lock while it writes a tensor. A process that is forked has the state
as it was at that moment, whatever training does to it; only what lies on a GPU must be copied before. As any fork it
shares memory until one of the two writes to it.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist, reproducibility

from bertchen.errors import disk_full, is_disk_full

log = logging.getLogger(__name__)

SECONDS = "throughput/checkpoint_seconds"
_MAX_ERROR = 4096  # bytes, less than any pipe holds
_MAX_FILES = 1 << 20


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is whole.

    Attributes:
        path: of its file.
        step: how many had been made.
        logs: files that grow, and how many bytes of each belong to it: a restart goes on behind them.
    """

    path: Path
    step: int
    logs: dict[Path, int]


def sizes(logs: Iterable[Path]) -> dict[Path, int]:
    """Bytes of those files that are there."""
    return {path: path.stat().st_size for path in logs if path.exists()}


class Checkpoints(CheckpointSaver):
    """Composer's saver with another way to write: what a name stands for is whole, and on the disk.

    Files get their names when they are complete, in the main thread between two batches; then the link to the latest is
    set, and those that are too many are removed. One that can't be written ends training soon after. The seconds that
    training was held up are logged as `throughput/checkpoint_seconds`.

    Args:
        folder, filename, latest_filename, save_interval, num_checkpoints_to_keep: as for Composer's.
        logs: files that grow, by a line or more a step.
        on_saved: called with each checkpoint that is complete, on the first process.
    """

    def __init__(
        self,
        folder: str,
        filename: str,
        latest_filename: str,
        save_interval: str,
        num_checkpoints_to_keep: int,
        logs: Sequence[Path],
        on_saved: Callable[[Saved], None] = lambda saved: None,
    ) -> None:
        super().__init__(
            folder=folder,
            filename=filename,
            remote_file_name=None,
            latest_filename=latest_filename,
            latest_remote_file_name=None,
            save_interval=save_interval,
            overwrite=True,  # a kill can leave a checkpoint that no run goes on from
            num_checkpoints_to_keep=num_checkpoints_to_keep,
        )
        self.logs = logs
        self.on_saved = on_saved
        self._writing: tuple[Writing, Saved, Path] | None = None

    def wait(self) -> None:
        """Returns when what was begun is complete.

        Raises:
            UserError: the disk is full.
            OSError: it can't be written for another reason.
        """
        if self._writing is not None:
            self._writing[0].wait()
            self._complete()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._complete_if_written()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._complete_if_written()

    def fit_end(self, state: State, logger: Logger) -> None:
        self.wait()

    def close(self, state: State, logger: Logger) -> None:
        self.wait()

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        if state.fsdp_sharded_state_dict_enabled:  # a file a process: as Composer does it
            super()._save_checkpoint(state, logger)
            return
        begun = time.monotonic()
        self.wait()
        self.last_checkpoint_batch = state.timestamp.batch
        path = Path(self.filename.format(state))
        self.all_saved_checkpoints_to_timestamp[str(path)] = state.timestamp  # before the state, which holds it
        content = {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}  # all processes take part
        if dist.get_global_rank() == 0:
            assert self.latest_filename is not None
            link = Path(self.latest_filename.format(state))
            saved = Saved(path, state.timestamp.batch.value, sizes(self.logs))
            self._writing = begin_writing(content, path), saved, link
            self._complete_if_written()
        logger.log_metrics({SECONDS: time.monotonic() - begun})

    def _complete_if_written(self) -> None:
        if self._writing is not None and self._writing[0].has_ended():
            self._complete()

    def _complete(self) -> None:
        assert self._writing is not None
        (writing, saved, link), self._writing = self._writing, None
        writing.give_name()
        temporary = link.with_name(f".{link.name}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(saved.path, link.parent))
        os.replace(temporary, link)
        self.saved_checkpoints.append(str(saved.path))
        if self.num_checkpoints_to_keep >= 0:
            self._rotate_checkpoints()
        self.on_saved(saved)


class Writing:
    """A file that a process of its own writes.

    Args:
        path: what it will be called.
        process: id of the process; None where this one has written it already.
        errors: file descriptor from which an error of that process can be read.
    """

    def __init__(self, path: Path, process: int | None, errors: int | None) -> None:
        self.path = path
        self._process = process
        self._errors = errors
        self._failure: dict[str, Any] | None = None

    def has_ended(self) -> bool:
        """Whether the process has, without waiting."""
        return self._process is None or self._note(os.waitpid(self._process, os.WNOHANG))

    def wait(self) -> None:
        """Until the process has ended."""
        if self._process is not None:
            self._note(os.waitpid(self._process, 0))

    def give_name(self) -> None:
        """What was written gets its name.

        Raises:
            UserError: the disk is full. OSError: another failure. What was written is removed then.
        """
        temporary = temporary_name(self.path)
        if self._failure is None:
            os.replace(temporary, self.path)
            return
        temporary.unlink(missing_ok=True)
        if self._failure["full"]:
            raise disk_full(OSError(), self.path)
        raise OSError(f"{self.path} can't be written: {self._failure['error']}")

    def _note(self, ended: tuple[int, int]) -> bool:
        process, status = ended
        if process == 0:
            return False
        assert self._errors is not None
        said = os.read(self._errors, _MAX_ERROR)
        os.close(self._errors)
        self._process = None
        if status:
            code = os.waitstatus_to_exitcode(status)
            self._failure = json.loads(said) if said else {"full": False, "error": f"the writer ended with {code}"}
        return True


def temporary_name(path: Path) -> Path:
    """What a checkpoint is called while it is written."""
    return path.with_name(f".{path.name}.tmp")


def begin_writing(content: Any, path: Path) -> Writing:
    """Begins to write `content`, as `torch.save` does, and lets the caller change it from now on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)  # that of a killed run, which may still be written
    if sys.platform != "linux":  # elsewhere a forked process may not use what it has inherited
        _write(content, temporary)
        return Writing(path, None, None)
    content = on_cpu(content, {})
    read, write = os.pipe()
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads: none is used
            process = os.fork()
        if process == 0:
            _write_and_exit(content, temporary, write)  # deaf to signals, which are for this one to decide about
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    os.close(write)
    return Writing(path, process, read)


def on_cpu(value: Any, copies: dict[tuple[torch.device, int], torch.UntypedStorage]) -> Any:
    """The same dictionaries, lists and tuples, with tensors of other devices copied to the main memory.

    Tensors that share their storage share the copy.
    """
    if isinstance(value, torch.Tensor):
        if value.device.type == "cpu":
            return value
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return value.detach().cpu()
        storage = value.untyped_storage()
        place = storage.device, storage.data_ptr()
        if place not in copies:
            copies[place] = storage.cpu()
        return torch.empty(0, dtype=value.dtype).set_(  # type: ignore[call-overload]
            copies[place], value.storage_offset(), value.size(), value.stride()
        )
    if isinstance(value, dict):
        copied = value.copy()  # of the same class
        copied.update({key: on_cpu(item, copies) for key, item in value.items()})
        return copied
    if type(value) in (list, tuple):
        return type(value)(on_cpu(item, copies) for item in value)
    return value


def _write(content: Any, path: Path) -> None:
    with path.open("xb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _write_and_exit(content: Any, path: Path, errors: int) -> NoReturn:
    """What the forked process does."""
    code = 1
    try:
        gc.disable()  # what lies on a GPU isn't this one's to free
        # Ports and locks of the run would else be taken for as long as this one writes, if the run is killed.
        os.closerange(3, errors)
        os.closerange(errors + 1, _MAX_FILES)
        _write(content, path)
        code = 0
    except BaseException as error:
        told = {"full": is_disk_full(error), "error": f"{type(error).__name__}: {error}"[: _MAX_ERROR // 8]}
        os.write(errors, json.dumps(told).encode())
    finally:
        os._exit(code)
