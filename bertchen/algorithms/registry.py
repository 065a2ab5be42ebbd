"""The algorithms that a YAML can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.algorithms import EMA, GradientClipping
from composer.core import Algorithm

from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.resolve import build_named

CLIPPING_TYPES = ("norm", "value", "adaptive")


def _gradient_clipping(clipping_type: str, clipping_threshold: float) -> Algorithm:
    # Composer looks at its arguments in the first step only.
    if clipping_type not in CLIPPING_TYPES:
        raise ValueError(f"clipping_type={clipping_type} is unknown; {nearest(str(clipping_type), CLIPPING_TYPES)}")
    if not clipping_threshold > 0:
        raise ValueError(f"clipping_threshold={clipping_threshold} should be positive")
    return GradientClipping(clipping_type, clipping_threshold)


ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "gradient_clipping": _gradient_clipping,
    "ema": EMA,
}


def build_algorithms(config: Config[Any]) -> list[Algorithm]:
    """The algorithms under `algorithms`, in the YAML's order.

    Raises:
        UserError: an unknown name or argument, named with its nearest match.
    """
    return build_named(config, "algorithms", ALGORITHMS)
