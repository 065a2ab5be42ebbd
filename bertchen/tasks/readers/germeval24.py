"""GermEval 2024 GerMS-Detect: comments with the labels of several annotators, as JSON lines.

In the published training data a row has `annotations`, each of a user and a label. A row of the published test set has
only `annotators`; their labels are in a second file, in the same order.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bertchen.errors import UserError
from bertchen.tasks.examples import Origin, TextExample
from bertchen.tasks.readers.rows import fail, name_of, read_text, records, text_of
from bertchen.text.documents import json_type


def read_germeval24(path: str, targets: str | None = None) -> Iterator[TextExample]:
    """The comments as examples of classification, each with the label of most annotators, the lowest on a tie.

    Args:
        targets: JSON file of the labels of rows without annotations, relative to the folder of `path`: a list of
            objects with `id` and `labels`.

    Raises:
        UserError: a broken row, one without labels or a text.
    """
    labels_by_id: dict[str, Sequence[Any]] | None = None
    for origin, record in records(path):
        id = name_of(record, "id", origin)
        if "annotations" in record:
            labels = _annotated(record["annotations"], origin)
        else:
            if targets is None:
                fail(origin, "no annotations; data.options.targets names the file of a test set's labels")
            if labels_by_id is None:
                labels_by_id = _read_targets(os.path.join(os.path.dirname(path), targets))
            if id not in labels_by_id:
                fail(origin, f"no annotations, and {targets} has no labels of {id}")
            labels = labels_by_id[id]
        yield TextExample(id, text_of(record, "text", origin), majority(labels, origin), origin)


def majority(labels: Sequence[Any], origin: Origin) -> str:
    """The most frequent label, of several the lowest; they begin with their rank, as in `0-Kein`."""
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong or not labels:
        fail(
            origin, f"a label is {json_type(wrong[0])}, should be a string" if wrong else "no annotator has labelled it"
        )
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def _annotated(annotations: Any, origin: Origin) -> list[Any]:
    if not isinstance(annotations, list):
        fail(origin, f"annotations is {json_type(annotations)}, should be an array of objects with user and label")
    for annotation in annotations:
        if not isinstance(annotation, dict) or "label" not in annotation:
            fail(origin, f"the annotation {json.dumps(annotation, ensure_ascii=False)} has no label")
    return [annotation["label"] for annotation in annotations]


def _read_targets(path: str) -> dict[str, Sequence[Any]]:
    if "://" not in path and not os.path.isfile(path):
        raise UserError(
            f"{path}: no such file (data.options.targets, the labels of the test set); it is beside the test set on "
            "https://ofai.github.io/GermEval2024-GerMS/download.html"
        )
    try:
        found = json.loads(read_text(path))
        return {str(target["id"]): list(target["labels"]) for target in found}
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    except (TypeError, KeyError):
        raise UserError(f"{path}: should be a JSON array of objects with id and labels") from None
