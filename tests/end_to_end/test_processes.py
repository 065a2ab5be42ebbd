"""Any number of processes, by any launcher, on any nodes, makes the run of one: block by block, loss by loss."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from running import (
    COMPOSER,
    LATEST,
    LENGTHS,
    PYTHON,
    Prepared,
    assert_same_state,
    checkpoints,
    exact,
    losses,
    metrics,
    samples,
    started,
    succeed,
    validation,
)

from bertchen.model import kernels

pytestmark = pytest.mark.slow

STEPS = 20  # more than an epoch
EVERY = 5  # steps between checkpoints
TORCHRUN = (PYTHON, "-m", "torch.distributed.run")
FSDP_ON_CPU = "tests/end_to_end/main_fsdp_on_cpu.py"
REASON = kernels.why_unable(torch.device("cpu"))


class Runs(NamedTuple):
    """Folders of the same run by one process, by two, and by two, then one, then four."""

    one: Path
    two: Path
    two_one_four: Path


def arguments(prepared: Prepared, folder: Path, *more: str) -> list[str]:
    """With dropout (0.1); microbatches of 4 rows, all that one of four processes has."""
    return prepared.overrides(
        folder, f"max_duration={STEPS}ba", "microbatch_tokens=256", "eval.interval=1ba", "eval.at_start=true",
        "eval.blocks=21", "optimizer.lr=5e-3", f"save_interval={EVERY}ba", "save_num_checkpoints_to_keep=10",
        "callbacks.sample_ids={}", *more,
    )  # fmt: skip


def as_killed_after(folder: Path, checkpoint: str, to: Path) -> Path:
    """The folder of a run that goes on from one of its checkpoints, though its metrics and samples reach further."""
    to.mkdir()
    for name in (checkpoint, "config.yaml", "metrics.jsonl", "samples.jsonl"):
        shutil.copy(folder / name, to)
    return to


@pytest.fixture(scope="module")
def runs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, in_process: Callable) -> Runs:
    folder = tmp_path_factory.mktemp("processes")
    one, two = folder / "one", folder / "two"
    in_process(*arguments(prepared, one))
    succeed(*TORCHRUN, "--standalone", "--nproc_per_node=2", "main.py", *arguments(prepared, two, "export=true"))
    going_on = as_killed_after(two, "ep0-ba5-rank0.pt", folder / "two_one")
    in_process(*arguments(prepared, going_on, "autoresume=true"))
    last = as_killed_after(going_on, "ep0-ba10-rank0.pt", folder / "two_one_four")
    succeed(COMPOSER, "-n", "4", "main.py", *arguments(prepared, last, "autoresume=true"))
    return Runs(one, two, last)


def test_each_step_s_blocks_are_the_same_in_the_same_order(runs: Runs, prepared: Prepared) -> None:
    one = samples(runs.one)
    assert len(one) == STEPS > prepared.steps_an_epoch()
    epoch = list(chain.from_iterable(one[: prepared.steps_an_epoch()]))
    assert len(set(epoch)) == len(epoch)
    assert one[0] != one[prepared.steps_an_epoch()]
    assert samples(runs.two) == one
    assert samples(runs.two_one_four) == one


def test_each_step_s_loss_is_the_same(runs: Runs) -> None:
    """The mean over all masked tokens of the global batch: other blocks, masks or dropout would differ in percents."""
    one = losses(runs.one)
    assert len(one) == STEPS
    assert losses(runs.two) == pytest.approx(one, rel=1e-5)
    assert losses(runs.two_one_four) == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_validation_is_the_same(runs: Runs, length: int) -> None:
    """Of 21 blocks one process has 11 and the other 10, and what fills up their last batches must not count."""
    one, two, two_one_four = (validation(folder, length) for folder in runs)
    assert list(one) == list(range(STEPS + 1))
    assert two[0] == pytest.approx(one[0], rel=1e-7)  # the same weights: what differs is the order of a sum
    assert two == pytest.approx(one, rel=1e-5)
    assert two_one_four == pytest.approx(one, rel=1e-5)
    for name in ("MaskedAccuracy", "MaskedPerplexity"):
        first, second = (
            [line[f"metrics/eval_{length}/{name}"] for line in metrics(folder)[:-1]] for folder in (runs.one, runs.two)
        )
        assert second[0] == pytest.approx(first[0], rel=1e-6)
        assert second == pytest.approx(first, rel=1e-3, abs=0.01)


def test_counts_are_the_same(runs: Runs) -> None:
    for name in ("time/sample", "time/token", "time/epoch"):
        one, *others = ([line.get(name) for line in metrics(folder)] for folder in runs)
        assert others == [one, one]


def test_one_process_writes(runs: Runs) -> None:
    assert {path.name for path in runs.two.iterdir()} - {"hf"} == {path.name for path in runs.one.iterdir()}
    assert checkpoints(runs.two) == ["ep0-ba5-rank0.pt", "ep0-ba10-rank0.pt", "ep0-ba15-rank0.pt", "ep1-ba20-rank0.pt"]
    assert (runs.two / LATEST).exists()
    assert (runs.two / "hf" / "model.safetensors").exists()


def test_weights_divided_between_processes_make_the_same_run(
    prepared: Prepared, runs: Runs, tmp_path: Path, in_process: Callable
) -> None:
    """FSDP goes on from a checkpoint of DDP, one process from that of FSDP; what it saves can be exported."""
    divided = as_killed_after(runs.two, "ep0-ba10-rank0.pt", tmp_path / "divided")
    given = arguments(prepared, divided, "autoresume=true", "export=true", "parallelism.fsdp={}")
    succeed(*TORCHRUN, "--standalone", "--nproc_per_node=2", FSDP_ON_CPU, *given)
    assert losses(divided) == pytest.approx(losses(runs.two), rel=1e-6)
    assert samples(divided) == samples(runs.two)
    assert (divided / "hf" / "model.safetensors").exists()

    whole = as_killed_after(divided, "ep0-ba15-rank0.pt", tmp_path / "whole")
    in_process(*arguments(prepared, whole, "autoresume=true"))
    assert losses(whole) == pytest.approx(losses(runs.two), rel=1e-5)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_weights_divided_between_processes_that_compute_by_the_kernels(prepared: Prepared, tmp_path: Path) -> None:
    """FSDP divides what the kernels of embeddings, layers and loss take as tensors; in several microbatches a step."""
    keys = (
        "max_duration=1ba", "global_train_batch_size=8", "model.kernels=triton", "model.attention_backend=triton",
        "model.num_attention_heads=2", "model.num_hidden_layers=1", "sequence_length=16", "microbatch_tokens=128",
        "compile=true", "eval.at_start=false", "eval.blocks=1", "eval.lengths=[16]",
    )  # fmt: skip
    folders = tmp_path / "whole", tmp_path / "divided"
    for folder, script, more in zip(folders, ("main.py", FSDP_ON_CPU), ((), ("parallelism.fsdp={}",)), strict=True):
        given = arguments(prepared, folder, *keys, *more)
        succeed(*TORCHRUN, "--standalone", "--nproc_per_node=2", script, *given)
    assert losses(folders[1]) == pytest.approx(losses(folders[0]), rel=1e-5)


@pytest.mark.fault("a node killed (-9), two nodes started again")
def test_two_nodes_of_which_one_was_killed_make_the_run_of_two_processes(
    prepared: Prepared, runs: Runs, tmp_path: Path, attempt: int
) -> None:
    """Bit by bit: where processes lie doesn't matter, nor that they are started by another launcher."""
    rng = random.Random(attempt)
    folder, step, killed = tmp_path / "run", rng.randrange(STEPS - 3), rng.randrange(2)
    given = arguments(prepared, folder, "autoresume=true")
    logs = [tmp_path / f"node{node}.log" for node in range(2)]
    nodes = two_nodes()
    with started(given, logs[0], nodes[0]) as first, started(given, logs[1], nodes[1]) as second:
        first.wait_for_step(step)
        (first, second)[killed].kill_all()
        assert (second, first)[killed].wait() != 0, "the other can't go on alone"
    assert metrics(folder)[-1]["step"] < STEPS, "ended before it could be killed"
    nodes = two_nodes()
    with started(given, logs[0], nodes[0]) as first, started(given, logs[1], nodes[1]) as second:
        first.succeed()
        second.succeed()

    assert exact(folder) == exact(runs.two)
    assert samples(folder) == samples(runs.two)
    assert_same_state(folder / LATEST, runs.two / LATEST)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_weights_divided_between_gpus(prepared: Prepared, tmp_path: Path) -> None:
    """FSDP computes what DDP computes, and goes on from its own checkpoint as if there had been no end."""
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    for folder, key in ((whole, "parallelism={}"), (divided, "parallelism.fsdp={}")):
        succeed(COMPOSER, "-n", "2", "main.py", *arguments(prepared, folder, "compile=false", key))
    assert losses(divided) == pytest.approx(losses(whole), rel=1e-3)
    assert samples(divided) == samples(whole)
    resumed = as_killed_after(divided, "ep0-ba10-rank0.pt", tmp_path / "resumed")
    given = arguments(prepared, resumed, "compile=false", "parallelism.fsdp={}", "autoresume=true", "export=true")
    succeed(COMPOSER, "-n", "2", "main.py", *given)
    assert exact(resumed) == exact(divided)
    assert_same_state(resumed / LATEST, divided / LATEST)
    assert (resumed / "hf" / "model.safetensors").exists()


def two_nodes() -> list[list[str]]:
    """The launchers of two nodes with one process each, which have a /dev/shm of their own, as machines have."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to mount a /dev/shm for each node")
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && TMPDIR=/dev/shm exec "$@"', "sh"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--world_size", "2", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    places = [["--node_rank", str(node), "--base_rank", str(node)] for node in range(2)]
    return [[*apart, COMPOSER, "-n", "1", *place, *meeting] for place in places]
