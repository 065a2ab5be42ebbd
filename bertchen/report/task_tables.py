"""Tables of a task: every model on a split with what guessing gives, each class, and tests between models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, groupby

import numpy as np
import numpy.typing as npt

from bertchen.errors import UserError
from bertchen.report.evaluations import TRAINING_MARK, TRAINING_NOTE, Evaluation, standing
from bertchen.report.tables import NONE, Table, p_value, spread
from bertchen.tasks.metrics import PRIMARY, SCORES, SHOWN, example_scores
from bertchen.tasks.results import Rows, read_predictions
from bertchen.tasks.statistics import PairedTest, holm, mean_std, paired_test

METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "f1": "F1",
    "exact_match": "EM",
    "f1_german": "F1, German",
    "exact_match_german": "EM, German",
    "outer/f1": "outer F1",
    "inner/f1": "inner F1",
}
BASELINES = {"majority": "majority class", "random": "random by training frequency"}
_TESTS_HEAD = (
    "first", "second", "metric", "difference", "95 % interval", "p", "p (Holm)", "p, examples", "seeds", "examples",
)  # fmt: skip
_GERMAN_NOTE = "German: German articles and all punctuation left out, as in MLQA's official script; else as in SQuAD"


def splits(evaluations: Iterable[Evaluation]) -> Iterator[list[Evaluation]]:
    """The evaluations of each task, split and protocol in turn, best model first."""
    for _, alike in groupby(evaluations, key=lambda one: (one.task, one.split, one.protocol)):
        models = list(alike)
        primary = PRIMARY[models[0].kind]
        yield sorted(models, key=lambda one: (-_mean(one.values(primary)), one.label))


def file_name(evaluation: Evaluation) -> str:
    """For the files about a split."""
    return f"{evaluation.task}-{'paper-protocol' if evaluation.protocol == 'paper' else evaluation.split}"


def title(evaluation: Evaluation) -> str:
    """Task and what it was evaluated on."""
    return f"{evaluation.task}: {standing(evaluation.split, evaluation.protocol)}"


def decimals(kind: str) -> int:
    """Of shares and of percent."""
    return 1 if kind == "question_answering" else 3


def metric_title(metric: str) -> str:
    return METRIC_TITLES.get(metric, metric.replace("_", " "))


def results_table(models: Sequence[Evaluation], everything: Sequence[Evaluation]) -> Table:
    """Each model's metrics on a split, mean and standard deviation over seeds; with the training-set figure, marked.

    Args:
        models: evaluations of one split.
        everything: all evaluations, those on the training set among them.
    """
    first = models[0]
    kind, places, primary = first.kind, decimals(first.kind), PRIMARY[first.kind]
    shown = [metric for metric in SHOWN[kind] if any(model.values(metric) for model in models)]
    beside = {} if first.on_training_set else _on_training_set(first.task, everything)
    table = Table(
        f"{file_name(first)}-results",
        title(first),
        ["model", "seeds", "parameters", *(metric_title(metric) + first.mark for metric in shown)],
    )
    if beside:
        table.columns = [*table.columns, f"{metric_title(primary)}, training set {TRAINING_MARK}"]
    for model in models:
        row = [model.label, str(len(model.by_seed)), _millions(model.first("parameters"))]
        row += [spread(model.values(metric), places, model.mark) for metric in shown]
        if beside:
            row.append(spread(beside.get(model.experiment, []), places, TRAINING_MARK))
        table.rows.append(row)
    for name, metrics in _baselines(models).items():
        row = [BASELINES.get(name, name), NONE, NONE]
        row += [spread([metrics[metric]] if metric in metrics else [], places) for metric in shown]
        table.rows.append(row + ([NONE] if beside else []))
    table.notes = _results_notes(models, bool(beside))
    return table


def classes_table(models: Sequence[Evaluation]) -> Table | None:
    """F1 of each class or entity type, of each model; None where a task has none."""
    first = models[0]
    prefix = "support/"
    keys = (key for model in models for entry in model.by_seed.values() for key in entry.record["metrics"])
    names = list(dict.fromkeys(key[len(prefix) :] for key in keys if key.startswith(prefix)))
    if not names:
        return None
    what = "class" if first.kind == "classification" else "type"
    table = Table(
        f"{file_name(first)}-classes",
        f"F1 of each {what}",
        [what, "examples" if what == "class" else "entities", *(model.label + first.mark for model in models)],
    )
    for name in names:
        support = next((model.values(f"support/{name}") for model in models if model.values(f"support/{name}")), [0])
        row = [name, f"{support[0]:,.0f}"]
        table.rows.append(row + [spread(model.values(f"f1/{name}"), 3, model.mark) for model in models])
    table.notes = [TRAINING_NOTE] if first.on_training_set else []
    return table


def tests_table(models: Sequence[Evaluation]) -> Table | None:
    """Paired tests of all pairs of models on a held-out split; None where there is nothing to compare."""
    first = models[0]
    if first.on_training_set or len(models) < 2:
        return None
    table = Table(
        f"{file_name(first)}-tests",
        "Differences between models",
        _TESTS_HEAD,
    )
    problems: list[str] = []
    rows = _all_rows(models, problems)
    places = decimals(first.kind)
    for metric in SCORES[first.kind]:
        scores = {place: _scores(first.kind, metric, by_seed) for place, by_seed in rows.items()}
        tests = _tests(models, scores, rows, problems)
        corrected = holm([test.p_value for _, _, test in tests])
        for (one, two, test), p in zip(tests, corrected, strict=True):
            table.rows.append([
                one, two, metric_title(metric), f"{test.difference:+.{places}f}",
                f"{test.low:+.{places}f} to {test.high:+.{places}f}", p_value(test.p_value), p_value(p),
                p_value(test.p_examples), str(test.seeds), f"{test.examples:,}",
            ])  # fmt: skip
    if not table.rows and not problems:
        return None
    table.notes = [
        "p and interval: for new examples and, with two seeds or more, for models newly fine-tuned with other seeds",
        "p (Holm): corrected for all comparisons of the metric here; p, examples: these very models on new examples",
        *dict.fromkeys(problems),
    ]
    return table


def _mean(values: Sequence[float]) -> float:
    return mean_std(values)[0] if values else float("-inf")


def _millions(parameters: int | None) -> str:
    return f"{parameters / 1e6:,.1f} M" if parameters else NONE


def _on_training_set(task: str, everything: Sequence[Evaluation]) -> dict[str, list[float]]:
    """The primary metric on the training set, by experiment; of runs under the held-out protocol."""
    return {
        one.experiment: one.values(PRIMARY[one.kind])
        for one in everything
        if one.task == task and one.split == "train" and one.protocol == "held_out"
    }


def _baselines(models: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    found = next((baselines for model in models if (baselines := model.first("baselines"))), {})
    return {name: metrics for name, metrics in found.items() if metrics}


def _results_notes(models: Sequence[Evaluation], beside: bool) -> list[str]:
    first = models[0]
    examples = {int(entry.record["examples"]) for model in models for entry in model.by_seed.values()
                if entry.record.get("examples")}  # fmt: skip
    notes = [f"{' or '.join(f'{count:,}' for count in sorted(examples))} examples"] if examples else []
    if len(examples) > 1:
        notes.append("the models were not evaluated on equally many examples: don't compare them")
    if any(len(model.by_seed) > 1 for model in models):
        notes.append("mean ± sample standard deviation over seeds")
    if first.kind == "question_answering":
        notes.append(_GERMAN_NOTE)
    if first.split == "dev":
        notes.append("settings and checkpoints may have been chosen by these figures: they flatter what was chosen")
    return [*notes, TRAINING_NOTE] if beside or first.on_training_set else notes


def _all_rows(models: Sequence[Evaluation], problems: list[str]) -> dict[int, dict[int, Rows]]:
    """The predictions of each model (by its place) and seed, sorted by id; files that can't be read are noted."""
    found: dict[int, dict[int, Rows]] = {}
    for place, model in enumerate(models):
        found[place] = {}
        for seed, entry in model.by_seed.items():
            if entry.predictions is None:
                problems.append(f"{model.label}: no predictions were recorded")
                continue
            try:
                found[place][seed] = sorted(read_predictions(entry.predictions), key=lambda row: str(row["id"]))
            except UserError as error:
                problems.append(f"not compared: {error}")
    return found


def _scores(kind: str, metric: str, by_seed: dict[int, Rows]) -> dict[int, npt.NDArray[np.float64]]:
    return {
        seed: example_scores(kind, metric, [row["gold"] for row in rows], [row["predicted"] for row in rows])  # type: ignore[arg-type]
        for seed, rows in by_seed.items()
        if rows
    }


def _tests(
    models: Sequence[Evaluation],
    scores: dict[int, dict[int, npt.NDArray[np.float64]]],
    rows: dict[int, dict[int, Rows]],
    problems: list[str],
) -> list[tuple[str, str, PairedTest]]:
    tests = []
    for one, two in combinations(range(len(models)), 2):
        seeds = sorted(scores[one].keys() & scores[two].keys())
        names = f"{models[one].label} and {models[two].label}"
        ids = {tuple(row["id"] for row in rows[place][seed]) for place in (one, two) for seed in seeds}
        if not seeds:
            if scores[one] and scores[two]:
                problems.append(f"not compared: {names} have no seed in common")
        elif len(ids) > 1 or len(next(iter(ids))) < 2:
            problems.append(f"not compared: {names} don't have the same examples")
        else:
            first, second = (np.stack([scores[place][seed] for seed in seeds]) for place in (one, two))
            tests.append((models[one].label, models[two].label, paired_test(first, second)))
    return tests
