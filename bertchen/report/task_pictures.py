"""Pictures of results: models on a split, confusion matrices, learning curves of fine-tuning runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertchen.report.evaluations import Evaluation
from bertchen.report.metrics import Rows, series
from bertchen.report.task_tables import BASELINES, decimals, metric_title, title
from bertchen.tasks.metrics import SHOWN, confusion
from bertchen.tasks.statistics import mean_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#2f6690", "#d1495b", "#3a7d44", "#8d5a97", "#c77d0a", "#5b6770")
_LINES = ("--", ":")
_MOST_CLASSES, _MOST_MATRICES = 12, 6
_LABEL_CHARACTERS = 44
_CURVES = ("f1", "accuracy", "macro_f1", "exact_match")
_EVALUATED = re.compile(r"^(?:eval|metrics)/(?P<split>[^/]+)/(?P<metric>.+)$")


def draw_models(models: Sequence[Evaluation]) -> Figure:
    """Each model on a split: every seed, mean and standard deviation; guessing as lines."""
    from matplotlib.figure import Figure

    kind = models[0].kind
    metrics = [metric for metric in SHOWN[kind][:2] if any(model.values(metric) for model in models)]
    figure = Figure(figsize=(4.5 + 4 * len(metrics), 1.6 + 0.42 * len(models)), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0], metrics, strict=True):
        _draw_metric(axis, models, metric)
    axes = figure.axes
    axes[0].set_yticks(range(len(models)), [_shortened(model.label) for model in models])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title(models[0]))
    return figure


def draw_confusions(models: Sequence[Evaluation], labels: Sequence[str], rows: Mapping[str, Sequence[Rows]]) -> Figure:
    """A matrix for each of the best models, over its seeds: share of each gold class that became each class.

    Args:
        models: of a classification, best first.
        labels: of the task.
        rows: predictions of each seed by the model's label.
    """
    from matplotlib.figure import Figure

    drawn = [model for model in models if rows.get(model.label)][:_MOST_MATRICES]
    columns = min(len(drawn), 3)
    lines = -(-len(drawn) // columns)
    side = 1.6 + 0.62 * len(labels)
    figure = Figure(figsize=(max(columns * (side + 0.6), 5), lines * (side + 0.5) + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, model in zip(axes, drawn, strict=False):
        _draw_matrix(axis, confusion_counts(rows[model.label], labels), labels)
        axis.set_title(_shortened(model.label), fontsize="medium")
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    figure.suptitle(f"{title(models[0])}: share of each gold class (row)", fontsize="large")
    return figure


def confusion_counts(seeds: Sequence[Rows], labels: Sequence[str]) -> np.ndarray:
    """(labels, labels): gold by predicted, the mean over seeds."""
    matrices = [confusion([row["gold"] for row in rows], [row["predicted"] for row in rows], labels) for rows in seeds]
    return np.mean(matrices, axis=0)


def fits(labels: Sequence[str]) -> bool:
    """Whether a matrix of so many classes can be read."""
    return 2 <= len(labels) <= _MOST_CLASSES


def draw_learning_curves(runs: Mapping[str, Rows]) -> Figure | None:
    """Training loss and what was evaluated during training, against steps; None where nothing was logged."""
    from matplotlib.figure import Figure

    metrics = _evaluated(runs)
    if not metrics and not any(series(rows, "loss/train/total")[0] for rows in runs.values()):
        return None
    panels = 1 + len(metrics)
    figure = Figure(figsize=(4.6 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, sharex=True)[0]
    axes[0].set_title("training loss")
    for number, (name, rows) in enumerate(runs.items()):
        color = _COLORS[number % len(_COLORS)]
        axes[0].plot(*series(rows, "loss/train/total"), color=color, linewidth=0.9, label=_shortened(name))
        for axis, (metric, keys) in zip(axes[1:], metrics.items(), strict=True):
            for key in keys:
                steps, values = series(rows, key)
                split = _EVALUATED.match(key)["split"]  # type: ignore[index]
                style = "-" if split == "dev" else "--"
                axis.plot(steps, values, style, color=color, marker=".", label="_")
                axis.set_title(f"{metric_title(metric)} ({', '.join(dict.fromkeys(_split(key) for key in keys))})")
    for axis in axes:
        axis.set_xlabel("steps")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def _draw_metric(axis: Axes, models: Sequence[Evaluation], metric: str) -> None:
    for place, model in enumerate(models):
        values = model.values(metric)
        if not values:
            continue
        color = _COLORS[5] if model.random_weights else _COLORS[0]
        mean, deviation = mean_std(values)
        if len(values) > 1:
            axis.errorbar(mean, place, xerr=deviation, fmt="none", color=color, capsize=4)
            axis.scatter(values, [place] * len(values), s=14, color=color, alpha=0.4, linewidths=0)
        axis.scatter([mean], [place], s=42, color=color, zorder=3)
        axis.annotate(
            f"{mean:.{decimals(model.kind)}f}", (mean, place), xytext=(0, 7), textcoords="offset points",
            ha="center", fontsize="small", color=color,
        )  # fmt: skip
    baselines = next((found for model in models if (found := model.first("baselines"))), {})
    for number, (name, metrics) in enumerate(baselines.items()):
        if metrics.get(metric) is not None:
            style = _LINES[number % len(_LINES)]
            axis.axvline(metrics[metric], linestyle=style, color="#777777", label=BASELINES.get(name, name))
    axis.set_title(metric_title(metric))
    axis.margins(x=0.12)
    axis.set_ylim(-0.7, len(models) - 0.4)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_matrix(axis: Axes, counts: np.ndarray, labels: Sequence[str]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(labels)):
        for column in range(len(labels)):
            share, count = shares[row, column], counts[row, column]
            color = "white" if share > 0.55 else "#222222"
            text = f"{share:.2f}\n{_count(count)}" if count else ""
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize="small")
    names = [label if len(label) <= 16 else f"{label[:15]}…" for label in labels]
    axis.set_xticks(range(len(labels)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize="small")
    axis.set_yticks(range(len(labels)), names, fontsize="small")
    axis.set_xlabel("predicted")
    axis.set_ylabel("gold")
    axis.tick_params(length=0)


def _count(mean: float) -> str:
    """A mean over seeds: whole where it is, or large."""
    return f"{mean:,.0f}" if mean >= 10 or mean == int(mean) else f"{mean:.1f}"


def _evaluated(runs: Mapping[str, Rows]) -> dict[str, list[str]]:
    """Keys of metrics.jsonl by metric, for the metrics of `_CURVES` that were logged."""
    keys = sorted({key for rows in runs.values() for row in rows for key in row if _EVALUATED.match(key)})
    by_metric: dict[str, list[str]] = {}
    for key in keys:
        by_metric.setdefault(_EVALUATED.match(key)["metric"], []).append(key)  # type: ignore[index]
    return {metric: by_metric[metric] for metric in _CURVES if metric in by_metric}


def _split(key: str) -> str:
    return _EVALUATED.match(key)["split"]  # type: ignore[index]


def _shortened(name: str) -> str:
    return name if len(name) <= _LABEL_CHARACTERS else f"…{name[-_LABEL_CHARACTERS + 1 :]}"
