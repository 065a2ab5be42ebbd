"""Reads a command's configuration: defaults < YAML files in order < `key.sub=value` from the command line.

The schema of a command is a dataclass (`bertchen/config/schema.py`); OmegaConf checks names and types against
it. Whatever is wrong becomes one `UserError` that names the key, the value, where it came from and what would
be right.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Generic, NoReturn, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from bertchen.errors import UserError

T = TypeVar("T")

COMMAND_LINE = "the command line"
DEFAULTS = "the defaults"


@dataclass
class Config(Generic[T]):
    """A checked configuration and where each of its values came from.

    Attributes:
        value: an instance of the command's schema.
        sources: dotted key to the YAML file that set it, or `the command line`.
    """

    value: T
    sources: dict[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """Where `key`, or the nearest key above or below it, was set."""
        probe = key
        while probe:
            if probe in self.sources:
                return self.sources[probe]
            probe = probe.rpartition(".")[0]
        below = [source for name, source in self.sources.items() if name.startswith(key + ".")]
        return below[-1] if below else DEFAULTS

    def fail(self, key: str, expected: str, value: Any = ...) -> NoReturn:
        """Raises the `UserError` for a value that is wrong: key, value, source, what would be right."""
        if value is ...:
            value = OmegaConf.select(OmegaConf.structured(self.value), key)
        raise UserError(f"{key}={_show(value)} (from {self.source(key)}): {expected}")

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain containers, ready to be written as YAML or JSON."""
        container = OmegaConf.to_container(OmegaConf.structured(self.value), resolve=True, throw_on_missing=False)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}


def load_config(schema: type[T], argv: Sequence[str], usage: str) -> Config[T]:
    """Merges the schema's defaults, the YAML files and the overrides in `argv`.

    Args:
        schema: dataclass of the command; a field without a default is `omegaconf.MISSING`.
        argv: YAML paths and `key.sub=value` items, in any order; later ones win within their kind.
        usage: one line shown when nothing was given or an item is neither a file nor an override.

    Raises:
        UserError: a file that can't be read, an unknown key (with the nearest name), a wrong type, a missing value.
    """
    files = [item for item in argv if "=" not in item]
    overrides = [item for item in argv if "=" in item]
    if any(item in ("-h", "--help") for item in files):
        print(f"usage: {usage}\n\n{OmegaConf.to_yaml(OmegaConf.structured(schema))}")
        raise SystemExit(0)
    flags = [item for item in files if item.startswith("-")]
    if flags:
        nearest = flags[0].lstrip("-").replace("-", "_")
        raise UserError(f"{flags[0]}: options are written key=value here, as in {nearest}=…; usage: {usage}")

    merged = OmegaConf.structured(schema)
    sources: dict[str, str] = {}
    layers: list[tuple[str, DictConfig]] = [(path, _read_yaml(path, usage)) for path in files]
    layers += [(COMMAND_LINE, _read_override(item)) for item in overrides]
    for source, layer in layers:
        merged = _merge(merged, layer, source)
        sources.update(dict.fromkeys(_leaves(layer), source))

    try:  # an interpolation is resolved here, and may lead nowhere
        for key in sorted(OmegaConf.missing_keys(merged)):
            raise UserError(f"{key} is not set: give it in a YAML or as {key}=… on the command line; usage: {usage}")
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or "?"
        raise UserError(f"{key} (from {sources.get(key, DEFAULTS)}): {_first_line(error)}") from None
    return Config(value=value, sources=sources)  # type: ignore[arg-type]


def read_choice(argv: Sequence[str], key: str, known: Iterable[str], default: str, usage: str) -> str:
    """The value of the one key that decides about the schema that all others must have.

    Args:
        argv: as `load_config` takes it.
        key: without dots.
        known: the values it may have.
        default: where no YAML and no override sets it.

    Raises:
        UserError: a file that can't be read; an unknown value, with the nearest known one.
    """
    layers = [(item, _read_yaml(item, usage)) for item in argv if "=" not in item and not item.startswith("-")]
    layers += [(COMMAND_LINE, _read_override(item)) for item in argv if item.startswith(f"{key}=")]
    value, origin = default, DEFAULTS
    for source, layer in layers:
        if key in layer:
            value, origin = layer[key], source
    if value not in known:
        raise UserError(f"{key}={_show(value)} (from {origin}): unknown; {nearest(str(value), known)}")
    return value


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`did you mean x?` for the known name nearest to `name`, or the list of all where none is near.

    `prefix` is put before the names that are shown.
    """
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if matches:
        return f"did you mean {prefix}{matches[0]}?"
    return f"known: {', '.join(prefix + other for other in names)}"


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value of nested mappings; an empty one is a value."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_yaml(path: str, usage: str) -> DictConfig:
    if not os.path.exists(path):
        raise UserError(f"{path}: no such YAML file; usage: {usage}")
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable YAML file: {_first_line(error)}") from None
    if isinstance(loaded, ListConfig):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, this file holds a list")
    return loaded


def _read_override(item: str) -> DictConfig:
    key, _, value = item.partition("=")
    if not key or key != key.strip():
        raise UserError(f"{item!r} on the command line: an override is written key.sub=value, without spaces")
    try:
        # A value such as *.jsonl is a pattern of files here, and not YAML's alias.
        return OmegaConf.from_dotlist([f"{key}='{value}'" if value.startswith("*") and "'" not in value else item])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{item!r} on the command line: {_first_line(error)}") from None


def _merge(base: DictConfig, layer: DictConfig, source: str) -> DictConfig:
    layer = _with_whole_numbers(base, layer, source)
    _check_names(base, layer, source)
    try:
        merged = OmegaConf.merge(base, layer)
    except ConfigKeyError as error:  # pragma: no cover - _check_names is meant to catch these first
        raise UserError(f"{error.full_key} (from {source}): unknown key") from None
    except OmegaConfBaseException as error:
        key = (error.full_key or next(iter(_leaves(layer)), "?")).partition("[")[0]
        above, _, name = key.rpartition(".")
        holder = OmegaConf.select(base, above) if above else base
        below = OmegaConf.select(layer, above) if above else layer
        value = below[int(name)] if _has_whole_numbers(holder) else OmegaConf.select(layer, key)
        raise _wrong_type(holder, name, key, value, source) from None
    assert isinstance(merged, DictConfig)
    return merged


def _with_whole_numbers(base: DictConfig, layer: DictConfig, source: str, prefix: str = "") -> DictConfig:
    """The layer with the names in mappings such as `dict[int, float]` as numbers: `stages.64=1` gives text."""
    for name in list(layer):
        node = base._get_node(name) if name in base.keys() else None  # noqa: SIM118
        below = layer._get_node(name)
        if not isinstance(node, DictConfig) or not isinstance(below, DictConfig) or node._is_none():
            continue
        if _has_whole_numbers(node):
            for key in list(below):
                if not str(key).isdecimal():
                    raise UserError(f"{prefix}{name}.{key} (from {source}): should be a whole number")
            layer[name] = {int(str(key)): below[key] for key in below}
        else:
            _with_whole_numbers(node, below, source, f"{prefix}{name}.")
    return layer


def _check_names(base: DictConfig, layer: DictConfig, source: str, prefix: str = "") -> None:
    """Raises for keys that the schema doesn't have, and for lists in a mapping's place or the other way round.

    Untyped mappings (`dict[str, Any]`) take any key.
    """
    for name in layer:
        key = f"{prefix}{name}"
        if name not in base.keys():  # noqa: SIM118 - `in` alone is false for a missing value
            if not _is_dataclass_node(base):
                continue
            known = [str(other) for other in base.keys()]  # noqa: SIM118
            raise UserError(f"{key} (from {source}): unknown key; {nearest(str(name), known, prefix)}")
        node, below = base._get_node(name), layer._get_node(name)
        if isinstance(node, DictConfig) and node._is_none() and is_dataclass(node._metadata.ref_type):
            node = OmegaConf.structured(node._metadata.ref_type)
        if isinstance(node, DictConfig) and isinstance(below, DictConfig) and not node._is_none():
            _check_names(node, below, source, f"{key}.")
        elif {type(node), type(below)} == {DictConfig, ListConfig}:
            raise _wrong_type(base, str(name), key, below, source)


def _wrong_type(holder: Any, name: str, key: str, value: Any, source: str) -> UserError:
    """The message for a value that doesn't fit what `holder` has under `name`."""
    return UserError(f"{key}={_show(value)} (from {source}): wrong type{_expected_type(holder, name)}")


def _has_whole_numbers(node: Any) -> bool:
    """Whether its names are whole numbers, as in `dict[int, float]`."""
    return isinstance(node, DictConfig) and node._metadata.key_type is int


def _is_dataclass_node(node: DictConfig) -> bool:
    return node._metadata.object_type not in (dict, None)


def _expected_type(holder: Any, name: str) -> str:
    if not isinstance(holder, DictConfig):
        return ""
    if _has_whole_numbers(holder):
        return f", should be {holder._metadata.element_type.__name__}"
    if isinstance(holder._get_node(name), DictConfig):
        return ", should be a mapping"
    kind = getattr(holder._metadata.object_type, "__annotations__", {}).get(name)
    return f", should be {kind}" if kind else ""


def _leaves(layer: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for name in layer:
        node = layer._get_node(name)
        key = f"{prefix}{name}"
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and len(node):
            names += _leaves(node, f"{key}.")
        else:
            names.append(key)
    return names


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) and (value == "" or " " in value) else str(value)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
