"""The jobs that scripts/slurm/paper_tables.sh submits: what each row of the paper's tables is made from."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_paper_yamls import DATA, HYBRID, data_of, loaded

from bertchen.config import load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.config.schema_evaluate import EvaluateConfig
from bertchen.config.schema_report import ReportConfig
from bertchen.config.schema_tokenizer import TokenizerConfig
from bertchen.config.schema_train import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/slurm/paper_tables.sh"
BASH = shutil.which("bash")
SCHEMAS = {"pretrain": TrainConfig, "convert": ConvertConfig, "finetune_sweep": EvaluateConfig}
COMMANDS = {"train_tokenizer": TokenizerConfig, "report": ReportConfig}

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")


@dataclass(frozen=True)
class Job:
    """A line of the dry run.

    Attributes:
        after: names of the jobs that it waits for.
        script: name of the .sbatch file, or of the command that it starts.
        config: the resolved configuration that its command will read.
    """

    name: str
    after: list[str]
    script: str
    config: dict[str, Any]


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **environment}
    return subprocess.run(
        [str(BASH), str(SCRIPT), *arguments], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def jobs_of(tmp_path: Path, *arguments: str, **environment: str) -> dict[str, Job]:
    """The jobs by name, where nothing but what the environment names is there yet."""
    given = {"DATA": f"{tmp_path}/mds", "TOKENIZER": f"{tmp_path}/tokenizer", "OUT": f"{tmp_path}/out", **environment}
    done = call(*arguments, **{"TOKENIZER_TEXT": "corpus/*.jsonl", **given})
    assert done.returncode == 0, done.stderr
    jobs = [_job(shlex.split(line)) for line in done.stdout.splitlines()]
    assert not os.listdir(tmp_path), "a dry run makes nothing"
    found = {job.name: job for job in jobs}
    assert len(found) == len(jobs), "nothing is made twice"
    return found


def _job(words: list[str]) -> Job:
    begin = next(index for index, word in enumerate(words) if word.endswith(".sbatch"))
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words[1:begin])
    script, arguments = Path(words[begin]).stem, words[begin + 1 :]
    schema: type = SCHEMAS.get(script, TrainConfig)
    if script == "command":
        script, *arguments = arguments
        schema = COMMANDS[script]
    if script == "report":
        arguments = [f"results=[{arguments[0]}]", *arguments[1:]]
    config = load_config(schema, [str(ROOT / item) if item.endswith(".yaml") else item for item in arguments], "usage")
    after = options.get("dependency", "").split(":")[1:]
    return Job(options["job-name"], after, script, config.to_dict())


def test_all_rows_of_all_tables(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "all", "stop_after=1h")
    trained = {name: job for name, job in jobs.items() if job.script == "pretrain"}
    assert set(trained) == {*(f"length_{n}" for n in (64, 128, 256, 512)), *HYBRID, "bert_tokenizer", *DATA} - {
        "data_culturax"  # the baseline, length_512
    }
    for name, job in trained.items():
        expected = loaded(name)
        assert job.config["save_folder"] == f"{tmp_path}/out/{name}"
        assert job.config["stop_after"] == "1h"
        said = {**job.config, **{key: expected[key] for key in ("save_folder", "tokenizer", "stop_after")}}
        said["data"] = {**said["data"], "local": expected["data"]["local"]}
        assert said == expected, "what its YAML says"


def test_each_row_has_the_data_that_its_yaml_names(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "all")
    conversions = {job.config["out"]: job for job in jobs.values() if job.script == "convert"}
    for job in jobs.values():
        if job.script != "pretrain":
            continue
        conversion = conversions[job.config["data"]["local"]]
        assert job.after == [conversion.name]
        assert conversion.config["tokenizer"] == job.config["tokenizer"]
        expected = data_of(job.name)
        chosen = {**conversion.config, **{key: expected[key] for key in ("out", "tokenizer")}}
        assert chosen == expected
        english = job.name == "bert_tokenizer"
        assert conversion.after == ([] if english else ["tokenizer"])
        assert english or conversion.config["tokenizer"] == jobs["tokenizer"].config["out"]


def test_each_model_is_fine_tuned_and_all_are_reported(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, "1", "5", SEEDS="3", TASKS="germeval17", SWEEP_ARGUMENTS="set.data.folder=tasks")
    sweeps = {name: job.config for name, job in jobs.items() if job.script == "finetune_sweep"}
    models = [model for config in sweeps.values() for model in config["models"]]
    pretrained = [job.config["save_folder"] for job in jobs.values() if job.script == "pretrain"]
    assert sorted(models) == sorted(
        [*pretrained, "mosaicml/mosaic-bert-base", "deepset/gbert-base", "uklfr/gottbert-base"]
    )
    for name, config in sweeps.items():
        assert (config["seeds"], config["tasks"]) == (3, ["germeval17"])
        assert config["set"] == {"data": {"folder": "tasks"}}
        assert jobs[name].after == [name.removesuffix("-tasks")] * name.endswith("-tasks")
    assert sorted(jobs["report"].after) == sorted(sweeps)
    assert jobs["report"].config["results"] == [f"{tmp_path}/out/results.jsonl"]


def test_what_is_there_is_not_made_again(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tmp_path_factory.mktemp("made")
    (made / "tokenizer").mkdir()
    (made / "mds/culturax").mkdir(parents=True)
    (made / "mds/culturax/manifest.json").touch()
    jobs = jobs_of(tmp_path, "4", DATA=f"{made}/mds", TOKENIZER=f"{made}/tokenizer", TOKENIZER_TEXT="")
    assert [job.name for job in jobs.values() if job.script == "convert"] == ["culturax_english"]
    assert jobs["length_512"].after == []
    assert "tokenizer" not in jobs


@pytest.mark.parametrize(
    ("arguments", "named"), [((), "give tables"), (("6",), "6: give tables"), (("1",), "TOKENIZER_TEXT")]
)
def test_refused(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    done = call(*arguments, TOKENIZER=f"{tmp_path}/none")
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{named}.*\n", done.stderr)
    assert not done.stdout
