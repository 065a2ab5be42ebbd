"""`results.jsonl` and `predictions/*.jsonl`: what came of each evaluation. Both only grow; nothing is overwritten.

A line of results.jsonl is one evaluation of one split (`Record`). A line of a predictions file is one example:

    {"id": …, "gold": …, "predicted": …, more}

`gold` and `predicted` are labels for classification, lists of tags a level for tagging (`[["B-PER", "O"], …]`), and for
question answering the list of accepted texts (empty: it can't be answered) and the text found. What else stands in a
line (scores, n-best) is for people.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertchen.errors import UserError, disk_full, is_disk_full
from bertchen.tasks.examples import Example, SpanExample, TextExample

log = logging.getLogger(__name__)

Record = dict[str, Any]
Rows = list[dict[str, Any]]

_TAIL_SHOWN = 60


def append_result(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Adds one line to the file, which is made if it isn't there.

    The line is written at once under a lock, so that lines of several processes don't mix, and is on the disk when
    this returns. A line that a killed process left cut off stays a line of its own. NaN and infinities become null.

    Raises:
        UserError: the file can't be written; it is then as it was before.
    """
    line = _as_line(record)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as descriptor:
            size = os.fstat(descriptor).st_size
            cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            try:
                _write_all(descriptor, b"\n" + line if cut_off else line)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
    except OSError as error:
        raise _unwritable(path, error) from error


def read_results(path: str | os.PathLike[str]) -> list[Record]:
    """All complete records, oldest first. A line that was cut off by a kill is logged and left out.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; give the results.jsonl of evaluations") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _as_record(line)
        if record is not None and "task" in record and "metrics" in record:
            records.append(record)
        elif record is None and line.startswith((b"{", b"\0")):
            tail = line[-_TAIL_SHOWN:].decode("utf-8", "replace")
            log.warning("%s, line %d: cut off by a kill, left out: …%s", path, number, tail)
        else:
            raise UserError(f"{path}, line {number}: no record of an evaluation; give the results.jsonl of evaluations")
    return records


def find_done(results: Iterable[Mapping[str, Any]], key: Mapping[str, Any]) -> list[Record]:
    """The records that have each of `key`'s values under its name, oldest first; a dotted name leads into mappings.

    Args:
        results: as `read_results` gives them.
        key: `{"task": "gnad10", "split": "test", "seed": 1, "config_hash": …}`.
    """
    return [dict(record) for record in results if all(_value(record, name) == key[name] for name in key)]


def prediction_row(example: Example, predicted: Any, **more: Any) -> dict[str, Any]:
    """A line of a predictions file.

    Args:
        example: of any kind.
        predicted: a label; tags by level and word; a text.
        more: whatever else is worth keeping.
    """
    gold: Any
    if isinstance(example, TextExample):
        gold = example.label
    elif isinstance(example, SpanExample):
        gold = [answer.text for answer in example.answers]
    else:
        gold = [list(level) for level in example.tags]
        predicted = [list(level) for level in predicted]
    return {"id": example.id, "gold": gold, "predicted": predicted, **more}


def predictions_name(task: str, split: str, model: str, seed: int, config_hash: str) -> str:
    """The name of a predictions file without its ending; a path or a hub name is made a part of it."""
    model = re.sub(r"[^\w.-]+", "_", model.strip("/")).strip("._") or "model"
    return f"{task}-{split}-{model[-80:]}-{seed}-{config_hash}"


def write_predictions(folder: str | os.PathLike[str], name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes `<name>.jsonl`, whole or not at all; where that is there already, `<name>.2.jsonl`, and so on.

    Returns:
        The path of the file that was written.

    Raises:
        UserError: it can't be written.
    """
    folder = Path(folder)
    temporary: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name[:40]}.", delete=False) as file:
            temporary = file.name
            for row in rows:
                file.write(_as_line(row))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        return _link_new(temporary, folder, name)
    except OSError as error:
        raise _unwritable(folder / f"{name}.jsonl", error) from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def read_predictions(path: str | os.PathLike[str]) -> Rows:
    """The lines of a predictions file.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _as_record(line)
            if row is None or not {"id", "gold", "predicted"} <= row.keys():
                raise UserError(f"{path}, line {number}: not a prediction")
            rows.append(row)
    return rows


@contextmanager
def _locked(path: str | os.PathLike[str]) -> Iterator[int]:
    """The file, opened for appending and locked against other processes that append to it."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:  # a full disk takes a part first and raises next
        data = data[os.write(descriptor, data) :]


def _link_new(temporary: str, folder: Path, name: str) -> Path:
    """Gives the file the first name that is free. A link, unlike a rename, never replaces a file."""
    number = 1
    while True:
        path = folder / (f"{name}.jsonl" if number == 1 else f"{name}.{number}.jsonl")
        try:
            os.link(temporary, path)
        except FileExistsError:
            number += 1
        else:
            return path


def _as_line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate pair becomes JSON's escape of it


def _as_record(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return record if isinstance(record, dict) else {}


def _finite(value: Any) -> Any:
    """The value with plain numbers, as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's and PyTorch's
        value = value.tolist()
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _value(record: Mapping[str, Any], name: str) -> Any:
    value: Any = record
    for part in [name] if name in record else name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    if is_disk_full(error):
        return disk_full(error, path)
    return UserError(f"{path} can't be written: {error.strerror}")
