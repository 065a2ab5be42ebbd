"""The algorithms that a YAML can name: those that act during training, and those that change the model before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from composer.algorithms import EMA, SWA, Factorize, GatedLinearUnits, GradientClipping, LowPrecisionLayerNorm
from composer.algorithms.warnings import NoEffectWarning
from composer.core import Algorithm, Event, State
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.models import ComposerModel

from bertchen.algorithms.loss_guard import LossGuard
from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.resolve import build_named
from bertchen.errors import UserError

SECTION = "algorithms"
CLIPPING_TYPES = ("norm", "value", "adaptive")


def _gradient_clipping(clipping_type: str, clipping_threshold: float) -> Algorithm:
    # Composer looks at its arguments in the first step only.
    if clipping_type not in CLIPPING_TYPES:
        raise ValueError(f"clipping_type={clipping_type} is unknown; {nearest(str(clipping_type), CLIPPING_TYPES)}")
    if not clipping_threshold > 0:
        raise ValueError(f"clipping_threshold={clipping_threshold} should be positive")
    return GradientClipping(clipping_type, clipping_threshold)


def _swa(update_interval: str, swa_start: str = "0.7dur", swa_end: str = "0.97dur") -> Algorithm:
    # The rest of Composer's arguments are of a learning rate, for optimizers with one group of parameters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about resuming on several GPUs
        return SWA(swa_start, swa_end, update_interval)


def _low_precision_layernorm() -> Algorithm:
    return LowPrecisionLayerNorm(apply_at=Event.INIT)


LOSS_GUARD = "loss_guard"
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "gradient_clipping": _gradient_clipping,
    "ema": EMA,
    "swa": _swa,
    LOSS_GUARD: LossGuard,
}
# Applied before the optimizer is made: Composer would do so after, and can't tell in which of the optimizer's groups of
# parameters new ones belong.
SURGERIES: dict[str, Callable[..., Algorithm]] = {
    "low_precision_layernorm": _low_precision_layernorm,
    "gated_linear_units": GatedLinearUnits,
    "factorize": Factorize,
}
# The weights keep names and shapes, so that the model can be exported.
_KEEP_WEIGHTS = ("low_precision_layernorm",)
_FOR_IMAGES = "is for images and has no effect on a language model"
_OF_LOGITS = "has no effect: it works on a classifier's logits, and this model gives its loss alone"
_NOT_RESUMED = "can't be resumed from a checkpoint as if nothing had happened"
# Composer's others, and why they aren't here.
_REFUSED = {
    **dict.fromkeys(
        (
            "augmix", "blurpool", "channels_last", "colout", "cutmix", "cutout", "ghost_batchnorm",
            "low_precision_groupnorm", "mixup", "progressive_resizing", "randaugment", "squeeze_excite",
            "stochastic_depth", "weight_standardization",
        ),
        _FOR_IMAGES,
    ),
    "alibi": "is MosaicBERT's already, and Composer's doesn't fit the present BERT of Transformers",
    "label_smoothing": _OF_LOGITS,
    "selective_backprop": _OF_LOGITS,
    "gyro_dropout": _NOT_RESUMED,
    "layer_freezing": _NOT_RESUMED,
    "sam": _NOT_RESUMED,
    "no_op_model": "would put a model without any layer in the place of this one",
    "seq_length_warmup": "is named under curriculum",
}  # fmt: skip


def build_algorithms(config: Config[Any]) -> list[Algorithm]:
    """The algorithms under `algorithms` that act during training, in the YAML's order; the guard of the loss last.

    After the backward pass Composer runs them from last to first: the guard sees the gradient before it is clipped.

    Raises:
        UserError: an unknown name or argument, named with its nearest match; one that can't serve here, with its
            reason.
    """
    built = _build(config)
    acting = [algorithm for name, algorithm in built.items() if name in ALGORITHMS]
    return sorted(acting, key=lambda algorithm: isinstance(algorithm, LossGuard))


def apply_surgeries(config: Config[Any], model: ComposerModel, precision: str) -> None:
    """Changes the model's layers in place as those under `algorithms` do that change a model.

    Args:
        model: before the optimizer takes its parameters.
        precision: Composer's name for that of the run.

    Raises:
        UserError: an algorithm has no effect on this model, or makes one that `export` can't write.
    """
    for name, algorithm in _build(config).items():
        if name not in SURGERIES:
            continue
        key = f"{SECTION}.{name}"
        if config.value.export and name not in _KEEP_WEIGHTS:
            config.fail("export", f"{key} makes other layers than the exported model has: set export=false")
        reason = _operate(algorithm, model, precision)
        if reason is not None:
            raise UserError(
                f"{key} (from {config.source(key)}): has no effect on this model ({reason}); {key}=null leaves it out"
            )


def _build(config: Config[Any]) -> dict[str, Algorithm]:
    given = getattr(config.value, SECTION)
    for name, arguments in given.items():
        if name in _REFUSED and arguments is not None:
            raise UserError(f"{SECTION}.{name} (from {config.source(f'{SECTION}.{name}')}): {_REFUSED[name]}")
    names = [name for name, arguments in given.items() if arguments is not None]
    table = {**ALGORITHMS, **SURGERIES, LOSS_GUARD: partial(LossGuard, config.value.save_folder)}
    return dict(zip(names, build_named(config, SECTION, table), strict=True))


def _operate(algorithm: Algorithm, model: ComposerModel, precision: str) -> str | None:
    """Applies it; why it had no effect, if so."""
    state = State(model=model, rank_zero_seed=0, run_name="surgery", device=DeviceCPU(), precision=precision)
    before = _layers(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", NoEffectWarning)
            algorithm.apply(Event.INIT, state, Logger(state))
    except (NoEffectWarning, TypeError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return "it finds no layer to change" if _layers(model) == before else None


def _layers(model: ComposerModel) -> list[tuple[str, int]]:
    return [(name, id(layer)) for name, layer in model.named_modules()]
