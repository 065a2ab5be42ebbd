"""MosaicBERT's building blocks over unpadded tokens, (total_tokens, hidden) in and out.

Post-norm residuals. Under autocast a LayerNorm computes in float32 and gives its result in autocast's dtype,
so that the residual stream costs half the memory traffic; without autocast all stays in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .attention import AttentionContext, attend
from .configuration_mosaicbert import MosaicBertConfig
from .embedding_kernels import EmbeddingWeights, fused_embeddings
from .float8 import Twins, float8_layer
from .fused import LayerSettings, LayerWeights, fused_layer
from .onednn import linear, linear_times, project, serves
from .padding import Rows, TakeRows


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which matrix products of `tensor` run: autocast's where it is on, else its own."""
    device_type = tensor.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return tensor.dtype


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose output is in the compute dtype; its statistics are float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(compute_dtype(x))


class Embeddings(nn.Module):
    """Words + token types, LayerNorm, dropout. No positions: ALiBi gives the order."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor, token_type_ids: Tensor | None, fused: bool = False) -> Tensor:
        """`tokens` are ids, (total_tokens,), or embedded words, (total_tokens, hidden); no types means type 0.

        With `fused` ids without types are embedded by this project's kernels, if nothing here has been changed.
        """
        if fused and token_type_ids is None and not tokens.is_floating_point() and changed(self, _EMBEDDING) is None:
            words, norm = self.word_embeddings, self.LayerNorm
            weights = EmbeddingWeights(words.weight, self.token_type_embeddings.weight[0], norm.weight, norm.bias)
            p = self.dropout.p if self.dropout.training else 0.0
            return fused_embeddings(tokens, weights, words.padding_idx, norm.eps, p, compute_dtype(words.weight))
        words = tokens if tokens.is_floating_point() else self.word_embeddings(tokens)
        types = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        return self.dropout(self.LayerNorm(words + types))


class SelfAttention(nn.Module):
    """One projection to queries, keys and values, then `attend`."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        qkv = project(self.Wqkv, x).unflatten(-1, (3, self.num_heads, -1))
        return attend(qkv, context).flatten(1)


class AttentionOutput(nn.Module):
    """Projection, dropout, residual, LayerNorm."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, attended: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(project(self.dense, attended)) + residual)


class Attention(nn.Module):
    """Self-attention and its output, named as in the public checkpoints."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AttentionOutput(config)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        return self.output(self.self(x, context), x)


class GatedMLP(nn.Module):
    """GLU feed-forward (Shazeer, 2020): act(first half) * second half of one projection, dropout, projection back."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.is_gelu = config.hidden_act == "gelu"
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.layernorm(project(self.wo, self.dropout(self._gated(x))) + x)

    def _gated(self, x: Tensor) -> Tensor:
        if serves(x, self.gated_layers):
            # Two smaller products are faster there than one whose halves lie apart in memory.
            of_gate, of_value = self.gated_layers.weight.chunk(2)
            gate = linear(x, of_gate, gelu=self.is_gelu)
            return linear_times(x, of_value, gate if self.is_gelu else self.act(gate))
        gate, value = self.gated_layers(x).chunk(2, dim=-1)
        return self.act(gate) * value


class Layer(nn.Module):
    """Attention, then the gated feed-forward; as modules, or in one with `fused`."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = GatedMLP(config)

    def forward(
        self, x: Tensor | Twins, context: AttentionContext, rows: Rows | None = None, fused: bool = False
    ) -> Tensor | Twins:
        """(total_tokens, hidden) to the same, or to (rows, hidden): attention sees all, the rest computes `rows`.

        What comes as twins is computed in 8 bits, and leaves as such.
        """
        if isinstance(x, Twins):
            return float8_layer(x, self._weights(), self._settings(context, rows))
        if fused:
            return fused_layer(x, self._weights(), self._settings(context, rows))
        attended = self.attention.self(x, context)
        if rows is not None:
            attended, x = TakeRows.apply(attended, *rows), TakeRows.apply(x, *rows)
        return self.mlp(self.attention.output(attended, x))

    def changed(self) -> str | None:
        """The name of a part that isn't what this class makes, such as a LayerNorm put in its place; or None."""
        return changed(self, _LAYER)

    def _weights(self) -> LayerWeights:
        output, mlp = self.attention.output, self.mlp
        return LayerWeights(
            self.attention.self.Wqkv.weight, self.attention.self.Wqkv.bias, output.dense.weight, output.dense.bias,
            output.LayerNorm.weight, output.LayerNorm.bias, mlp.gated_layers.weight, mlp.wo.weight, mlp.wo.bias,
            mlp.layernorm.weight, mlp.layernorm.bias,
        )  # fmt: skip

    def _settings(self, context: AttentionContext, rows: Rows | None) -> LayerSettings:
        output, mlp = self.attention.output, self.mlp
        return LayerSettings(
            context, self.attention.self.num_heads, rows,
            output.dropout.p if output.dropout.training else 0.0, mlp.dropout.p if mlp.dropout.training else 0.0,
            output.LayerNorm.eps, mlp.layernorm.eps, torch.is_grad_enabled(),
        )  # fmt: skip


_KINDS: dict[str, type[nn.Module]] = {
    "attention": Attention,
    "attention.self": SelfAttention,
    "attention.self.Wqkv": nn.Linear,
    "attention.output": AttentionOutput,
    "attention.output.dense": nn.Linear,
    "attention.output.LayerNorm": LayerNorm,
    "attention.output.dropout": nn.Dropout,
    "mlp": GatedMLP,
    "mlp.gated_layers": nn.Linear,
    "mlp.wo": nn.Linear,
    "mlp.dropout": nn.Dropout,
    "mlp.layernorm": LayerNorm,
}
Parts = dict[str, tuple[Callable[[nn.Module], nn.Module], type[nn.Module]]]


def _parts(kinds: dict[str, type[nn.Module]]) -> Parts:
    """Parts are looked at in every forward pass: how to get there is prepared."""
    return {name: (attrgetter(name), kind) for name, kind in kinds.items()}


_LAYER = _parts(_KINDS)
_EMBEDDING = _parts(
    {
        "word_embeddings": nn.Embedding,
        "token_type_embeddings": nn.Embedding,
        "LayerNorm": LayerNorm,
        "dropout": nn.Dropout,
    }
)


def changed(module: nn.Module, parts: Parts) -> str | None:
    """The name of a part that isn't of its kind, or that is watched by hooks; or None."""
    for name, (part_of, kind) in parts.items():
        part = part_of(module)
        if type(part) is not kind or part._forward_hooks or part._forward_pre_hooks:
            return name
    return None


class PredictionHeadTransform(nn.Module):
    """Projection, activation, LayerNorm before the decoder."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.act(project(self.dense, x)))


class PredictionHead(nn.Module):
    """Transform, then the decoder, whose weight is the word embeddings' and whose bias is its own."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.transform = PredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return project(self.decoder, self.transform(x))


class MaskedLMHead(nn.Module):
    """Holds the prediction head under the name that public checkpoints use."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.predictions = PredictionHead(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictions(x)
