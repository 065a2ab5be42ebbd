"""DDP and FSDP by key: what is refused, what Composer is given, and which modules FSDP divides."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import pytest
import torch
from composer.utils.parallelism import FSDPConfig

from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.train import builders, parallelism
from bertchen.train.preflight import preflight

MakeConfig = Callable[..., Config[TrainConfig]]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets it look as if there were so many processes, each with a GPU."""

    def pretend(processes: int) -> None:
        monkeypatch.setattr(parallelism, "has_gpu", lambda: True)
        monkeypatch.setattr("bertchen.train.parallelism.dist.get_world_size", lambda: processes)

    return pretend


def test_ddp_is_composers_default(train_config: MakeConfig) -> None:
    assert parallelism.parallelism_config(train_config()) is None
    parallelism.check_parallelism(train_config())


def test_fsdp_saves_one_file_with_whole_weights(train_config: MakeConfig, gpus: Callable[[int], None]) -> None:
    gpus(2)
    config = train_config("parallelism.fsdp={}")
    parallelism.check_parallelism(config)
    given = parallelism.parallelism_config(config)
    assert given is not None
    assert given["fsdp"]["state_dict_type"] == "full"
    assert given["fsdp"]["sharding_strategy"] == "FULL_SHARD"
    # Composer sets whatever it is given, known or not.
    assert given["fsdp"].keys() <= {field.name for field in fields(FSDPConfig)}


def test_copies_of_a_divided_model(train_config: MakeConfig, gpus: Callable[[int], None]) -> None:
    gpus(4)
    config = train_config("parallelism.fsdp.data_parallel_replicate_degree=2")
    parallelism.check_parallelism(config)
    given = parallelism.parallelism_config(config)
    assert given is not None
    assert given["fsdp"]["data_parallel_replicate_degree"] == 2


@pytest.mark.parametrize(
    ("processes", "overrides", "message"),
    [
        (1, ["parallelism.fsdp={}"], "parallelism.fsdp={.*needs several processes.*load without it"),
        (2, ["parallelism.fsdp.sharding_strategy=FULL_SHRAD"], "did you mean FULL_SHARD"),
        (2, ["parallelism.fsdp.mixed_precision=HALF"], "unknown; known: "),
        (4, ["parallelism.fsdp.data_parallel_replicate_degree=3"], "should divide the number of processes, 4"),
        (2, ["parallelism.fsdp={}", "algorithms.ema.half_life=10ba"], "algorithms.ema=.*keeps whole weights"),
        (2, ["parallelism.fsdp={}", "algorithms.gradient_clipping.clipping_type=adaptive"], "has norm and value"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(
    train_config: MakeConfig, gpus: Callable[[int], None], processes: int, overrides: list[str], message: str
) -> None:
    gpus(processes)
    with pytest.raises(UserError, match=message):
        parallelism.check_parallelism(train_config(*overrides))


def test_fsdp_without_a_gpu_is_refused_in_preflight(train_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"parallelism.fsdp.*on GPUs alone"):
        preflight(train_config("parallelism.fsdp={}"))


@pytest.mark.parametrize("override", ["parallelism.fsdp.shards=2", "parallelism.ddp={}"])
def test_unknown_keys_are_refused(train_config: MakeConfig, override: str) -> None:
    with pytest.raises(UserError, match="unknown"):
        train_config(override)


HERE, THERE = ("machine", 5), ("other", 5)


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(1, 0, HERE)], None),
        ([(2, 0, HERE), (2, 1, HERE), (2, 0, THERE), (2, 1, THERE)], None),
        ([(1, 0, HERE), (1, 0, ("machine", 6))], None),
        ([(3, 0, HERE), (3, 1, HERE), (3, 2, HERE), (1, 0, THERE)], "the same number of processes; they start 1 to 3"),
        ([(1, 0, HERE), (1, 0, HERE)], "the 2 nodes of this run are fewer machines"),
    ],
)
def test_nodes_must_be_alike_and_machines_of_their_own(
    monkeypatch: pytest.MonkeyPatch, processes: list[Any], message: str | None
) -> None:
    monkeypatch.setattr("bertchen.train.parallelism.dist.all_gather_object", lambda mine: processes)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        parallelism.check_processes()


def test_shared_memory_is_known_again() -> None:
    assert parallelism.shared_memory() == parallelism.shared_memory()


@pytest.mark.parametrize("architecture", ["mosaicbert", "bert"])
def test_layers_are_divided_one_by_one_and_tied_weights_stay_together(
    train_config: MakeConfig, architecture: str
) -> None:
    config = train_config(f"model.architecture={architecture}")
    model = builders.build_model(config, preflight(config)).model
    assert not any(hasattr(module, "_fsdp_wrap") for module in model.modules())
    parallelism.mark_layers(train_config("parallelism.fsdp.activation_checkpointing=true"), model)
    marked = [module for module in model.modules() if getattr(module, "_fsdp_wrap", False)]
    assert len(marked) == model.config.num_hidden_layers
    assert all(module._activation_checkpointing for module in marked)
    alone = {id(parameter) for module in marked for parameter in module.parameters()}
    assert len(alone) == sum(len(list(module.parameters())) for module in marked)
    embeddings, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    assert embeddings.weight is decoder.weight
    assert id(embeddings.weight) not in alone


def test_with_fsdp_nothing_is_compiled_around_the_kernels(train_config: MakeConfig) -> None:
    """Of a part of its flat parameter torch.compile expects gradients as long as it is, but they are divided."""
    config = train_config("model.kernels=triton", "parallelism.fsdp={}")
    model = builders.build_model(config, preflight(train_config("model.kernels=triton"))).model
    parallelism.compile_model(config, model, torch.device("cpu"), torch.float32)
    assert all(module._compiled_call_impl is None for module in model.modules())


@pytest.mark.parametrize(("override", "whole"), [("parallelism={}", True), ("parallelism.fsdp={}", False)])
def test_with_fsdp_each_layer_is_compiled(train_config: MakeConfig, override: str, whole: bool) -> None:
    config = train_config()
    model = builders.build_model(config, preflight(config)).model
    parallelism.compile_model(train_config(override), model, torch.device("cpu"), torch.float32)
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    assert compiled == ([model] if whole else list(parallelism.encoder_layers(model)))


def test_around_the_kernels_only_what_they_leave_is_compiled(train_config: MakeConfig) -> None:
    config = train_config("model.kernels=triton")
    model = builders.build_model(config, preflight(config)).model
    parallelism.compile_model(config, model, torch.device("cpu"), torch.float32)
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    assert compiled == [model.cls.predictions.transform]


@pytest.mark.parametrize(("given", "node"), [({"GROUP_RANK": "3"}, "3"), ({"GROUP_RANK": "3", "NODE_RANK": "1"}, "1")])
def test_torchrun_names_the_node_otherwise(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], node: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", given)
        parallelism.complete_environment()
    assert given["NODE_RANK"] == node
