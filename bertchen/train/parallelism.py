"""How a model is spread over processes: whole on each (DDP), or its weights divided between them (FSDP), by key.

The processes that there are is the launcher's matter; that they train on the same batches is that of
`bertchen.data.order`.
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import nn
from transformers import PreTrainedModel

from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.model import MosaicBertForMaskedLM

SHARDING_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP")
MIXED_PRECISIONS = ("DEFAULT", "PURE", "FULL")
# Both keep a second set of whole weights beside the model's.
_OF_WHOLE_WEIGHTS = ("ema", "swa")


def complete_environment() -> None:
    """Sets what Composer asks of its launcher's environment, and `torchrun` names otherwise."""
    if "GROUP_RANK" in os.environ:
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])


def check_processes() -> None:
    """Refuses nodes on which StreamingDataset would go wrong; called by all processes.

    Raises:
        UserError: their numbers of processes are unlike, or they are one machine, whose shared memory has one owner.
    """
    mine = (dist.get_local_world_size(), dist.get_local_rank(), shared_memory())
    processes = dist.all_gather_object(mine)
    sizes = {size for size, _, _ in processes}
    if len(sizes) > 1:
        raise UserError(f"each node should start the same number of processes; they start {min(sizes)} to {max(sizes)}")
    owners = [memory for _, rank, memory in processes if rank == 0]
    if len(set(owners)) < len(owners):
        raise UserError(
            f"the {len(owners)} nodes of this run are fewer machines, or share their /dev/shm: start all processes of "
            "a machine by one launcher (composer -n 2), or give each container a /dev/shm of its own"
        )


def shared_memory() -> tuple[str, int]:
    """What tells the shared memory of this process from others': the machine since its start, and the file system."""
    boot, memory = Path("/proc/sys/kernel/random/boot_id"), Path("/dev/shm")
    machine = boot.read_text().strip() if boot.exists() else socket.gethostname()
    return machine, memory.stat().st_dev if memory.exists() else 0


def check_parallelism(config: Config[TrainConfig]) -> None:
    """What can be said about `parallelism` before anything is built.

    Raises:
        UserError: FSDP is asked for, and can't serve here.
    """
    fsdp, processes = config.value.parallelism.fsdp, dist.get_world_size()
    if fsdp is None:
        return
    key = "parallelism.fsdp"
    instead = "leave it out (its checkpoints load without it)"
    if not has_gpu():
        config.fail(key, f"Composer has it on GPUs alone; {instead}", asdict(fsdp))
    if processes == 1:
        config.fail(key, f"needs several processes to divide the weights between; {instead}", asdict(fsdp))
    for name, known in (("sharding_strategy", SHARDING_STRATEGIES), ("mixed_precision", MIXED_PRECISIONS)):
        value = getattr(fsdp, name)
        if value not in known:
            config.fail(f"{key}.{name}", f"unknown; {nearest(value, known)}", value)
    copies = fsdp.data_parallel_replicate_degree
    if copies is not None and (copies < 1 or processes % copies):
        config.fail(f"{key}.data_parallel_replicate_degree", f"should divide the number of processes, {processes}")
    for name in _OF_WHOLE_WEIGHTS:
        if config.value.algorithms.get(name) is not None:
            config.fail(f"algorithms.{name}", "keeps whole weights, which no process has with parallelism.fsdp")
    clipping = config.value.algorithms.get("gradient_clipping") or {}
    if clipping.get("clipping_type") == "adaptive":
        config.fail("algorithms.gradient_clipping.clipping_type", "parallelism.fsdp has norm and value", "adaptive")


def parallelism_config(config: Config[TrainConfig]) -> dict[str, Any] | None:
    """What Composer's Trainer takes; None is DDP.

    Checkpoints are one file with whole weights, so that any number of processes can go on from them, with or without
    FSDP, and they can be exported.
    """
    fsdp = config.value.parallelism.fsdp
    if fsdp is None:
        return None
    given = {name: value for name, value in asdict(fsdp).items() if value is not None}
    # Without `use_orig_params` weight decay could not leave out biases and LayerNorms.
    return {"fsdp": {**given, "state_dict_type": "full", "use_orig_params": True}}


def has_gpu() -> bool:
    """Whether Composer would put FSDP somewhere."""
    return torch.cuda.is_available()


def mark_layers(config: Config[TrainConfig], model: PreTrainedModel) -> None:
    """Tells FSDP which modules are gathered one by one: the encoder's layers, of MosaicBERT and BERT alike.

    The rest stays together: embeddings, and the decoder whose weights are theirs.
    """
    fsdp = config.value.parallelism.fsdp
    if fsdp is None:
        return
    for layer in encoder_layers(model):
        layer._fsdp_wrap = True
        layer._activation_checkpointing = fsdp.activation_checkpointing


def compile_model(
    config: Config[TrainConfig], model: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> None:
    """Compiles the model in place: as a whole, or with FSDP, which acts between layers, layer by layer.

    Where the layers run in kernels of this project, on that device in that dtype, what lies around them is compiled;
    not with FSDP, where its weights are parts of one that torch.compile can't take (seen with PyTorch 2.11).
    Shapes are fixed, so each sequence length is compiled once, without symbolic shapes.
    """
    parts = compiled_parts(model, device, dtype)
    if config.value.parallelism.fsdp is not None:
        parts = [*encoder_layers(model)] if model in parts else []
    for module in parts:
        module.compile(dynamic=False)


def compiled_parts(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[nn.Module]:
    """What of a model should be compiled: all of it, or what lies around layers that run in kernels of this project."""
    if isinstance(model, MosaicBertForMaskedLM) and model.bert.uses_kernels(device, dtype):
        return [model.cls.predictions.transform]
    return [model]


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of the encoder, first to last."""
    return model.base_model.encoder.layer
