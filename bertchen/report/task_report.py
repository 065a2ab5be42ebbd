"""The report of fine-tuning: report.md with its tables as CSV and its pictures, made anew from results.jsonl."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.schema_report import ReportConfig
from bertchen.errors import UserError, disk_full, is_disk_full
from bertchen.report.evaluations import TRAINING_NOTE, Entry, Evaluation, group, read_entries
from bertchen.report.metrics import Rows as Metrics
from bertchen.report.metrics import read_metrics
from bertchen.report.paper_tables import paper_figures, paper_tables
from bertchen.report.published import COLUMNS, PAPER_TABLES
from bertchen.report.tables import Table, as_csv
from bertchen.report.task_tables import classes_table, file_name, results_table, splits, tests_table, title
from bertchen.tasks.results import Rows, read_predictions
from bertchen.tasks.statistics import mean_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT, TABLES, PICTURES = "report.md", "tables", "pictures"
_FIGURES_HEAD = (
    "task", "split", "evaluated on", "protocol", "model", "metric", "mean", "standard deviation", "seeds", "examples",
)  # fmt: skip


@dataclass
class Section:
    """A part of the report.

    Attributes:
        title: its heading, or that of its first table.
        tables: in order.
        pictures: the name of each, without ending, and what draws it.
        files: further tables, which are written as CSV alone.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    files: list[Table] = field(default_factory=list)


@dataclass
class Report:
    """All of it, before anything is written; `figures`: every single figure, by the name of its CSV file."""

    sections: list[Section]
    figures: dict[str, list[Sequence[object]]]
    notes: list[str]

    def markdown(self, with_pictures: bool = True) -> str:
        """The whole text; pictures are those of the folder `pictures/` beside it."""
        blocks = ["# Fine-tuning: results", TRAINING_NOTE]
        if self.notes:
            blocks.append("\n".join(f"- {note}" for note in self.notes))
        for section in self.sections:
            if not any(table.title == section.title for table in section.tables):
                blocks.append(f"## {section.title}")
            blocks += [table.markdown(2 if table.title == section.title else 3) for table in section.tables]
            if with_pictures:
                blocks += [f"![{name}]({PICTURES}/{name}.png)" for name in section.pictures]
        return "\n\n".join(blocks) + "\n"


def make_report(config: Config[ReportConfig]) -> Report:
    """Reads results, predictions and runs.

    Raises:
        UserError: nothing to report, an unreadable file, a task or a row of a table that isn't known.
    """
    settings = config.value
    _check_rows(config)
    entries = _wanted(config, read_entries(settings.results))
    evaluations, notes = group(entries)
    runs = {name: _run_metrics(name) for name in settings.runs}
    sections = []
    if any(one.task in COLUMNS for one in evaluations):
        sections.append(Section("The paper's tables", paper_tables(evaluations, settings.rows)))
    for models in splits(evaluations):
        sections.append(_split_section(models, evaluations, settings.pictures))
    if runs and settings.pictures:
        sections.append(_curves_section(runs))
    figures = {"figures": _all_figures(evaluations)} if evaluations else {}
    if any(one.task in COLUMNS for one in evaluations):
        figures["paper-figures"] = paper_figures(evaluations, settings.rows)
    return Report(sections, figures, notes)


def write_report(report: Report, out: str) -> list[Path]:
    """Writes report.md, a CSV a table and a PNG a picture, each whole or not at all; the paths.

    Raises:
        UserError: they can't be written.
    """
    folder = Path(out).expanduser()
    writers: dict[Path, Callable[[Path], Any]] = {}
    for section in report.sections:
        for table in (*section.tables, *section.files):
            writers[folder / TABLES / f"{table.name}.csv"] = _text(table.csv())
        for name, draw in section.pictures.items():
            writers[folder / PICTURES / f"{name}.png"] = _png(draw)
    for name, lines in report.figures.items():
        writers[folder / TABLES / f"{name}.csv"] = _text(as_csv(lines))
    writers[folder / REPORT] = _text(report.markdown())
    for path, write in writers.items():
        _write(path, write)
    return list(writers)


def _check_rows(config: Config[ReportConfig]) -> None:
    known = [row.key for table in PAPER_TABLES for row in table.rows]
    for key in config.value.rows:
        if key not in known:
            config.fail(f"rows.{key}", f"no row of the paper's tables; {nearest(key, known)}", config.value.rows[key])


def _wanted(config: Config[ReportConfig], entries: list[Entry]) -> list[Entry]:
    there = sorted({entry.record["task"] for entry in entries})
    for task in config.value.tasks:
        if task not in there:
            config.fail("tasks", f"{task} has no results; {nearest(task, there)}")
    wanted = [entry for entry in entries if not config.value.tasks or entry.record["task"] in config.value.tasks]
    if not wanted and not config.value.runs:
        raise UserError(f"no results in {', '.join(config.value.results) or 'results=[]'}: there is nothing to report")
    return wanted


def _run_metrics(name: str) -> Metrics:
    path = Path(name)
    return read_metrics(path / "metrics.jsonl" if path.is_dir() else path)


def _split_section(models: list[Evaluation], evaluations: Sequence[Evaluation], pictures: bool) -> Section:
    first = models[0]
    tables = [results_table(models, evaluations), classes_table(models), tests_table(models)]
    section = Section(title(first), [table for table in tables if table is not None])
    if first.on_training_set or not first.split.startswith("test"):
        section.tables = section.tables[:1]  # classes and tests say nothing there
        return section
    if pictures:
        from bertchen.report.task_pictures import draw_models

        section.pictures[f"{file_name(first)}-models"] = lambda: draw_models(models)
        _add_confusions(section, models)
    return section


def _add_confusions(section: Section, models: list[Evaluation]) -> None:
    from bertchen.report.task_pictures import confusion_counts, draw_confusions, fits

    labels = [key.partition("/")[2] for key in _metrics_of(models) if key.startswith("support/")]
    if models[0].kind != "classification" or not fits(labels):
        return
    rows = {model.label: found for model in models if (found := _predictions(model))}
    if not rows:
        return
    name = f"{file_name(models[0])}-confusion"
    section.pictures[name] = lambda: draw_confusions(models, labels, rows)
    table = Table(name, "Confusion, mean over seeds", ["model", "gold", *labels])
    for label, seeds in rows.items():
        counts = confusion_counts(seeds, labels)
        for gold, line in zip(labels, counts, strict=True):
            table.rows.append([label, gold, *(f"{count:.4g}" for count in line)])
    section.files.append(table)


def _metrics_of(models: Sequence[Evaluation]) -> Mapping[str, float]:
    return next(iter(models[0].by_seed.values())).record["metrics"]


def _predictions(model: Evaluation) -> list[Rows]:
    """Of each seed that has its file; the table of tests says where one is missing."""
    paths = [entry.predictions for entry in model.by_seed.values()]
    return [read_predictions(path) for path in paths if path is not None and path.is_file()]


def _curves_section(runs: Mapping[str, Metrics]) -> Section:
    from bertchen.report.task_pictures import draw_learning_curves

    figure = draw_learning_curves(runs)
    if figure is None:
        raise UserError(f"{', '.join(runs)}: nothing was logged that could be drawn")
    return Section("Learning curves", pictures={"learning-curves": lambda: figure})


def _all_figures(evaluations: Sequence[Evaluation]) -> list[Sequence[object]]:
    """Every metric of every evaluation on a line of its own."""
    lines: list[Sequence[object]] = [_FIGURES_HEAD]
    for one in evaluations:
        on = "training set" if one.on_training_set else "held out"
        for metric in dict.fromkeys(key for entry in one.by_seed.values() for key in entry.record["metrics"]):
            values = one.values(metric)
            if values:
                about = one.task, one.split, on, one.protocol, one.label, metric
                lines.append((*about, *mean_std(values), len(values), one.first("examples")))
        for name, metrics in (one.first("baselines") or {}).items():
            about = one.task, one.split, on, one.protocol, f"baseline: {name}"
            lines += [(*about, metric, value, None, None, one.first("examples")) for metric, value in metrics.items()]
    head, *others = lines
    return [head, *dict.fromkeys(others)]


def _text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content, encoding="utf-8")


def _png(draw: Callable[[], Figure]) -> Callable[[Path], Any]:
    return lambda path: draw().savefig(path, dpi=130, format="png")


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(error, path) from error
        raise UserError(f"{path} can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
