"""The curriculum that a YAML names: checked, and built."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from composer.algorithms import SeqLengthWarmup
from composer.core import Algorithm, Time, TimeUnit

from bertchen.algorithms.curricula import UNITS, Dynamic, Hybrid, MaskingRate, Rule, Static, Warmup, plain
from bertchen.algorithms.length_curriculum import in_words
from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.resolve import call_checked
from bertchen.config.schema_train import DynamicConfig, HybridConfig, StaticConfig, TrainConfig
from bertchen.data.stages import refuse_other_stages
from bertchen.errors import UserError
from bertchen.metrics import MaskedCrossEntropy, MaskedPerplexity

SECTION = "curriculum"
# Those that fall as a model learns.
_WATCHED = (MaskedCrossEntropy.__name__, MaskedPerplexity.__name__)


@dataclass(frozen=True)
class Curriculum:
    """What was named, checked.

    Attributes:
        name: of the curriculum; `sequence_length` for none.
        rule: decides about stages.
        rate: of masking.
    """

    name: str
    rule: Rule[Any]
    rate: MaskingRate

    @property
    def loader_length(self) -> int | None:
        """The length that the loader can cut to; None where it changes."""
        return self.rule.lengths[0] if type(self.rule) is Rule else None

    def in_words(self) -> str:
        """Name and arguments in a line."""
        return f"{self.name}: {in_words(plain(self.rule))}; masking: {in_words(plain(self.rate))}"


def check_curriculum(config: Config[TrainConfig], block_size: int, steps_an_epoch: int | None = None) -> Curriculum:
    """Checks the sections `curriculum` and `masking`, and `data.stage_splits` against them.

    Args:
        block_size: tokens of the data's blocks.
        steps_an_epoch: how many full batches the data has; None if it isn't known.

    Raises:
        UserError: the first thing that is wrong.
    """
    cfg = config.value
    chosen = {name: given for name, given in vars(cfg.curriculum).items() if given is not None}
    if len(chosen) > 1:
        first, second, *_ = chosen
        config.fail(
            SECTION, f"give one; {SECTION}.{first}=null or {SECTION}.{second}=null leaves one out", ", ".join(chosen)
        )
    name = next(iter(chosen), "sequence_length")
    rule = _RULES[name](config, f"{SECTION}.{name}", chosen.get(name))
    key = f"{SECTION}.{name}.lengths" if name in _WITH_STAGES else name
    for length in rule.lengths if name != "seq_length_warmup" else ():
        if length < 1 or block_size % length:
            config.fail(key, f"{length} doesn't divide the data's blocks of {block_size} tokens")
    if isinstance(rule, Warmup):
        _check_warmup(config, rule, block_size, steps_an_epoch)
    if cfg.microbatch_tokens < max(rule.lengths):
        config.fail("microbatch_tokens", f"should be at least one row, of {max(rule.lengths)} tokens")
    stages = None if isinstance(rule, Warmup) else len(rule.lengths)
    if cfg.data.stage_splits and len(cfg.data.stage_splits) != stages:
        config.fail("data.stage_splits", _as_many_as_stages(name, stages))
    return Curriculum(name, rule, _rate(config, name, stages))


def refuse_other_checkpoint(
    load_path: str | None, algorithms: Sequence[Algorithm], stage_splits: Sequence[str]
) -> None:
    """Refuses to go on from a checkpoint of another curriculum or other stages, before anything is written or trained.

    Raises:
        UserError: it says what the checkpoint's was.
    """
    if load_path is None:
        return
    saved = torch.load(load_path, map_location="cpu", mmap=True, weights_only=False)["state"]
    states = dict(saved["algorithms"])
    try:
        for algorithm in reversed(algorithms):  # as they act: the curriculum before the masking that follows it
            if refuse_other := getattr(algorithm, "refuse_other", None):
                refuse_other(states.get(type(algorithm).__qualname__, {}))
        refuse_other_stages(saved["dataset_state"]["train"], stage_splits)
    except UserError as error:
        raise UserError(f"{load_path}: {error}") from None


def _constant(config: Config[TrainConfig], key: str, given: None) -> Rule[Any]:
    return Rule((config.value.sequence_length,))


def _check_several(config: Config[TrainConfig], key: str, lengths: Sequence[int]) -> None:
    if len(lengths) < 2:
        config.fail(f"{key}.lengths", "should name two lengths at least; one alone is sequence_length")


def _static(config: Config[TrainConfig], key: str, given: StaticConfig) -> Rule[Any]:
    _check_several(config, key, given.lengths)
    times = [_begin(config, key, text) for text in given.begins]
    units = {time.unit for time in times}
    if len(units) > 1:
        config.fail(f"{key}.begins", "should all have the same unit")
    begins = tuple(time.value for time in times)
    if len(begins) != len(given.lengths):
        config.fail(f"{key}.begins", f"should be as many as {key}.lengths: {len(given.lengths)}")
    if begins[0] != 0 or any(first >= second for first, second in pairwise(begins)):
        config.fail(f"{key}.begins", "should ascend from 0")
    if units == {TimeUnit.DURATION} and begins[-1] >= 1:
        config.fail(f"{key}.begins", "should be shares of the run below 1")
    return Static(tuple(given.lengths), begins, units.pop().value)


def _begin(config: Config[TrainConfig], key: str, text: str) -> Time:
    try:
        time = Time.from_timestring(text)
    except (ValueError, TypeError, OverflowError):
        time = None
    if time is None or time.unit.value not in UNITS or time.value < 0:
        config.fail(
            f"{key}.begins", "should be steps, as 500ba, tokens, as 1000000tok, or shares of the run, as 0.25dur", text
        )
    return time


def _hybrid(config: Config[TrainConfig], key: str, given: HybridConfig) -> Rule[Any]:
    _check_several(config, key, given.lengths)
    if given.patience < 1:
        config.fail(f"{key}.patience", "should be 1 or more")
    if not 0 <= given.delta < math.inf:
        config.fail(f"{key}.delta", "should be 0 or more")
    if given.max_steps is not None and given.max_steps < 1:
        config.fail(f"{key}.max_steps", "should be 1 or more, or null")
    known = [f"eval_{length}/{name}" for length in config.value.eval.lengths for name in _WATCHED]
    metric = given.metric or f"eval_{max(given.lengths)}/{_WATCHED[0]}"
    if metric not in known:
        config.fail(f"{key}.metric", f"is none of the losses at eval.lengths; {nearest(metric, known)}", metric)
    return Hybrid(tuple(given.lengths), given.patience, given.delta, metric, given.max_steps)


def _dynamic(config: Config[TrainConfig], key: str, given: DynamicConfig) -> Rule[Any]:
    if len(given.lengths) != 2 or given.lengths[0] >= given.lengths[1]:
        config.fail(f"{key}.lengths", "should be two, the shortest and the longest")
    if not 0 <= given.smoothing < 1:
        config.fail(f"{key}.smoothing", "should lie between 0 and below 1")
    if given.window < 1:
        config.fail(f"{key}.window", "should be 1 or more")
    if not 0 <= given.threshold < math.inf:
        config.fail(f"{key}.threshold", "should be 0 or more")
    return Dynamic(tuple(given.lengths), given.smoothing, given.window, given.threshold)


def _seq_length_warmup(config: Config[TrainConfig], key: str, given: Mapping[str, Any]) -> Rule[Any]:
    for name in ("min_seq_length", "max_seq_length", "step_size"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            config.fail(f"{key}.{name}", "should be a whole number, 1 or more", value)
    warmup = call_checked(config, key, SeqLengthWarmup, dict(given))
    return Warmup(
        (warmup.max_seq_length,),
        {name: getattr(warmup, name) for name in inspect.signature(SeqLengthWarmup).parameters},
    )


def _check_warmup(config: Config[TrainConfig], rule: Warmup, block_size: int, steps_an_epoch: int | None) -> None:
    key, given, goal = f"{SECTION}.seq_length_warmup", rule.arguments, config.value.max_duration
    duration = Time.from_timestring(goal)
    if duration.unit not in (TimeUnit.BATCH, TimeUnit.EPOCH):
        config.fail("max_duration", f"with {key} it should be in steps or epochs, as 2500ba")
    if given["preserve_end_of_sequence"]:
        config.fail(f"{key}.preserve_end_of_sequence", "should be false: blocks are full, and have no end to preserve")
    longest, shortest = given["max_seq_length"], given["min_seq_length"]
    if longest > block_size:
        config.fail(f"{key}.max_seq_length", f"should be at most the data's {block_size} tokens a block", longest)
    lengths = (longest - shortest) // given["step_size"]
    if lengths < 1:
        config.fail(
            f"{key}.step_size", f"should lead from min_seq_length to max_seq_length={longest}", given["step_size"]
        )
    steps_a_unit = 1 if duration.unit == TimeUnit.BATCH else steps_an_epoch
    if steps_a_unit is None:
        return
    steps = int(duration.value * steps_a_unit * given["duration"])
    if steps < lengths:
        config.fail(
            f"{key}.duration",
            f"of max_duration={goal} it is {steps} steps, fewer than there are lengths, {lengths}: take more, or a "
            "larger step_size",
            given["duration"],
        )


_WITH_STAGES = ("static", "hybrid", "dynamic")
_RULES: dict[str, Callable[..., Rule[Any]]] = {
    "static": _static,
    "hybrid": _hybrid,
    "dynamic": _dynamic,
    "seq_length_warmup": _seq_length_warmup,
    "sequence_length": _constant,
}


def _as_many_as_stages(name: str, stages: int | None) -> str:
    if stages is None:
        return f"{name} has no stages: take static, hybrid or dynamic"
    return f"should be as many as the lengths of the curriculum ({name}): {stages}"


def _rate(config: Config[TrainConfig], name: str, stages: int | None) -> MaskingRate:
    masking = config.value.masking
    if masking.stage_rates is not None:
        if masking.final_rate is not None:
            config.fail("masking.final_rate", "give it or stage_rates; null leaves it out")
        if len(masking.stage_rates) != stages:
            config.fail("masking.stage_rates", _as_many_as_stages(name, stages))
        if not all(0 < rate < 1 for rate in masking.stage_rates):
            config.fail("masking.stage_rates", "should lie between 0 and 1")
        return MaskingRate(masking.stage_rates[0], stage_rates=tuple(masking.stage_rates))
    if masking.final_rate is not None and not 0 < masking.final_rate < masking.mlm_probability:
        config.fail(
            "masking.final_rate", f"should lie between 0 and mlm_probability={masking.mlm_probability}, to fall to it"
        )
    return MaskingRate(masking.mlm_probability, masking.final_rate)
