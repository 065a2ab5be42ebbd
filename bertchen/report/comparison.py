"""Runs of several settings and seeds side by side: the validation loss against tokens and against training time."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertchen.errors import UserError
from bertchen.report.metrics import Rows, read_metrics, series

SHARES = (0.25, 0.5, 0.75, 1.0)
TOKENS, SECONDS = "time/token", "throughput/seconds"

_FILE = re.compile(r"(?P<setting>.+)-(?P<seed>\d+)\.jsonl")


@dataclass(frozen=True)
class Curve:
    """A run's validation loss.

    Attributes:
        tokens, seconds: trained so far at each evaluation; seconds of training alone, without evaluation.
        losses: cross entropy [nats] at each.
        switches: tokens at which a curriculum went to another length, and that length.
    """

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    switches: tuple[tuple[float, int], ...]


def read_runs(folder: str | os.PathLike[str], metric: str) -> dict[str, list[Curve]]:
    """The curves in a folder of `<setting>-<seed>.jsonl` files, by setting, those of all seeds together.

    Args:
        metric: key of the loss, as `metrics/eval_512/MaskedCrossEntropy`.

    Raises:
        UserError: there is no such file, or one lacks the metric.
    """
    runs: dict[str, list[Curve]] = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        if found := _FILE.fullmatch(path.name):
            runs.setdefault(found["setting"], []).append(curve_of(read_metrics(path), metric, str(path)))
    if not runs:
        raise UserError(f"{folder}: no file is called <setting>-<seed>.jsonl: run scripts/compare_curricula.sh first")
    return runs


def curve_of(rows: Rows, metric: str, path: str) -> Curve:
    """The curve of a run's metrics."""
    at_step = {row["step"]: row[TOKENS] for row in rows if TOKENS in row}
    # What a step took is logged with the step that follows, as its evaluation is.
    evaluated = [row for row in rows if metric in row and row["step"] in at_step and SECONDS in row]
    if not evaluated:
        raise UserError(f"{path}: {metric} isn't in it beside {TOKENS} and {SECONDS}: give another metric")
    tokens, losses = series(evaluated, metric, TOKENS)
    seconds, _ = series(evaluated, metric, SECONDS)
    switches = [(at_step[row["step"]], row["length"]) for row in rows if row.get("event") == "switch"]
    return Curve(tuple(tokens), tuple(seconds), tuple(losses), tuple(switches))


def at(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The value of a curve at `x`, between two points on the straight line; before the first and after the last theirs.

    Args:
        xs, ys: of the points, `xs` ascending.
    """
    if x <= xs[0]:
        return ys[0]
    for (x0, y0), (x1, y1) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return ys[-1]


def comparison_table(runs: Mapping[str, Sequence[Curve]]) -> str:
    """A Markdown table: the loss at shares of the tokens and at the time at which the fastest setting ended.

    Each figure is the mean over the seeds, at the end with the sample standard deviation.
    """
    fastest = min(_mean([curve.seconds[-1] for curve in curves]) for curves in runs.values())
    head = [*(f"{share:.0%} of the tokens" for share in SHARES), f"after {fastest:.0f} s", "tokens/s", "switches"]
    lines = [f"| setting | seeds | {' | '.join(head)} |", "|" + " --- |" * (len(head) + 2)]
    for name, curves in runs.items():
        cells = [_loss_at_share(curves, share) for share in SHARES]
        cells.append(f"{_mean([at(curve.seconds, curve.losses, fastest) for curve in curves]):.3f}")
        cells.append(f"{_mean([curve.tokens[-1] / curve.seconds[-1] for curve in curves]):,.0f}")
        cells.append(_switches(curves))
        lines.append(f"| {name} | {len(curves)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _loss_at_share(curves: Sequence[Curve], share: float) -> str:
    losses = [at(curve.tokens, curve.losses, share * curve.tokens[-1]) for curve in curves]
    spread = f" ± {statistics.stdev(losses):.3f}" if share == 1 and len(losses) > 1 else ""
    return f"{_mean(losses):.3f}{spread}"


def _switches(curves: Sequence[Curve]) -> str:
    """How many there were: the same for all seeds, or from the fewest to the most."""
    counts = sorted({len(curve.switches) for curve in curves})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def draw_comparison(runs: Mapping[str, Sequence[Curve]], out: str | os.PathLike[str], title: str = "") -> None:
    """Writes a picture of the loss against tokens and against time: a line a setting, with thin ones for its seeds.

    Args:
        out: file to write, PNG or SVG.
        title: over the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), sharey=True)
    for axis, name, unit in zip(axes, ("tokens", "seconds"), ("M tokens", "s of training"), strict=True):
        scale = 1e-6 if name == "tokens" else 1.0
        for number, (setting, curves) in enumerate(runs.items()):
            color = f"C{number % 10}"
            for curve in curves:
                xs = [x * scale for x in getattr(curve, name)]
                axis.plot(xs, curve.losses, color=color, linewidth=0.5, alpha=0.4)
            end = min(getattr(curve, name)[-1] for curve in curves)
            xs = [end * step / 100 for step in range(5, 101)]
            means = [_mean([at(getattr(curve, name), curve.losses, x) for curve in curves]) for x in xs]
            style = "-" if number < 10 else "--"
            axis.plot([x * scale for x in xs], means, style, color=color, label=setting)
        axis.set_xlabel(unit)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation loss [nats a masked token]")
    axes[0].legend(fontsize="small")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
