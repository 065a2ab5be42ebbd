"""Weight decay, optimizers and schedules against formulas written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer.core import State, Timestamp
from composer.devices import DeviceCPU
from torch import nn

from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.train.builders import build_optimizer, build_scheduler, parameter_groups

MakeConfig = Callable[..., Config[TrainConfig]]


@pytest.fixture(scope="module")
def model() -> MosaicBertForMaskedLM:
    return MosaicBertForMaskedLM(
        MosaicBertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
    )


def test_biases_and_layer_norms_have_no_decay_and_all_else_has(model: MosaicBertForMaskedLM) -> None:
    """Told by name and by the kind of the module, not by the number of dimensions."""
    decayed, others = parameter_groups(model, 0.25)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 1 + 2 * 2 + 1
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {name for name in names.values() if name.endswith("bias") or name.rpartition(".")[0] in norms}
    assert {names[id(parameter)] for parameter in others["params"]} == without
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(names.values()) - without
    assert len(decayed["params"]) + len(others["params"]) == len(names), "each parameter once"


def test_frozen_parameters_are_left_out(model: MosaicBertForMaskedLM) -> None:
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    frozen[0].requires_grad_(False)
    decayed, others = parameter_groups(frozen, 0.1)
    assert [id(parameter) for parameter in decayed["params"]] == [id(frozen[1].weight)]
    assert [id(parameter) for parameter in others["params"]] == [id(frozen[1].bias)]


OPTIMIZER = ("optimizer.lr=5e-4", "optimizer.betas=[0.9,0.98]", "optimizer.eps=1e-6", "optimizer.weight_decay=0.01")


def stepped(config: Config[TrainConfig], gradient: float, share_of_lr: float = 1.0) -> tuple[float, float]:
    """A weight of 1 in a matrix and a bias of 1 after one step, at a share of the initial learning rate."""
    layer = nn.Linear(1, 1)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_optimizer(config, layer)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] *= share_of_lr
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return layer.weight.item(), layer.bias.item()


@pytest.mark.parametrize("share_of_lr", [1.0, 0.5, 0.1])
@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("adamw", lambda share: 5e-4 * share * 0.01),  # lr * weight_decay of a weight
        ("decoupled_adamw", lambda share: share * 0.01),  # (lr / initial lr) * weight_decay of it
    ],
)
def test_decay_is_what_the_yaml_says(train_config: MakeConfig, name: str, decay: Any, share_of_lr: float) -> None:
    """Without a gradient a step is decay alone. In float64, for adamw's first decay is 5e-6."""
    torch.set_default_dtype(torch.float64)
    try:
        weight, bias = stepped(train_config(*OPTIMIZER, f"optimizer.name={name}"), 0.0, share_of_lr)
    finally:
        torch.set_default_dtype(torch.float32)
    assert 1 - weight == pytest.approx(decay(share_of_lr), rel=1e-9)
    assert bias == 1


def test_the_paper_s_decay_in_the_other_meaning(train_config: MakeConfig) -> None:
    """yamls/pretrain.yaml: at a learning rate of 5e-4, 1e-5 in adamw is 5e-9 in decoupled_adamw."""
    torch.set_default_dtype(torch.float64)
    try:
        one, _ = stepped(train_config("optimizer.lr=5e-4", "optimizer.weight_decay=1e-5"), 0.0)
        other, _ = stepped(
            train_config("optimizer.lr=5e-4", "optimizer.weight_decay=5e-9", "optimizer.name=decoupled_adamw"), 0.0
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert 1 - one == pytest.approx(1 - other, rel=1e-6)


@pytest.mark.parametrize("name", ["adamw", "decoupled_adamw"])
@pytest.mark.parametrize("gradient", [0.3, 1e-6])
def test_a_first_step_is_adams(train_config: MakeConfig, name: str, gradient: float) -> None:
    """Bias-corrected, both moments are those of the gradient itself: the step is lr * g / (|g| + eps)."""
    config = train_config(*OPTIMIZER, "optimizer.weight_decay=0", f"optimizer.name={name}")
    weight, bias = stepped(config, gradient)
    expected = 1 - 5e-4 * gradient / (gradient + 1e-6)
    assert (weight, bias) == pytest.approx((expected, expected), abs=2e-7)


def test_betas_and_eps_arrive(train_config: MakeConfig, model: MosaicBertForMaskedLM) -> None:
    for name in ("adamw", "decoupled_adamw"):
        for group in build_optimizer(train_config(*OPTIMIZER, f"optimizer.name={name}"), model).param_groups:
            assert (group["lr"], tuple(group["betas"]), group["eps"]) == (5e-4, (0.9, 0.98), 1e-6)


def test_unknown_optimizer(train_config: MakeConfig, model: MosaicBertForMaskedLM) -> None:
    with pytest.raises(
        UserError, match=r"optimizer\.name=adamv \(from the command line\): unknown; did you mean adamw"
    ):
        build_optimizer(train_config("optimizer.name=adamv"), model)


def factor(config: Config[TrainConfig], step: int, model: Any, batches_in_epoch: int = 100) -> float:
    """The learning rate's factor after `step` steps."""
    state = State(
        model=model, rank_zero_seed=0, run_name="test", device=DeviceCPU(), max_duration=config.value.max_duration,
        dataloader=[0] * batches_in_epoch, dataloader_label="train",
    )  # fmt: skip
    state.timestamp = Timestamp(batch=step, token=step * 524_288, sample=step * 1024)
    return build_scheduler(config)(state)


class Nothing(nn.Module):
    pass


def linear(step: float, warmup: float, total: float, final: float) -> float:
    """Up from 0 in a line to 1 over `warmup` steps, then down in a line to `final` at the end."""
    if step < warmup:
        return step / warmup
    return 1 + (final - 1) * (step - warmup) / (total - warmup)


STEPS = (0, 1, 75, 149, 150, 151, 1000, 1325, 2499, 2500)


@pytest.mark.parametrize("final", [0.0, 0.02])
@pytest.mark.parametrize("t_warmup", ["0.06dur", "150ba"])
def test_linear_schedule(train_config: MakeConfig, final: float, t_warmup: str) -> None:
    config = train_config("max_duration=2500ba", f"scheduler.alpha_f={final}", f"scheduler.t_warmup={t_warmup}")
    for step in STEPS:
        assert factor(config, step, Nothing()) == pytest.approx(linear(step, 150, 2500, final), abs=1e-12)


@pytest.mark.parametrize(
    ("max_duration", "unit"), [("1310720000tok", "tokens"), ("2560000sp", "blocks"), ("25ep", "epochs")]
)
def test_linear_schedule_in_other_units(train_config: MakeConfig, max_duration: str, unit: str) -> None:
    """2,500 steps of 524,288 tokens or 1,024 blocks, or 25 epochs of 100 steps."""
    config = train_config(f"max_duration={max_duration}")
    for step in STEPS[:-1]:
        assert factor(config, step, Nothing()) == pytest.approx(linear(step, 150, 2500, 0.0), abs=1e-9)


def test_other_schedules(train_config: MakeConfig) -> None:
    cosine = train_config("max_duration=2500ba", "scheduler.name=cosine_with_warmup", "scheduler.alpha_f=0.1")
    constant = train_config("max_duration=2500ba", "scheduler.name=constant_with_warmup")
    for step in STEPS:
        share = (step - 150) / 2350
        expected = step / 150 if step < 150 else 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
        assert factor(cosine, step, Nothing()) == pytest.approx(expected, abs=1e-9)
        assert factor(constant, step, Nothing()) == pytest.approx(min(1, step / 150))


def test_unknown_schedule(train_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"scheduler\.name=linear .*known: .*linear_with_warmup"):
        build_scheduler(train_config("scheduler.name=linear"))
