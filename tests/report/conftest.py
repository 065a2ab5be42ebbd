"""Results to be reported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Imported where they are used: they take seconds, and other tests here don't need them.
if TYPE_CHECKING:
    from made_results import Results

    from bertchen.report.tables import Table


@pytest.fixture
def results(tmp_path: Path) -> Results:
    from made_results import Results

    return Results(tmp_path)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two models and one from random weights on two tasks, three seeds each. Don't change it."""
    from made_results import Results

    results = Results(tmp_path_factory.mktemp("full"))
    for seed in (1, 2, 3):
        for model, right in (("runs/length_512", 0.9), ("deepset/gbert-base", 0.8)):
            for split in ("test_synchronic", "test_diachronic", "dev"):
                results.add("germeval17", split, model, seed, right)
            results.add("germeval17", "train", model, seed, 0.99)
            results.add("germeval24", "test", model, seed, right)
        results.add("germeval24", "test", "runs/length_512", seed, 0.3, random_weights=True)
        results.add("germeval24", "train", "runs/length_512", seed, 0.99, protocol="paper")
    return results


@pytest.fixture(scope="session")
def made(full: Results) -> dict[str, Table]:
    """All tables of its report, by name."""
    from made_results import report, tables

    return tables(report(full))
