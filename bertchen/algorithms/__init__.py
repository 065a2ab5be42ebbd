"""What changes a batch or a step during training. `build_algorithms` resolves the names of a YAML."""

from bertchen.algorithms.length_curriculum import LengthCurriculum
from bertchen.algorithms.masking import Masking
from bertchen.algorithms.registry import ALGORITHMS, LOSS_GUARD, apply_surgeries, build_algorithms

__all__ = ["ALGORITHMS", "LOSS_GUARD", "LengthCurriculum", "Masking", "apply_surgeries", "build_algorithms"]
