"""Streaming's writer and uploaders without PyTorch, for worker processes.

`import streaming` brings PyTorch, torchvision and Transformers with it: half a gigabyte and seconds for each process.
Writing shards needs none of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


def import_streaming_lightly() -> None:
    """Makes `streaming.base.format`, `.storage` and `.util` importable without PyTorch; for this process's whole life.

    `StreamingDataset` and the like can't be imported afterwards. Where `streaming` is imported already, and where
    another version of it needs more of PyTorch, nothing is changed.
    """
    if "streaming" in sys.modules or "torch" in sys.modules:
        return
    stand_in = _StandIn()
    sys.meta_path.insert(0, stand_in)
    try:
        for name in ("streaming", "streaming.base"):
            _add_bare_package(name)
        for name in ("format", "storage", "util"):
            importlib.import_module(f"streaming.base.{name}")
    except Exception:
        _forget("streaming")
    finally:
        sys.meta_path.remove(stand_in)
        _forget("torch")


class _StandIn(MetaPathFinder, Loader):
    """Gives an empty module for `torch` and everything below it; whatever is taken from it is an empty class."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torch" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _EmptyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _add_bare_package(name: str) -> None:
    """Enters a package whose `__init__`, which imports everything, isn't run."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(name)
    bare = ModuleSpec(name, None, is_package=True)
    bare.submodule_search_locations = [os.path.dirname(spec.origin)]
    sys.modules[name] = module_from_spec(bare)


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
