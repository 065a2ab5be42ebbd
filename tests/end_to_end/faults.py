"""Faults that a process of a run meets, each put in its place by a function without arguments."""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

STEP = 7  # in which it happens
READS = 4  # of batches, by the process or by one of its loader's, the last of which fails


def at_call(number: int, original: Callable[..., Any], fault: Callable[[], None]) -> Callable[..., Any]:
    """The same function, but for what happens when it is called for that time."""
    calls = [0]

    def call(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            fault()
        return original(*args, **options)

    return call


def _raise(error: BaseException) -> None:
    raise error


def _in_loader(error: Callable[[], BaseException]) -> None:
    from bertchen.data import blocks

    blocks.read_batch = at_call(READS, blocks.read_batch, lambda: _raise(error()))


def _in_step(fault: Callable[[], None]) -> None:
    from bertchen.callbacks import StepSeed

    StepSeed.batch_start = at_call(STEP, StepSeed.batch_start, fault)


def store_gone() -> None:
    from bertchen.stores import StoreGone

    _in_loader(lambda: StoreGone("downloading s3://bucket/train/shard.00001.mds has failed for 300 s"))


def shard_damaged() -> None:
    from bertchen.errors import UserError

    _in_loader(lambda: UserError("s3://bucket/train/shard.00001.mds is damaged"))


def bug_in_loader() -> None:
    _in_loader(lambda: ZeroDivisionError("division by zero"))


def loss_is_nan() -> None:
    """Of this process's part of the batch."""
    from bertchen.train.composer_model import ComposerMaskedLM

    original, calls = ComposerMaskedLM.loss, itertools.count(1)  # one a step
    ComposerMaskedLM.loss = lambda self, outputs, batch: (
        original(self, outputs, batch) * (math.nan if next(calls) == STEP else 1)
    )


def bug_in_step() -> None:
    _in_step(lambda: _raise(ZeroDivisionError("division by zero")))


def killed() -> None:
    _in_step(partial(_signal_self, signal.SIGKILL))


def terminated() -> None:
    _in_step(partial(_signal_self, signal.SIGTERM))


def _signal_self(number: int) -> None:
    os.kill(os.getpid(), number)
