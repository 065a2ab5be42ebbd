"""The curriculum as an Algorithm: rows, logs, events, states, and that all processes decide alike."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.algorithms import SeqLengthWarmup
from composer.core import Event, State, Time, Timestamp, TimeUnit
from composer.devices import DeviceCPU
from composer.loggers import InMemoryLogger, Logger, LoggerDestination
from composer.models import ComposerModel
from torch import Tensor
from torchmetrics import MeanMetric

from bertchen.algorithms import LengthCurriculum, Masking
from bertchen.algorithms.curricula import Dynamic, Hybrid, MaskingRate, PlateauState, Rule, Static, Warmup
from bertchen.callbacks import MetricsFile
from bertchen.data.masking import MaskingVocabulary, max_masked_per_row
from bertchen.errors import UserError

VOCABULARY = MaskingVocabulary.build(50, [0, 1, 2], 3)
METRIC = "eval_16/MeanMetric"
HYBRID = Hybrid((4, 8, 16), 1, 0.5, METRIC, None)


class Nothing(ComposerModel):
    def forward(self, batch: Any) -> Any:
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Any) -> Any:
        raise NotImplementedError


def some_batch(rows: int = 3, seq_len: int = 16) -> dict[str, Tensor]:
    return {
        "input_ids": torch.arange(rows * seq_len).reshape(rows, seq_len) % 46 + 4,
        "row_ids": torch.tensor([7, 2, 9])[:rows],
    }


class Run:
    """Stands in for Composer: its events, one after the other, as in a run of ten steps."""

    def __init__(self, curriculum: LengthCurriculum, *more: Masking, folder: Path | None = None) -> None:
        self.curriculum = curriculum
        self.algorithms = [*more, curriculum]
        self.logged = InMemoryLogger()
        self.state = State(model=Nothing(), rank_zero_seed=0, run_name="test", device=DeviceCPU(), max_duration="10ba")
        self.state.eval_metrics = {"eval_16": {"MeanMetric": MeanMetric()}}
        self.logged.state = self.state
        destinations: list[LoggerDestination] = [self.logged]
        self.file = MetricsFile(folder / "metrics.jsonl") if folder else None
        self.logger = Logger(self.state, [*destinations, *([self.file] if self.file else [])])
        self.tell(Event.FIT_START)

    def tell(self, event: Event) -> None:
        order = reversed(self.algorithms) if event.name.startswith("AFTER_") else self.algorithms
        for algorithm in order:
            if algorithm.match(event, self.state):
                algorithm.apply(event, self.state, self.logger)

    def step(self, loss: float = 1.0, value: float | None = None) -> dict[str, Any]:
        """A step and, with a `value`, an evaluation after it; the batch as the model gets it."""
        self.tell(Event.BEFORE_DATALOADER)
        self.state.batch = some_batch()
        self.tell(Event.AFTER_DATALOADER)
        batch = self.state.batch
        self.state.total_loss_dict = {"loss/train/total": loss}
        self.state.timestamp = self.state.timestamp.to_next_batch(samples=3, tokens=48)
        self.tell(Event.BATCH_END)
        if value is not None:
            self.evaluate(value)
        return batch

    def evaluate(self, value: float) -> None:
        metric = self.state.eval_metrics["eval_16"]["MeanMetric"]
        metric.reset()
        metric.update(value)
        self.tell(Event.EVAL_AFTER_ALL)

    def last(self, name: str) -> Any:
        return self.logged.get_timeseries(f"curriculum/{name}")[f"curriculum/{name}"][-1]

    def lines(self) -> list[dict[str, Any]]:
        assert self.file
        self.file.flush()
        return [json.loads(line) for line in self.file.path.read_text().splitlines()]


def test_rows_are_cut_and_no_token_is_lost() -> None:
    batch = Run(LengthCurriculum(Rule((4,)), "sequence_length")).step()
    assert batch["input_ids"].shape == (12, 4)
    assert torch.equal(batch["input_ids"].flatten(), some_batch()["input_ids"].flatten())
    assert batch["row_ids"].tolist() == [28, 29, 30, 31, 8, 9, 10, 11, 36, 37, 38, 39]


def test_rows_of_the_length_stay_what_they_are() -> None:
    batch = Run(LengthCurriculum(Rule((16,)), "sequence_length")).step()
    assert all(torch.equal(batch[name], value) for name, value in some_batch().items())


def test_rows_are_masked_after_they_were_cut() -> None:
    """Labels are those of the short rows, and a row hides its own share."""
    curriculum = LengthCurriculum(Rule((4,)), "sequence_length")
    batch = Run(curriculum, Masking(VOCABULARY, 0.5, 42, curriculum=curriculum)).step()
    hidden = batch["labels"] != -100
    assert batch["labels"].shape == (12, 4)
    assert (hidden.sum(dim=1) == 2).all()
    assert torch.equal(batch["labels"][hidden], some_batch()["input_ids"].reshape(12, 4)[hidden])


def test_hybrid_switches_when_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    curriculum = LengthCurriculum(HYBRID, "hybrid")
    run = Run(curriculum, folder=tmp_path)
    lengths = []
    with caplog.at_level(logging.INFO, logger="bertchen"):
        for value in (5.0, None, 4.8, None, 4.0, 4.0, None):
            lengths.append(run.step(value=value)["input_ids"].shape[1])
    assert lengths == [4, 4, 4, 8, 8, 8, 16]
    events = [line for line in run.lines() if "event" in line]
    assert events == [
        {"step": 3, "event": "switch", "stage": 1, "length": 8, "from_length": 4,
         "reason": f"{METRIC} is 4.8000; in 1 evaluations it was not more than 0.5 below the best, 5.0000"},
        {"step": 6, "event": "switch", "stage": 2, "length": 16, "from_length": 8,
         "reason": f"{METRIC} is 4.0000; in 1 evaluations it was not more than 0.5 below the best, 4.0000"},
    ]  # fmt: skip
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith(f"step 3: from length 4 to 8 (stage 1): {METRIC} is 4.8000; ")
    assert run.logged.tables["curriculum/switches"]


def test_what_is_logged_in_each_step(tmp_path: Path) -> None:
    curriculum = LengthCurriculum(Hybrid((4, 16), 3, 0.5, METRIC, None), "hybrid")
    rate = MaskingRate(0.3, stage_rates=(0.3, 0.2))
    run = Run(curriculum, Masking(VOCABULARY, rate, 42, curriculum=curriculum), folder=tmp_path)
    for value in (5.0, 5.0, None):
        run.step(value=value)
    logged = {name: run.last(name) for name in ("length", "stage", "waiting", "best", "masking_rate")}
    assert logged == {"length": 4, "stage": 0, "waiting": 1, "best": 5.0, "masking_rate": 0.3}
    run.curriculum.move_on(run.state, run.logger, "so it was said")
    run.step()
    logged = {name: run.last(name) for name in ("length", "stage", "waiting", "best", "masking_rate")}
    assert logged == {"length": 16, "stage": 1, "waiting": 0, "best": 5.0, "masking_rate": 0.2}
    assert run.lines()[-1]["reason"] == "so it was said"
    assert run.lines()[0]["curriculum/best"] == "inf", "before the first evaluation"


def test_an_evaluation_because_training_ends_does_not_count() -> None:
    """A run that is ended by the clock and goes on later hasn't had it without the end."""
    run = Run(LengthCurriculum(HYBRID, "hybrid"))
    run.step(value=5.0)
    run.step()
    run.tell(Event.FIT_END)
    run.evaluate(5.0)
    assert run.curriculum.stage == 0
    run.tell(Event.FIT_START)
    run.evaluate(5.0)
    assert run.curriculum.stage == 1


def test_evaluations_outside_of_training_do_not_count() -> None:
    """Composer begins and ends these with events of their own."""
    curriculum = LengthCurriculum(HYBRID, "hybrid")
    state = Run(curriculum).state
    told = {event for event in Event if curriculum.match(event, state)}
    assert told == {
        Event.FIT_START, Event.BEFORE_DATALOADER, Event.AFTER_DATALOADER, Event.BATCH_END, Event.EVAL_AFTER_ALL,
        Event.FIT_END,
    }  # fmt: skip


def test_static_switches_before_the_step_that_begins_it() -> None:
    run = Run(LengthCurriculum(Static((4, 8, 16), (0, 2, 3), "ba"), "static"))
    assert [run.step()["input_ids"].shape[1] for _ in range(5)] == [4, 4, 8, 16, 16]


def test_nothing_is_decided_when_the_run_is_over() -> None:
    """Where epochs are counted, Composer asks for one more batch to see that there is none."""
    run = Run(LengthCurriculum(Static((4, 8, 16), (0, 2, 10), "ba"), "static"))
    for _ in range(10):
        run.step()
    run.tell(Event.BEFORE_DATALOADER)
    assert run.curriculum.stage == 1


def test_dynamic_learns_of_the_training_loss() -> None:
    run = Run(LengthCurriculum(Dynamic((4, 16), 0.0, 1, 0.5), "dynamic"))
    lengths = [run.step(loss)["input_ids"].shape[1] for loss in (9.0, 8.0, 8.0, 5.0, 5.0, 3.0, 3.0)]
    assert lengths == [16, 16, 16, 4, 4, 4, 16]


@pytest.mark.parametrize("rule", [HYBRID, Dynamic((4, 16), 0.5, 1, 0.5)], ids=["hybrid", "dynamic"])
def test_the_first_process_s_value_decides(rule: Rule[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has found a plateau that the first one hasn't: it does what the first one does."""

    def first_has(tensor: Tensor, src: int) -> None:
        assert src == 0
        tensor.fill_(100.0 / run.state.timestamp.batch.value)

    monkeypatch.setattr("bertchen.algorithms.length_curriculum.dist.get_world_size", lambda: 2)
    monkeypatch.setattr("bertchen.algorithms.length_curriculum.dist.broadcast", first_has)
    run = Run(LengthCurriculum(rule, "rule"))
    for _ in range(7):
        run.step(loss=1.0, value=1.0)
    assert run.curriculum.switches == []


@pytest.mark.parametrize(
    "rule",
    [
        HYBRID,
        Static((4, 8, 16), (0, 3, 6), "ba"),
        Dynamic((4, 16), 0.5, 1, 0.6),
        Rule((8,)),
        Warmup((16,), {"duration": 0.9, "min_seq_length": 4, "max_seq_length": 16, "step_size": 4, "truncate": False}),
    ],
    ids=["hybrid", "static", "dynamic", "constant", "seq_length_warmup"],
)
@pytest.mark.parametrize("at", range(10))
def test_a_restart_changes_nothing(rule: Rule[Any], at: int, tmp_path: Path) -> None:
    def steps(run: Run, first: int, last: int) -> list[tuple[int, ...]]:
        shapes = []
        for step in range(first, last):
            if isinstance(rule, Warmup):
                run.state._train_dataloader = torch.utils.data.DataLoader([0], batch_size=1)
                run.state.set_dataloader(run.state._train_dataloader, "train")
            shapes.append(run.step(loss=(step % 4) / 3, value=(step % 3) / 2)["input_ids"].shape)
        return shapes

    whole = Run(LengthCurriculum(rule, "rule"))
    expected = steps(whole, 0, 10)
    killed = Run(LengthCurriculum(rule, "rule"))
    before = steps(killed, 0, at)
    saved = json.loads(json.dumps(killed.curriculum.state_dict()))
    resumed = LengthCurriculum(rule, "rule")
    resumed.load_state_dict(saved)
    going_on = Run(resumed)
    going_on.state.timestamp = Timestamp(batch=at, token=48 * at, sample=3 * at)
    assert before + steps(going_on, at, 10) == expected
    assert resumed.state_dict() == whole.curriculum.state_dict()
    if not isinstance(rule, Warmup) and len(rule.lengths) > 1:
        assert whole.curriculum.switches


def test_another_curriculum_is_refused() -> None:
    saved = LengthCurriculum(HYBRID, "hybrid").state_dict()
    LengthCurriculum(HYBRID, "hybrid").load_state_dict(saved)
    others = [
        LengthCurriculum(Static((4, 8, 16), (0, 1, 2), "ba"), "static"),
        LengthCurriculum(Hybrid((4, 8), 1, 0.5, METRIC, None), "hybrid"),
        LengthCurriculum(Hybrid((4, 8, 16), 1, 0.4, METRIC, None), "hybrid"),
        LengthCurriculum(Rule((16,)), "sequence_length"),
    ]
    for other in others:
        with pytest.raises(UserError) as caught:
            other.load_state_dict(saved)
        assert str(caught.value).startswith(
            "curriculum: the checkpoint is of name hybrid, rule lengths [4, 8, 16], patience 1, delta 0.5, "
        )
        assert f"this run has name {other.name}, rule lengths {list(other.rule.lengths)}" in str(caught.value)
        assert "start anew with overwrite=true" in str(caught.value)
    with pytest.raises(UserError, match="the checkpoint is of another kind"):
        others[0].load_state_dict({"repr": "what Composer saves of an algorithm without a state"})


def test_another_masking_rate_is_refused() -> None:
    saved = Masking(VOCABULARY, MaskingRate(0.3, final_rate=0.1), 42).state_dict()
    Masking(VOCABULARY, MaskingRate(0.3, final_rate=0.1), 42).load_state_dict(saved)
    for other in (MaskingRate(0.3), MaskingRate(0.3, final_rate=0.2), MaskingRate(0.3, stage_rates=(0.3, 0.1))):
        with pytest.raises(
            UserError, match=r"^masking: the checkpoint is of mlm_probability 0\.3, final_rate 0\.1; this"
        ):
            Masking(VOCABULARY, other, 42).load_state_dict(saved)


def test_move_on_as_far_as_there_are_stages() -> None:
    run = Run(LengthCurriculum(HYBRID, "hybrid"))
    assert [run.curriculum.move_on(run.state, run.logger, "why") for _ in range(4)] == [True, True, False, False]
    assert (run.curriculum.stage, run.curriculum.length) == (2, 16)
    assert [switch["stage"] for switch in run.curriculum.switches] == [1, 2]


def test_the_bound_of_hidden_tokens_is_one_for_each_length() -> None:
    """Else a compiled model would be compiled again for another rate."""
    curriculum = LengthCurriculum(Static((4, 16, 4), (0, 2, 6), "ba"), "static")
    by_stage = Run(
        curriculum, Masking(VOCABULARY, MaskingRate(0.2, stage_rates=(0.25, 0.5, 0.75)), 42, 0.8, 0.1, curriculum)
    )
    bounds = [
        (batch["input_ids"].shape[1], batch["max_masked_per_row"]) for batch in (by_stage.step() for _ in range(9))
    ]
    assert bounds == [(4, 3)] * 2 + [(16, 8)] * 4 + [(4, 3)] * 3

    falling = Masking(VOCABULARY, MaskingRate(0.5, final_rate=0.1), 42)
    run = Run(LengthCurriculum(Rule((16,)), "sequence_length"), falling)
    batches = [run.step() for _ in range(10)]
    assert {batch["max_masked_per_row"] for batch in batches} == {max_masked_per_row(0.5, 16)}
    hidden = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert hidden[0] == 3 * 8
    assert hidden[-1] <= 3 * 3, "0.14 of 16 tokens, rounded up or down"
    assert run.last("masking_rate") == pytest.approx(0.5 - 0.4 * 0.9)


WARMUP = {"duration": 1.0, "min_seq_length": 4, "max_seq_length": 16, "step_size": 4}


@pytest.mark.parametrize("truncate", [True, False])
def test_composer_s_warmup_sets_its_lengths(truncate: bool) -> None:
    """Composer's own formula: 10 steps, 3 updates, so one every 3 steps."""
    run = Run(LengthCurriculum(Warmup((16,), {**WARMUP, "truncate": truncate}), "seq_length_warmup"))
    run.state.set_dataloader(torch.utils.data.DataLoader([0], batch_size=1), "train")
    batches = [run.step() for _ in range(10)]
    assert [batch["input_ids"].shape[1] for batch in batches] == [4, 4, 4, 8, 8, 8, 12, 12, 12, 16]
    for batch in batches:
        length = batch["input_ids"].shape[1]
        tokens = some_batch()["input_ids"]
        expected = tokens[:, :length] if truncate else tokens.flatten()[: 48 // length * length].reshape(-1, length)
        assert torch.equal(batch["input_ids"], expected)
        assert batch["row_ids"].shape == (len(expected),)
        assert len(set(batch["row_ids"].tolist())) == len(expected), "rows are masked each by a number of its own"
    assert run.last("length") == 16


def test_composer_s_warmup_needs_no_pass_of_its_own() -> None:
    """It would run the model on the first batch, which has no labels yet."""
    algorithm = SeqLengthWarmup(**WARMUP)
    assert hasattr(algorithm, "_activated"), "what is set here to leave it out"


def test_counts_of_blocks_and_tokens_are_composer_s() -> None:
    """They are taken before the rows are cut, and a switch doesn't change them."""
    state = Run(LengthCurriculum(HYBRID, "hybrid"))
    for value in (5.0, 5.0, 5.0):
        state.step(value=value)
    assert state.state.timestamp.token == Time(144, TimeUnit.TOKEN)
    assert isinstance(state.curriculum._progress, PlateauState)
    assert state.curriculum._progress.began == 3
