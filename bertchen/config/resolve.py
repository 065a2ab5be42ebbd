"""Choices by name: `section: {name: {argument: value}}` in a YAML to objects, through a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bertchen.config.load import Config, nearest
from bertchen.errors import UserError

T = TypeVar("T")


def build_named(config: Config[Any], section: str, table: Mapping[str, Callable[..., T]]) -> list[T]:
    """Calls the table's entry for each name in the section, in order; a name set to null is left out.

    Raises:
        UserError: an unknown name, an unknown or missing argument, a value that the entry refuses.
    """
    built = []
    for name, arguments in getattr(config.value, section).items():
        if arguments is None:
            continue
        if name not in table:
            config_error(config, f"{section}.{name}", f"unknown; {nearest(name, table)}")
        if not isinstance(arguments, Mapping):
            config.fail(f"{section}.{name}", "should be a mapping of arguments, {} for none")
        built.append(call_checked(config, f"{section}.{name}", table[name], dict(arguments)))
    return built


def call_checked(config: Config[Any], key: str, entry: Callable[..., T], arguments: dict[str, Any]) -> T:
    """`entry(**arguments)`, with its complaints turned into `UserError`s that name the key."""
    parameters = inspect.signature(entry).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for argument in arguments:
            if argument not in parameters:
                config_error(config, f"{key}.{argument}", f"unknown argument; {nearest(argument, parameters)}")
    try:
        return entry(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} (from {config.source(key)}): {error}") from error


def config_error(config: Config[Any], key: str, message: str) -> None:
    """Raises the `UserError` for a key that shouldn't be there."""
    raise UserError(f"{key} (from {config.source(key)}): {message}")
