"""The demo removes folders: an earlier demo's and no other."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bertchen.errors import UserError


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_script", Path(__file__).parents[1] / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_a_folder_with_a_corpus_of_the_user_is_refused_and_kept(demo: ModuleType, tmp_path: Path) -> None:
    text = tmp_path / "corpus" / "mine.jsonl"
    text.parent.mkdir()
    text.write_text('{"text": "Hallo"}\n')
    with pytest.raises(UserError, match="isn't empty and isn't the demo's"):
        demo.prepare(tmp_path)
    assert text.read_text() == '{"text": "Hallo"}\n'


def test_an_earlier_demo_is_replaced(demo: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    demo.prepare(folder)
    (folder / "corpus").mkdir()
    demo.prepare(folder)
    assert [path.name for path in folder.iterdir()] == [demo.MARKER]


def test_a_file_is_refused(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        demo.prepare(tmp_path / "demo")
