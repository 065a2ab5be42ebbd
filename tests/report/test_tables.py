"""Tables of the report: what stands in which cell, marks of training-set figures, tests between models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import LABELS, Results, column, report, tables

from bertchen.errors import UserError
from bertchen.report.evaluations import TRAINING_MARK
from bertchen.report.paper_tables import belongs
from bertchen.report.published import COLUMNS, PAPER_TABLES
from bertchen.report.tables import Table, as_csv, spread
from bertchen.report.task_pictures import confusion_counts
from bertchen.tasks.examples import Answer, Origin, SpanExample
from bertchen.tasks.metrics import classification_metrics, span_metrics, tagging_metrics

ROOT = Path(__file__).resolve().parents[2]


# --- tables as such -------------------------------------------------------------------------------------------------


def test_markdown_and_csv() -> None:
    assert Table("t", "A title", ["a"], notes=["why"]).markdown(2) == "## A title\n\n- why"
    table = Table("t", "A title", ["name", "x"], [["a|b", "1.0"], ["long name", "–"]], ["a note"])
    assert table.markdown().splitlines() == [
        "### A title", "",
        "| name      |   x |", "| --------- | --: |", "| a\\|b      | 1.0 |", "| long name |   – |", "",
        "- a note",
    ]  # fmt: skip
    assert table.csv() == "name,x\na|b,1.0\nlong name,–\n"
    assert as_csv([["a", 0.1 + 0.2, None, float("nan"), 'x,"y"']]) == 'a,0.30000000000000004,,,"x,""y"""\n'


@pytest.mark.parametrize(
    ("values", "shown"),
    [([], "–"), ([0.5], "0.500"), ([0.4, 0.6], "0.500 ± 0.141"), ([float("nan"), 0.25], "0.250")],
)
def test_spread(values: list[float], shown: str) -> None:
    assert spread(values, 3) == shown


# --- the paper's tables ---------------------------------------------------------------------------------------------


def published() -> Iterator[tuple[int, Any]]:
    for table in PAPER_TABLES:
        for row in table.rows:
            for one in row.published:
                yield table.number, one


def test_published_figures_are_those_of_the_paper() -> None:
    facts = ROOT.parent / "shared" / "PAPER.md"
    if not facts.exists():
        pytest.skip(f"needs {facts}")
    text = facts.read_text(encoding="utf-8")
    text = text[text.index("## The paper's tables") : text.index("## Speed")]
    for _, one in published():
        squad = " / ".join(one.figures["germanquad"])
        others = [one.figures[task][0] for task in ("germeval17", "germeval24") if task in one.figures]
        assert ", ".join([squad, *others]) in text, one.name


def test_an_exact_match_never_exceeds_f1() -> None:
    for number, one in published():
        f1, exact = map(float, one.figures["germanquad"])
        assert exact <= f1, (number, one.name)


def test_every_figure_of_a_model_of_the_paper_is_marked_as_a_training_figure() -> None:
    on_test = {one.name for _, one in published() if one.evaluated_on == "test"}
    assert on_test == {
        "Human", "GBERT", "GBERT, same hyperparameters", "GottBERT", "GELECTRA base", "GELECTRA large",
    }  # fmt: skip
    assert [number for number, one in published() if one.figures["germanquad"] == ("95.1", "91.9")] == [1, 2, 3, 4, 5]


def test_no_column_mixes_training_and_held_out_figures_without_a_mark(made: dict[str, Table]) -> None:
    """Every cell with a figure in a row about the training set bears the mark, and none in another row does."""
    found = made
    for number in range(1, 6):
        table = found[f"paper-table-{number}"]
        titles = [title for title, _ in COLUMNS.values()]
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            on_training_set = "training set" in cells["evaluated on"]
            for cell in (cells[title] for title in titles if cells[title] != "–"):
                assert cell.endswith(TRAINING_MARK) == on_training_set, row
        assert any(TRAINING_MARK in note for note in table.notes)
    for name, table in found.items():
        if name.startswith("germeval"):
            for title, *cells in zip(table.columns, *table.rows, strict=True):
                figures = [cell for cell in cells if "0." in cell]
                marked = [cell.endswith(TRAINING_MARK) for cell in figures]
                guessing = sum("majority" in row[0] or "random by" in row[0] for row in table.rows)
                if TRAINING_MARK in title:
                    assert sum(marked) >= len(figures) - guessing
                elif title != "p":
                    assert not any(marked), (name, title)


def test_our_models_stand_beside_their_rows(made: dict[str, Table]) -> None:
    found = made
    models = found["paper-table-5"]
    rows = [row for row in models.rows if row[0] == "BERTchen"]
    assert [row[1:3] for row in rows] == [
        ["paper", "training set †"],
        ["ours: runs/length_512", "test set, held out"],
        ["ours: runs/length_512", "training set †"],
        ["ours: runs/length_512", "training set †, the paper's protocol"],
    ]
    assert rows[0][3:] == ["95.1 / 91.9†", "0.962†", "0.908†"]
    assert rows[1][4].count(";") == 1  # both test sets
    assert any("synchronic; diachronic" in note for note in models.notes)
    assert rows[2][5] == "–"
    assert rows[3][5].endswith("†")
    random_rows = [row for row in models.rows if "random weights" in row[0]]
    assert [row[2] for row in random_rows] == ["test set, held out"]
    names = [row[0] for row in models.rows]
    assert names.index("GottBERT") > max(place for place, name in enumerate(names) if name.startswith("GBERT"))
    assert any(row[1] == "ours: deepset/gbert-base" for row in models.rows if row[0] == "GBERT")
    assert sum(row[1].startswith("ours") for row in found["paper-table-1"].rows) == 3


def test_rows_can_be_given(full: Results) -> None:
    made = report(full, "rows.hybrid=[deepset/gbert-base]", "tasks=[germeval24]")
    hybrid = [row for row in tables(made)["paper-table-3"].rows if row[0] == "Hybrid"]
    assert [row[1] for row in hybrid] == ["paper", "ours: deepset/gbert-base"]
    with pytest.raises(UserError, match=r"rows\.hybrit=.*did you mean hybrid\?"):
        report(full, "rows.hybrit=[x]")
    with pytest.raises(UserError, match=r"germeval18 has no results; did you mean germeval17\?"):
        report(full, "tasks=[germeval18]")


@pytest.mark.parametrize(
    ("name", "pattern", "does"),
    [
        ("runs/hybrid/latest-rank0.pt", "hybrid", True),
        ("runs/hybrid_mask", "hybrid", False),
        ("/a/runs/length_64/hf/", "length_64", True),
        ("uklfr/gottbert-base", "*/gottbert*base*", True),
        ("TUM/GottBERT_base_best", "*/gottbert*base*", False),
        ("deepset/gbert-base", "deepset/gbert-base", True),
        ("deepset/gbert-large", "gbert-base", False),
    ],
)
def test_which_row_a_model_belongs_to(name: str, pattern: str, does: bool) -> None:
    assert belongs(name, [pattern]) == does


# --- tables of tasks ------------------------------------------------------------------------------------------------


def test_results_have_means_spread_baselines_and_the_training_figure(full: Results, made: dict[str, Table]) -> None:
    table = made["germeval17-test_synchronic-results"]
    records = [json.loads(line) for line in full.path.read_text(encoding="utf-8").splitlines()]
    ours = [
        one["metrics"] for one in records
        if one["task"] == "germeval17" and one["split"] == "test_synchronic" and one["model"] == "runs/length_512"
    ]  # fmt: skip
    assert column(table, "model")[:2] == ["runs/length_512", "deepset/gbert-base"]  # the better one first
    for title, metric in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):
        values = [one[metric] for one in ours]
        assert column(table, title)[0] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert column(table, "seeds")[:2] == ["3", "3"]
    assert column(table, "parameters")[0] == "137.0 M"
    assert [cell.endswith("†") for cell in column(table, "accuracy, training set †")] == [True, True, False, False]
    majority, guessing = table.rows[2:]
    baselines = records[0]["baselines"]
    assert majority[:4] == ["majority class", "–", "–", f"{baselines['majority']['accuracy']:.3f}"]
    assert guessing[4] == f"{baselines['random']['macro_f1']:.3f}"
    assert "120 examples" in table.notes


def test_tests_between_models(made: dict[str, Table]) -> None:
    table = made["germeval24-test-tests"]
    assert len(table.rows) == 2 * 3  # accuracy and macro F1 of three pairs
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert (first["first"], first["second"]) == ("runs/length_512", "deepset/gbert-base")
    assert (first["seeds"], first["examples"]) == ("3", "120")
    results = made["germeval24-test-results"]
    means = [float(cell.split()[0]) for cell in column(results, "accuracy")[:3]]
    assert float(first["difference"]) == pytest.approx(means[0] - means[1], abs=0.0011)
    against_random = [row for row in table.rows if "random weights" in row[1]]
    assert all(row[5] == "< 0.001" or float(row[5]) < 0.05 for row in against_random)
    assert not any(name.endswith("-tests") and "train" in name for name in made)


def test_missing_predictions_are_said(full: Results, tmp_path: Path) -> None:
    shutil.copy(full.path, tmp_path)
    table = tables(report(Results(tmp_path), "tasks=[germeval24]"))["germeval24-test-tests"]
    assert not table.rows
    assert any("can't be read" in note for note in table.notes)


def test_models_without_a_common_seed_or_other_examples_are_not_compared(results: Results) -> None:
    results.add("germeval24", "test", "a", 1, 0.9)
    results.add("germeval24", "test", "b", 2, 0.9)
    rows = [{"id": f"x{place}", "gold": "0-Kein", "predicted": "0-Kein"} for place in range(120)]
    metrics = classification_metrics(["0-Kein"], ["0-Kein"], LABELS)
    results.record("classification", "germeval24", "test", "c", 1, metrics, rows)
    notes = tables(report(results))["germeval24-test-tests"].notes
    assert "not compared: a and c don't have the same examples" in notes or (
        "not compared: c and a don't have the same examples" in notes
    )
    assert sum("no seed in common" in note for note in notes) == 2


def test_classes_and_confusion(made: dict[str, Table]) -> None:
    found = made
    classes = found["germeval24-test-classes"]
    assert column(classes, "class") == LABELS
    assert sum(int(cell) for cell in column(classes, "examples")) == 120
    confusion = found["germeval24-test-confusion"]
    assert len(confusion.rows) == 3 * 5
    assert sum(float(cell) for row in confusion.rows[:5] for cell in row[2:]) == pytest.approx(120, abs=0.01)


def test_mean_confusion_over_seeds() -> None:
    seeds = [
        [{"gold": "a", "predicted": "b"}, {"gold": "b", "predicted": "b"}],
        [{"gold": "a", "predicted": "a"}, {"gold": "b", "predicted": "b"}],
    ]
    assert confusion_counts(seeds, ["a", "b"]).tolist() == [[0.5, 0.5], [0, 1]]


def test_tagging_and_questions(results: Results) -> None:
    gold = [(("B-PER", "O"), ("O", "B-LOC")), (("B-ORG", "I-ORG"), ("O", "O"))]
    found = [(("B-PER", "O"), ("O", "O")), (("B-ORG", "O"), ("O", "O"))]
    questions = [SpanExample(str(i), "?", "", (Answer("ein Haus", 0),), Origin("f", 1)) for i in range(4)]
    answers = {"0": "ein Haus", "1": "Haus", "2": "", "3": "das Haus"}
    for model in ("a", "b"):
        rows = [{"id": i, "gold": g, "predicted": f} for i, (g, f) in enumerate(zip(gold, found, strict=True))]
        results.record("tagging", "germeval14", "test", model, 1, tagging_metrics(gold, found), rows)
        rows = [{"id": i, "gold": ["ein Haus"], "predicted": answers[i]} for i in answers]
        metrics = span_metrics(questions, answers)
        results.record("question_answering", "germanquad", "test", model, 1, metrics, rows)
    found_tables = tables(report(results))
    entities, answered = found_tables["germeval14-test-results"], found_tables["germanquad-test-results"]
    assert column(entities, "F1")[0] == "0.400"  # 1 of 2 found, 3 gold
    assert column(entities, "outer F1")[0] == "0.500"
    assert column(found_tables["germeval14-test-classes"], "type") == ["LOC", "ORG", "PER"]
    assert column(answered, "EM")[0] == "25.0"
    assert column(answered, "EM, German")[0] == "75.0"
    assert all(float(row[3]) == 0 for row in found_tables["germanquad-test-tests"].rows)
    cells = [row for row in found_tables["paper-table-5"].rows if row[1] == "ours"]
    assert [cell[3] for cell in cells] == ["54.2 / 25.0"] * 2
