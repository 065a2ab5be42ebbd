"""Readers of the formats that tasks are published in: a file to examples, one at a time.

A new format is a small module with a function from a path to examples, and an entry in `READERS`. The function names
nothing that a YAML names already: labels, splits, ids and offsets are checked for all of them by
`bertchen.tasks.data`. An example whose id is "" gets one from its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bertchen.tasks.examples import Example, Kind
from bertchen.tasks.readers.germeval14 import read_germeval14
from bertchen.tasks.readers.germeval17 import read_germeval17
from bertchen.tasks.readers.germeval18 import read_germeval18
from bertchen.tasks.readers.germeval24 import read_germeval24
from bertchen.tasks.readers.gnad10 import read_gnad10
from bertchen.tasks.readers.rows import Skipped
from bertchen.tasks.readers.squad import read_squad
from bertchen.tasks.readers.table import read_table


@dataclass(frozen=True)
class Reader:
    """How a published format becomes examples.

    Attributes:
        kind: of the examples.
        read: from a path and the YAML's `data.options` to examples, and what was skipped among them.
        advice: how to get the files by hand; it is shown when one is missing.
    """

    kind: Kind
    read: Callable[..., Iterator[Example | Skipped]]
    advice: str


READERS: dict[str, Reader] = {
    "germeval17": Reader(
        "classification",
        read_germeval17,
        "GermEval 2017 is at http://ltdata1.informatik.uni-hamburg.de/germeval2017/: train-2017-09-15.tsv, "
        "dev-2017-09-15.tsv, test_syn-2017-09-15.tsv and test_dia-2017-09-15.tsv",
    ),
    "germeval18": Reader(
        "classification",
        read_germeval18,
        "GermEval 2018 is at https://github.com/uds-lsv/GermEval-2018-Data: germeval2018.training.txt and "
        "germeval2018.test.txt",
    ),
    "germeval24": Reader(
        "classification",
        read_germeval24,
        "GermEval 2024 is at https://ofai.github.io/GermEval2024-GerMS/download.html, Competition Phase: "
        "germeval-competition-traindev.jsonl, germeval-competition-test.jsonl and, with the labels of the test set, "
        "germeval-competition-targets.json",
    ),
    "germeval14": Reader(
        "tagging",
        read_germeval14,
        "GermEval 2014 is at https://sites.google.com/site/germeval2014ner/data: NER-de-train.tsv, NER-de-dev.tsv and "
        "NER-de-test.tsv",
    ),
    "gnad10": Reader(
        "classification",
        read_gnad10,
        "10kGNAD is at https://github.com/tblock/10kGNAD: train.csv and test.csv",
    ),
    "squad": Reader(
        "question_answering",
        read_squad,
        "GermanQuAD is at https://germanquad.s3.amazonaws.com/GermanQuAD.zip: GermanQuAD_train.json and "
        "GermanQuAD_test.json; MLQA at https://github.com/facebookresearch/MLQA: dev-context-de-question-de.json and "
        "test-context-de-question-de.json in MLQA_V1.zip",
    ),
    "table": Reader("classification", read_table, "data.splits names files in data.folder"),
}
