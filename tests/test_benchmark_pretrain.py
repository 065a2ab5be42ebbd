"""The benchmark of pretraining: what it measures, how it sorts kernels, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_modules import load_script

from bertchen.config import load_config
from bertchen.config.schema_benchmark import BenchmarkConfig
from bertchen.errors import UserError

MODEL = (
    "model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.intermediate_size=48",
)  # fmt: skip
SHORT = ("steps=2", "warmup=0")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_pretrain")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_for_each_setting(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(
        [
            *MODEL, *SHORT, "model.vocab_size=128", "parts=[step,evaluate]", "kernels=[torch,auto]",
            "references=[bert,modernbert]", "sequence_lengths=[8,16]", "microbatch_tokens=[64]", "tokens_per_step=128",
            "peak_flops=1e12",
        ]
    )  # fmt: skip
    measured = lines(capsys)
    settings = [(line["what"], line["model"], line["kernels"], line["length"]) for line in measured]
    models = [("mosaicbert", "torch"), ("mosaicbert", "auto"), ("bert", "torch"), ("modernbert", "torch")]
    assert settings == [(what, *m, length) for what in ("step", "evaluate") for m in models for length in (8, 16)]
    for line in measured:
        assert (line["microbatch_tokens"], line["tokens_per_step"]) == (64, 128)
        assert 0 < line["slowest_fastest"][0] <= line["tokens_per_second"] <= line["slowest_fastest"][1]
        training = line["what"] == "step"
        assert (line["mfu"] is not None) == training
        if training:
            rate = 6 * line["tokens_per_second"] * line["parameters"] / 1e12
            assert line["mfu"] == pytest.approx(rate, abs=1e-4)


def test_step_is_that_of_the_whole_batch(benchmark: ModuleType) -> None:
    """Gradients of two microbatches add up to those of the batch's mean loss, and are gone after the step."""
    config = load_config(BenchmarkConfig, [*MODEL, "model.vocab_size=128", "tokens_per_step=128"], "")
    bench = benchmark.Bench(config.value, "mosaicbert", "torch", "sdpa", 16, 64)
    bench.model.eval()  # without dropout
    bench.micro_step()
    bench.micro_step()
    accumulated = [p.grad.clone() for p in bench.model.parameters() if p.grad is not None]
    bench.model.zero_grad()
    benchmark.loss_of(bench.model, bench.batch).backward()
    for got, parameter in zip(accumulated, [p for p in bench.model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
    before = [p.detach().clone() for p in bench.model.parameters()]
    bench.training_step()()
    assert any(not torch.equal(p, old) for p, old in zip(bench.model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in bench.model.parameters())


@pytest.mark.slow
def test_whole_training(
    benchmark: ModuleType,
    tiny_data: Path,
    tiny_tokenizer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark.main(
        [
            *MODEL, "parts=[trainer]", "steps=3", "warmup=1", "sequence_lengths=[32]", "microbatch_tokens=[128]",
            f"folder={tmp_path}", f"trainer.data.local={tiny_data}", f"trainer.tokenizer={tiny_tokenizer}",
            "trainer.eval.lengths=[32]", "trainer.global_train_batch_size=8", "trainer.data.num_workers=0",
        ]
    )  # fmt: skip
    (line,) = lines(capsys)
    assert (line["what"], line["tokens_per_step"]) == ("trainer", 8 * 32)
    assert 0 < line["slowest_fastest"][0] <= line["tokens_per_second"] <= line["slowest_fastest"][1]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NNN", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16>", "matrix products"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("triton_tem_fused_flex_attention_backward_transpose_view_16", "attention"),
        ("_of_keys", "attention"),
        ("_glu_backward", "gated feed-forward"),
        ("triton_poi_fused_gelu_mul_native_dropout_split_13", "gated feed-forward"),
        ("_add_norm_backward", "LayerNorm"),
        ("triton_per_fused__to_copy_add_native_layer_norm_15", "LayerNorm"),
        ("_cross_entropy", "loss"),
        ("_embed_backward", "embeddings"),
        ("triton_per_fused__to_copy_add_embedding_native_dropout_native_layer_no", "embeddings"),
        ("triton_red_fused__log_softmax__to_copy_22", "loss"),
        ("Memset (Device)", "other"),
    ],
)
def test_kinds_of_kernels(benchmark: ModuleType, kernel: str, kind: str) -> None:
    assert benchmark.kind_of(kernel) == kind


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("parts=[steps]", r"parts.*'steps' is unknown.*step"),
        ("kernels=[tritn]", r"kernels.*'tritn' is unknown.*triton"),
        ("references=[roberta]", "references.*'roberta' is unknown"),
        ("parts=[trainer]", "trainer.*needs trainer.data.local"),
        ("steps=0", "steps"),
    ],
)
def test_refuses(benchmark: ModuleType, wrong: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main([wrong])


def test_what_cant_run_says_why(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("flash serves on a GPU")
    benchmark.main([*MODEL, *SHORT, "model.vocab_size=128", "backends=[flash]", "tokens_per_step=64"])
    (line,) = lines(capsys)
    assert "flash-attn runs on CUDA" in line["error"]
