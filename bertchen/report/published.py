"""The five tables of the paper (Sadrieh, 2024), and which of our models belong beside which of their rows.

Each figure says what it was measured on. The paper's data module takes the training set for evaluation where it is
given a single validation file, which all its fine-tuning runs did: its downstream figures of BERTchen are therefore
training-set figures. They can't be compared with figures of the official test sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EvaluatedOn = Literal["train", "test"]

# Column of the tables: the tasks' names in results.jsonl, the title and the metrics.
COLUMNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "germanquad": ("GermanQuAD F1 / EM", ("f1", "exact_match")),
    "germeval17": ("GermEval 2017 accuracy", ("accuracy",)),
    "germeval24": ("GermEval 2024 accuracy", ("accuracy",)),
}


@dataclass(frozen=True)
class Published:
    """A row as it was published.

    Attributes:
        name: of the model or the setting.
        evaluated_on: the training set or the official test set.
        figures: for each task its figures, in the order of `COLUMNS`, with the decimals that were printed.
        note: what else a reader should know.
        source: who published it.
    """

    name: str
    evaluated_on: EvaluatedOn
    figures: Mapping[str, tuple[str, ...]]
    note: str = ""
    source: str = "paper"


@dataclass(frozen=True)
class PaperRow:
    """A place in a table: what was published there, and which models of ours stand beside it.

    Attributes:
        key: names the place in `rows` of the report's configuration.
        models: patterns of a model's name, or of a part of its path.
    """

    key: str
    published: tuple[Published, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper; `others`: whether models that belong to no row of any table are shown in it."""

    number: int
    title: str
    rows: tuple[PaperRow, ...]
    others: bool = False


def _ours(name: str, squad: str, germeval17: str, germeval24: str, note: str = "") -> Published:
    """A row of the paper's own models: training-set figures."""
    figures = {"germanquad": tuple(squad.split(" / ")), "germeval17": (germeval17,), "germeval24": (germeval24,)}
    return Published(name, "train", figures, note)


def _baseline(key: str, name: str, *models: str) -> PaperRow:
    """The same model stands in four tables."""
    row = _ours(name, "95.1 / 91.9", "0.962", "0.908")
    return PaperRow(key, (row,), ("length_512", "data_culturax", "baseline", *models))


def _row(key: str, published: Published) -> PaperRow:
    return PaperRow(key, (published,), (key,))


_TEST = "official test set"
_EXCHANGED = f"{_TEST}, mean of five runs, after Scherrmann (2023); the paper prints F1 and EM exchanged"
_CARD = f"not in the paper: {_TEST}, from the model card"

_LENGTHS = (
    _row("length_64", _ours("64", "49.1 / 41.8", "0.959", "0.89")),
    _row("length_128", _ours("128", "48.9 / 42.5", "0.961", "0.898")),
    _row("length_256", _ours("256", "92.7 / 88.8", "0.962", "0.906")),
    _baseline("length_512", "512"),
)
_DATASETS = (
    _row("data_wiki", _ours("Wiki", "94.7 / 91.5", "0.959", "0.891")),
    _row("data_books", _ours("Books", "61.1 / 54.68", "0.96", "0.906")),
    _row("data_wiki_books", _ours("Wiki + Books", "92.5 / 88.5", "0.958", "0.895")),
    _row("data_c4", _ours("C4", "96.4 / 93.6", "0.96", "0.887")),
    _row("data_oscar", _ours("OSCAR", "87.4 / 83", "0.964", "0.902")),
    _baseline("data_culturax", "CulturaX"),
)
_CURRICULA = (
    _baseline("baseline", "Baseline"),
    _row("hybrid", _ours("Hybrid", "94.2 / 90.1", "0.962", "0.902")),
    _row("hybrid_sorted", _ours("Sorted", "84.1 / 79.4", "0.96", "0.909")),
    _row("hybrid_mask", _ours("Hybrid + mask", "95.5 / 92.2", "0.961", "0.906")),
    _row("hybrid_mask_double", _ours("Hybrid + mask x2", "84 / 79.4", "0.955", "0.904")),
)
_TOKENIZERS = (
    _baseline("german_tokenizer", "German"),
    _row("bert_tokenizer", _ours("English BERT", "29.5 / 1.6", "0.9537", "0.8908")),
)
_MODELS = (
    PaperRow("human", (Published("Human", "test", {"germanquad": ("89.5", "66.4")}),), ()),
    _baseline("bertchen", "BERTchen", "bertchen"),
    PaperRow(
        "mosaicbert",
        (_ours("MosaicBERT (English)", "12.5 / 1.6", "0.822", "0.736", "a fine-tuning run of the paper's code"),),
        ("mosaicml/mosaic-bert-base*",),
    ),
    PaperRow(
        "gbert",
        (
            Published(
                "GBERT, same hyperparameters",
                "test",
                {"germanquad": ("46.96", "34.79"), "germeval17": ("0.802",), "germeval24": ("0.738",)},
                "counted as test-set figures, as the paper's other figures of GBERT; run by the paper's author",
            ),
            Published("GBERT", "test", {"germanquad": ("72.82", "54.98")}, _EXCHANGED),
        ),
        ("deepset/gbert-base", "gbert-base"),
    ),
    PaperRow(
        "gottbert",
        (Published("GottBERT", "test", {"germanquad": ("73.06", "55.14")}, _EXCHANGED),),
        ("*/gottbert*base*", "gottbert*base*"),
    ),
    PaperRow(
        "gelectra_base",
        (Published("GELECTRA base", "test", {"germanquad": ("77.50", "61.16")}, _CARD, "model card"),),
        ("deepset/gelectra-base", "gelectra-base"),
    ),
    PaperRow(
        "gelectra_large",
        (Published("GELECTRA large", "test", {"germanquad": ("86.27", "70.24")}, _CARD, "model card"),),
        ("deepset/gelectra-large", "gelectra-large"),
    ),
)

PAPER_TABLES: tuple[PaperTable, ...] = (
    PaperTable(1, "Sequence length", _LENGTHS),
    PaperTable(2, "Data set", _DATASETS),
    PaperTable(3, "Curriculum", _CURRICULA),
    PaperTable(4, "Tokenizer", _TOKENIZERS),
    PaperTable(5, "Models", _MODELS, others=True),
)
