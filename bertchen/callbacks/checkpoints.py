"""Checkpoints that hold training up for no longer than it takes to copy the state: a process beside it writes them.

A thread would not do: `torch.save` keeps Python's lock while it writes a tensor. A process that is forked has the state
as it was at that moment, whatever training does to it; only what lies on a GPU must be copied before. As any fork it
shares memory until one of the two writes to it.
"""

from __future__ import annotations

import gc
import json
import logging
import mmap
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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
_ALIGNMENT = 4096  # bytes
_WITHOUT_TENSORS = "integrations"
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # whose storage is all there is of them


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
        self._memory = HostMemory()

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
        try:
            self.wait()
        finally:
            self._memory.release()

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
            self._writing = begin_writing(content, path, self._memory), saved, link
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


def begin_writing(content: Any, path: Path, memory: HostMemory) -> Writing:
    """Begins to write `content`, as `torch.save` does, and lets the caller change it from now on.

    What was begun with the same `memory` before must have ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.unlink(missing_ok=True)  # that of a killed run, which may still be written
    if sys.platform != "linux":  # elsewhere a forked process may not use what it has inherited
        _write(content, temporary)
        return Writing(path, None, None)
    content = on_cpu(content, memory)
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


def map_tensors(value: Any, of_tensor: Callable[[torch.Tensor], Any]) -> Any:
    """The same dictionaries, lists and tuples, with what `of_tensor` makes of each tensor.

    What a dictionary has under `integrations` stays as it is: a tokenizer, in hundreds of thousands of strings.
    """
    if isinstance(value, torch.Tensor):
        return of_tensor(value)
    if isinstance(value, dict):
        mapped = value.copy()  # of the same class
        mapped.update({key: map_tensors(item, of_tensor) for key, item in value.items() if key != _WITHOUT_TENSORS})
        return mapped
    if type(value) in (list, tuple):
        return type(value)(map_tensors(item, of_tensor) for item in value)
    return value


def on_cpu(content: Any, memory: HostMemory) -> Any:
    """`content` with tensors of other devices copied to the main memory; until the next call with this `memory`.

    Tensors that share their storage share the copy.
    """
    storages: dict[tuple[torch.device, int], torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if lies_elsewhere(tensor) and type(tensor) in _PLAIN:
            storages[_place(tensor)] = tensor.untyped_storage()
        return tensor

    map_tensors(content, note)
    copies = dict(zip(storages, memory.copy(list(storages.values())), strict=True))

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if not lies_elsewhere(tensor):
            return tensor
        if type(tensor) not in _PLAIN:
            return tensor.detach().cpu()
        return torch.empty(0, dtype=tensor.dtype).set_(  # type: ignore[call-overload]
            copies[_place(tensor)], tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    return map_tensors(content, copied)


def lies_elsewhere(tensor: torch.Tensor) -> bool:
    """Whether a forked process can't read it."""
    return tensor.device.type != "cpu"


def _place(tensor: torch.Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


class HostMemory:
    """Room in the main memory for what lies on a GPU, kept from one checkpoint to the next.

    The pages are the same each time, as new ones would have to be cleared first, and locked, so that the GPU writes to
    them at the full rate of its bus. They are shared with forked processes, so that no page is copied when either side
    writes. The locked mapping is for the copy alone: a second one of the same pages is what is read from, as nothing
    says that a driver leaves the locked one to forked processes.
    """

    def __init__(self) -> None:
        self._written: mmap.mmap | None = None
        self._read: mmap.mmap | None = None
        self._locked: int | None = None

    def copy(self, storages: Sequence[torch.UntypedStorage]) -> list[torch.UntypedStorage]:
        """Copies of them, which the next call overwrites."""
        if not storages:
            return []
        begins = [0]
        for storage in storages:
            begins.append(begins[-1] + -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT)
        self._make_room(begins[-1], any(storage.device.type == "cuda" for storage in storages))
        assert self._written is not None
        assert self._read is not None
        copies = []
        for storage, begin in zip(storages, begins, strict=False):
            size = storage.nbytes()
            if not size:
                copies.append(torch.UntypedStorage(0))
                continue
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # type: ignore[call-overload]
            target = torch.frombuffer(self._written, dtype=torch.uint8, count=size, offset=begin)
            target.copy_(source, non_blocking=True)
            copies.append(torch.frombuffer(self._read, dtype=torch.uint8, count=size, offset=begin).untyped_storage())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copies

    def release(self) -> None:
        """Gives the memory back, once nothing refers to a copy."""
        if self._locked is not None:
            torch.cuda.cudart().cudaHostUnregister(self._locked)
        self._locked = self._written = self._read = None

    def _make_room(self, size: int, lock: bool) -> None:
        if self._written is not None and len(self._written) >= size:
            return
        self.release()
        descriptor = os.memfd_create("checkpoint")
        try:
            os.ftruncate(descriptor, size)
            self._written, self._read = (mmap.mmap(descriptor, size) for _ in range(2))
        finally:
            os.close(descriptor)
        if lock:
            address = torch.frombuffer(self._written, dtype=torch.uint8).data_ptr()
            if torch.cuda.cudart().cudaHostRegister(address, size, 0) == torch.cuda.cudart().cudaError.success:
                self._locked = address
                return
            log.info("memory for checkpoints can't be locked: copies to it are slower")
            with suppress(RuntimeError):  # the next kernel would find the error and raise it
                torch.zeros(1, device="cuda")


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
