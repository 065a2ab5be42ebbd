"""What a folder of converted data says about itself: `manifest.json`, beside the folders of the splits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bertchen.errors import UserError

MANIFEST = "manifest.json"
VERSION = 2

_REQUIRED = ("block_size", "token_dtype", "tokenizer", "splits")


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder that scripts/convert_dataset.py wrote.

    Raises:
        UserError: there is none, it can't be read, or it is of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {folder} is no converted data set; make one with scripts/convert_dataset.py"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): convert the data again") from None
    found = manifest.get("version") if isinstance(manifest, dict) else None
    if found != VERSION:
        raise UserError(f"{path} is of version {found}, this code reads version {VERSION}: convert the data again")
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: convert the data again")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes it as indented JSON, onto the disk."""
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
