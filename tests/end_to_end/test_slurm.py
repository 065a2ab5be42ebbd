"""scripts/slurm/ on a real Slurm of two nodes: runs that are stopped go on exactly, and work is shared out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from running import BLOCK_SIZE, PATIENCE, PYTHON, Prepared, exact, metrics, tree
from slurm_cluster import SlurmCluster, slurm_cluster
from task_files import classification, tiny_encoder

from bertchen.tasks.results import read_results
from bertchen.train.run_folder import SAMPLES_FILE

JOB = ("--nodes=2", "--cpus-per-task=1")
VARIABLES = {"PYTHON": PYTHON, "WAIT_FOR_OTHERS": "20"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submit(cluster: SlurmCluster, script: str, log: Path, *arguments: str) -> str:
    return cluster.sbatch(*JOB, f"--output={log}", f"scripts/slurm/{script}", *arguments, **VARIABLES)


def wait_for_step(cluster: SlurmCluster, job: str, folder: Path, step: int) -> None:
    """Returns as soon as `step` stands in the run's metrics.jsonl."""
    until = time.monotonic() + PATIENCE
    while all(line.get("step", -1) < step for line in metrics(folder)):
        assert time.monotonic() < until, f"step {step} isn't reached: {cluster.facts(job)}"
        time.sleep(0.05)


@pytest.mark.fault("Slurm takes the nodes back")
def test_stopped_twice_and_the_same_run(cluster: SlurmCluster, prepared: Prepared, tmp_path: Path) -> None:
    """Ahead of its time limit, and for a job of more importance: it goes back into the queue and on from there."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ("max_duration=80ba", "eval.interval=4ba", "save_interval=40ba", "callbacks.sample_ids={}")
    job = submit(cluster, "pretrain.sbatch", tmp_path / "whole.log", *prepared.overrides(whole, *arguments))
    assert cluster.wait(job) == "COMPLETED", (tmp_path / "whole.log").read_text()[-5000:]

    log = tmp_path / "stopped.log"
    job = submit(cluster, "pretrain.sbatch", log, *prepared.overrides(stopped, *arguments))
    wait_for_step(cluster, job, stopped, 3)
    cluster.command("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@… does
    cluster.wait_for(job, "PENDING")
    assert cluster.facts(job)["Restarts"] == "1", log.read_text()[-5000:]
    reached = metrics(stopped)[-1]["step"]
    assert reached < 80

    wait_for_step(cluster, job, stopped, reached + 3)
    urgent = cluster.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert cluster.wait(urgent) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", log.read_text()[-5000:]
    assert cluster.facts(job)["Restarts"] == "2"
    assert exact(stopped) == exact(whole)
    assert (stopped / SAMPLES_FILE).read_bytes() == (whole / SAMPLES_FILE).read_bytes()
    told = log.read_text()
    assert "restart 1 of 20" in told
    assert "Slurm has ended job" in told


def test_a_sweep_is_shared_out(cluster: SlurmCluster, prepared: Prepared, tmp_path: Path) -> None:
    """Each node does one of two runs."""
    model = tiny_encoder(tmp_path / "encoder", str(prepared.tokenizer))
    yaml = tmp_path / "words.yaml"
    yaml.write_text(OmegaConf.to_yaml(OmegaConf.from_dotlist(classification(tmp_path / "words"))))
    log, results = tmp_path / "log", tmp_path / "results.jsonl"
    job = submit(
        cluster, "finetune_sweep.sbatch", log, "yamls/evaluate.yaml", f"models=[{model}]", f"tasks=[{yaml}]", "seeds=2",
        f"results={results}", f"save_folder={tmp_path / 'runs'}",
    )  # fmt: skip
    assert cluster.wait(job) == "COMPLETED", log.read_text()[-5000:]
    done = sorted((record["seed"], record["split"]) for record in read_results(results))
    assert done == [(seed, split) for seed in (42, 43) for split in ("dev", "test", "train")]
    lines = log.read_text().splitlines()
    assert {line.partition(", seed")[0] for line in lines if "1/1 words" in line} == {
        f"{rank}: 1/1 words, {model}" for rank in (0, 1)
    }


def test_conversion_by_jobs_of_its_own(cluster: SlurmCluster, prepared: Prepared, tmp_path: Path) -> None:
    """The shards are those of one machine, byte for byte."""
    out = tmp_path / "mds"
    told = cluster.command(
        PYTHON, "scripts/convert_dataset.py", "yamls/data/local.yaml", f"source.path={prepared.corpus}",
        f"tokenizer={prepared.tokenizer}", f"out={out}", f"block_size={BLOCK_SIZE}", "val_blocks=22",
        "shard_size=4096", "engine.name=slurm", "engine.tasks=2", "engine.options.partition=cpu",
        'engine.options.time="1:00:00"',
    )  # fmt: skip
    last = re.findall(r"(\d+) \((?:tokenize|arrange|write|finish)\)", told)[-1]
    assert cluster.wait(last) == "COMPLETED"
    shards = {name: raw for name, raw in tree(prepared.mds).items() if name.endswith(".mds")}
    assert shards == {name: raw for name, raw in tree(out).items() if name.endswith(".mds")}
    assert len(shards) > 2
