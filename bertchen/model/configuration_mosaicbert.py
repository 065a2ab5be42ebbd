"""Configuration of MosaicBERT (Portes et al., 2023): every choice of the architecture is a field here."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

ATTENTION_BACKENDS = ("auto", "triton", "flash", "flex", "sdpa")
KERNELS = ("auto", "triton", "torch")
POOLINGS = ("mean", "first")


class MosaicBertConfig(PretrainedConfig):
    """A BERT encoder with ALiBi, a gated feed-forward and unpadded tokens. The defaults are the base model's.

    Args:
        vocab_size: rows of the embedding; a multiple of 64 keeps the matrix units busy.
        hidden_size: width of the residual stream.
        num_hidden_layers: number of layers.
        num_attention_heads: heads; `hidden_size` must be divisible by it.
        intermediate_size: width of the feed-forward after its gate.
        hidden_act: activation of the gate and of the MLM head; a name known to `transformers.activations`.
        hidden_dropout_prob: dropout on embeddings, attention output and the gated activations.
        attention_probs_dropout_prob: dropout on attention probabilities (`triton` and `flex` can't serve it).
        type_vocab_size: number of token types.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: epsilon of every LayerNorm.
        pad_token_id: id of padding, whose embedding starts at zero.
        attention_backend: `auto`, `triton`, `flash`, `flex` or `sdpa`. Only `auto` falls back to another.
        kernels: of layers and loss: `triton` are this project's own, `torch` is PyTorch's operations; `auto` takes
            `triton` on a GPU where they can serve.
        float8: 8-bit matrix products in training (`float8.py`), with `triton` kernels on GPUs that have them.
        classifier_dropout: dropout before a classification head; None takes `hidden_dropout_prob`.
        classifier_pooling: `mean` over the attended last hidden states, or the `first` of them.

    Raises:
        ValueError: for a width that isn't divisible by the heads, or an unknown backend, pooling or choice of
            kernels.
    """

    model_type = "mosaicbert"

    def __init__(
        self,
        vocab_size: int = 32768,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.0,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 0,
        attention_backend: str = "auto",
        kernels: str = "auto",
        float8: bool = False,
        classifier_dropout: float | None = None,
        classifier_pooling: str = "mean",
        **kwargs: Any,
    ) -> None:
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size={hidden_size} is not divisible by {num_attention_heads=}")
        if attention_backend not in ATTENTION_BACKENDS:
            raise ValueError(f"{attention_backend=} is unknown; known: {', '.join(ATTENTION_BACKENDS)}")
        if kernels not in KERNELS:
            raise ValueError(f"{kernels=} is unknown; known: {', '.join(KERNELS)}")
        if classifier_pooling not in POOLINGS:
            raise ValueError(f"{classifier_pooling=} is unknown; known: {', '.join(POOLINGS)}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.attention_backend = attention_backend
        self.kernels = kernels
        self.float8 = float8
        self.classifier_dropout = classifier_dropout
        self.classifier_pooling = classifier_pooling
        kwargs.setdefault("tie_word_embeddings", True)
        # The config.json of a public MosaicBERT names another type and code, which mustn't be saved with this one.
        kwargs.pop("model_type", None)
        if not kwargs.get("auto_map", {}).get("AutoConfig", "").endswith(type(self).__name__):
            kwargs.pop("auto_map", None)
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def float8_widths(self) -> tuple[int, ...]:
        """Of the matrices that are multiplied in 8 bits, where any are."""
        return self.hidden_size, self.intermediate_size
