"""What changes a batch or a step during training. `build_algorithms` resolves the names of a YAML."""

from bertchen.algorithms.masking import Masking
from bertchen.algorithms.registry import ALGORITHMS, build_algorithms

__all__ = ["ALGORITHMS", "Masking", "build_algorithms"]
