"""Tiny random models of several families, each saved with a tokenizer of its own as on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
)

from bertchen.config import Config, load_config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.tasks.encoder import Encoder, load_encoder
from bertchen.tokenizer import train_tokenizer

TEXTS = [
    "Der schnelle braune Fuchs springt über den faulen Hund.\nDie Hauptstadt von Deutschland ist Berlin, nicht Köln!",
    "Äpfel, Öl und Übermut: „Größe“ zählt (1998 bis 2024). Wer hat das Rathaus von München gebaut?",
]
LETTERS = sorted(set("".join(TEXTS)) | set("abcdefghijklmnopqrstuvwxyzäöüßABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?()"))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SPREAD = {"initializer_range": 0.2}  # so that positions and tokens make a difference
POSITIONS = 64
_ROOT = TemporaryDirectory(prefix="tiny-encoders-")  # removed when the tests end


def mosaicbert(folder: Path) -> None:
    tokenizer = train_tokenizer([text * 20 for text in TEXTS], 420)
    _save(folder, MosaicBertForMaskedLM(MosaicBertConfig(448, **SIZES, **SPREAD)), tokenizer)


def public_mosaicbert(folder: Path) -> None:
    """As the public ones are: named BERT, with code of their own, and BERT's tokenizer."""
    tokenizer = _wordpiece()
    _save(folder, MosaicBertForMaskedLM(MosaicBertConfig(len(tokenizer), **SIZES, **SPREAD)), tokenizer)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "bert",
        "alibi_starting_size": 512,
        "max_position_embeddings": 512,
        "auto_map": {"AutoConfig": "configuration_bert.BertConfig", "AutoModel": "bert_layers.BertModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))


def bert(folder: Path) -> None:
    tokenizer = _wordpiece()
    config = BertConfig(len(tokenizer), **SIZES, **SPREAD, max_position_embeddings=POSITIONS)
    _save(folder, BertForMaskedLM(config), tokenizer)


def roberta(folder: Path) -> None:
    tokenizer = _byte_level(folder)
    config = RobertaConfig(
        len(tokenizer), **SIZES, **SPREAD, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, pad_token_id=1
    )
    _save(folder, RobertaForMaskedLM(config), tokenizer)


def electra(folder: Path) -> None:
    tokenizer = _wordpiece()
    config = ElectraConfig(len(tokenizer), embedding_size=16, **SIZES, **SPREAD, max_position_embeddings=POSITIONS)
    _save(folder, ElectraForPreTraining(config), tokenizer)


def modernbert(folder: Path) -> None:
    backend = _byte_level(folder).backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = ModernBertConfig(
        len(tokenizer), **SIZES, initializer_range=0.2, max_position_embeddings=POSITIONS, pad_token_id=1,
        cls_token_id=0, sep_token_id=2, bos_token_id=0, eos_token_id=2, local_attention=16,
    )  # fmt: skip
    _save(folder, ModernBertForMaskedLM(config), tokenizer)


FAMILIES: dict[str, Callable[[Path], None]] = {
    family.__name__: family for family in (mosaicbert, public_mosaicbert, bert, roberta, electra, modernbert)
}


@cache
def folder_of(family: str) -> Path:
    """The folder of a family's model, made once; don't change it."""
    folder = Path(_ROOT.name) / family
    folder.mkdir()
    torch.manual_seed(0)
    FAMILIES[family](folder)
    return folder


def config_of(model: str | Path, *overrides: str) -> Config[FinetuneConfig]:
    arguments = ["task=classification", "name=test", "data.reader=table", f"model={model}", *overrides]
    return load_config(FinetuneConfig, arguments, "usage")


def load(family: str, *overrides: str) -> Encoder:
    """A new copy of a family's encoder."""
    return load_encoder(config_of(folder_of(family), *overrides))


@cache
def shared(family: str) -> Encoder:
    """An encoder for tests that don't change it."""
    return load(family)


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with torch.no_grad():
        for parameter in model.parameters():  # biases and LayerNorms too, which start out alike
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _wordpiece() -> PreTrainedTokenizerBase:
    letters = [letter for letter in LETTERS if not letter.isspace()]
    words = ["Der", "Die", "Hund", "##haus", "Berlin", "Köln", "##lich", "und"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    file = Path(_ROOT.name) / "vocab.txt"
    file.write_text("\n".join(vocab), encoding="utf-8")
    return BertTokenizerFast(str(file), do_lower_case=False, strip_accents=False)


def _byte_level(folder: Path) -> PreTrainedTokenizerBase:
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXTS * 20, 400, min_frequency=2, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    return RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
