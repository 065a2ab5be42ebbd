"""The files of one split of converted data: what they are called, and checking that they are whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import xxhash

from bertchen.errors import UserError

COLUMN = "input_ids"
HASH = "xxh64"
INDEX = "index.json"
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
    shards = _read_index(root)
    present = [file for shard in shards for file in _files_of(root, shard)]
    if hashes == "auto":
        hashes = sum(info["bytes"] for _, info in present) <= AUTO_HASH_BYTES
    for path, info in present:
        size = path.stat().st_size
        if size != info["bytes"]:
            raise UserError(f"{path} has {size} bytes, should have {info['bytes']}: {_REPAIR}")
        expected = info["hashes"].get(HASH)
        if hashes and expected and _hash(path) != expected:
            raise UserError(f"{path} is damaged (its {HASH} isn't that of {INDEX}): {_REPAIR}")


def _read_index(root: Path) -> list[dict[str, Any]]:
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
    present = [(root / info["basename"], info) for info in infos if (root / info["basename"]).is_file()]
    if not present:
        raise UserError(f"{root / infos[-1]['basename']} is missing, but {INDEX} lists it: convert the data again")
    return present


def _hash(path: Path) -> str:
    digest = xxhash.xxh64()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
