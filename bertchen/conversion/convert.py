"""Text → shards: the work of scripts/convert_dataset.py.

Four phases (`phases`), each made of independent tasks whose results are written once into a work folder (`work`). The
shards are the same, byte for byte, for the same configuration, text and library versions: neither the number of
workers nor an interruption has a part in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout

from bertchen.config import Config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.conversion.checks import check_first_rows, check_folders, check_input_stays, check_keys
from bertchen.conversion.engine import ENGINES
from bertchen.conversion.segments import DamagedWork
from bertchen.conversion.slurm import check_idle
from bertchen.conversion.tokens import Recipe
from bertchen.conversion.upload import check_remote, download_manifest
from bertchen.conversion.work import (
    LOCK,
    PLAN,
    Output,
    Plan,
    Work,
    begin_work,
    begun_sources,
    check_work_folder,
    has_progress,
    is_left_over,
    make_plan,
    plan_fingerprint,
    read_plan,
    remove_work,
)
from bertchen.data.manifest import MANIFEST, read_manifest
from bertchen.data.shards import check_shards
from bertchen.errors import UserError, is_disk_full, naming_full_disk
from bertchen.processes import hide_torch, in_own_process
from bertchen.text.cleaning import build_cleaning
from bertchen.text.sources import resolve_sources
from bertchen.text.staging import check_target


def convert(config: Config[ConvertConfig]) -> dict[str, Any] | None:
    """Converts text into `out/train`, `out/val` (MDS shards) and `out/manifest.json`, or goes on with what was begun.

    Needs room for twice the tokens (2 bytes each) while it runs. What is complete already stays as it is.

    Returns:
        The manifest; None where the work was handed to an engine that goes on without this process.

    Raises:
        UserError: a wrong value, nothing to read, damaged input, too little text, nowhere to write, a full disk, a lost
            connection. Then an `out` that was there stays as it was, and either nothing is left behind or, where work
            was done already, its folder, in which the same command goes on.
        KeyboardInterrupt: likewise.
    """
    begin = time.monotonic()
    settings = config.value
    check_keys(config)
    output = Output.of(settings)
    check_folders(config, output)
    bands = in_own_process(_count_bands, config) if settings.clean else 0
    there = None if settings.restart else read_plan(output.work)
    sources = resolve_sources(config, [] if there is None else begun_sources(there, settings))
    recipe, tokenizer = _load_recipe(settings, bands, there)
    plan = make_plan(config.to_dict(), sources, recipe, tokenizer)
    if (manifest := _done(plan)) is not None:
        return manifest
    if output.keeps_local:
        check_target(output.folder, str(output.folder), holds=MANIFEST, overwrite=settings.overwrite)
    check_input_stays(config, output, sources)
    check_first_rows(sources, skip=settings.on_bad_rows == "skip")
    check_idle(output.work)
    with _work(plan, settings, begin) as work:
        return ENGINES[settings.engine.name](work, settings)


def show_manifest(manifest: dict[str, Any]) -> str:
    """The figures of a conversion for the terminal."""
    sources = manifest["sources"]
    read = sum(source["documents"]["read"] for source in sources.values())
    size, seconds = manifest["block_size"], max(manifest["seconds"], 0.1)
    lines = [_show_source("", manifest)]
    if len(sources) > 1:
        lines += [_show_source(f"{name}: ", source) for name, source in sources.items()]
    lines += [
        f"{name}: {split['blocks']:,} blocks of {size}, {split['blocks'] * size:,} tokens, "
        f"{split['documents']:,} documents"
        for name, split in manifest["splits"].items()
    ]
    lost = [f"{tokens:,} tokens ({reason})" for reason, tokens in manifest["dropped_tokens"].items() if tokens]
    if lost:
        lines.append(f"dropped: {', '.join(lost)}")
    lines += [
        f"unigram entropy of training: {manifest['unigram_entropy_nats']:.4f} nats a token",
        f"{seconds:.0f} s, {read / seconds:,.0f} documents/s, {manifest['tokens'] / seconds:,.0f} tokens/s",
    ]
    return "\n".join(lines)


def _show_source(name: str, figures: dict[str, Any]) -> str:
    left_out = {**figures["bad_rows"], **figures["dropped_documents"]}
    reasons = "".join(f", {count:,} left out ({reason})" for reason, count in left_out.items())
    documents = figures["documents"]
    return f"{name}{documents['kept']:,} of {documents['read']:,} documents{reasons}; {figures['tokens']:,} tokens"


def _count_bands(config: Config[ConvertConfig]) -> int:
    """Makes the cleaners, to see that they can be made; how many MinHash bands a document has."""
    return len(build_cleaning(config).bands(""))


def _load_recipe(settings: ConvertConfig, bands: int, there: Plan | None) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and what the manifest says of the tokenizer; from the plan that was begun if it is the same."""
    identity = folder_hash(settings.tokenizer)
    if there is not None and identity is not None and there.tokenizer.get("files") == identity:
        recipe = replace(there.recipe, name=settings.tokenizer, seed=settings.seed, clean=settings.clean, bands=bands)
        return recipe, {**there.tokenizer, "name": settings.tokenizer}
    recipe, tokenizer = in_own_process(_load_in_process, settings.tokenizer, settings.seed, settings.clean, bands)
    return recipe, {**tokenizer, "files": identity}


def _load_in_process(*arguments: Any) -> tuple[Recipe, dict[str, Any]]:
    hide_torch()
    from bertchen.conversion.recipes import load_recipe

    return load_recipe(*arguments)


def folder_hash(name: str) -> str | None:
    """A hash of the files of a local folder, by names and contents; None where there is no such folder."""
    if not os.path.isdir(name):
        return None
    digest = xxhash.xxh64()
    for path in sorted(Path(name).iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\0")
            with open(path, "rb") as file:  # may be a model's weights
                while piece := file.read(1 << 20):
                    digest.update(piece)
    return digest.hexdigest()


def _done(plan: Plan) -> dict[str, Any] | None:
    """The manifest of this very conversion if it is complete, so that a command that is repeated does no harm."""
    output, settings = plan.output, plan.settings
    with suppress(UserError):  # said later
        begun = read_plan(output.work)
        is_begun = begun is not None and plan_fingerprint(begun) == plan_fingerprint(plan)
        has_data, is_arranged = ((output.work / name).exists() for name in ("data", "arrangement"))
        if settings.overwrite and not (is_begun and is_arranged and not has_data):
            return None  # asked for, and not yet done
        manifest = _remote_manifest(output) if output.remote else read_manifest(output.folder)
        if manifest.get("plan") != plan_fingerprint(plan) or (manifest["bad_rows"] and settings.on_bad_rows != "skip"):
            return None
        if output.keeps_local:
            if read_manifest(output.folder)["plan"] != manifest["plan"]:
                return None
            for split in manifest["splits"]:
                check_shards(output.folder / split, hashes=False)
        if is_begun or is_left_over(output.work):  # a process was killed before it had removed it
            with _held(output.work):
                remove_work(output.work)
        return manifest
    return None


def _remote_manifest(output: Output) -> dict[str, Any]:
    """What is complete in the store; it isn't asked while work for it is there, which goes on in any case."""
    assert output.remote is not None
    raw = None if _is_begun_for(output) else download_manifest(output.remote)
    with suppress(ValueError):
        manifest = json.loads(raw or b"{}")
        return manifest if isinstance(manifest, dict) else {}
    return {}


def _is_begun_for(output: Output) -> bool:
    """Whether the work that is there is to go to this place."""
    with suppress(UserError):
        begun = read_plan(output.work)
        return begun is not None and begun.output.remote == output.remote
    return False


@contextmanager
def _work(plan: Plan, settings: ConvertConfig, begin: float) -> Iterator[Work]:
    """The work folder, held by this process alone. On an error it is removed if it holds nothing worth keeping."""
    folder, remote = plan.output.work, plan.output.remote
    check_work_folder(folder)
    with _held(folder):
        try:
            with naming_full_disk(folder):
                if remote and not _is_begun_for(plan.output):
                    check_remote(remote)
                work = begin_work(folder, plan, settings.restart, begin)
            with _told_what_is_kept(work):
                yield work
        except BaseException:
            if not has_progress(folder):
                remove_work(folder)
            raise


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Makes a folder if it isn't there, and keeps other processes from it; removes what was made above it for nothing.

    Raises:
        UserError: another process has it; it can't be made.
    """
    made = [each for each in folder.parents if not each.exists()]
    lock = FileLock(folder / LOCK, timeout=0)
    with naming_full_disk(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UserError(f"another process is converting into {folder}: wait for it or choose another out") from None
        except OSError as error:
            if is_disk_full(error):
                raise
            raise UserError(f"{folder} can't be written ({error.strerror}): choose another out or work") from None
    try:
        yield
    finally:
        lock.release()
        if not folder.exists():
            for each in made:
                with suppress(OSError):
                    each.rmdir()


@contextmanager
def _told_what_is_kept(work: Work) -> Iterator[None]:
    """Adds to the message of an error that the command can be repeated; notes for then how long this run took."""
    kept = f"what is done is kept in {work.folder}, and the command goes on from there"
    try:
        with naming_full_disk(work.folder):
            yield
    except UserError as error:
        if isinstance(error, DamagedWork) or not has_progress(work.folder):
            raise
        raise UserError(f"{error} ({kept})") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept if has_progress(work.folder) else "") from None
    finally:
        if (work.folder / PLAN).exists():
            with suppress(OSError):
                work.note_seconds()
