"""All processes go on together or stop together: each says, by small messages between hosts, whether it can.

Without it, a loader that fails on one process leaves the others waiting for it in the next collective.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader

from bertchen.data.row_ids import host_group
from bertchen.errors import AGAIN_EXIT_CODE, FAILED_EXIT_CODE, Stop, UserError
from bertchen.signals import Interrupted, leave_to_parent, stop_signals

T = TypeVar("T")

# What a process says of its next batch; the highest counts.
_THERE, _INTERRUPTED, _FAILED = range(3)
_END = object()


class LoaderFailed(Stop):
    """The loader of a process has failed, and all processes know."""


class Preempted(Stop):
    """A signal asked for the end, and all processes know."""

    def __init__(self, signal_name: str) -> None:
        super().__init__(f"stopped by {signal_name}", AGAIN_EXIT_CODE)


def highest(values: Sequence[int]) -> list[int]:
    """The highest of each value over all processes, which must all call this at the same place."""
    if dist.get_world_size() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.int64)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX, group=host_group())
    return shared.tolist()


def gathered(value: T) -> list[T]:
    """The values of all processes by rank, which must all call this at the same place; they are pickled."""
    if dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    torch.distributed.all_gather_object(values, value, group=host_group())
    return values


def in_step(batches: Iterator[T]) -> Iterator[T]:
    """The same batches, each given out once all processes have theirs.

    Raises:
        LoaderFailed: on all processes, one of which could not get its batch.
        Preempted: on all processes, one of which was waiting for its batch when a signal came.
    """
    while True:
        said, batch, failure = _THERE, None, None
        try:
            with stop_signals.interrupt_waiting():
                batch = next(batches, _END)
        except Interrupted:
            said = _INTERRUPTED
        except Exception as error:  # whatever it is, the others must not wait
            said, failure = _FAILED, error
        (most,) = highest([said])
        if most == _FAILED:
            raise _failed_together(failure) from failure
        if most == _INTERRUPTED:
            raise Preempted(next(name for name in gathered(stop_signals.received) if name))
        if batch is _END:
            return
        yield batch


class LoaderInStep(DataLoader[Any]):
    """A DataLoader whose batches are given out in step; its processes leave signals to this one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, worker_init_fn=_begin_worker, **options)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return in_step(self._batches())

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        yield from super().__iter__()  # begun with the first batch, so that a failure to begin is shared too


def _begin_worker(number: int) -> None:
    leave_to_parent()


def _failed_together(failure: Exception | None) -> LoaderFailed:
    """The same on all processes: the reason of the first that failed, and the code that says whether it may pass."""
    code = getattr(failure, "exit_code", FAILED_EXIT_CODE)
    told = gathered(None if failure is None else (_reason(failure), code))
    failures = [(rank, *said) for rank, said in enumerate(told) if said]
    rank, reason, _ = failures[0]
    codes = {code for *_, code in failures}
    # Worth trying again only if that holds for each.
    code = codes.pop() if len(codes) == 1 else min(codes)
    return LoaderFailed(f"the loader of process {rank} failed: {reason}", code)


def _reason(error: Exception) -> str:
    """In one line. Of an exception that came from a loader's worker, PyTorch gives the traceback as its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, UserError):
        if len(lines) > 1 and lines[0].startswith("Caught "):
            return lines[-1].partition(": ")[2] or lines[-1]
        return str(error)
    if lines and lines[0].startswith("Caught "):
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines)}" if lines else type(error).__name__
