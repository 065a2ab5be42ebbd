"""The paper's five tables with our figures beside the published ones, each marked with what it was measured on."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from bertchen.report.evaluations import TRAINING_MARK, TRAINING_NOTE, Evaluation, test_order
from bertchen.report.published import COLUMNS, PAPER_TABLES, PaperRow, PaperTable, Published
from bertchen.report.tables import NONE, Table
from bertchen.tasks.statistics import mean_std

_PUBLISHED_ON = {"train": f"training set {TRAINING_MARK}", "test": "official test set"}
# Of our figures: those on the test sets first, then the others, which only stand beside the paper's.
_HELD_OUT = "test set, held out"
_STANDINGS = (_HELD_OUT, f"training set {TRAINING_MARK}", f"training set {TRAINING_MARK}, the paper's protocol")

_HEAD = ("row", "figures of", "evaluated on")
_FIGURES_HEAD = (
    "table", "row", "figures of", "model", "task", "split", "evaluated on", "protocol", "metric", "mean",
    "standard deviation", "seeds", "note",
)  # fmt: skip


def paper_tables(evaluations: Sequence[Evaluation], rows: Mapping[str, Sequence[str]]) -> list[Table]:
    """All five, whether we have figures for them or not.

    Args:
        evaluations: ours.
        rows: names or patterns of models by `PaperRow.key`, in the place of its own.
    """
    return [_table(table, evaluations, rows) for table in PAPER_TABLES]


def paper_figures(evaluations: Sequence[Evaluation], rows: Mapping[str, Sequence[str]]) -> list[Sequence[object]]:
    """Every figure of the five tables on a line of its own, a header first, for CSV."""
    lines: list[Sequence[object]] = [_FIGURES_HEAD]
    for table in PAPER_TABLES:
        for row in table.rows:
            for published in row.published:
                evaluated_on = _PUBLISHED_ON[published.evaluated_on]
                for task, figures in published.figures.items():
                    for metric, figure in zip(COLUMNS[task][1], figures, strict=True):
                        about = table.number, published.name, published.source, published.name, task, "", evaluated_on
                        lines.append((*about, "", metric, float(figure), None, None, published.note))
        for label, name, models in _places(table, evaluations, rows):
            for one in models:
                for metric in COLUMNS[one.task][1]:
                    values = one.values(metric)
                    if values:
                        about = table.number, label, "ours", name, one.task, one.split, _standing(one), one.protocol
                        lines.append((*about, metric, *mean_std(values), len(values), ""))
    return lines


def belongs(name: str, patterns: Iterable[str]) -> bool:
    """Whether a model's name, or a part of its path, is like one of the patterns."""
    parts = [name.strip("/"), *name.strip("/").split("/")]
    return any(fnmatch.fnmatchcase(part, pattern.strip("/")) for pattern in patterns for part in parts)


def _table(table: PaperTable, evaluations: Sequence[Evaluation], rows: Mapping[str, Sequence[str]]) -> Table:
    columns = [*_HEAD, *(title for title, _ in COLUMNS.values())]
    built = Table(f"paper-table-{table.number}", f"Table {table.number}: {table.title}", columns)
    ours = _places(table, evaluations, rows)
    for row in table.rows:
        built.rows += [_published_cells(published) for published in row.published]
        for label, name, models in ours:
            if label == _label(row):
                built.rows += _our_cells(label, name, models)
    for label, name, models in ours:
        if not any(label == _label(row) for row in table.rows):
            built.rows += _our_cells(label, name, models)
    notes = dict.fromkeys(f"{one.name}: {one.note}" for row in table.rows for one in row.published if one.note)
    built.notes = [TRAINING_NOTE, *notes]
    if any(NONE not in _joined(models, "germeval17", _HELD_OUT) for _, _, models in ours):
        built.notes.append(f"GermEval 2017, ours on test sets: {_test_names(ours)}")
    if ours:
        built.notes.append("ours: mean ± sample standard deviation where there are several seeds")
    return built


def _label(row: PaperRow) -> str:
    return min((published.name for published in row.published), key=len)


def _places(
    table: PaperTable, evaluations: Sequence[Evaluation], rows: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, list[Evaluation]]]:
    """Row, model and evaluations of each of our models in a table."""
    shown = [one for one in evaluations if one.task in COLUMNS and one.split != "dev"]
    places = []
    for row in table.rows:
        places += [(_label(row), *model) for model in _models(shown, lambda one, row=row: _in_row(one, row, rows))]
    if table.others:
        taken = [row for other in PAPER_TABLES for row in other.rows]
        free = _models(shown, lambda one: not any(_in_row(one, row, rows) for row in taken))
        places += [(name, name, models) for name, models in free]
    return places


def _in_row(evaluation: Evaluation, row: PaperRow, rows: Mapping[str, Sequence[str]]) -> bool:
    # From random weights it isn't the model of the row, whatever its name.
    return not evaluation.random_weights and belongs(evaluation.name, rows.get(row.key, row.models))


def _models(
    evaluations: Sequence[Evaluation], wanted: Callable[[Evaluation], bool]
) -> list[tuple[str, list[Evaluation]]]:
    """The evaluations that are wanted, by the model's label."""
    found: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        if wanted(one):
            found.setdefault(one.label, []).append(one)
    return list(found.items())


def _standing(evaluation: Evaluation) -> str:
    if evaluation.protocol == "paper":
        return _STANDINGS[2]
    return _STANDINGS[1] if evaluation.on_training_set else _HELD_OUT


def _published_cells(published: Published) -> list[str]:
    mark = TRAINING_MARK if published.evaluated_on == "train" else ""
    figures = [" / ".join(published.figures[task]) + mark if task in published.figures else NONE for task in COLUMNS]
    return [published.name, published.source, _PUBLISHED_ON[published.evaluated_on], *figures]


def _our_cells(label: str, name: str, models: Sequence[Evaluation]) -> list[list[str]]:
    """A line for each standing that we have figures of, so that no cell mixes two."""
    lines = []
    for standing in _STANDINGS:
        cells = [_joined(models, task, standing) for task in COLUMNS]
        if any(cell != NONE for cell in cells):
            lines.append([label, f"ours: {name}" if name != label else "ours", standing, *cells])
    return lines


def _joined(models: Sequence[Evaluation], task: str, standing: str) -> str:
    """`95.1 ± 0.2 / 91.9 ± 0.3`; the test sets of a task one after the other."""
    found = sorted((one for one in models if one.task == task and _standing(one) == standing), key=test_order)
    cells = [" / ".join(_figure(one, metric) for metric in COLUMNS[task][1]) + one.mark for one in found]
    return "; ".join(cells) or NONE


def _figure(evaluation: Evaluation, metric: str) -> str:
    values = evaluation.values(metric)
    if not values:
        return NONE
    decimals = 1 if evaluation.kind == "question_answering" else 3
    mean, deviation = mean_std(values)
    return f"{mean:.{decimals}f}" + (f" ± {deviation:.{decimals}f}" if len(values) > 1 else "")


def _test_names(places: Iterable[tuple[str, str, list[Evaluation]]]) -> str:
    tests = [one for _, _, models in places for one in models if one.task == "germeval17" and not one.on_training_set]
    names = dict.fromkeys(re.sub(r"^test_?", "", one.split) or "test" for one in sorted(tests, key=test_order))
    return "; ".join(names)
