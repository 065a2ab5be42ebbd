"""Who serves, who refuses and why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from alibi_reference import tiny_config
from torch import Tensor

from bertchen.model import (
    BackendUnavailable,
    MosaicBertConfig,
    MosaicBertForMaskedLM,
    MosaicBertModel,
    attention,
    choose_backend,
    why_unavailable,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = torch.bfloat16
IDS = torch.tensor([[4, 5, 6, 7]])


@pytest.fixture
def flash_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_FLASH_ERROR", None)
    monkeypatch.setattr(attention, "_try_flash", lambda *_: None)


@pytest.fixture
def flash_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_FLASH_ERROR", "flash-attn is not installed")


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "dropout", "head_dim", "why"),
    [
        ("flash", CPU, BF16, 0.0, 64, "CUDA, not on cpu"),
        ("flash", CUDA, torch.float32, 0.0, 64, "not in float32"),
        ("flash", CUDA, BF16, 0.0, 64, "not installed"),
        ("flex", CUDA, BF16, 0.1, 64, "no dropout.*attention_probs_dropout_prob=0.1"),
        ("flex", CPU, BF16, 0.1, 64, "no dropout"),
        ("flex", CUDA, BF16, 0.0, 8, "at least 16 wide, not 8"),
        ("flex", torch.device("mps"), torch.float32, 0.0, 64, "CUDA, not on mps"),
        ("nonsense", CPU, torch.float32, 0.0, 64, "no such backend.*triton, flash, flex, sdpa"),
    ],
)
@pytest.mark.usefixtures("flash_is_missing")
def test_a_named_backend_that_cannot_serve_says_why(
    backend: str, device: torch.device, dtype: torch.dtype, dropout: float, head_dim: int, why: str
) -> None:
    with pytest.raises(BackendUnavailable, match=f"attention_backend={backend}.*{why}.*sdpa"):
        choose_backend(backend, device, dtype, dropout, training=True, head_dim=head_dim)
    assert why_unavailable(backend, device, dtype, dropout, head_dim)


def test_flash_that_fails_on_the_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_FLASH_ERROR", None)
    monkeypatch.setattr(attention, "_try_flash", lambda *_: "no kernel image")
    with pytest.raises(BackendUnavailable, match="no kernel image"):
        choose_backend("flash", CUDA, BF16, head_dim=64)
    assert choose_backend("auto", CUDA, BF16, training=True, head_dim=64) == "flex"


def sdpa(qkv: Tensor, context: attention.AttentionContext) -> Tensor:
    extra = attention._sdpa_prepare(context.packing, context.slopes, qkv.dtype)
    return attention._sdpa_attend(qkv, context._replace(extra=extra))


def missing_kernel(qkv: Tensor, context: attention.AttentionContext) -> Tensor:
    raise RuntimeError("no kernel image")


BUILDS = {
    "whole": (sdpa, None, None),
    "no dropout": (lambda qkv, context: sdpa(qkv, context._replace(dropout_p=0.0)), None, "without dropout"),
    "no output": (lambda qkv, context: torch.zeros_like(qkv[:, 0]) * qkv[:, 0], "wrong numbers", "wrong numbers"),
    "NaN": (lambda qkv, context: sdpa(qkv, context) * torch.nan, "wrong numbers", "wrong numbers"),
    "no gradient": (
        lambda qkv, context: sdpa(qkv.detach(), context) + 0 * qkv[:, 0],
        "wrong numbers",
        "wrong numbers",
    ),
    "no kernel": (missing_kernel, "no kernel image", "no kernel image"),
}


@pytest.mark.parametrize(("kernel", "alone", "with_dropout"), BUILDS.values(), ids=BUILDS.keys())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_flash_is_tried_before_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch,
    kernel: Callable,
    alone: str | None,
    with_dropout: str | None,
    mode: Callable,
) -> None:
    """Builds of flash-attn that leave things out, played by functions on the CPU."""
    flash = attention._BACKENDS["flash"]._replace(attend=kernel)
    monkeypatch.setitem(attention._BACKENDS, "flash", flash)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.random, "fork_rng", lambda _: nullcontext())
    with mode():
        for dropout, expected in ((False, alone), (True, with_dropout)):
            attention._try_flash.cache_clear()
            reason = attention._try_flash(CPU, BF16, 64, dropout)
            assert (reason is None) == (expected is None)
            assert expected is None or expected in reason
    attention._try_flash.cache_clear()


@pytest.mark.usefixtures("flash_works")
def test_auto_prefers_flash() -> None:
    assert choose_backend("auto", CUDA, BF16) == "flash"
    assert choose_backend("auto", CUDA, torch.float16, dropout_p=0.1, training=True, head_dim=64) == "flash"


@pytest.mark.usefixtures("flash_is_missing")
def test_auto_falls_back() -> None:
    assert choose_backend("auto", CUDA, BF16, training=True) == "flex"
    assert choose_backend("auto", CUDA, torch.float32, training=True, head_dim=64) == "flex"
    assert choose_backend("auto", CUDA, BF16, training=False) == "sdpa"
    assert choose_backend("auto", CUDA, BF16, dropout_p=0.1, training=True) == "sdpa"
    assert choose_backend("auto", CUDA, BF16, training=True, head_dim=8) == "sdpa"
    assert choose_backend("auto", CPU, torch.float32, training=True) == "sdpa"


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    attention._log_choice.cache_clear()
    model = MosaicBertModel(tiny_config()).eval()
    with caplog.at_level(logging.INFO, logger=attention.__name__):
        for _ in range(3):
            model(IDS)
    messages = [record.getMessage() for record in caplog.records if record.name == attention.__name__]
    assert len(messages) == 1
    assert "auto" in messages[0]
    assert "sdpa" in messages[0]
    assert "cpu" in messages[0]


def test_a_named_backend_is_not_logged_as_a_choice(caplog: pytest.LogCaptureFixture) -> None:
    attention._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger=attention.__name__):
        MosaicBertModel(tiny_config(attention_backend="sdpa"))(IDS)
    assert not [record for record in caplog.records if record.name == attention.__name__]


def test_the_model_does_not_fall_back_from_a_named_backend() -> None:
    with pytest.raises(BackendUnavailable, match="flash-attn runs on CUDA, not on cpu"):
        MosaicBertForMaskedLM(tiny_config(attention_backend="flash"))(IDS)


def test_attention_dropout_with_flex_is_refused_in_training_only() -> None:
    model = MosaicBertModel(tiny_config(attention_backend="flex", attention_probs_dropout_prob=0.1))
    with pytest.raises(BackendUnavailable, match=r"attention_probs_dropout_prob=0\.1"):
        model.train()(IDS)
    with torch.no_grad():
        assert model.eval()(IDS).last_hidden_state.isfinite().all()


def test_flex_and_sdpa_give_the_same_model_output() -> None:
    torch.manual_seed(0)
    model = MosaicBertModel(tiny_config()).eval()
    ids = torch.randint(4, 96, (3, 150))
    mask = torch.arange(150)[None, :] < torch.tensor([150, 3, 129])[:, None]
    with torch.no_grad():
        model.config.attention_backend = "sdpa"
        expected = model(ids, mask).last_hidden_state
        model.config.attention_backend = "flex"
        torch.testing.assert_close(model(ids, mask).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_backend": "fast"}, "attention_backend='fast'.*auto, triton, flash, flex, sdpa"),
        ({"classifier_pooling": "max"}, "classifier_pooling='max'.*mean, first"),
        ({"hidden_size": 50, "num_attention_heads": 12}, "hidden_size=50.*num_attention_heads=12"),
    ],
)
def test_config_refuses_what_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MosaicBertConfig(**changes)
