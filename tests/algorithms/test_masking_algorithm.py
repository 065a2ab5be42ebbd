"""Masking as an Algorithm: what it makes of a batch, and that microbatches don't change the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from composer.core import Callback, Event, State, Time, TimeUnit
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import Tensor

from bertchen.algorithms import Masking, build_algorithms
from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.data.masking import IGNORE_INDEX, MaskingVocabulary, mask_tokens, max_masked_per_row
from bertchen.errors import UserError
from bertchen.train import builders
from bertchen.train.preflight import preflight

VOCABULARY = MaskingVocabulary.build(50, [0, 1, 2], 3)


class Nothing(ComposerModel):
    def forward(self, batch: Any) -> Any:
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Any) -> Any:
        raise NotImplementedError


def state_with(batch: dict[str, Tensor], step: int = 0) -> State:
    state = State(model=Nothing(), rank_zero_seed=0, run_name="test", device=DeviceCPU())
    state.batch = batch
    state.timestamp = state.timestamp.copy(batch=Time(step, TimeUnit.BATCH))
    return state


def some_batch(rows: int = 12, seq_len: int = 20) -> dict[str, Tensor]:
    # Special tokens in some rows only, so that rows differ in what they hide.
    input_ids = torch.arange(rows * seq_len).reshape(rows, seq_len) % 46 + 4
    input_ids[: rows // 2, :13] = 2
    return {"input_ids": input_ids, "row_ids": torch.arange(rows) * 5}


def applied(masking: Masking, batch: dict[str, Tensor], step: int = 0) -> dict[str, Any]:
    state = state_with(batch, step)
    masking.apply(Event.AFTER_DATALOADER, state, Logger(state))
    return state.batch


def test_it_acts_when_the_loader_has_given_a_batch_and_never_else() -> None:
    masking = Masking(VOCABULARY, 0.3, 42)
    state = state_with(some_batch())
    assert [event for event in Event if masking.match(event, state)] == [Event.AFTER_DATALOADER]


@pytest.mark.parametrize("step", [0, 7])
def test_batch_is_masked_by_seed_step_and_rows(step: int) -> None:
    batch = some_batch()
    expected = mask_tokens(batch["input_ids"], batch["row_ids"], VOCABULARY, 0.3, 42, step, 0.5, 0.4)
    result = applied(Masking(VOCABULARY, 0.3, 42, 0.5, 0.4), batch, step)
    assert torch.equal(result["input_ids"], expected[0])
    assert torch.equal(result["labels"], expected[1])
    assert result["max_masked_per_row"] == max_masked_per_row(0.3, 20)


def test_the_mean_number_of_hidden_tokens_stands_at_each_row() -> None:
    result = applied(Masking(VOCABULARY, 0.3, 42), some_batch())
    hidden = (result["labels"] != IGNORE_INDEX).sum().item()
    assert result["masked_per_row"].tolist() == pytest.approx([hidden / 12] * 12)


def test_the_mean_is_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of 4 rows that hide 10 tokens takes part in the sum."""

    def add_the_other(counts: Tensor) -> None:
        counts += torch.tensor([10, 4], dtype=counts.dtype)

    monkeypatch.setattr("bertchen.algorithms.masking.dist.all_reduce", add_the_other)
    result = applied(Masking(VOCABULARY, 0.3, 42), some_batch())
    hidden = (result["labels"] != IGNORE_INDEX).sum().item()
    assert result["masked_per_row"][0].item() == pytest.approx((hidden + 10) / 16)


def test_a_batch_without_a_token_to_hide_gives_no_division_by_zero() -> None:
    result = applied(Masking(VOCABULARY, 0.3, 42), {"input_ids": torch.full((2, 4), 2), "row_ids": torch.arange(2)})
    assert (result["masked_per_row"] > 0).all()


class KeepGradients(Callback):
    """The gradients that the optimizer gets, and the loss that is logged."""

    gradients: dict[str, Tensor]
    loss: float

    def after_train_batch(self, state: State, logger: Logger) -> None:
        named = state.model.named_parameters()
        self.gradients = {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}

    def batch_end(self, state: State, logger: Logger) -> None:
        self.loss = float(state.total_loss_dict["loss/train/total"])


def trained_one_step(config: Config[TrainConfig]) -> KeepGradients:
    checked = preflight(config)
    model = builders.build_model(config, checked)
    kept = KeepGradients()
    trainer = Trainer(
        model=model,
        train_dataloader=builders.build_train_loader(config, checked),
        optimizers=builders.build_optimizer(config, model),
        algorithms=[builders.build_masking(config, checked)],
        callbacks=[kept],
        max_duration="1ba",
        device="cpu",
        precision="fp32",
        device_train_microbatch_size=checked.blocks_per_device,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    return kept


def directly(config: Config[TrainConfig]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the plain mean over all hidden tokens of the batch, from the logits of all positions."""
    checked = preflight(config)
    model = builders.build_model(config, checked)
    batch = next(iter(builders.build_train_loader(config, checked).dataloader))
    cfg = config.value
    input_ids, labels = mask_tokens(
        batch["input_ids"],
        batch["row_ids"],
        builders.masking_vocabulary(checked),
        cfg.masking.mlm_probability,
        cfg.seed,
        0,
    )
    logits = model.model(input_ids=input_ids, output_logits=True).logits
    chosen = labels != -100
    assert len(set(chosen.sum(dim=1).tolist())) > 1, "rows should differ, else any mean of means would do"
    loss = F.cross_entropy(logits[chosen].double(), labels[chosen])
    loss.backward()
    return loss.item(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("seq_len", [8, 32])
def test_microbatches_do_not_change_the_gradient(
    train_config: Callable[..., Config[TrainConfig]], seq_len: int
) -> None:
    """8 blocks of 32 tokens in microbatches of 1, 2, 8 and all rows; of 8 tokens a row is a quarter of a block."""
    common = (f"sequence_length={seq_len}", "model.hidden_dropout_prob=0.0", "model.initializer_range=0.2")
    loss, gradients = directly(train_config(*common, f"microbatch_tokens={8 * 32}"))
    for rows in (1, 2, 8, 8 * 32 // seq_len):
        kept = trained_one_step(train_config(*common, f"microbatch_tokens={rows * seq_len}"))
        assert kept.loss == pytest.approx(loss, rel=1e-5)
        assert kept.gradients.keys() == {f"model.{name}".replace("model.model.", "model.") for name in gradients}
        for name, expected in gradients.items():
            torch.testing.assert_close(kept.gradients[name], expected, rtol=1e-4, atol=1e-6)


def test_algorithms_of_a_yaml(train_config: Callable[..., Config[TrainConfig]]) -> None:
    clipping, average = build_algorithms(train_config("algorithms.ema.half_life=10ba"))
    assert (type(clipping).__name__, type(average).__name__) == ("GradientClipping", "EMA")
    assert clipping.clipping_threshold == 1.0
    assert build_algorithms(train_config("algorithms.gradient_clipping=null")) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithms.gradient_cliping={}", "did you mean gradient_clipping?"),
        ("algorithms.gradient_clipping.threshold=1", "did you mean clipping_threshold?"),
        ("algorithms.gradient_clipping.clipping_type=hard", "algorithms.gradient_clipping (from the command line): "),
        ("algorithms.gradient_clipping.clipping_type=hard", "known: adaptive, norm, value"),
        ("algorithms.gradient_clipping.clipping_threshold=0", "clipping_threshold=0 should be positive"),
        (
            "algorithms.gradient_clipping.clipping_threshold=word",
            "algorithms.gradient_clipping (from the command line): ",
        ),
    ],
)
def test_wrong_algorithms(train_config: Callable[..., Config[TrainConfig]], override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_algorithms(train_config(override))
    assert message in str(caught.value)
