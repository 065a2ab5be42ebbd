"""The algorithms that a YAML can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.algorithms import EMA, GradientClipping
from composer.core import Algorithm

from bertchen.config import Config
from bertchen.config.resolve import build_named

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "gradient_clipping": GradientClipping,
    "ema": EMA,
}


def build_algorithms(config: Config[Any]) -> list[Algorithm]:
    """The algorithms under `algorithms`, in the YAML's order.

    Raises:
        UserError: an unknown name or argument, named with its nearest match.
    """
    return build_named(config, "algorithms", ALGORITHMS)
