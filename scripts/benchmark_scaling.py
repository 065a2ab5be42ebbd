"""Times the same pretraining by several numbers of processes, through the whole Trainer; prints JSON lines.

python scripts/benchmark_scaling.py processes=[1,2] train.data.local=mds train.tokenizer=tokenizer

Each run is `composer -n N main.py yamls/pretrain.yaml` with the global batch of the YAML, whatever the number of
processes, so that all train on the same blocks, which is checked. `efficiency` is the rate over what the first number's
rate would be if it grew with the processes. Time is that of whole steps: loading, masking, training, logging, without
validation and checkpoints.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from omegaconf import OmegaConf

from bertchen.config import Config, load_config
from bertchen.config.schema_benchmark_scaling import BenchmarkScalingConfig
from bertchen.errors import UserError, user_errors
from bertchen.report.metrics import read_metrics
from bertchen.train.checks import check_not_negative, check_positive
from bertchen.train.devices import device_name
from bertchen.train.run_folder import METRICS_FILE, SAMPLES_FILE

ROOT = Path(__file__).resolve().parents[1]
USAGE = "python scripts/benchmark_scaling.py [file.yaml …] train.data.local=… train.tokenizer=… key.sub=value …"
SECONDS, TOKENS = "throughput/seconds", "time/token"
OF_PROCESS_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def settings(cfg: BenchmarkScalingConfig, folder: Path) -> dict[str, Any]:
    """The keys of a run: those given, and what makes it as short as the benchmark."""
    steps = cfg.warmup + cfg.steps
    own = {
        "save_folder": str(folder),
        "max_duration": f"{steps}ba",
        "stop_after": None,
        "overwrite": True,
        "export": False,
        "save_interval": f"{steps}ba",
        "save_num_checkpoints_to_keep": 1,
        "eval": {"interval": f"{steps}ba", "blocks": 1, "at_start": False},
        "callbacks": {"throughput": {}, "sample_ids": {}},
        "progress_bar": False,
        "console_log_interval": f"{steps}ba",
    }
    return OmegaConf.to_container(OmegaConf.merge(cfg.train, own))


def run(cfg: BenchmarkScalingConfig, processes: int, folder: Path) -> None:
    """Trains with so many processes.

    Raises:
        UserError: it failed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    yaml, log = folder.with_suffix(".yaml"), folder.with_suffix(".log")
    yaml.write_text(OmegaConf.to_yaml(OmegaConf.create(settings(cfg, folder))))
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", str(processes)]
    # That of a job that this runs in is not theirs.
    environment = {name: value for name, value in os.environ.items() if name not in OF_PROCESS_GROUP}
    with log.open("w") as file:
        done = subprocess.run(
            [*launcher, "main.py", "yamls/pretrain.yaml", str(yaml.resolve())],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if done.returncode:
        complaints = [line for line in log.read_text().splitlines() if "error" in line.lower()]
        raise UserError(f"{processes} processes: {complaints[0] if complaints else 'failed'}; {log} says more")


def rates(rows: list[dict[str, Any]], warmup: int) -> list[float]:
    """Tokens a second of each step after the first `warmup`."""
    ends = [(0.0, 0), *((row[SECONDS], row[TOKENS]) for row in rows if SECONDS in row and TOKENS in row)]
    steps = zip(ends[warmup:], ends[warmup + 1 :], strict=False)
    return [(later[1] - before[1]) / (later[0] - before[0]) for before, later in steps]


def measure(cfg: BenchmarkScalingConfig, processes: int, repetition: int) -> tuple[dict[str, Any], str]:
    """A line of results, and the blocks of each step."""
    folder = Path(cfg.folder).resolve() / f"{processes}_processes_{repetition}"
    run(cfg, processes, folder)
    rows = read_metrics(folder / METRICS_FILE)
    each = rates(rows, cfg.warmup)
    line = {
        "what": "scaling",
        "processes": processes,
        "repetition": repetition,
        "tokens_per_step": rows[1][TOKENS],
        "steps": len(each),
        "tokens_per_second": round(statistics.median(each)),
        "slowest_fastest": [round(min(each)), round(max(each))],
    }
    return line, (folder / SAMPLES_FILE).read_text()


def check(config: Config[BenchmarkScalingConfig]) -> None:
    """Raises a UserError for values that can't be."""
    check_positive(config, ("steps", "repetitions"))
    check_not_negative(config, ("warmup",))
    cfg = config.value
    if cfg.steps < 2:
        config.fail("steps", "should be at least 2")
    if not cfg.processes or min(cfg.processes) < 1:
        config.fail("processes", "should name numbers of processes, from 1 on")
    if torch.cuda.is_available() and max(cfg.processes) > torch.cuda.device_count():
        config.fail("processes", f"there are {torch.cuda.device_count()} GPUs here, and each process needs one")


def main(argv: list[str]) -> None:
    """Runs every number of processes and prints a line for each."""
    config = load_config(BenchmarkScalingConfig, argv, USAGE)
    check(config)
    cfg = config.value
    facts = {"device": device_name(), "torch": torch.__version__}
    for repetition in range(cfg.repetitions):
        first, blocks = None, None
        for processes in cfg.processes:
            line, trained_on = measure(cfg, processes, repetition)
            first, blocks = first or line, blocks or trained_on
            ratio = line["tokens_per_second"] / first["tokens_per_second"]
            line["times_first"] = round(ratio, 3)
            line["efficiency"] = round(ratio * first["processes"] / processes, 3)
            line["same_blocks"] = trained_on == blocks
            print(json.dumps({**facts, **line}), flush=True)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
