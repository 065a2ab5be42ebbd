"""What a sweep plans, what it refuses before anything is started, and what it starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from task_files import classification, tagging

from bertchen.config import Config, load_config
from bertchen.config.schema_evaluate import EvaluateConfig
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import AGAIN_EXIT_CODE, Stop, UserError
from bertchen.report.sweep_table import sweep_tables
from bertchen.tasks.results import append_result
from bertchen.train import sweep as module
from bertchen.train.finetune_results import config_hash
from bertchen.train.finetune_tasks import as_overrides, find_task, task_names
from bertchen.train.sweep import Run, plan, sweep

Make = Callable[..., Config[EvaluateConfig]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A sweep over two tasks, words and names."""
    for name, task in (("words", classification), ("names", tagging)):
        yaml = OmegaConf.to_yaml(OmegaConf.from_dotlist(task(tmp_path / name)))
        (tmp_path / f"{name}.yaml").write_text(yaml)

    def configured(*overrides: str) -> Config[EvaluateConfig]:
        arguments = [
            "models=[owner/one,owner/two]", f"tasks=[{tmp_path / 'words.yaml'},{tmp_path / 'names.yaml'}]", "seeds=2",
            f"results={tmp_path / 'results.jsonl'}", f"save_folder={tmp_path / 'runs'}",
        ]  # fmt: skip
        return load_config(EvaluateConfig, [*arguments, *overrides], "usage")

    return configured


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were started; each succeeds and writes the records that it should."""
    started: list[Run] = []

    def start(run: Run, processes: int) -> int:
        started.append(run)
        cfg = run.config.value
        for split in run.missing:
            metrics = {"accuracy": 0.5, "f1": 0.5}
            append_result(
                cfg.results,
                {"task": cfg.name, "kind": cfg.task, "split": split, "model": cfg.model, "seed": cfg.seed,
                 "config_hash": run.hash, "metrics": metrics, "config": run.config.to_dict(), "baselines": {}},
            )  # fmt: skip
        return 0

    monkeypatch.setattr(module, "_start", start)
    return started


def refused(config: Config[EvaluateConfig]) -> str:
    with pytest.raises(UserError) as caught:
        plan(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_all_models_meet_all_tasks_before_the_next_seed(make: Make) -> None:
    runs = plan(make())
    wanted = [
        (seed, task, f"owner/{model}") for seed in (42, 43) for task in ("words", "names") for model in ("one", "two")
    ]
    assert [(run.config.value.seed, run.config.value.name, run.config.value.model) for run in runs] == wanted
    assert len({run.hash for run in runs}) == len({run.folder for run in runs}) == 8


@pytest.mark.parametrize("parts", [1, 3, *(pytest.param(parts, marks=pytest.mark.slow) for parts in (8, 10))])
def test_parts_make_the_whole(make: Make, parts: int) -> None:
    """Each run is in one part, and no part has more than one run more than another."""
    divided = [plan(make(f"part={number}/{parts}")) for number in range(1, parts + 1)]
    whole = [run.hash for run in plan(make())]
    assert sorted(run.hash for runs in divided for run in runs) == sorted(whole)
    assert max(map(len, divided)) - min(map(len, divided)) <= 1


def test_a_run_s_arguments_make_its_configuration(make: Make) -> None:
    """What main.py will read is what was checked, and its records have the hash that is looked for."""
    for run in plan(make("set={optimizer: {lr: 0.25}, max_duration: 7ba}", "seeds=[1]")):
        made = load_config(FinetuneConfig, run.arguments, "usage")
        assert made.value == run.config.value
        assert config_hash(made.to_dict()) == run.hash
        assert (made.value.optimizer.lr, made.value.max_duration, made.value.autoresume) == (0.25, "7ba", True)


def test_a_model_can_have_values_of_its_own(make: Make) -> None:
    config = make("models=[m,{model: m, random_weights: true, optimizer: {lr: 0.5}}]", "seeds=[1]")
    runs = [run.config.value for run in plan(config) if run.config.value.name == "words"]
    assert [(cfg.model, cfg.random_weights, cfg.optimizer.lr) for cfg in runs] == [("m", False, 5e-3), ("m", True, 0.5)]


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (("tasks=[germeval71]",), "did you mean germeval17?"),
        (("tasks=[]",), "tasks"),
        (("models=[]",), "at least one"),
        (("models=[{random_weights: true}]",), "model: …"),
        (("models=[owner/one,owner/one]",), "twice"),
        (("seeds=none",), "how many"),
        (("seeds=0",), "how many"),
        (("processes=0",), "at least 1"),
        (("part=0/2",), "as 1/4 to 4/4"),
        (("part=3/2",), "as 1/4 to 4/4"),
        (("part=half",), "as 1/4 to 4/4"),
        (("processes=3",), "global_train_batch_size=8"),
        (("set={seed: 3}",), "sweep's own"),
        (("set={max_duraton: 1ep}",), "did you mean max_duration?"),
        (("set={max_duration: long}",), "max_duration"),
        (("set={data: {folder: nowhere}}",), "nowhere/train.tsv"),
    ],
)
def test_refused_before_anything_is_started(make: Make, overrides: tuple[str, ...], fragment: str) -> None:
    assert fragment in refused(make(*overrides))


def test_a_run_that_was_stopped_stops_the_sweep(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't a failure: neither it nor those after it have failed."""
    codes = iter([1, AGAIN_EXIT_CODE])

    def start(run: Run, processes: int) -> int:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.write_text("error: stopped by SIGTERM; 3 steps are saved\n")
        return next(codes)

    monkeypatch.setattr(module, "_start", start)
    with pytest.raises(Stop) as caught:
        sweep(plan(make()), make(), print)
    assert caught.value.exit_code == AGAIN_EXIT_CODE
    assert re.fullmatch("2/8 words, owner/two, seed 42: stopped by SIGTERM; 3 steps are saved; .*", str(caught.value))


def test_missing_data_of_all_tasks_is_told_at_once(make: Make, tmp_path: Path) -> None:
    (tmp_path / "words" / "dev.jsonl").unlink()
    message = refused(make())
    assert "words: " in message
    assert "Without these: tasks=[names]." in message
    (tmp_path / "names" / "test.tsv").unlink()
    message = refused(make())
    assert "words/dev.jsonl" in message
    assert "names/test.tsv" in message


def test_nothing_is_run_twice(make: Make, starts: list[Run]) -> None:
    config, shown = make(), []
    runs = plan(config)
    assert sweep(runs[:3], config, shown.append) == []
    assert sweep(runs, config, shown.append) == []
    assert [run.hash for run in starts] == [run.hash for run in runs]
    assert sum("done before" in line for line in shown) == 3


def test_data_of_finished_tasks_is_not_needed_again(make: Make, starts: list[Run], tmp_path: Path) -> None:
    config = make()
    sweep(plan(config), config, lambda line: None)
    (tmp_path / "words" / "dev.jsonl").unlink()
    assert all(not run.missing for run in plan(make()))


@pytest.mark.parametrize("keep", [True, False])
def test_weights_of_finished_runs_go_unless_they_are_to_stay(make: Make, starts: list[Run], keep: bool) -> None:
    config = make("seeds=[1]", f"keep_weights={str(keep).lower()}")
    run = plan(config)[0]
    assert run.config.value.export is keep
    run.folder.mkdir(parents=True)
    for name in ("ep1-ba6-rank0.pt", "best_weights.pt", "metrics.jsonl", "config.yaml", "mine.pt"):
        (run.folder / name).touch()
    (run.folder / "latest-rank0.pt").symlink_to("ep1-ba6-rank0.pt")
    sweep([run], config, lambda line: None)
    left = {path.name for path in run.folder.iterdir()}
    gone = set() if keep else {"ep1-ba6-rank0.pt", "best_weights.pt", "latest-rank0.pt"}
    assert gone.isdisjoint(left)
    assert left | gone == {
        "ep1-ba6-rank0.pt",
        "best_weights.pt",
        "latest-rank0.pt",
        "metrics.jsonl",
        "config.yaml",
        "mine.pt",
    }


def test_a_failed_run_is_told_and_the_others_go_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config, shown = make("seeds=[1]"), []

    def start(run: Run, processes: int) -> int:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.write_text("a line\nerror: model=x: no such model\nanother\n")
        return 2

    monkeypatch.setattr(module, "_start", start)
    runs = plan(config)
    assert sweep(runs, config, shown.append) == runs
    assert sum("failed with exit code 2: error: model=x: no such model" in line for line in shown) == len(runs)


def test_the_tables_are_of_the_sweep_s_own_runs(make: Make, starts: list[Run]) -> None:
    config = make()
    sweep(plan(config), config, lambda line: None)
    runs = plan(make("seeds=[42]", "models=[owner/one]"))
    tables = sweep_tables(config.value.results, {run.hash for run in runs})
    assert "owner/one" in tables
    assert "owner/two" not in tables
    for task in ("words", "names"):
        for split in ("train", "dev", "test"):
            assert any(task in line and split in line for line in tables.splitlines() if line.startswith("#"))


def test_overrides_carry_any_value() -> None:
    values = {"a": {"b": 1.5, "c": None, "d": []}, "e": 'quotes " and # ä 😀: [x]', "f": {}, "g": ["x", 1], "h": True}
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist(as_overrides(values)))
    assert json.loads(json.dumps(parsed)) == values


def test_tasks_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert {"germanquad", "germeval17", "germeval24"} <= set(task_names())
    assert all(find_task(name) for name in task_names())
    (tmp_path / "mine.yaml").touch()
    assert find_task(str(tmp_path / "mine.yaml")) == str(tmp_path / "mine.yaml")
    assert find_task("mine") is find_task(str(tmp_path / "other.yaml")) is None
