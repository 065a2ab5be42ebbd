"""Tiny tasks that the smallest encoder learns in some steps, in published formats, and that encoder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from bertchen.model import MosaicBertConfig, MosaicBertForMaskedLM
from bertchen.train.finetune_tasks import as_overrides

LABELS = ["gut", "schlecht"]
SPLITS = {"train": 44, "dev": 10, "test": 12}
NAMES = ["Anna", "Berta", "Carla", "Doris"]
PLACES = ["Ulm", "Köln", "Mainz"]
FILLERS = ["der", "die", "und", "nicht", "auch", "noch", "immer", "sehr"]


def tiny_encoder(folder: Path, tokenizer: str, seed: int = 0, dropout: float = 0.1) -> str:
    """A MosaicBERT of two layers in Hugging Face's format, with the tokenizer; the folder's name."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    config = MosaicBertConfig(
        vocab_size=-(-len(loaded) // 64) * 64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, hidden_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(seed)
    MosaicBertForMaskedLM(config).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return str(folder)


def classification(folder: Path, **more: Any) -> list[str]:
    """Texts of very different lengths, whose label is in their words. Arguments of main.py."""
    for split, count in SPLITS.items():
        rng = random.Random(split)
        rows = []
        for number in range(count):
            label = rng.choice(LABELS)
            words = [*rng.choices(FILLERS, k=rng.randint(1, 30)), label]
            rng.shuffle(words)
            rows.append({"id": f"{split}-{number}", "text": " ".join(words), "label": label})
        _write_lines(folder / f"{split}.jsonl", rows)
    data = {"reader": "table", "folder": str(folder), "options": {"id": "id"}}
    data["splits"] = {split: f"{split}.jsonl" for split in SPLITS}
    return _arguments({"task": "classification", "name": "words", "labels": LABELS, "data": data}, more)


def tagging(folder: Path, **more: Any) -> list[str]:
    """Sentences with persons, of which some are in a place's name. Arguments of main.py."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        rng = random.Random(split)
        sentences = []
        for _ in range(count):
            words = [(word, "O", "O") for word in rng.choices(FILLERS, k=rng.randint(1, 8))]
            words.append((rng.choice(NAMES), "B-PER", "O"))
            words += [(rng.choice(PLACES), "B-LOC", "B-PER"), ("Süd", "I-LOC", "O")]
            sentences.append(
                "# source\n" + "".join(f"{i}\t{a}\t{b}\t{c}\n" for i, (a, b, c) in enumerate(words, start=1))
            )
        (folder / f"{split}.tsv").write_text("\n".join(sentences), encoding="utf-8")
    data = {"reader": "germeval14", "folder": str(folder), "splits": {split: f"{split}.tsv" for split in SPLITS}}
    return _arguments({"task": "tagging", "name": "names", "labels": ["PER", "LOC"], "data": data}, more)


def questions(folder: Path, **more: Any) -> list[str]:
    """Questions after a name that stands in a long context. Arguments of main.py."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        rng = random.Random(split)
        paragraphs = []
        for number in range(count):
            name = rng.choice(NAMES)
            words = [*rng.choices(FILLERS, k=rng.randint(5, 40)), name, *rng.choices(FILLERS, k=rng.randint(0, 9))]
            context = f"Absatz {split} {number}: {' '.join(words)}."
            answer = {"text": name, "answer_start": context.index(name)}
            question = {"id": f"{split}-{number}", "question": "Wer ist es?", "answers": [answer]}
            paragraphs.append({"context": context, "qas": [question]})
        document = {"version": "1.1", "data": [{"title": split, "paragraphs": paragraphs}]}
        (folder / f"{split}.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    data = {"reader": "squad", "folder": str(folder), "splits": {split: f"{split}.json" for split in SPLITS}}
    return _arguments({"task": "question_answering", "name": "persons", "data": data}, more)


TASKS = {"classification": classification, "tagging": tagging, "question_answering": questions}

SMALL_RUN: dict[str, Any] = {
    "max_duration": "3ep",
    "global_train_batch_size": 8,
    "optimizer": {"lr": 5e-3},
    "eval_batch_tokens": 256,
    "export": False,
    "progress_bar": False,
    "console_log_interval": "100ba",
}


def _arguments(task: dict[str, Any], more: dict[str, Any]) -> list[str]:
    return as_overrides(SMALL_RUN) + as_overrides(task) + as_overrides(more)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
