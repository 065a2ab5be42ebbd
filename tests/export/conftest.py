"""One checkpoint for all tests of the export."""

from __future__ import annotations

import pytest
from tiny_checkpoint import Checkpoint, train_tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train_tiny(tmp_path_factory.mktemp("run"))
