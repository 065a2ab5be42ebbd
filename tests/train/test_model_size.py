"""Parameters and FLOPs, against formulas written out here and against what PyTorch counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from bertchen.model import MosaicBertConfig
from bertchen.train.architectures import ModelConfig, architecture_of, count_parameters
from bertchen.train.dry_run import flops_per_token

CONFIGS = [
    {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48},
    {"vocab_size": 320, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 64},
    {"vocab_size": 128, "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "intermediate_size": 24,
     "type_vocab_size": 7},
]  # fmt: skip


def mosaicbert_parameters(config: MosaicBertConfig) -> int:
    """A projection has weights and biases, but for the gated one, which has weights alone; the decoder is tied."""
    hidden, wide = config.hidden_size, config.intermediate_size
    norm = 2 * hidden
    attention = 4 * hidden * (hidden + 1) + norm
    feed_forward = hidden * 2 * wide + (wide + 1) * hidden + norm
    embeddings = (config.vocab_size + config.type_vocab_size) * hidden + norm
    head = hidden * (hidden + 1) + norm + config.vocab_size
    return embeddings + config.num_hidden_layers * (attention + feed_forward) + head


@pytest.mark.parametrize("fields", [*CONFIGS, {}], ids=["one layer", "many heads", "token types", "base"])
def test_parameters_of_mosaicbert(fields: dict[str, int]) -> None:
    config = MosaicBertConfig(**fields)
    assert count_parameters(config) == mosaicbert_parameters(config)


def test_parameters_of_bert_base() -> None:
    """Known as 110 million: 23,837,184 in embeddings, 7,087,872 a layer, 622,650 in the MLM head, no pooler."""
    assert count_parameters(BertConfig()) == 23_837_184 + 12 * 7_087_872 + 622_650


def test_base_model_has_about_137_million() -> None:
    assert count_parameters(MosaicBertConfig()) == pytest.approx(137e6, rel=0.02)


def counted_flops(config: ModelConfig, rows: int, seq_len: int, masked_per_row: int) -> int:
    """FLOPs of a training step by PyTorch's own counter.

    It counts matrix products alone. Attention is computed by plain matrix products here, because the counter doesn't
    know the CPU's fused kernel; fused kernels compute the scores once more in the backward pass, which isn't counted
    as useful work.
    """
    model = architecture_of(config).model_class(config).train()
    input_ids = torch.randint(4, config.vocab_size, (rows, seq_len))
    labels = torch.full_like(input_ids, -100)
    labels[:, :masked_per_row] = input_ids[:, :masked_per_row]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids, labels=labels, max_masked=rows * masked_per_row).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("seq_len", [16, 64, 128])
@pytest.mark.parametrize("masked", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "config_class",
    [partial(MosaicBertConfig, attention_backend="sdpa"), partial(BertConfig, max_position_embeddings=128)],
    ids=["mosaicbert", "bert"],
)
def test_flops_are_those_that_pytorch_counts(
    seq_len: int, masked: float, config_class: Callable[..., ModelConfig]
) -> None:
    """Within 2 %: the formula has biases and LayerNorms as weights of products, the counter has not."""
    config = config_class(
        vocab_size=320, hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    rows = 4
    counted = counted_flops(config, rows, seq_len, int(masked * seq_len)) / (rows * seq_len)
    assert flops_per_token(config, count_parameters(config), seq_len, masked) == pytest.approx(counted, rel=0.02)


def test_flops_of_the_base_model_are_near_the_papers_six_for_each_parameter() -> None:
    """Embeddings aren't multiplied and the head sees 30 % only, which attention at 512 tokens about makes up for."""
    config = MosaicBertConfig()
    parameters = count_parameters(config)
    assert 0.8 < flops_per_token(config, parameters, 512, 0.3) / (6 * parameters) < 1.1
