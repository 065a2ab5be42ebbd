"""Comparison of runs: what is read from their metrics, the figures of the table, and the picture."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertchen.errors import UserError
from bertchen.report.comparison import Curve, at, comparison_table, curve_of, read_runs

ROOT = Path(__file__).resolve().parents[2]
METRIC = "metrics/eval_512/MaskedCrossEntropy"


def rows(losses: list[float], seconds_a_step: float) -> list[dict[str, Any]]:
    """A run that evaluates every two steps of 100 tokens, and goes to length 512 at step 2."""
    found: list[dict[str, Any]] = []
    for step in range(2 * len(losses) + 1):
        row: dict[str, Any] = {"step": step, "time/token": 100 * step}
        if step:
            row["throughput/seconds"] = seconds_a_step * step
        if step and step % 2 == 0:
            row[METRIC] = losses[step // 2 - 1]
        found.append(row)
        if step == 2:
            found.append({"step": 2, "event": "switch", "length": 512})
    return found


def write(folder: Path, name: str, losses: list[float], seconds_a_step: float) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows(losses, seconds_a_step)))


def test_a_curve() -> None:
    curve = curve_of(rows([5.0, 4.0], 0.5), METRIC, "x")
    assert curve == Curve((200, 400), (1.0, 2.0), (5.0, 4.0), ((200, 512),))


def test_other_metric() -> None:
    with pytest.raises(UserError, match="x: metrics/eval_64/Other isn't in it"):
        curve_of(rows([5.0], 1), "metrics/eval_64/Other", "x")


def test_no_runs(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no file is called <setting>-<seed>"):
        read_runs(tmp_path, METRIC)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=9, unique=True).map(sorted),
    st.lists(st.floats(-10, 10), min_size=9, max_size=9),
    st.floats(-10, 2e6),
)
def test_between_points_as_numpy(xs: list[float], ys: list[float], x: float) -> None:
    ys = ys[: len(xs)]
    assert at(xs, ys, x) == pytest.approx(float(np.interp(x, xs, ys)), abs=1e-6)


def test_the_table(tmp_path: Path) -> None:
    """Means over seeds, the sample deviation at the end, and the loss when the faster setting has ended."""
    write(tmp_path, "slow-1.jsonl", [6.0, 5.0, 4.0, 3.0], 1.0)
    write(tmp_path, "slow-2.jsonl", [6.0, 5.0, 4.0, 3.5], 1.0)
    write(tmp_path, "fast-1.jsonl", [7.0, 6.0, 5.0, 4.0], 0.5)
    runs = read_runs(tmp_path, METRIC)
    assert {name: len(curves) for name, curves in runs.items()} == {"fast": 1, "slow": 2}
    fast, slow = comparison_table(runs).splitlines()[2:]
    assert fast == "| fast | 1 | 7.000 | 6.000 | 5.000 | 4.000 | 4.000 | 200 | 1 |"
    spread = statistics.stdev([3.0, 3.5])
    assert slow == f"| slow | 2 | 6.000 | 5.000 | 4.000 | 3.250 ± {spread:.3f} | 5.000 | 100 | 1 |"


def test_the_command(tmp_path: Path) -> None:
    for seed in (1, 2):
        write(tmp_path, f"hybrid-{seed}.jsonl", [6.0, 5.0], 1.0)
    command = [sys.executable, "scripts/plot_comparison.py", f"folder={tmp_path}"]
    done = subprocess.run([*command, f"out={tmp_path}/x.png"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| hybrid | 2 |" in done.stdout
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    wrong = subprocess.run([*command, "settings=[hybird]"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "did you mean hybrid?" in wrong.stderr
