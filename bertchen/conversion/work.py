"""The work folder of a conversion: what it is to do, decided once, and what it has done so far.

    plan.json      configuration, sources, files, units, tokenizer: written before the work begins
    segments/      phase 1, tokenized documents
    arrangement/   phase 2, which documents make which blocks
    groups/        phase 3, what each group of shards counted
    data/          phases 3 and 4, what becomes `out`

Everything in it is written once, whole or not at all, so a conversion that was killed goes on behind what is there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from omegaconf import OmegaConf

from bertchen.config.load import flatten
from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.pack import load_arrangement
from bertchen.conversion.segments import SegmentInfo, Segments
from bertchen.conversion.tokenizing import Unit, make_units
from bertchen.conversion.tokens import Recipe
from bertchen.errors import UserError
from bertchen.text.documents import RowRules
from bertchen.text.sources import Source, SourceFile

PLAN = "plan.json"
LOCK = "lock"
LOGS, JOBS = "logs", "slurm.json"  # what engines may leave
# Keys that may change between the beginning of a conversion and its end: no byte of the output depends on them.
FREE_KEYS = ("out", "work", "workers", "overwrite", "restart", "engine", "tokenizer", "on_bad_rows", "keep_local")
# Keys that may change until it is decided which documents make which blocks.
LATER_KEYS = (
    "interleave", "block_size", "strategy", "stages", "lengths", "split_by", "val_blocks", "shard_size", "compression",
)  # fmt: skip

_MIN_UNIT_BYTES, _MAX_UNIT_BYTES = 1 << 20, 1 << 26
_MIN_SEGMENT_CHARACTERS, _MAX_SEGMENT_CHARACTERS = 1 << 20, 1 << 24
_PARTS = 64
# In an order in which each can go before those behind it without harm to them.
_FOLDERS = ("groups", "data", "data.old", "arrangement", "segments", LOGS)
_REMOVED, _NEW_PLAN = "removed", f"{PLAN}.tmp"


@dataclass(frozen=True)
class Output:
    """Where the result goes.

    Attributes:
        folder: the local one.
        remote: the URL it is uploaded to, if any.
        work: the folder of the unfinished conversion.
        keeps_local: whether `folder` is written.
    """

    folder: Path
    remote: str | None
    work: Path
    keeps_local: bool = True

    @classmethod
    def of(cls, settings: ConvertConfig) -> Output:
        remote = settings.out.rstrip("/") if "://" in settings.out else None
        folder = Path(os.path.abspath(os.path.expanduser(remote.rpartition("/")[2] if remote else settings.out)))
        work = Path(os.path.abspath(os.path.expanduser(settings.work))) if settings.work else None
        work = work or folder.with_name(f"{folder.name}.partial")
        return cls(folder, remote, work, keeps_local=remote is None or settings.keep_local)


@dataclass(frozen=True)
class Plan:
    """What a conversion is to do.

    Attributes:
        config: the resolved configuration.
        output: where the result goes.
        sources: with all of their files.
        units: the files, cut into pieces of work.
        segment_characters: see `tokenize_units`.
        recipe: how text becomes tokens.
        tokenizer: what the manifest says of it.
    """

    config: dict[str, Any]
    output: Output
    sources: list[Source]
    units: list[Unit]
    segment_characters: int
    recipe: Recipe
    tokenizer: dict[str, Any]

    @cached_property
    def settings(self) -> ConvertConfig:
        return _settings(self.config)


def make_plan(config: dict[str, Any], sources: Sequence[Source], recipe: Recipe, tokenizer: dict[str, Any]) -> Plan:
    """A plan for the sources. Sizes of its parts follow the input's, so that a short conversion is saved often too."""
    stored = sum(file.bytes for source in sources for file in source.files)
    unit_bytes = min(max(stored // _PARTS, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    characters = min(max(stored // _PARTS, _MIN_SEGMENT_CHARACTERS), _MAX_SEGMENT_CHARACTERS)
    output = Output.of(_settings(config))
    return Plan(config, output, list(sources), make_units(sources, unit_bytes), characters, recipe, tokenizer)


@dataclass
class Counts:
    """What was read of a source: see `SegmentInfo`."""

    read: int = 0
    characters: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    by_file: Counter[str] = field(default_factory=Counter)

    def add(self, info: SegmentInfo) -> None:
        self.read += info.read
        self.characters += info.characters
        self.bad.update(info.bad)
        self.dropped.update(info.dropped)
        self.by_file.update(info.by_file)


@dataclass(frozen=True)
class Work:
    """A work folder and its plan.

    Attributes:
        begin: when this run began, by `time.monotonic`.
    """

    folder: Path
    plan: Plan
    begin: float = field(default_factory=time.monotonic)

    @property
    def segments_folder(self) -> Path:
        return self.folder / "segments"

    @property
    def arrangement_folder(self) -> Path:
        return self.folder / "arrangement"

    @property
    def groups_folder(self) -> Path:
        return self.folder / "groups"

    @property
    def data_folder(self) -> Path:
        return self.folder / "data"

    def segments(self) -> Segments:
        return Segments.load(self.segments_folder, self.plan.recipe.dtype, len(self.plan.units))

    def counts(self) -> list[Counts]:
        """What was read, (sources,)."""
        counts = [Counts() for _ in self.plan.sources]
        for info in self.segments().infos:
            counts[info.source].add(info)
        return counts

    def seconds(self) -> float:
        """How long this and all earlier runs have worked on it."""
        others = [path for path in self.folder.glob("run-*.json") if path != self._run_file]
        return time.monotonic() - self.begin + sum(json.loads(path.read_text())["seconds"] for path in others)

    def note_seconds(self) -> None:
        """Notes how long this run has worked, for a later one."""
        temporary = self._run_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"seconds": time.monotonic() - self.begin}))
        os.replace(temporary, self._run_file)

    @property
    def _run_file(self) -> Path:
        return self.folder / f"run-{os.getpid()}-{int(self.begin)}.json"


def begin_work(folder: Path, plan: Plan, restart: bool, begin: float) -> Work:
    """The work folder for a plan: a new one, or that of the same plan with what it has.

    Args:
        restart: remove what an earlier run left.
        begin: see `Work`.

    Raises:
        UserError: the folder holds something else, or the work for another plan and `restart` is false.
    """
    check_work_folder(folder)
    if restart or not has_progress(folder):
        _clear(folder)
    there = read_plan(folder)
    if there is not None:
        is_arranged = load_arrangement(folder / "arrangement") is not None
        difference = _difference(there, plan, FREE_KEYS if is_arranged else (*FREE_KEYS, *LATER_KEYS))
        if difference:
            raise UserError(
                f"{folder} holds an interrupted conversion in which {difference}: run it with the settings and the "
                "input that it began with, give another out or work, or throw it away with restart=true"
            )
        plan = dataclasses.replace(plan, units=there.units, segment_characters=there.segment_characters)
    _write_plan(folder, plan)  # first: it tells that the rest is ours
    for name in ("segments", "groups", "data"):
        (folder / name).mkdir(exist_ok=True)
    return Work(folder, plan, begin)


def check_work_folder(folder: Path) -> None:
    """Raises a `UserError` if the folder holds something, but no plan."""
    if others := _others(folder):
        raise UserError(f"work={folder} holds {others[0]} and no interrupted conversion: choose another folder for it")


def is_left_over(folder: Path) -> bool:
    """Whether there is a work folder with no more in it than a process leaves that is killed while it removes it."""
    return folder.is_dir() and not (folder / PLAN).exists() and not _others(folder)


def remove_work(folder: Path) -> None:
    """Removes a work folder: what a conversion has put there, nothing else."""
    _clear(folder)
    (folder / LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def has_progress(folder: Path) -> bool:
    """Whether a work folder holds documents, which a later run would not have to tokenize again."""
    return any(path.with_suffix(".tokens").stat().st_size for path in (folder / "segments").glob("*.json"))


def read_plan(folder: Path) -> Plan | None:
    """The plan in a work folder; None where none was begun.

    Raises:
        UserError: it can't be read.
    """
    path = folder / PLAN
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Plan(
            config={**raw["config"], "stages": {int(key): share for key, share in raw["config"]["stages"].items()}},
            output=Output(**{**raw["output"], **{name: Path(raw["output"][name]) for name in ("folder", "work")}}),
            sources=[_source(each) for each in raw["sources"]],
            units=[Unit(**each) for each in raw["units"]],
            segment_characters=raw["segment_characters"],
            recipe=Recipe(**raw["recipe"]),
            tokenizer=raw["tokenizer"],
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read as the plan of a conversion ({error}): throw it away with restart=true"
        ) from None


def begun_sources(there: Plan, settings: ConvertConfig) -> list[Source]:
    """The sources of a plan that was begun, if these settings name the same ones; else none."""
    begun = there.settings
    return there.sources if (begun.source, begun.sources) == (settings.source, settings.sources) else []


def plan_fingerprint(plan: Plan) -> str:
    """Tells whether two plans make the same bytes: 16 hexadecimal digits of a hash of all that these depend on."""
    content = {
        "config": {key: value for key, value in flatten(plan.config).items() if key.partition(".")[0] not in FREE_KEYS},
        "tokenizer": plan.tokenizer["fingerprint"],
        "files": [[file.path, file.bytes, file.version] for source in plan.sources for file in source.files],
    }
    return xxhash.xxh64_hexdigest(json.dumps(content, sort_keys=True).encode())


def _others(folder: Path) -> list[str]:
    """What is in a folder without a plan, and isn't ours."""
    if not folder.is_dir() or (folder / PLAN).exists():
        return []
    return sorted(name for name in os.listdir(folder) if name not in (LOCK, LOGS, _REMOVED, _NEW_PLAN))


def _clear(folder: Path) -> None:
    """Removes all but the lock. Each part goes at once, and the plan last: interrupted, it leaves a work folder."""
    removed = folder / _REMOVED
    shutil.rmtree(removed, ignore_errors=True)
    for name in _FOLDERS:
        if (folder / name).exists():
            os.replace(folder / name, removed)
            shutil.rmtree(removed, ignore_errors=True)
    for path in (*folder.glob("run-*.json"), *folder.glob("*.tmp"), folder / JOBS, folder / PLAN):
        path.unlink(missing_ok=True)


def _source(raw: dict[str, Any]) -> Source:
    rules = RowRules(**{**raw["rules"], "drop_values": tuple(raw["rules"]["drop_values"])})
    return Source(**{**raw, "rules": rules, "files": tuple(SourceFile(**file) for file in raw["files"])})


def _write_plan(folder: Path, plan: Plan) -> None:
    temporary = folder / _NEW_PLAN
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(plan), file, ensure_ascii=False, default=str)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / PLAN)


def _difference(there: Plan, now: Plan, free: Sequence[str]) -> str | None:
    """What of the plan that was begun isn't so any more, in words; the keys in `free` apart."""
    before, after = flatten(there.config), flatten(now.config)
    # An empty section is named only where nothing in it differs.
    for key in sorted({**after, **before}, key=lambda key: {} in (before.get(key), after.get(key))):
        if before.get(key, ...) != after.get(key, ...) and key.partition(".")[0] not in free:
            return _told(key, before, after)
    if there.config["on_bad_rows"] == "skip" != now.config["on_bad_rows"]:
        return f"on_bad_rows=skip, not {now.config['on_bad_rows']}"
    if there.tokenizer["fingerprint"] != now.tokenizer["fingerprint"]:
        return f"the tokenizer was another one ({there.tokenizer['name']})"
    old, new = (
        {file.path: (file.bytes, file.version) for source in plan.sources for file in source.files}
        for plan in (there, now)
    )
    for path in sorted(old.keys() ^ new.keys()):
        return f"the input {'had' if path in old else 'lacked'} {path}"
    for path, version in old.items():
        if new[path] != version:
            return f"{path} was another one: it has been changed since"
    return None


def _told(key: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    was, now = ("null" if flat.get(key) is None else flat[key] for flat in (before, after))
    if key not in before:
        return f"{key} was not set (now it is {now})"
    return f"{key}={was}, which is not set now" if key not in after else f"{key}={was}, not {now}"


def _settings(config: dict[str, Any]) -> ConvertConfig:
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ConvertConfig), config))
    assert isinstance(settings, ConvertConfig)
    return settings
