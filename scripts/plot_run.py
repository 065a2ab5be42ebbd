"""Draws the loss curves of runs: `python scripts/plot_run.py runs=[runs/first,runs/second] out=curves.png`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import MISSING

from bertchen.config import load_config
from bertchen.errors import UserError, user_errors
from bertchen.report.curves import draw_curves
from bertchen.report.metrics import read_metrics

USAGE = "python scripts/plot_run.py runs=[runs/first] out=curves.png [by=step|tokens] [title=…]"
BY = {"step": "step", "tokens": "time/token"}


@dataclass
class PlotConfig:
    """Run folders (or metrics.jsonl files), the picture to write, and what lies on the x axis."""

    runs: list[str] = MISSING
    out: str = MISSING
    by: str = "step"
    title: str = ""


def main(argv: list[str]) -> None:
    """Reads the runs and writes the picture."""
    config = load_config(PlotConfig, argv, USAGE)
    cfg = config.value
    if cfg.by not in BY:
        config.fail("by", "should be step or tokens")
    if Path(cfg.out).suffix not in (".png", ".svg"):
        config.fail("out", "should end in .png or .svg")
    if not cfg.runs:
        raise UserError("runs=[] names no run: give at least one folder")
    files = {name: Path(name) / "metrics.jsonl" if Path(name).is_dir() else Path(name) for name in cfg.runs}
    draw_curves({Path(name).stem: read_metrics(path) for name, path in files.items()}, cfg.out, BY[cfg.by], cfg.title)
    print(f"written to {cfg.out}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
