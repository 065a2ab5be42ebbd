"""Durations as people write them in a YAML."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_seconds(text: str | int | float) -> float:
    """`"4h"`, `"90m"`, `"1h30m"`, `"45s"` or a plain number of seconds, in seconds.

    Raises:
        ValueError: for anything else, and for durations that are not positive.
    """
    if re.fullmatch(r"\d+(\.\d+)?", str(text)):  # a YAML's number arrives as text where the schema says text
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", str(text))
        leftover = re.sub(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", "", str(text)).strip()
        if not parts or leftover:
            raise ValueError(f"{text!r} is not a duration such as 4h, 90m, 1h30m or 45s")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not seconds > 0:
        raise ValueError(f"{text!r} is not a positive duration")
    return seconds
