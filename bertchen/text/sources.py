"""Sources: from the keys `source` and `sources` of a conversion to the files that it reads, everything checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import takewhile

import xxhash

from bertchen.config import Config
from bertchen.config.schema_convert import ConvertConfig, SourceConfig
from bertchen.errors import UserError
from bertchen.text.documents import NO_TEXT_COLUMN, Rejected, RowRules
from bertchen.text.files import kind_of, resolve_paths, size_and_version
from bertchen.text.hub import hub_files
from bertchen.text.readers import read_chunks

SINGLE = "source"
ON_BAD_ROWS = ("fail", "skip")
SAMPLE_BY = ("document", "file")

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SAMPLES = ("fraction", "documents", "tokens")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    Attributes:
        path: path or URL.
        bytes: its size as stored.
        version: changes when its content does.
    """

    path: str
    bytes: int
    version: str


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    Attributes:
        name: key under `sources`; of a single source the name of its hub repository, or `source`.
        files: in the order in which they are read.
        rules: how their rows become documents.
        fraction, documents, tokens: how much is taken of the documents in `files`; at most one of them is set. Where
            whole files were chosen, `fraction` is what is left to do.
        weight: share of the mixture, not normalized; None where nothing is weighed.
        revision: commit of a hub repository.
    """

    name: str
    files: tuple[SourceFile, ...]
    rules: RowRules
    fraction: float | None = None
    documents: int | None = None
    tokens: int | None = None
    weight: float | None = None
    revision: str | None = None


def resolve_sources(config: Config[ConvertConfig], begun: Iterable[Source] = ()) -> list[Source]:
    """The sources of a conversion with their files, in the order of the YAML.

    All keys are checked before anything is listed. Remote places are asked for names and sizes; of a source with
    `drop_rows` the beginning of the first file is read.

    Args:
        begun: what an interrupted conversion found for the same keys; of a hub repository its commit is read again,
            wherever the branch has gone to since.

    Raises:
        UserError: a key that is wrong, missing or of no use, with its dotted name; no file; a place that can't be
            reached.
    """
    keyed = _keyed_sources(config)
    if config.value.on_bad_rows not in ON_BAD_ROWS:
        config.fail("on_bad_rows", f"unknown, should be one of: {', '.join(ON_BAD_ROWS)}")
    for key, _, source in keyed:
        _check(config, key, source)
    _check_weights(config)
    commits = {source.name: source.revision for source in begun}
    return [_resolve(config, key, name, source, commits.get(name)) for key, name, source in keyed]


def choose_files(files: Sequence[SourceFile], fraction: float, seed: int) -> tuple[tuple[SourceFile, ...], float]:
    """Enough whole files for `fraction` of a source, and the fraction that is then to be taken of their documents.

    Of n files the ceil(fraction * n) with the smallest hash of their name inside the source, seeded with `seed`: the
    same wherever the source lies. Their order stays.
    """
    # As it is written: 0.07 * 100 is a little more than 7 in floating point.
    share = Fraction(str(fraction)) * len(files)
    count = math.ceil(share)
    names = _names_inside([file.path for file in files])
    order = sorted(range(len(files)), key=lambda index: (xxhash.xxh64_intdigest(names[index], seed), names[index]))
    return tuple(files[index] for index in sorted(order[:count])), float(share / count)


def _keyed_sources(config: Config[ConvertConfig]) -> list[tuple[str, str, SourceConfig]]:
    """(dotted key, name, source) of each source."""
    settings = config.value
    single, several = settings.source, settings.sources
    changed = [item.name for item in fields(single) if getattr(single, item.name) != getattr(SourceConfig(), item.name)]
    if not several:
        if single.path is None and single.hub is None:
            raise UserError(
                "no source: set source.path (a file, a folder, a glob, a URL or a list of these) or source.hub (a data "
                "set of the Hugging Face Hub), or several of them under sources"
            )
        return [(SINGLE, _single_name(single), single)]
    if changed:
        config.fail(f"{SINGLE}.{changed[0]}", "sources is set, so source isn't read: use one of them")
    for name in several:
        if not _NAME.fullmatch(name):
            config.fail(f"sources.{name}", f"the name {name!r} should be of letters, digits, _ and - alone")
    return [(f"sources.{name}", name, source) for name, source in several.items()]


def _single_name(source: SourceConfig) -> str:
    name = os.path.basename(str(source.hub or "").rstrip("/"))
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or SINGLE


def _check(config: Config[ConvertConfig], key: str, source: SourceConfig) -> None:
    for name in ("path", "files"):
        value = getattr(source, name)
        is_list = isinstance(value, list) and value and all(isinstance(item, str) and item for item in value)
        if value is not None and not is_list and not (isinstance(value, str) and value):
            kinds = "a file, a folder, a glob, a URL" if name == "path" else "a pattern of files in the repository"
            config.fail(f"{key}.{name}", f"should be {kinds} or a list of these")
    if (source.path is None) == (source.hub is None):
        config.fail(f"{key}.path", f"exactly one of {key}.path and {key}.hub should be set")
    for name, why in _useless(source):
        config.fail(f"{key}.{name}", why)
    if not source.text_column:
        config.fail(f"{key}.text_column", "should be the name of a column")
    drop = source.drop_rows
    if bool(drop.column) != bool(drop.values):
        missing = "values" if drop.column else "column"
        config.fail(f"{key}.drop_rows.{missing}", "drop_rows takes a column and the values whose rows are left out")
    _check_sample(config, key, source)


def _useless(source: SourceConfig) -> Iterator[tuple[str, str]]:
    """Keys that are set, but can't be meant beside others, and why."""
    hub_keys = {"config": source.config, "revision": source.revision, "files": source.files}
    if source.split != SourceConfig().split:
        hub_keys["split"] = source.split
    given = [name for name, value in hub_keys.items() if value is not None]
    if source.hub is None:
        yield from ((name, "is for a source with `hub`") for name in given)
    elif source.files is not None:
        why = "`files` names the files itself: leave one of the two out"
        yield from ((name, why) for name in given if name in ("config", "split"))


def _check_sample(config: Config[ConvertConfig], key: str, source: SourceConfig) -> None:
    sample = source.sample
    given = [name for name in _SAMPLES if getattr(sample, name) is not None]
    if len(given) > 1:
        config.fail(f"{key}.sample.{given[1]}", f"only one of {', '.join(_SAMPLES)} can be set, and {given[0]} is")
    if sample.fraction is not None and not 0 < sample.fraction <= 1:
        config.fail(f"{key}.sample.fraction", "should be a share of the documents above 0, at most 1")
    for name in ("documents", "tokens"):
        value = getattr(sample, name)
        if value is not None and value < 1:
            config.fail(f"{key}.sample.{name}", "should be at least 1")
    if sample.by not in SAMPLE_BY:
        config.fail(f"{key}.sample.by", f"unknown, should be one of: {', '.join(SAMPLE_BY)}")
    if sample.by == "file" and sample.fraction is None:
        config.fail(f"{key}.sample.by", "whole files are chosen for sample.fraction only: set it")


def _check_weights(config: Config[ConvertConfig]) -> None:
    settings = config.value
    if not settings.sources:
        if settings.source.weight is not None:
            config.fail("source.weight", "a single source has nothing to be weighed against: leave it out")
        return
    weights = {name: source.weight for name, source in settings.sources.items()}
    missing = [name for name, weight in weights.items() if weight is None]
    if missing and len(missing) < len(weights):
        config.fail(f"sources.{missing[0]}.weight", "either all sources have a weight or none has")
    for name, weight in weights.items():
        if weight is not None and not 0 < weight < math.inf:
            config.fail(f"sources.{name}.weight", "should be a number above 0")


def _resolve(config: Config[ConvertConfig], key: str, name: str, source: SourceConfig, commit: str | None) -> Source:
    sample, drop = source.sample, source.drop_rows
    try:
        if source.hub is None:
            paths, revision = resolve_paths(source.path), None
        else:
            paths, revision = hub_files(
                source.hub, source.config, source.split, commit or source.revision, source.files
            )
        files = tuple(SourceFile(path, *size_and_version(path)) for path in paths)
    except UserError as error:
        raise UserError(f"{key}.{'hub' if source.hub else 'path'}: {error}") from error
    rules = RowRules(source.text_column, source.group_rows, drop.column or None, tuple(drop.values))
    _check_columns(config, key, paths, rules)
    fraction = sample.fraction
    if fraction is not None and sample.by == "file":
        files, fraction = choose_files(files, fraction, config.value.seed)
    return Source(
        name=name,
        files=files,
        rules=rules,
        fraction=None if fraction == 1 else fraction,
        documents=sample.documents,
        tokens=sample.tokens,
        weight=source.weight,
        revision=revision,
    )


def _check_columns(config: Config[ConvertConfig], key: str, paths: Sequence[str], rules: RowRules) -> None:
    """A row without the column of `drop_rows` stays, so a name that is wrong in all rows has to be met here."""
    if rules.drop_column is None:
        return
    texts = next((path for path in paths if kind_of(path)[0] == ".txt"), None)
    if texts:
        config.fail(f"{key}.drop_rows.column", f"{texts} is a text file, which has no columns")
    chunk = next(read_chunks(paths[0], RowRules(rules.drop_column)), None)
    rows = list(chunk.rows()) if chunk else []
    missing = [row for row in rows if isinstance(row, Rejected) and row.reason == NO_TEXT_COLUMN]
    if missing and len(missing) == len(rows):
        told = missing[0].message.removesuffix(" (set text_column)")
        config.fail(f"{key}.drop_rows.column", f"not in the first {len(rows)} rows of its first file: {told}")


def _names_inside(paths: Sequence[str]) -> list[str]:
    """The paths behind the folder that they share."""
    parts = [path.split("/") for path in paths]
    levels = zip(*(folders[:-1] for folders in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return ["/".join(names[shared:]) for names in parts]
