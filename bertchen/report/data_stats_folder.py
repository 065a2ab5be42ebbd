"""Figures about a converted folder: the blocks of its splits are read, and their text is recovered by decoding."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bertchen.config import Config
from bertchen.config.schema_stats import FolderStatsConfig
from bertchen.data.manifest import read_manifest
from bertchen.data.shards import COLUMN, INDEX, check_shards
from bertchen.errors import UserError
from bertchen.report.data_stats import Measurement, Part, check_positive, load_others, total_of
from bertchen.tokenizer import load_tokenizer, tokenizer_fingerprint

Decode = Callable[[list[list[int]]], list[str]]

_BATCH_TOKENS = 1 << 16
# What tokenizers commonly lose: capitals, accents, white space of several kinds.
_PROBE = "Größe, ÄÖÜ: „Ja“ – so?\n\n  Zwei\tFelder  à 3,5 %\u00a0(§ 12)\nEnde  \n x"


def folder_stats(folder: str, config: Config[FolderStatsConfig]) -> dict[str, Any]:
    """Reads the shards of all splits and counts.

    Blocks are shuffled and cut documents, so the lengths of documents are those that the manifest gives; everything
    else is counted from the tokens between separators and ends of blocks.

    Returns:
        As `raw_stats`, `parts` by split; `documents` are those that end in a split. Other tokenizers have no lengths.

    Raises:
        UserError: no converted data set, shards missing or damaged, another tokenizer than it was converted with.
    """
    settings = config.value
    check_positive(config, "max_characters", "most_frequent")
    manifest = read_manifest(folder)
    splits = {name: Path(folder) / name for name in manifest["splits"]}
    for split in splits.values():
        check_shards(split, hashes=False)
    first = _own_tokenizer(folder, manifest, config)
    others = load_others(settings.compare_to, first.name, config)
    decode, separator = _decoder(first.tokenizer), manifest["tokenizer"]["separator_id"]
    parts = {name: Part() for name in splits}
    pieces_read, ended_early = 0, []
    blocks = sum(split["blocks"] for split in manifest["splits"].values())
    limit = settings.max_characters
    with tqdm(
        total=blocks * manifest["block_size"] if limit is None else None,
        unit=" tokens", unit_scale=True, desc="reading", disable=None,
    ) as bar:  # fmt: skip
        for name, split in splits.items():
            part = parts[name]
            for batch in _batches(split, manifest["block_size"]):
                pieces = _pieces(batch, separator)
                texts = decode([piece.tolist() for piece in pieces])
                part.add(int((batch == separator).sum()), texts, pieces)
                first.add_pieces(pieces)
                for other in others:
                    other.add_pieces(other.encode(texts))
                pieces_read += len(pieces)
                bar.update(batch.size)
                if limit is not None and part.characters >= limit:
                    ended_early.append(name)
                    break
    total = total_of(parts.values())
    lengths = {
        "tokens_per_document": manifest.get("tokens_per_document"),
        "length_histogram": _histogram(manifest.get("documents_by_length")),
    }
    notes = ["lengths of documents are those of the whole conversion, from its manifest"]
    if ended_early:
        notes.append(f"read no further than max_characters: {', '.join(ended_early)}")
    notes.append(
        f"documents are cut at ends of blocks: {total.documents:,} ends of documents, {pieces_read:,} pieces; words "
        "and other tokenizers' tokens are those of the pieces"
    )
    if others:
        notes.append("lengths of documents with other tokenizers are not known: give the raw corpus for these")
    return {
        "kind": "converted",
        "corpus": folder,
        "parts": {name: asdict(part) for name, part in parts.items()},
        "total": asdict(total),
        "bad": {},
        "dropped": {},
        "tokenizers": [
            first.summary(total, settings.most_frequent) | lengths,
            *(other.summary(total, settings.most_frequent) for other in others),
        ],
        "notes": [*notes, *_inexact(first, decode)],
        "config": config.to_dict(),
    }


def _own_tokenizer(folder: str, manifest: dict[str, Any], config: Config[FolderStatsConfig]) -> Measurement:
    """The tokenizer that the folder was converted with."""
    made_with = manifest["tokenizer"]
    name = config.value.tokenizer or made_with["name"]
    try:
        tokenizer = load_tokenizer(name)
    except UserError as error:
        if config.value.tokenizer:
            raise
        raise UserError(f"{error}; {folder} was converted with it: say with tokenizer=… where it is now") from None
    given = tokenizer_fingerprint(tokenizer)
    if given != made_with["fingerprint"]:
        raise UserError(
            f"{folder} was converted with another tokenizer ({made_with['name']}, fingerprint "
            f"{made_with['fingerprint']}) than tokenizer={name} (fingerprint {given}): give that one; others can be "
            "named with compare_to=[…]"
        )
    return Measurement(name, tokenizer)


def _batches(split: Path, block_size: int) -> Iterator[npt.NDArray]:
    """(blocks, block_size) of a split, in the order of its shards."""
    batch: list[npt.NDArray] = []
    for block in _blocks(split):
        batch.append(block)
        if len(batch) * block_size >= _BATCH_TOKENS:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _blocks(split: Path) -> Iterator[npt.NDArray]:
    from streaming.base.compression import decompress  # takes seconds to import
    from streaming.base.format import reader_from_json

    # Not StreamingDataset, which takes shared memory and leaves decompressed shards in the folder.
    for shard in json.loads((split / INDEX).read_text(encoding="utf-8"))["shards"]:
        name = shard["raw_data"]["basename"]
        with ExitStack() as stack:
            folder = split
            if not (split / name).is_file():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                stored = (split / shard["zip_data"]["basename"]).read_bytes()
                (folder / name).write_bytes(decompress(shard["compression"], stored))
            reader = reader_from_json(str(folder), None, shard)
            yield from (reader[number][COLUMN] for number in range(reader.samples))


def _pieces(blocks: npt.NDArray, separator: int) -> list[npt.NDArray]:
    """The tokens between separators and ends of blocks, where there are any."""
    ids = blocks.ravel()
    is_separator = ids == separator
    ends = np.flatnonzero(is_separator)
    bounds = np.unique(np.concatenate([ends, ends + 1, np.arange(0, len(ids) + 1, blocks.shape[1])]))
    return [ids[start:stop] for start, stop in pairwise(bounds) if not is_separator[start]]


def _histogram(by_length: dict[str, int] | None) -> dict[str, list[int]] | None:
    """The manifest's counts by power of two as `edges` and `counts`."""
    if not by_length:
        return None
    edges = sorted(map(int, by_length))
    return {"edges": [*edges, 2 * edges[-1]], "counts": [by_length[str(edge)] for edge in edges]}


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    if not tokenizer.is_fast:
        return lambda pieces: tokenizer.batch_decode(pieces, clean_up_tokenization_spaces=False)
    backend = tokenizer.backend_tokenizer
    return lambda pieces: backend.decode_batch(pieces, skip_special_tokens=False)


def _inexact(own: Measurement, decode: Decode) -> Sequence[str]:
    """A note if the texts that were recovered may not be those that were converted."""
    reasons = []
    if decode(own.encode([_PROBE])) != [unicodedata.normalize("NFC", _PROBE)]:
        reasons.append("changes text (capitals, accents, white space, or signs that it doesn't know)")
    if own.counts.unknown_tokens:
        reasons.append("made unknown tokens of parts of this text")
    if not reasons:
        return []
    return [
        f"{own.name} can't give the text back exactly: it {' and '.join(reasons)}; characters, words and the figures "
        "of other tokenizers are of the text that it gives back"
    ]
