"""Choices by name, and what is said about names and arguments that are wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from bertchen.config import Config, load_config
from bertchen.config.resolve import build_named, call_checked
from bertchen.errors import UserError


@dataclass
class Schema:
    parts: dict[str, Any] = field(default_factory=lambda: {"clip": {"threshold": 1.0}})


class Clip:
    def __init__(self, threshold: float, kind: str = "norm") -> None:
        if threshold < 0:
            raise ValueError("threshold should be positive")
        self.threshold, self.kind = threshold, kind


class Average:
    pass


TABLE = {"clip": Clip, "average": Average, "free": lambda **arguments: arguments}


def config(*overrides: str) -> Config[Schema]:
    return load_config(Schema, overrides, "usage")


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        build_named(config(*overrides), "parts", TABLE)
    return str(caught.value)


def test_names_are_built_in_order_with_their_arguments() -> None:
    clip, average, free = build_named(
        config("parts.average={}", "parts.free.a=1", "parts.clip.kind=value"), "parts", TABLE
    )
    assert (clip.threshold, clip.kind) == (1.0, "value")
    assert isinstance(average, Average)
    assert free == {"a": 1}


def test_null_leaves_a_default_out() -> None:
    assert build_named(config("parts.clip=null"), "parts", TABLE) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parts.avarage={}", "parts.avarage (from the command line): unknown; did you mean average?"),
        (
            "parts.clip.treshold=2",
            "parts.clip.treshold (from the command line): unknown argument; did you mean threshold?",
        ),
        ("parts.clip.threshold=-1", "parts.clip (from the command line): threshold should be positive"),
        ("parts.average=5", "parts.average=5 (from the command line): should be a mapping of arguments, {} for none"),
        (
            "parts.average=true",
            "parts.average=True (from the command line): should be a mapping of arguments, {} for none",
        ),
    ],
)
def test_wrong_choices(override: str, message: str) -> None:
    assert refused(override) == message


def test_missing_argument_and_argument_of_a_wrong_kind_name_the_key() -> None:
    with pytest.raises(UserError, match=r"^parts\.clip \(from the defaults\): .*threshold"):
        call_checked(config(), "parts.clip", Clip, {})
    assert refused("parts.clip.threshold=word").startswith("parts.clip (from the command line): ")


def test_other_errors_are_bugs_and_pass() -> None:
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        call_checked(config(), "parts.clip", broken, {})
