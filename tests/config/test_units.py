"""Durations as people write them."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertchen.config import parse_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4h", 14_400),
        ("90m", 5_400),
        ("90min", 5_400),
        ("1h30m", 5_400),
        ("1h 30m", 5_400),
        ("1 h 30 min", 5_400),
        ("45s", 45),
        ("1.5h", 5_400),
        ("1d", 86_400),
        ("1d2h3m4s", 93_784),
        (" 4h ", 14_400),
        (90, 90),
        (0.5, 0.5),
        ("90", 90),
        ("0.5", 0.5),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_parts_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_seconds(f"{days}d{hours}h{minutes}m{seconds}s") == expected


@pytest.mark.parametrize(
    "text",
    ["", "abc", "h", "4x", "4hx", "x4h", "4 hours", "-4h", "5ms", "1,5h", "0h", "0", "-1", "nan", "inf", "True",
     0, -1, math.nan, True, False, None],
)  # fmt: skip
def test_anything_else_is_refused(text: str | float | None) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_seconds(text)  # type: ignore[arg-type]


@given(st.text(max_size=8) | st.from_regex(r"[0-9.hms ]{1,8}", fullmatch=True))
def test_never_another_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_seconds(text) > 0
