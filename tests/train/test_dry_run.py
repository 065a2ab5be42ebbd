"""What a dry run says, and the words at the end of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer.core import Timestamp

from bertchen.callbacks import StopAfter
from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.train import builders
from bertchen.train.dry_run import dry_run
from bertchen.train.finish import end_reason, summary
from bertchen.train.preflight import preflight
from bertchen.train.setup import run_name_of

MakeConfig = Callable[..., Config[TrainConfig]]


def said(config: Config[TrainConfig], capsys: pytest.CaptureFixture[str]) -> str:
    checked = preflight(config)
    model = builders.build_model(config, checked)
    optimizer = builders.build_optimizer(config, model)
    loader = builders.build_train_loader(config, checked)
    capsys.readouterr()
    dry_run(config, checked, model, optimizer, loader, [builders.build_masking(config, checked)])
    return capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="names the CPU")
def test_a_dry_run_says_what_would_be_trained(train_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_config("dry_run=true", "sequence_length=16", "microbatch_tokens=64", "masking.mlm_probability=0.5")
    printed = said(config, capsys)
    assert "device: 1 x cpu, precision fp32" in printed
    assert "a step: 16 rows x 16 = 256 tokens ((4, 16) a microbatch)" in printed
    blocks = preflight(config).manifest["splits"]["train"]["blocks"]
    assert f"an epoch: {blocks // 8} steps; max_duration 10ba" in printed
    parameters = builders.build_model(config, preflight(config)).facts["parameters"]
    assert f"parameters: {parameters:,}" in printed
    assert "mlm_probability: 0.5" in printed, "the resolved configuration"
    loss = float(re.search(r"one microbatch: loss ([\d.]+)", printed)[1])  # type: ignore[index]
    # Untrained, all 384 entries are about alike: log(384) is 5.95. A microbatch is weighted by the batch's mean.
    assert 4 < loss < 8
    assert not Path(config.value.save_folder).exists()


def test_name_of_a_run(train_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, name in [
        ("runs/first", "first"),
        ("runs/first/", "first"),
        (".", tmp_path.name),
        ("s3://b/run", "run"),
    ]:
        assert run_name_of(train_config(f"save_folder={folder}").value) == name
    assert run_name_of(train_config("run_name=mine").value) == "mine"


def test_the_reason_of_the_end() -> None:
    stop = StopAfter(14_400, "4h")
    trainer = SimpleNamespace(state=SimpleNamespace(callbacks=[object(), stop]))
    assert end_reason(trainer, "2500ba") == "max_duration=2500ba reached"  # type: ignore[arg-type]
    stop.reason = "stop_after=4h reached at step 2013"
    assert end_reason(trainer, "2500ba") == "stop_after=4h reached at step 2013"  # type: ignore[arg-type]


def test_summary(train_config: MakeConfig) -> None:
    cfg = train_config("save_folder=runs/first").value
    state = SimpleNamespace(timestamp=Timestamp(batch=2000, token=1_048_576_000))
    lines = summary(cfg, "why", state, {"eval_64": 2.5, "eval_512": 1.23456}, "runs/first/hf").splitlines()
    assert "ended: why, after 2000 steps and 1,048,576,000 tokens" in lines
    assert "validation loss (eval_64): 2.5000" in lines
    assert "validation loss (eval_512): 1.2346" in lines
    assert "run folder: runs/first" in lines
    assert "exported model: runs/first/hf" in lines
    assert "exported" not in summary(cfg, "why", state, {}, None)
