"""The files of one split of converted data: what they are called, and checking that they are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import xxhash

from bertchen.errors import UserError

COLUMN = "input_ids"
HASH = "xxh64"
INDEX = "index.json"
PART = ".part"  # ends the name of a file that is being fetched
AUTO_HASH_BYTES = 4 << 30

_REPAIR = (
    "convert the data again with overwrite=true, or, if a remote serves it, remove this file and it is fetched anew"
)


def check_shards(folder: str | os.PathLike[str], hashes: bool | Literal["auto"] = "auto") -> None:
    """Checks that every shard in the index of a split is there and whole.

    A shard may be there compressed, uncompressed or both; what is there is checked.

    Args:
        folder: of one split (`mds/train`), with its index.json.
        hashes: whether to read each file and compare its hash, or only its size. `auto` reads where all of
            them have at most 4 GiB.

    Raises:
        UserError: the index or a shard is missing or damaged; names the file and how to mend it.
    """
    root = Path(folder)
    present = []
    for shard in _read_index(root):
        found = _files_of(root, shard)
        if not found:
            info = shard["zip_data"] or shard["raw_data"]
            raise UserError(f"{root / info['basename']} is missing, but {INDEX} lists it: convert the data again")
        present += found
    for path, reason in _damaged(present, hashes):
        raise UserError(f"{path} {reason}: {_REPAIR}")


def mend_cache(folder: str | os.PathLike[str], hashes: bool | Literal["auto"] = "auto") -> list[str]:
    """Removes damaged shards, and what was being fetched, from a folder that caches remote ones.

    Args:
        folder: of one split, with its index.json.
        hashes: as in `check_shards`, about the files that are there.

    Returns:
        What was removed, and why.

    Raises:
        UserError: the index is missing or damaged.
    """
    root = Path(folder)
    there = set(_walk(root))
    for path in there:
        if path.endswith(PART):
            os.unlink(path)
    if len(there) < 2:  # only the index, which takes seconds to read where it is long
        return []
    present = [
        (root / info["basename"], info)
        for shard in _read_index(root)
        for info in (shard["raw_data"], shard["zip_data"])
        if info and os.path.join(root, info["basename"]) in there
    ]
    removed = []
    for path, reason in _damaged(present, hashes):
        path.unlink()
        removed.append(f"{path.name} {reason}")
    return removed


def why_damaged(path: str | os.PathLike[str], size: int, hashes: Mapping[str, str]) -> str | None:
    """What is wrong with a file, by its size and, where it is given, its xxh64; None where it is whole."""
    found = os.stat(path).st_size
    if found != size:
        return f"has {found} bytes, should have {size}"
    expected = hashes.get(HASH)
    return f"is damaged (its {HASH} isn't that of {INDEX})" if expected and _hash(path) != expected else None


def _damaged(
    present: Sequence[tuple[Path, dict[str, Any]]], hashes: bool | Literal["auto"]
) -> Iterator[tuple[Path, str]]:
    """Files that aren't what the index says, and why."""
    if hashes == "auto":
        hashes = sum(info["bytes"] for _, info in present) <= AUTO_HASH_BYTES
    for path, info in present:
        if reason := why_damaged(path, info["bytes"], info["hashes"] if hashes else {}):
            yield path, reason


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder: one look at each folder, however many shards an index lists."""
    return (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)


def _read_index(root: Path) -> list[dict[str, Any]]:
    """What the index of a split says of each shard.

    Raises:
        UserError: it is missing or damaged.
    """
    path = root / INDEX
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
        # Every field that is used here, so that an index of another making is one message.
        for shard in shards:
            for info in filter(None, (shard["raw_data"], shard["zip_data"])):
                _ = info["basename"], info["bytes"], info["hashes"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so {root} holds no shards: name the folder of a split") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable index of shards ({error}): convert the data again") from None
    return shards


def _files_of(root: Path, shard: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    infos = [info for info in (shard["raw_data"], shard["zip_data"]) if info]
    return [(root / info["basename"], info) for info in infos if (root / info["basename"]).is_file()]


def _hash(path: str | os.PathLike[str]) -> str:
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
