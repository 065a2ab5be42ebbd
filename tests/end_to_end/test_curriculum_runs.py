"""Curricula in whole runs: what they log, and that a kill at any place of a switch changes nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from running import (
    BATCH,
    BLOCK_SIZE,
    COMPOSER,
    LATEST,
    PATIENCE,
    PYTHON,
    ROOT,
    Prepared,
    assert_same_state,
    checkpoints,
    environment,
    exact,
    losses,
    metrics,
    run,
    succeed,
    tree,
    validation,
)

pytestmark = pytest.mark.slow

STEPS = 24
# Trains like main.py, and kills itself just before or just after Composer has told of an event at a step.
KILLED = """
import os, signal, sys
from composer.core import Engine
import main

when, event_name, step, *arguments = sys.argv[1:]
run_event = Engine.run_event

def killing(self, event):
    is_place = str(event.value) == event_name and self.state.timestamp.batch.value == int(step)
    if is_place and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    traces = run_event(self, event)
    if is_place and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return traces

Engine.run_event = killing
main.main(arguments)
"""
# Arguments of each, and the event at which it decides about a switch.
CURRICULA: dict[str, tuple[str, tuple[str, ...]]] = {
    # The first evaluation, at 5, is the best; 10 and 15 are no improvement, nor are 20 and 25.
    "hybrid": (
        "eval_after_all",
        ("curriculum.hybrid={lengths: [16,32,64], delta: 100}", "masking.stage_rates=[0.3,0.25,0.2]"),
    ),
    "static": (
        "before_dataloader",
        (f"curriculum.static={{lengths: [16,32,64], begins: [0tok,{9 * BATCH * BLOCK_SIZE}tok,0.8e6tok]}}",),
    ),
    # While the learning rate warms up the loss stands still, then it falls by 0.2 a step, later by less than 0.1.
    "dynamic": (
        "batch_end",
        (
            "curriculum.dynamic={lengths: [16,64], smoothing: 0.3, window: 1, threshold: 0.1}",
            "masking.final_rate=0.1",
        ),
    ),
    "seq_length_warmup": (
        "after_dataloader",
        ("curriculum.seq_length_warmup={duration: 1.0, min_seq_length: 16, max_seq_length: 64, step_size: 16}",),
    ),
}


def arguments(prepared: Prepared, folder: Path, name: str, *more: str) -> list[str]:
    """With dropout, over more than an epoch."""
    return prepared.overrides(
        folder, f"max_duration={STEPS}ba", "optimizer.lr=5e-3", "save_interval=1ba", "eval.lengths=[16,64]",
        *CURRICULA[name][1], *more,
    )  # fmt: skip


def switches(folder: Path) -> list[tuple[int, int]]:
    """Step and length of each."""
    return [(line["step"], line["length"]) for line in metrics(folder) if line.get("event") == "switch"]


def lengths(folder: Path) -> list[int]:
    """Those of all steps."""
    return [line["curriculum/length"] for line in metrics(folder) if "curriculum/length" in line]


@pytest.fixture(scope="module")
def undisturbed(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, in_process: Callable
) -> Callable[[str], Path]:
    """The folder of a run that nothing disturbed, made once for each curriculum."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "run"
            in_process(*arguments(prepared, folder, name))
            made[name] = folder
        return made[name]

    return folder_of


def test_a_hybrid_run(undisturbed: Callable[[str], Path]) -> None:
    folder = undisturbed("hybrid")
    assert switches(folder) == [(15, 32)]
    assert lengths(folder) == [16] * 15 + [32] * (STEPS - 15)
    lines = [line for line in metrics(folder) if "curriculum/length" in line]
    assert [line["curriculum/stage"] for line in lines] == [0] * 15 + [1] * 9
    assert [line["curriculum/masking_rate"] for line in lines] == [0.3] * 15 + [0.25] * 9
    assert [line["curriculum/waiting"] for line in lines] == [0] * 10 + [1] * 5 + [0] * 5 + [1] * 4
    best = validation(folder)[5]
    assert [line["curriculum/best"] for line in lines] == ["inf"] * 5 + [best] * 19
    (event,) = (line for line in metrics(folder) if line.get("event") == "switch")
    assert event["reason"] == (
        f"eval_64/MaskedCrossEntropy is {validation(folder)[15]:.4f}; in 2 evaluations it was not more than 100 below "
        f"the best, {best:.4f}"
    )


def test_static_dynamic_and_warmup_run(undisturbed: Callable[[str], Path]) -> None:
    assert switches(undisturbed("static")) == [(9, 32)]
    assert lengths(undisturbed("seq_length_warmup")) == [16] * 8 + [32] * 8 + [48] * 8
    dynamic = undisturbed("dynamic")
    assert switches(dynamic)[:2] == [(3, 16), (6, 64)]
    assert lengths(dynamic)[:7] == [64] * 3 + [16] * 3 + [64]
    rates = [line["curriculum/masking_rate"] for line in metrics(dynamic) if "curriculum/masking_rate" in line]
    assert rates == pytest.approx([0.3 - 0.2 * step / STEPS for step in range(STEPS)])


def test_a_switch_leaves_counts_and_schedule_alone(undisturbed: Callable[[str], Path]) -> None:
    """Tokens, samples, learning rate and speed are those of steps, whatever their rows' length."""
    names = ("time/token", "time/sample", "time/batch", "time/epoch", "lr-AdamW/group0")
    reference, *others = (undisturbed(name) for name in ("seq_length_warmup", "hybrid", "static", "dynamic"))
    expected = [[line.get(name) for line in metrics(reference) if "event" not in line] for name in names]
    tokens = [line["time/token"] for line in metrics(reference) if "time/token" in line]
    assert tokens == [step * BATCH * BLOCK_SIZE for step in range(STEPS + 1)]
    for folder in others:
        assert [[line.get(name) for line in metrics(folder) if "event" not in line] for name in names] == expected
        assert all(line["throughput/tokens_per_sec"] > 0 for line in metrics(folder)[2:STEPS] if "event" not in line)


def test_evaluation_keeps_one_rate(undisturbed: Callable[[str], Path], prepared: Prepared) -> None:
    """The loss of equal weights is equal, whatever the rate in training: here, where the learning rate is still 0."""
    config = torch.load(undisturbed("hybrid") / LATEST, weights_only=False)["state"]["integrations"]["huggingface"]
    assert config["bertchen"]["config"]["masking"]["eval_mlm_probability"] == 0.3
    assert len({round(validation(undisturbed(name), 16)[5], 6) for name in ("hybrid", "dynamic")}) == 2


def kill(prepared: Prepared, folder: Path, name: str, place: tuple[str, str, int]) -> None:
    """Goes on with the run until it kills itself at the place."""
    command = [PYTHON, "-c", KILLED, *map(str, place), *arguments(prepared, folder, name, "autoresume=true")]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr[-5000:]


def places(name: str, switch: int) -> list[tuple[str, str, int]]:
    """In mid-stage, before the switch, after it and before it is saved, after that, and in the middle of a step."""
    event = CURRICULA[name][0]
    return [
        ("before", "batch_checkpoint", switch - 2),
        ("before", event, switch),
        ("after", event, switch),
        ("after", "batch_checkpoint", switch if event in ("eval_after_all", "batch_end") else switch + 1),
        ("after", "after_train_batch", switch + 3),
    ]


@pytest.mark.parametrize("name", CURRICULA)
def test_a_kill_at_any_place_changes_nothing(
    prepared: Prepared, undisturbed: Callable[[str], Path], tmp_path: Path, in_process: Callable, name: str
) -> None:
    whole = undisturbed(name)
    switch = next(step for step, (one, other) in enumerate(pairwise(lengths(whole)), start=1) if one != other)
    folder = tmp_path / "run"
    for place in places(name, switch):
        kill(prepared, folder, name, place)
    in_process(*arguments(prepared, folder, name, "autoresume=true"))
    assert exact(folder) == exact(whole)
    assert checkpoints(folder) == checkpoints(whole)
    assert_same_state(folder / LATEST, whole / LATEST)
    one, other = (
        dict(torch.load(path / LATEST, weights_only=False)["state"]["algorithms"]) for path in (folder, whole)
    )
    assert one["LengthCurriculum"] == other["LengthCurriculum"]


class Stopped(BaseException):
    """Ends a run where it is."""


@pytest.mark.parametrize("place", places("hybrid", 15)[1:4], ids=lambda place: f"{place[0]}_{place[1]}")
def test_a_hybrid_run_stopped_around_its_switch(
    prepared: Prepared, undisturbed: Callable[[str], Path], tmp_path: Path, in_process: Callable,
    monkeypatch: pytest.MonkeyPatch, place: tuple[str, str, int],
) -> None:  # fmt: skip
    """What the kills above do, in one process."""
    from composer.core import Engine

    when, name, step = place
    run_event = Engine.run_event

    def stopping(engine: Engine, event: Any) -> Any:
        is_place = event.value == name and engine.state.timestamp.batch.value == step
        if is_place and when == "before":
            raise Stopped
        traces = run_event(engine, event)
        if is_place:
            raise Stopped
        return traces

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run_event", stopping)
        with pytest.raises(Stopped):
            in_process(*arguments(prepared, folder, "hybrid", "save_interval=5ba"))
    in_process(*arguments(prepared, folder, "hybrid", "save_interval=5ba", "autoresume=true"))
    assert exact(folder) == exact(undisturbed("hybrid"))
    assert_same_state(folder / LATEST, undisturbed("hybrid") / LATEST)


def test_a_run_ended_at_its_switch_by_the_clock_goes_on(
    prepared: Prepared, undisturbed: Callable[[str], Path], tmp_path: Path, in_process: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The evaluation at step 15 is one of the run's; one that is made because a run ends at 12 isn't."""
    folder = tmp_path / "run"
    for before, step in ((0, 12), (12, 15)):
        with monkeypatch.context() as patch:
            over = iter([False] * (step - before) + [True] * 100)  # asked at the start too
            patch.setattr("bertchen.callbacks.stop_after.has_run_out", lambda elapsed, limit, over=over: next(over))
            in_process(*arguments(prepared, folder, "hybrid", "stop_after=4h", "autoresume=true"))
        assert metrics(folder)[-1]["reason"] == f"stop_after=4h reached at step {step}"
    in_process(*arguments(prepared, folder, "hybrid", "autoresume=true"))
    assert exact(folder) == exact(undisturbed("hybrid"))


def test_evaluations_by_epochs(prepared: Prepared, tmp_path: Path, in_process: Callable) -> None:
    """These follow the last step's checkpoint: a restart from that makes them again, and the switch with them."""
    folder, resumed = tmp_path / "run", tmp_path / "resumed"
    more = ("eval.interval=1ep", "max_duration=3ep", "curriculum.hybrid.patience=1", "save_num_checkpoints_to_keep=100")
    in_process(*arguments(prepared, folder, "hybrid", *more))
    steps = prepared.steps_an_epoch()
    assert switches(folder) == [(2 * steps, 32), (3 * steps, 64)]
    resumed.mkdir()
    name = f"ep1-ba{2 * steps}-rank0.pt"
    (resumed / name).write_bytes((folder / name).read_bytes())
    (resumed / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    in_process(*arguments(prepared, resumed, "hybrid", *more, "autoresume=true"))
    assert exact(resumed) == exact(folder)


@pytest.mark.parametrize("name", ["hybrid", "dynamic"])
def test_two_processes_switch_at_the_same_step(
    prepared: Prepared, tmp_path: Path, in_process: Callable, name: str
) -> None:
    """A batch of which one process cuts its part elsewhere would have another loss."""
    one, two = tmp_path / "one", tmp_path / "two"
    without_dropout = "model.hidden_dropout_prob=0"
    in_process(*arguments(prepared, one, name, without_dropout))
    succeed(COMPOSER, "-n", "2", "main.py", *arguments(prepared, two, name, without_dropout))
    assert switches(one)
    assert switches(two) == switches(one)
    assert lengths(two) == lengths(one)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_a_checkpoint_of_another_curriculum(
    prepared: Prepared, undisturbed: Callable[[str], Path], in_process: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is changed, in a dry run too."""
    folder = undisturbed("hybrid")
    before = tree(folder)
    hybrid = "curriculum: the checkpoint is of name hybrid, rule lengths [16, 32, 64], patience 2, delta 100.0, metric"
    others = (
        (
            ["masking.stage_rates=[0.3,0.2,0.1]"],
            "masking: the checkpoint is of mlm_probability 0.3, stage_rates [0.3, ",
        ),
        (["curriculum.hybrid.patience=3"], hybrid),
        (["curriculum.hybrid.delta=1", "dry_run=true"], hybrid),
        (
            ["curriculum.hybrid=null", "masking.stage_rates=null"],
            "this run has name sequence_length, rule lengths [64]: give the same, or start anew with overwrite=true",
        ),
    )
    for other, message in others:
        with pytest.raises(SystemExit) as caught:
            in_process(*arguments(prepared, folder, "hybrid", "autoresume=true", *other))
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert f"\nerror: {folder}/{checkpoints(folder)[-1]}: " in f"\n{said}"
        assert message in said
    assert tree(folder) == before


def test_wandb_gets_the_switches(prepared: Prepared, tmp_path: Path) -> None:
    env = environment(HOME=str(tmp_path / "home"), WANDB_MODE="offline")
    folder = tmp_path / "run"
    more = ("max_duration=16ba", "loggers.wandb={project: x}")
    done = run(PYTHON, "main.py", *arguments(prepared, folder, "hybrid", *more), env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 15: from length 16 to 32 (stage 1): eval_64/MaskedCrossEntropy is " in done.stderr, "on the console"
    tables = list((folder / "wandb").glob("offline-run-*/files/media/table/curriculum/switches*.json"))
    assert any("eval_64/MaskedCrossEntropy is" in path.read_text() for path in tables)


def test_a_dry_run_shows_the_curriculum(
    prepared: Prepared, tmp_path: Path, in_process: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {
        "hybrid": (
            "hybrid: lengths [16, 32, 64], patience 2, delta 100.0, metric eval_64/MaskedCrossEntropy; masking: "
            "mlm_probability 0.3, stage_rates [0.3, 0.25, 0.2]",
            f"a step: {BATCH * 4} rows x 16 = {BATCH * BLOCK_SIZE:,} tokens",
        ),
        "dynamic": ("dynamic: lengths [16, 64], ", f"a step: {BATCH} rows x 64 ="),
        "seq_length_warmup": ("seq_length_warmup: lengths [64], arguments duration 1.0, min_seq_length 16, ", "x 16 ="),
    }
    for name, lines in expected.items():
        in_process(*arguments(prepared, tmp_path / "run", name, "dry_run=true"))
        printed = capsys.readouterr().out
        assert all(line in printed for line in lines), printed[-3000:]
    assert not os.path.exists(tmp_path / "run")
