"""MosaicBERT (Portes et al., 2023) as Hugging Face models: the encoder and its heads.

Notable: padding is removed once before the first layer and put back once after the last; attention has three
backends (`attention.py`); in training only the masked positions pass the MLM head. Checkpoint names and
shapes are those of the public MosaicBERT family.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

# transformers 4 copies from an exported folder only what this file itself imports, so it names all.
from .alibi import alibi_slopes  # noqa: F401
from .attention import BackendUnavailable, prepare_attention
from .attention_kernels import attention  # noqa: F401
from .configuration_mosaicbert import MosaicBertConfig
from .embedding_kernels import fused_embeddings  # noqa: F401
from .float8 import ROWS_MULTIPLE, Twins
from .float8 import why_unable as why_no_float8
from .fused import linear_cross_entropy, why_unfused
from .kernels import why_unable  # noqa: F401
from .layers import Embeddings, Layer, MaskedLMHead, PredictionHead, compute_dtype
from .narrow import quantize  # noqa: F401
from .norm_kernels import add_norm  # noqa: F401
from .onednn import serves  # noqa: F401
from .padding import Packing, Rows, TakeRows, pack, remove_padding, restore_padding

log = logging.getLogger(__name__)

IGNORE_INDEX = -100
VOCABULARY_MULTIPLE = 64
_TIED = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}


@dataclass
class MosaicBertMaskedLMOutput(ModelOutput):
    """Output of `MosaicBertForMaskedLM`.

    Attributes:
        loss: cross entropy of the masked positions, float32, a scalar; None without labels.
        logits: (batch, seq_len, vocab_size); None in training unless asked for.
        masked_logits: logits of the masked positions alone, (masked, vocab_size); with labels only, and not in training
            with the kernels, whose loss has them only in parts.
        masked_labels: their labels, -100 where a row only fills up `max_masked`, (masked,); with labels only.
        hidden_states: input of the first layer and output of each, (batch, seq_len, hidden); on request.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    masked_logits: Tensor | None = None
    masked_labels: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class MosaicBertPreTrainedModel(PreTrainedModel):
    """Initial weights, names of the parts, and the re-sizing of the vocabulary at loading."""

    config_class = MosaicBertConfig
    base_model_prefix = "bert"
    _no_split_modules = ["Layer"]  # noqa: RUF012 - Hugging Face adds lists to these
    # Hugging Face's Trainer leaves the division by `num_items_in_batch` to models that take it: the MLM.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [r"pooler", r"cls\.seq_relationship", r"embeddings\.position_"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, name_or_path: Any, *args: Any, vocab_size: int | None = None, **kwargs: Any) -> Any:
        """As in Hugging Face, and with `vocab_size` for another tokenizer.

        Args:
            vocab_size: the new tokenizer's; embeddings, decoder and bias get that many rows, rounded up to a
                multiple of 64. Rows that overlap keep their weights, the others are initialized.
        """
        loaded = super().from_pretrained(name_or_path, *args, **kwargs)
        if vocab_size is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.resize_token_embeddings(vocab_size, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
        return loaded


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class MosaicBertModel(MosaicBertPreTrainedModel):
    """The encoder without a head."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        keep_hidden_states: bool = False,
        packing: Packing | None = None,
        rows: Rows | None = None,
    ) -> tuple[Tensor, Packing, tuple[Tensor, ...]]:
        """The last hidden states of the attended tokens, without padding.

        Args:
            input_ids, attention_mask, token_type_ids: (batch, seq_len).
            inputs_embeds: (batch, seq_len, hidden), in place of `input_ids`.
            keep_hidden_states: also return the input of the first layer and the output of each.
            packing: of the batch, where it has been computed before.
            rows: the only tokens whose last hidden states are wanted.

        Returns:
            Hidden states (total_tokens or rows, hidden), where the tokens are, and all hidden states asked for.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`.
            BackendUnavailable: the configured attention backend, or the kernels, can't serve.
        """
        given = _one_of(input_ids, inputs_embeds)
        if packing is None:
            packing = pack(given.shape[0], given.shape[1], attention_mask, given.device)
        types = None if token_type_ids is None else remove_padding(token_type_ids, packing)
        fused = self.uses_kernels(given.device, compute_dtype(self.embeddings.LayerNorm.weight))
        hidden = self.embeddings(remove_padding(given, packing), types, fused)
        context = prepare_attention(
            self.config.attention_backend,
            packing,
            self.config.num_attention_heads,
            hidden.device,
            compute_dtype(hidden),
            self.config.attention_probs_dropout_prob,
            self.training,
            self.config.hidden_size // self.config.num_attention_heads,
            fused,
        )
        kept = (hidden,)
        passed = Twins(hidden, None) if self._uses_float8(fused, hidden) else hidden
        last = len(self.encoder.layer) - 1
        for index, layer in enumerate(self.encoder.layer):
            passed = layer(passed, context, rows if index == last else None, fused)
            hidden = passed.x if isinstance(passed, Twins) else passed
            if keep_hidden_states:
                kept = (*kept, hidden)
        return hidden, packing, kept if keep_hidden_states else ()

    def _uses_float8(self, fused: bool, hidden: Tensor) -> bool:
        if not (self.config.float8 and self.training and torch.is_grad_enabled()):
            return False
        reason = why_no_float8(hidden.device, self.config.float8_widths)
        if not fused:
            reason = "it needs kernels=triton, or auto where those serve"
        if reason is None and hidden.shape[0] % ROWS_MULTIPLE:
            reason = f"it needs a number of tokens divisible by {ROWS_MULTIPLE}, not {hidden.shape[0]}"
        if reason:
            raise BackendUnavailable(f"float8=true can't serve here: {reason}")
        return True

    def uses_kernels(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the layers run in this project's kernels; `kernels` of the configuration says when.

        `auto` doesn't, where the whole model is compiled: the compiler makes kernels of its own then.

        Raises:
            BackendUnavailable: the kernels were asked for by name and can't serve.
        """
        choice = self.config.kernels
        if choice == "torch" or (choice == "auto" and torch.compiler.is_compiling()):
            return False
        if choice == "auto" and (device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16)):
            return False
        reason = why_unfused(device, self.config.hidden_act, self.config.hidden_size)
        if reason is None:
            reason = next(
                (
                    f"{part} of a layer has been changed"
                    for part in (layer.changed() for layer in self.encoder.layer)
                    if part
                ),
                None,
            )
        if reason and choice == "triton":
            raise BackendUnavailable(f"kernels=triton can't serve here: {reason}. Choose auto or torch")
        _log_kernels(choice, reason)
        return reason is None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Hidden states of the last layer, (batch, seq_len, hidden), zeros at padding."""
        keep, as_dict = _output_choices(self.config, output_hidden_states, return_dict)
        hidden, packing, kept = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, keep)
        output = BaseModelOutput(
            last_hidden_state=restore_padding(hidden, packing), hidden_states=_padded(kept, packing)
        )
        return output if as_dict else output.to_tuple()


class MosaicBertForMaskedLM(MosaicBertPreTrainedModel):
    """The encoder with the MLM head; the decoder's weight is the word embeddings'."""

    accepts_loss_kwargs = True
    # transformers 5 wants which weight each is tied to, 4 only the names.
    _tied_weights_keys = _TIED if int(transformers.__version__.split(".")[0]) >= 5 else list(_TIED)

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.bert = MosaicBertModel(config)
        self.cls = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.cls.predictions.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        max_masked: int | None = None,
        output_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> MosaicBertMaskedLMOutput | tuple[Any, ...]:
        """Predicts the masked tokens.

        Args:
            labels: (batch, seq_len), -100 where there is nothing to predict; those of padding don't count.
            num_items_in_batch: the loss is the sum divided by this number, by default the labels' own.
            max_masked: the most labels there can be. With it shapes are fixed: nothing recompiles, and the
                host doesn't wait for the device. Labels beyond it would be left out: it must be a true bound.
            output_logits: logits of all positions too. By default so, unless in training with labels.
        """
        keep, as_dict = _output_choices(self.config, output_hidden_states, return_dict)
        if output_logits is None:
            output_logits = labels is None or not self.training
        given = _one_of(input_ids, inputs_embeds)
        packing = pack(given.shape[0], given.shape[1], attention_mask, given.device)
        rows = masked_labels = None
        if labels is not None:
            tokens = remove_padding(labels, packing)
            if self.config.float8:
                number = int((tokens != IGNORE_INDEX).sum()) if max_masked is None else max_masked
                max_masked = -(-number // ROWS_MULTIPLE) * ROWS_MULTIPLE
            rows, masked_labels = masked_rows(tokens, max_masked)
        # Where nothing else is asked for, the last layer computes the masked positions alone.
        masked_only = rows is not None and not output_logits and not keep
        hidden, _, kept = self.bert.encode(
            input_ids, attention_mask, token_type_ids, inputs_embeds, keep, packing, rows if masked_only else None
        )
        logits = restore_padding(self.cls(hidden), packing) if output_logits else None
        loss = masked_logits = None
        if rows is not None and masked_labels is not None:
            masked = hidden if masked_only else TakeRows.apply(hidden, *rows)
            loss, masked_logits = self._loss(masked, masked_labels, num_items_in_batch, masked_only)
        output = MosaicBertMaskedLMOutput(loss, logits, masked_logits, masked_labels, _padded(kept, packing))
        return output if as_dict else output.to_tuple()

    def _loss(
        self, masked: Tensor, labels: Tensor, number: Tensor | float | None, without_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        head = self.cls.predictions
        if (
            without_logits
            and self.training
            and torch.is_grad_enabled()
            and type(head) is PredictionHead
            and type(head.decoder) is nn.Linear
            and self.bert.uses_kernels(masked.device, compute_dtype(masked))
        ):
            total = linear_cross_entropy(
                head.transform(masked), head.decoder.weight, head.decoder.bias, labels, IGNORE_INDEX
            )
            return total / _number_of(labels, number), None
        logits = self.cls(masked)
        return _cross_entropy(logits, labels, number), logits


def masked_rows(labels: Tensor, max_masked: int | None = None) -> tuple[Rows, Tensor]:
    """`masked_positions` with the way back: the rows to compute, and their labels."""
    masked = labels != IGNORE_INDEX
    positions = masked.nonzero().flatten() if max_masked is None else None
    number = min(max_masked, labels.numel()) if positions is None else positions.shape[0]
    # A running count gives each masked token its slot; all others share one slot too many, which is cut off.
    slots = torch.where(masked, masked.cumsum(0) - 1, number).clamp(max=number)
    if positions is not None:
        return Rows(positions, slots), labels[positions]
    token = torch.arange(labels.numel(), device=labels.device)
    positions = token.new_zeros(number + 1).scatter(0, slots, token)[:number]
    return Rows(positions, slots), labels.new_full((number + 1,), IGNORE_INDEX).scatter(0, slots, labels)[:number]


def masked_positions(labels: Tensor, max_masked: int | None = None) -> tuple[Tensor, Tensor]:
    """Where there is something to predict, and what.

    Args:
        labels: (total_tokens,), -100 where there is nothing.
        max_masked: fixed number of positions to return (at most total_tokens); None: as many as there are.

    Returns:
        positions and their labels, both (masked,). Surplus positions point at token 0 and are labelled -100.
    """
    rows, kept = masked_rows(labels, max_masked)
    return rows.positions, kept


class MosaicBertForSequenceClassification(MosaicBertPreTrainedModel):
    """One label (or number) a sequence: pooled last hidden states, dropout, linear."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = MosaicBertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Logits (batch, num_labels). Labels: (batch,) classes or numbers, or (batch, num_labels) numbers."""
        keep, as_dict = _output_choices(self.config, output_hidden_states, return_dict)
        hidden, packing, kept = self.bert.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, keep)
        pooled = _pool(restore_padding(hidden, packing), packing, attention_mask, self.config.classifier_pooling)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self._loss(logits.float(), labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=_padded(kept, packing))
        return output if as_dict else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type
        if problem is None:
            if self.num_labels == 1:
                problem = "regression"
            else:
                problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        if problem == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view_as(logits.squeeze(-1)))
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return _cross_entropy(logits, labels.view(-1))


class MosaicBertForQuestionAnswering(MosaicBertPreTrainedModel):
    """Start and end of an answer: linear to two logits a token."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.bert = MosaicBertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Logits (batch, seq_len), float32, of start and end; padding can't be either.

        Positions outside of the attended tokens are ignored; the loss is 0 if all are.
        """
        keep, as_dict = _output_choices(self.config, output_hidden_states, return_dict)
        hidden, packing, kept = self.bert.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, keep)
        logits = restore_padding(self.qa_outputs(hidden), packing).float()
        if attention_mask is not None:
            logits = logits.masked_fill((attention_mask == 0)[..., None], torch.finfo(logits.dtype).min)
        start, end = logits[..., 0].contiguous(), logits[..., 1].contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            targets = [
                _inside(where.view(-1), attention_mask, start.shape[1]) for where in (start_positions, end_positions)
            ]
            loss = (_cross_entropy(start, targets[0]) + _cross_entropy(end, targets[1])) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, hidden_states=_padded(kept, packing)
        )
        return output if as_dict else output.to_tuple()


class MosaicBertForTokenClassification(MosaicBertPreTrainedModel):
    """One label a token: dropout, linear."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = MosaicBertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Logits (batch, seq_len, num_labels). Labels: (batch, seq_len), -100 for none, as for padding."""
        keep, as_dict = _output_choices(self.config, output_hidden_states, return_dict)
        hidden, packing, kept = self.bert.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, keep)
        logits = self.classifier(self.dropout(hidden))
        loss = None if labels is None else _cross_entropy(logits, remove_padding(labels, packing))
        logits = restore_padding(logits, packing)
        output = TokenClassifierOutput(loss=loss, logits=logits, hidden_states=_padded(kept, packing))
        return output if as_dict else output.to_tuple()


def _output_choices(config: MosaicBertConfig, hidden_states: bool | None, as_dict: bool | None) -> tuple[bool, bool]:
    keep = config.output_hidden_states if hidden_states is None else hidden_states
    return bool(keep), bool(config.return_dict if as_dict is None else as_dict)


def _cross_entropy(logits: Tensor, labels: Tensor, number: Tensor | float | None = None) -> Tensor:
    """Mean over the labels that aren't -100, or their sum divided by `number`; 0 where there are none."""
    loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return loss / _number_of(labels, number)


def _number_of(labels: Tensor, number: Tensor | float | None) -> Tensor | float:
    return (labels != IGNORE_INDEX).sum().clamp(min=1) if number is None else number


def _one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    given = input_ids if input_ids is not None else inputs_embeds
    assert given is not None
    return given


@cache
def _log_kernels(choice: str, reason: str | None) -> None:
    if choice == "auto":
        log.info("kernels=auto: using %s", "triton" if reason is None else f"torch ({reason})")


def _inside(position: Tensor, attention_mask: Tensor | None, seq_len: int) -> Tensor:
    """Positions, (batch,), with -100 for those that aren't of an attended token."""
    inside = (position >= 0) & (position < seq_len)
    if attention_mask is not None:
        at = position.clamp(0, seq_len - 1)
        inside = inside & attention_mask.ne(0).gather(1, at[:, None])[:, 0]
    return position.masked_fill(~inside, IGNORE_INDEX)


def _padded(kept: tuple[Tensor, ...], packing: Packing) -> tuple[Tensor, ...] | None:
    return tuple(restore_padding(hidden, packing) for hidden in kept) or None


def _pool(hidden: Tensor, packing: Packing, attention_mask: Tensor | None, how: str) -> Tensor:
    """(batch, seq_len, hidden) to (batch, hidden): mean over the attended tokens, or the first of them."""
    if how == "first":
        first = 0 if attention_mask is None else attention_mask.ne(0).int().argmax(dim=1)
        return hidden[torch.arange(packing.batch, device=hidden.device), first]
    # Padding is zero, so that the sum is over attended tokens alone.
    lengths = packing.cu_seqlens.diff().clamp(min=1)
    return (hidden.sum(dim=1, dtype=torch.float32) / lengths[:, None]).to(hidden.dtype)


def _classifier_dropout(config: MosaicBertConfig) -> nn.Dropout:
    chosen = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if chosen is None else chosen)
