"""What the manifest says of a conversion: documents, tokens and blocks of each source, and how they were made."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

import bertchen
from bertchen.conversion.groups import Figures
from bertchen.conversion.pack import Arrangement
from bertchen.conversion.tokens import NOT_SAMPLED
from bertchen.conversion.work import Counts, Plan, plan_fingerprint
from bertchen.data.manifest import VERSION

# So many files are listed with their documents; of more only the sum is given.
MAX_LISTED_FILES = 1000

_LIBRARIES = ("mosaicml-streaming", "tokenizers", "transformers", "numpy")


def build_manifest(
    plan: Plan, arrangement: Arrangement, figures: dict[str, Figures], counts: Sequence[Counts], seconds: float
) -> dict[str, Any]:
    """The manifest as plain containers.

    Args:
        figures: of the written splits, by name.
        counts: what was read of each source.
        seconds: how long the conversion took, over all of its runs.
    """
    arranged = arrangement.figures
    names = [source.name for source in plan.sources]
    whole = Counts()
    for each in counts:
        whole.add(each)
    return {
        "version": VERSION,
        "plan": plan_fingerprint(plan),
        "block_size": plan.config["block_size"],
        "token_dtype": plan.recipe.dtype.name,
        "tokenizer": plan.tokenizer,
        "splits": {name: _split(name, arranged, split) for name, split in figures.items()},
        **_described(whole, arranged),
        "sources": {
            name: {
                "files": len(source.files),
                "revision": source.revision,
                "splits": {
                    split: {
                        **arranged["sources"][name]["splits"][split],
                        "blocks": _at(written.source_blocks, index),
                    }
                    for split, written in figures.items()
                },
                **_described(counts[index], arranged["sources"][name]),
            }
            for index, (name, source) in enumerate(zip(names, plan.sources, strict=True))
        },
        "documents_by_file": dict(whole.by_file) if len(whole.by_file) <= MAX_LISTED_FILES else None,
        "unigram_entropy_nats": entropy(_sum([split.token_counts for name, split in figures.items() if name != "val"])),
        "seed": plan.config["seed"],
        "config": plan.config,
        "versions": {
            "bertchen": bertchen.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        "seconds": round(seconds, 1),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _described(counts: Counts, arranged: dict[str, Any]) -> dict[str, Any]:
    """What became of the documents of one source, or of all."""
    dropped = Counter(counts.dropped)
    dropped.update({reason: lost["documents"] for reason, lost in arranged["dropped"].items() if lost["documents"]})
    # How many tokens documents had that were left out before they were tokenized isn't known.
    tokens = {reason: lost["tokens"] for reason, lost in arranged["dropped"].items() if reason != NOT_SAMPLED}
    return {
        "documents": {"read": counts.read, "kept": arranged["kept"]["documents"]},
        "characters": counts.characters,
        "tokens": arranged["kept"]["tokens"],
        "bad_rows": dict(sorted(counts.bad.items())),
        "dropped_documents": dict(sorted(dropped.items())),
        "dropped_tokens": dict(sorted(tokens.items())),
        "tokens_per_document": arranged["tokens_per_document"],
        "documents_by_length": arranged["documents_by_length"],
    }


def _split(name: str, arranged: dict[str, Any], figures: Figures) -> dict[str, int]:
    return {"blocks": figures.blocks, **arranged["splits"][name]}


def _at(counts: npt.NDArray[np.int64], index: int) -> int:
    """A count of an array whose zeros at the end may be missing."""
    return int(counts[index]) if index < len(counts) else 0


def _sum(arrays: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Their sum, as if all had the length of the longest."""
    total = np.zeros(max(map(len, arrays)), dtype=np.int64)
    for array in arrays:
        total[: len(array)] += array
    return total


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution with these counts: -sum p ln p.

    Of the training tokens it is the loss of a model that knows how frequent each token is and nothing else.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
