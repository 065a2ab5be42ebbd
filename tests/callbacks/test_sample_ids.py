"""samples.jsonl: a line a step with the blocks of the global batch, and after any restart those of one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.core import State, Timestamp
from composer.devices import DeviceCPU
from composer.models import ComposerModel

from bertchen.callbacks import SampleIds
from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.data.blocks import train_loader
from bertchen.data.row_ids import BLOCKS, global_row_ids
from bertchen.train import builders
from bertchen.train.preflight import preflight


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def state_at(model: ComposerModel, step: int, blocks: list[int]) -> State:
    state = State(model=model, rank_zero_seed=0, run_name="test", device=DeviceCPU())
    state.timestamp = Timestamp(batch=step)
    state.batch = {"input_ids": torch.zeros(2, 4), BLOCKS: np.array(blocks)}
    return state


def run(path: Path, model: ComposerModel, steps: range) -> None:
    """Begins and takes these steps; block numbers tell the step."""
    samples = SampleIds(path)
    samples.fit_start(state_at(model, steps.start, []), None)  # type: ignore[arg-type]
    for step in steps:
        samples.batch_start(state_at(model, step, [2 * step, 2 * step + 1]), None)  # type: ignore[arg-type]


def test_steps_that_are_repeated_after_a_restart_stand_there_once(tmp_path: Path, model: ComposerModel) -> None:
    whole, broken = tmp_path / "whole" / "samples.jsonl", tmp_path / "broken" / "samples.jsonl"
    run(whole, model, range(10))
    assert lines_of(whole)[3] == {"step": 3, "blocks": [6, 7]}
    run(broken, model, range(7))
    with broken.open("a") as file:
        file.write('{"step": 7, "blo')
    run(broken, model, range(4, 5))
    run(broken, model, range(4, 10))
    assert broken.read_text() == whole.read_text()


def test_the_blocks_of_all_processes_come_in_the_order_of_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_of_two(mine: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        return [mine, mine + 100]

    monkeypatch.setattr("bertchen.data.row_ids.dist.all_gather", as_of_two)
    monkeypatch.setattr("bertchen.data.row_ids.dist.get_world_size", lambda: 2)
    monkeypatch.setattr("bertchen.data.row_ids.host_group", lambda: None)
    assert global_row_ids({BLOCKS: np.array([5, 3])}) == [5, 3, 105, 103]


def test_one_process_asks_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's group on a GPU, NCCL's, gathers nothing that lies on the host."""

    def of_gpus_alone(mine: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
        raise RuntimeError("No backend type associated with device type cpu")

    monkeypatch.setattr("bertchen.data.row_ids.dist.all_gather", of_gpus_alone)
    assert global_row_ids({BLOCKS: np.array([5, 3])}) == [5, 3]


@pytest.mark.parametrize(
    "override",
    [
        "sequence_length=8",
        "curriculum.static={lengths: [8, 32], begins: [0ba, 3ba]}",
        "curriculum.seq_length_warmup={duration: 0.5, min_seq_length: 8, max_seq_length: 32, step_size: 8}",
    ],
)
def test_blocks_are_those_that_the_loader_read_however_rows_are_cut(
    train_config: Callable[..., Config[TrainConfig]], override: str
) -> None:
    config = train_config("callbacks={sample_ids: {}}", override, "eval.interval=100ba")
    checked = preflight(config)
    plain = train_loader(builders.build_dataset(config, "train", 8), 8, 32, 0)
    expected = [sorted(batch["row_ids"].tolist()) for batch in plain]
    curriculum = builders.build_curriculum(checked)
    model = builders.build_model(config, checked)
    trainer = Trainer(
        model=model,
        train_dataloader=builders.build_train_loader(config, checked),
        optimizers=builders.build_optimizer(config, model),
        algorithms=[builders.build_masking(config, checked, curriculum), curriculum],
        callbacks=builders.build_callbacks(config, checked, 1),
        max_duration="6ba",
        device="cpu",
        device_train_microbatch_size=checked.blocks_per_device,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    lines = lines_of(Path(config.value.save_folder) / "samples.jsonl")
    assert [line["step"] for line in lines] == list(range(6))
    assert [sorted(line["blocks"]) for line in lines] == expected[:6]
