"""MosaicBERT for Hugging Face. Imports nothing else of this project: it's exported as it is to the Hub."""

from .attention import BackendUnavailable, choose_backend, why_unavailable
from .configuration_mosaicbert import ATTENTION_BACKENDS, MosaicBertConfig
from .float8 import why_unable as why_no_float8
from .fused import why_unfused
from .modeling_mosaicbert import (
    MosaicBertForMaskedLM,
    MosaicBertForQuestionAnswering,
    MosaicBertForSequenceClassification,
    MosaicBertForTokenClassification,
    MosaicBertMaskedLMOutput,
    MosaicBertModel,
)

__all__ = [
    "ATTENTION_BACKENDS",
    "BackendUnavailable",
    "MosaicBertConfig",
    "MosaicBertForMaskedLM",
    "MosaicBertForQuestionAnswering",
    "MosaicBertForSequenceClassification",
    "MosaicBertForTokenClassification",
    "MosaicBertMaskedLMOutput",
    "MosaicBertModel",
    "choose_backend",
    "why_no_float8",
    "why_unavailable",
    "why_unfused",
]
