"""scripts/report.py: which records belong together, files, pictures, errors."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import Results, column, report, tables
from matplotlib.collections import PathCollection
from matplotlib.image import imread

from bertchen.errors import UserError
from bertchen.report.evaluations import Entry, group
from bertchen.report.task_pictures import draw_learning_curves, draw_models
from bertchen.report.task_report import write_report
from bertchen.tasks.results import append_result

ROOT = Path(__file__).resolve().parents[2]


# --- what belongs together ------------------------------------------------------------------------------------------


def entries(*records: dict[str, Any]) -> list[Entry]:
    base = {"task": "t", "kind": "classification", "split": "test", "model": "m", "seed": 1}
    base["metrics"] = {"accuracy": 0.5}
    return [Entry(base | record, Path()) for record in records]


def test_seeds_belong_together_and_settings_apart() -> None:
    config = {"optimizer": {"lr": 1e-5}, "save_folder": "a", "seed": 1}
    evaluations, notes = group(entries(
        {"seed": 1, "config": config},
        {"seed": 2, "config": config | {"save_folder": "b", "seed": 2, "callbacks": {"x": {}}}},
        {"seed": 1, "config": config | {"optimizer": {"lr": 2e-5}}},
    ))  # fmt: skip
    assert {one.label: len(one.by_seed) for one in evaluations} == {
        "m (optimizer.lr=1e-05)": 2, "m (optimizer.lr=2e-05)": 1,
    }  # fmt: skip
    assert not notes


def test_weights_of_one_name_that_differ_are_apart() -> None:
    evaluations, _ = group(entries(
        {"model_fingerprint": "aaaaaaaaaaaa"}, {"model_fingerprint": "bbbbbbbbbbbb"},
        {"model_fingerprint": "cccccccccccc", "random_weights": True},
        {"model_fingerprint": "dddddddddddd", "random_weights": True, "seed": 2},
    ))  # fmt: skip
    assert {one.label: len(one.by_seed) for one in evaluations} == {
        "m (weights aaaaaaaa)": 1, "m (weights bbbbbbbb)": 1, "m (random weights)": 2,
    }  # fmt: skip


def test_of_repeated_evaluations_the_newest_counts() -> None:
    evaluations, notes = group(entries({}, {"metrics": {"accuracy": 0.75}}, {"split": "train"}))
    assert [(one.split, one.values("accuracy")) for one in evaluations] == [("test", [0.75]), ("train", [0.5])]
    assert notes == ["1 repeated evaluations of a seed: the newest counts"]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A fine-tuning run's folder with metrics.jsonl."""
    folder = tmp_path / "runs" / "gnad10"
    folder.mkdir(parents=True)
    lines = [{"step": step, "loss/train/total": 2 / (step + 1)} for step in range(30)]
    lines += [{"step": step, "eval/dev/accuracy": 0.5 + step / 100, "eval/dev/f1/x": 0.1} for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_files_of_a_report(full: Results, run: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    made = report(full, f"out={out}", f"runs=[{run}]")
    paths = write_report(made, str(out))
    text = (out / "report.md").read_text(encoding="utf-8")
    assert paths[-1] == out / "report.md"
    assert sorted(out.rglob("*.*")) == sorted(paths)
    pictures = [path for path in paths if path.suffix == ".png"]
    assert {path.stem for path in pictures} == {
        "germeval17-test_synchronic-models", "germeval17-test_diachronic-models", "germeval24-test-models",
        "germeval17-test_synchronic-confusion", "germeval17-test_diachronic-confusion", "germeval24-test-confusion",
        "learning-curves",
    }  # fmt: skip
    for path in pictures:
        assert f"](pictures/{path.name})" in text
        assert imread(path)[..., :3].std() > 0.02
    for table in tables(made).values():
        with open(out / "tables" / f"{table.name}.csv", newline="", encoding="utf-8") as file:
            assert list(csv.reader(file)) == [list(map(str, row)) for row in (table.columns, *table.rows)]
    with open(out / "tables" / "figures.csv", newline="", encoding="utf-8") as file:
        figures = list(csv.DictReader(file))
    (one,) = [
        row for row in figures
        if row["split"] == "test" and row["metric"] == "accuracy" and row["model"] == "deepset/gbert-base"
    ]  # fmt: skip
    shown = column(tables(made)["germeval24-test-results"], "accuracy")[1]
    assert f"{float(one['mean']):.3f} ± {float(one['standard deviation']):.3f}" == shown
    assert {row["evaluated on"] for row in figures if row["split"] == "train"} == {"training set"}
    with open(out / "tables" / "paper-figures.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    human = [line for line in lines if line["row"] == "Human"]
    assert [(line["metric"], line["mean"], line["evaluated on"]) for line in human] == [
        ("f1", "89.5", "official test set"), ("exact_match", "66.4", "official test set"),
    ]  # fmt: skip


def test_points_of_the_picture_are_the_figures(full: Results) -> None:
    from bertchen.report.evaluations import read_entries
    from bertchen.report.task_tables import splits

    models = next(found for found in splits(group(read_entries([full.path]))[0]) if found[0].task == "germeval24")
    axis = draw_models(models).axes[0]
    points = [one for one in axis.collections if isinstance(one, PathCollection) and len(one.get_offsets()) == 1]
    drawn = sorted(float(one.get_offsets()[0][0]) for one in points)
    assert drawn == pytest.approx(sorted(np.mean(model.values("accuracy")) for model in models))


def test_learning_curves_show_what_was_logged(run: str) -> None:
    from bertchen.report.metrics import read_metrics

    figure = draw_learning_curves({"run": read_metrics(Path(run) / "metrics.jsonl")})
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == ["training loss", "accuracy (dev)"]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[10, 0.6], [20, 0.7], [30, 0.8]]
    assert draw_learning_curves({"run": [{"step": 1}]}) is None


def test_the_command_prints_and_writes(full: Results, tmp_path: Path) -> None:
    script = ROOT / "scripts" / "report.py"
    command = [sys.executable, str(script), str(full.path), f"out={tmp_path / 'r'}", "pictures=false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "## germeval24: test, held out" in done.stdout
    assert "| BERTchen" in done.stdout
    assert (tmp_path / "r" / "report.md").read_text(encoding="utf-8") == done.stdout.rpartition("\nwritten to ")[0] + ""
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no file with results is given"),
        (["none.jsonl"], "none.jsonl: can't be read"),
        (["results=[none.jsonl]", "out=''"], "name the folder to write"),
        (["--help-me"], "options are written key=value"),
    ],
)
def test_errors_of_the_command(arguments: list[str], message: str, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import report as script
    finally:
        sys.path.pop(0)
    with pytest.raises(UserError, match=message):
        script.main(arguments)


def test_a_record_that_lacks_something_is_named(results: Results) -> None:
    append_result(results.path, {"task": "t", "metrics": {}, "kind": "classification", "split": "test", "model": "m"})
    with pytest.raises(UserError, match="a record of t has no seed"):
        report(results)


def test_nothing_to_report(results: Results) -> None:
    results.path.write_text("")
    with pytest.raises(UserError, match="nothing to report"):
        report(results)
