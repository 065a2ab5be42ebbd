"""Checks of single values that pretraining and fine-tuning share: each complaint is one message for the user."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from composer.core import Time, TimeUnit

from bertchen.config import Config

T = TypeVar("T")

MAX_SEED = 2**32 - 1
# float32 weights and AdamW's two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12
COUNTED = (TimeUnit.BATCH, TimeUnit.EPOCH, TimeUnit.TOKEN, TimeUnit.SAMPLE)


def checked(config: Config[Any], key: str, function: Callable[[Any], T], value: Any) -> T:
    """`function(value)`, whose `ValueError` becomes the complaint about the key."""
    try:
        return function(value)
    except ValueError as error:
        config.fail(key, str(error), value)


def check_positive(config: Config[Any], keys: Iterable[str]) -> None:
    """Each value that isn't null must be over 0."""
    for key in keys:
        value = attrgetter(key)(config.value)
        if value is not None and not value > 0:
            config.fail(key, "should be positive")


def check_not_negative(config: Config[Any], keys: Iterable[str]) -> None:
    """Each value that isn't null must be 0 or more."""
    for key in keys:
        value = attrgetter(key)(config.value)
        if value is not None and not value >= 0:
            config.fail(key, "should be 0 or more")


def check_seed_and_betas(config: Config[Any]) -> None:
    """`seed` must be one that PyTorch and NumPy take, `optimizer.betas` two decay rates."""
    cfg = config.value
    if not 0 <= cfg.seed <= MAX_SEED:
        config.fail("seed", "should lie between 0 and 2^32 - 1")
    if len(cfg.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in cfg.optimizer.betas):
        config.fail("optimizer.betas", "should be two numbers from 0 to below 1")


def parse_time(text: str) -> Time | None:
    """None for what Composer can't read, whatever it says about it."""
    try:
        return Time.from_timestring(text)
    except (ValueError, TypeError, OverflowError):
        return None


def check_time(config: Config[Any], key: str, units: Sequence[TimeUnit]) -> None:
    """A number with one of the units."""
    text = attrgetter(key)(config.value)
    time = parse_time(text)
    if time is None or time.unit not in units:
        expected = "should be a number with a unit: 100ba (steps), 1ep (epochs)"
        expected += ", 1000000tok (tokens)" if TimeUnit.TOKEN in units else ""
        if key == "max_duration" and hasattr(config.value, "stop_after"):
            expected += "; a limit by the clock is stop_after"
        config.fail(key, expected, text)
    if time.value <= 0:
        config.fail(key, "should be more than 0", text)


def check_warmup(config: Config[Any]) -> None:
    """`scheduler.t_warmup`: a share of the run, or a time in the unit of `max_duration`, which has been checked."""
    text, goal = config.value.scheduler.t_warmup, config.value.max_duration
    time, key = parse_time(text), "scheduler.t_warmup"
    if time is None or time.unit not in (*COUNTED, TimeUnit.DURATION) or time.value < 0:
        config.fail(key, "should be a share of the run, as 0.06dur, or a number of steps or tokens, as 150ba", text)
    units = {time.unit, Time.from_timestring(goal).unit}
    if time.unit != TimeUnit.DURATION and len(units) > 1 and units != {TimeUnit.BATCH, TimeUnit.EPOCH}:
        config.fail(key, f"should have the unit of max_duration={goal}, or be a share of the run, as 0.06dur", text)


def check_disk(config: Config[Any], parameters: int, checkpoints: int, advice: str) -> None:
    """Room in `save_folder` for the checkpoints that are kept, the one being written, and the export.

    Args:
        parameters: of the model.
        checkpoints: how many are kept.
        advice: what else than to free some space would help.
    """
    one = parameters * CHECKPOINT_BYTES_PER_PARAMETER
    needed = one * (checkpoints + 1) + one // 3
    folder = Path(config.value.save_folder).resolve()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        config.fail(
            "save_folder",
            f"no space left: {checkpoints + 1} checkpoints and the export need "
            f"{show_bytes(needed)}, {show_bytes(free)} are free; free some or {advice}",
        )


def show_bytes(count: float) -> str:
    """`1.64 GB`, `445 kB`: three digits and a unit."""
    power = min(int(math.log10(max(count, 1))) // 3, 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
