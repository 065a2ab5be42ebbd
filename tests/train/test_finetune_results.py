"""Which records belong to a configuration, and what stands in one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bertchen.config import Config, load_config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.tasks.results import append_result, read_predictions, read_results
from bertchen.train.finetune_results import (
    RunFacts,
    commit,
    config_hash,
    evaluated_splits,
    missing_splits,
    weights_time,
    write_result,
)

BASE = [
    "task=classification", "name=t", "model=m", "labels=[a,b]", "data.reader=table", "data.folder=x",
    "data.splits={train: a, dev: b, test_one: c, test_two: d}",
]  # fmt: skip


def configured(*overrides: str) -> Config[FinetuneConfig]:
    return load_config(FinetuneConfig, [*BASE, *overrides], "usage")


def hash_of(*overrides: str) -> str:
    return config_hash(configured(*overrides).to_dict())


@pytest.mark.parametrize(
    "override",
    ["save_folder=x", "results=y", "autoresume=true", "overwrite=true", "progress_bar=false", "export=false",
     "dry_run=true", "loggers={tensorboard: {}}", "callbacks={}", "console_log_interval=1ba"],
)  # fmt: skip
def test_where_and_how_a_run_is_shown_is_no_other_configuration(override: str) -> None:
    assert hash_of(override) == hash_of()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "model=n", "name=u", "data.folder=y", "labels=[b,a]", "optimizer.lr=1", "protocol=paper", "dropout=0",
     "max_duration=1ep", "random_weights=true", "encoding.max_length=9", "early_stopping.patience=1", "data.dev_size=3",
     "answers.n_best=2", "precision=fp32", "eval_interval=2ep"],
)  # fmt: skip
def test_whatever_changes_results_is_another_configuration(override: str) -> None:
    assert hash_of(override) != hash_of()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ["train", "dev", "test_one", "test_two"]),
        (("data.splits.dev=null", "data.splits.test_one=null"), ["train", "test_two"]),
        (("data.splits.dev=null", "data.dev_size=3", "data.test_size=3"), ["train", "dev", "test_one", "test_two"]),
        (
            ("data.splits.dev=null", "data.splits.test_one=null", "data.splits.test_two=null", "data.test_size=3"),
            ["train", "test"],
        ),
        (("protocol=paper",), ["train"]),
    ],
)
def test_splits_that_get_a_record(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert evaluated_splits(configured(*overrides).value) == expected


class TestRecords:
    """Written into a folder of their own."""

    @pytest.fixture
    def config(self, tmp_path: Path) -> Config[FinetuneConfig]:
        return configured(f"results={tmp_path / 'results.jsonl'}", f"model={tmp_path / 'model'}")

    def write(self, config: Config[FinetuneConfig], split: str) -> dict:
        facts = RunFacts(config.to_dict(), "f" * 16, 123, 4.5678)
        rows = [{"id": "1", "gold": "a", "predicted": "b"}]
        return write_result(config.value, facts, split, {"accuracy": 0.0}, {}, rows)

    def test_one_after_the_other_they_are_done(self, config: Config[FinetuneConfig]) -> None:
        hash_ = config_hash(config.to_dict())
        for missing in (["train", "dev", "test_one", "test_two"], ["dev", "test_one", "test_two"]):
            assert missing_splits(config.value, hash_) == missing
            self.write(config, missing[0])
        for split in ("test_two", "test_one"):
            self.write(config, split)
        assert missing_splits(config.value, hash_) == []
        assert missing_splits(config.value, "another") == evaluated_splits(config.value)

    def test_a_record_says_what_was_done(self, config: Config[FinetuneConfig]) -> None:
        record = self.write(config, "dev")
        (read,) = read_results(config.value.results)
        assert read == json.loads(json.dumps(record))
        assert read["config"] == config.to_dict()
        folder = Path(config.value.results).parent
        assert read_predictions(folder / read["predictions"])[0]["id"] == "1"
        assert not os.path.isabs(read["predictions"])
        assert (read["seconds"], read["examples"], read["parameters"]) == (4.568, 1, 123)
        self.write(config, "dev")
        assert len(list((folder / "predictions").iterdir())) == 2, "nothing is overwritten"

    def test_a_model_written_anew_makes_them_void(self, config: Config[FinetuneConfig]) -> None:
        hash_ = config_hash(config.to_dict())
        self.write(config, "dev")
        weights = Path(config.value.model) / "model.safetensors"
        weights.parent.mkdir()
        weights.write_bytes(b"")
        os.utime(weights, (1e9, 1e9))
        assert "dev" not in missing_splits(config.value, hash_)
        os.utime(weights, (4e9, 4e9))
        assert "dev" in missing_splits(config.value, hash_)

    def test_records_without_a_time_count_if_the_models_time_is_not_known(self, config: Config[FinetuneConfig]) -> None:
        append_result(config.value.results, {"task": "t", "metrics": {}, "split": "dev", "config_hash": "h"})
        assert "dev" not in missing_splits(config.value, "h")


def test_time_of_a_model_is_that_of_what_would_be_loaded(tmp_path: Path) -> None:
    for name, time in (("ep0-ba1-rank0.pt", 1e9), ("hf/model.safetensors", 3e9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))

    def time_of(*overrides: str) -> float:
        return weights_time(configured(*overrides).value)

    assert time_of(f"model={tmp_path}") == 3e9
    (tmp_path / "latest-rank0.pt").symlink_to("ep0-ba1-rank0.pt")
    assert time_of(f"model={tmp_path}") == time_of(f"model={tmp_path}/latest-rank0.pt") == 1e9
    assert time_of("model=deepset/gbert-base") == 0
    assert time_of(f"model={tmp_path}", "random_weights=true") == 0


def test_commit_is_gits_own_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert commit() in (head.stdout.strip(), f"{head.stdout.strip()}-dirty")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
