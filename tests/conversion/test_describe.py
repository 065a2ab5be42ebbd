"""The description of a conversion: the entropy is that of the counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertchen.conversion.describe import entropy


@given(st.lists(st.integers(0, 10**9), min_size=1).filter(any))
def test_entropy(counts: list[int]) -> None:
    total = sum(counts)
    expected = -math.fsum(count / total * math.log(count / total) for count in counts if count)
    assert entropy(np.array(counts)) == pytest.approx(expected, abs=1e-9)


def test_entropy_of_equal_counts_is_the_logarithm_of_their_number() -> None:
    assert entropy(np.full(32768, 7)) == pytest.approx(math.log(32768))
