"""Shows what `scripts/compare_curricula.sh` measured: prints a table and draws the losses.

python scripts/plot_comparison.py folder=OUT out=comparison.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import MISSING

from bertchen.config import load_config
from bertchen.config.load import nearest
from bertchen.errors import user_errors
from bertchen.report.comparison import comparison_table, draw_comparison, read_runs

USAGE = "python scripts/plot_comparison.py folder=OUT [out=comparison.png] [metric=…] [settings=[…]] [title=…]"


@dataclass
class ComparisonConfig:
    """The folder of metrics, the loss that is compared, the settings to show (empty: all) and the picture to write."""

    folder: str = MISSING
    out: str | None = None
    metric: str = "metrics/eval_512/MaskedCrossEntropy"
    settings: list[str] = field(default_factory=list)
    title: str = ""


def main(argv: list[str]) -> None:
    """Reads the runs, prints the table and writes the picture."""
    config = load_config(ComparisonConfig, argv, USAGE)
    cfg = config.value
    if cfg.out is not None and Path(cfg.out).suffix not in (".png", ".svg"):
        config.fail("out", "should end in .png or .svg")
    runs = read_runs(cfg.folder, cfg.metric)
    for name in cfg.settings:
        if name not in runs:
            config.fail("settings", f"no run of it; {nearest(name, runs)}", name)
    runs = {name: runs[name] for name in cfg.settings or runs}
    print(comparison_table(runs))
    if cfg.out is not None:
        draw_comparison(runs, cfg.out, cfg.title)
        print(f"\nwritten to {cfg.out}")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
