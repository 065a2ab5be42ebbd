"""Answers questions about a Hub, a line of JSON each, in a process of its own: HF_ENDPOINT counts when it starts."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from huggingface_hub import HfFileSystem

from bertchen.config.load import load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.errors import UserError
from bertchen.text.documents import Document
from bertchen.text.files import size_and_version
from bertchen.text.hub import hub_files
from bertchen.text.readers import read_chunks, read_documents
from bertchen.text.sources import resolve_sources


def files(**arguments: Any) -> Any:
    return hub_files(**arguments)


def read(paths: list[str], text_column: str = "text") -> list[str]:
    return [document.text for document in read_documents(paths, text_column)]


def versions(paths: list[str]) -> list[Any]:
    return [size_and_version(path) for path in paths]


def sources(argv: list[str]) -> list[dict[str, Any]]:
    """The sources of a conversion, and the rows of all of their files."""
    config = load_config(ConvertConfig, argv, "")
    return [
        {
            "name": source.name,
            "revision": source.revision,
            "files": [file.path for file in source.files],
            "bytes": sum(file.bytes for file in source.files),
            "fraction": source.fraction,
            "weight": source.weight,
            "rows": [
                row.text if isinstance(row, Document) else {"reason": row.reason, "is_bad": row.is_bad}
                for file in source.files
                for chunk in read_chunks(file.path, source.rules)
                for row in chunk.rows()
            ],
        }
        for source in resolve_sources(config)
    ]


CALLS = {call.__name__: call for call in (files, read, versions, sources)}


def answer(question: dict[str, Any]) -> dict[str, Any]:
    os.environ.pop("HF_TOKEN", None)
    if question["token"]:
        os.environ["HF_TOKEN"] = question["token"]
    HfFileSystem.clear_instance_cache()
    try:
        return {"result": CALLS[question["call"]](**question["arguments"])}
    except UserError as error:
        return {"error": str(error)}
    except Exception:  # a bug: the test that asked should show it, and the next one find a process
        return {"traceback": traceback.format_exc()}


if __name__ == "__main__":
    for line in sys.stdin:
        print("ANSWER " + json.dumps(answer(json.loads(line))), flush=True)
