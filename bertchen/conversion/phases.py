"""The phases of a conversion, each on the part of its tasks that falls to one of several processes.

`rank` of `world_size`: which part. All of them share the work folder; each task's result is written by one of them.
"""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm

from bertchen.conversion.describe import build_manifest
from bertchen.conversion.groups import WriteJob, finish_split, group_count, write_groups
from bertchen.conversion.pack import Arrangement, arrange, load_arrangement
from bertchen.conversion.tokenizing import Progress, tokenize_units
from bertchen.conversion.upload import upload_files
from bertchen.conversion.work import Work, remove_work
from bertchen.data.manifest import MANIFEST, write_manifest
from bertchen.text.staging import put_in_place

NOTE_SECONDS = 5.0


def tokenize_work(work: Work, workers: int, rank: int = 0, world_size: int = 1) -> None:
    """Phase 1: makes segments of the units."""
    plan = work.plan
    units = plan.units[rank::world_size]
    begin = noted = time.monotonic()
    documents = tokens = 0
    files = [plan.sources[unit.source].files[unit.first + place] for unit in units for place in range(unit.files)]
    with tqdm(
        total=sum(file.bytes for file in files), unit="B", unit_scale=True, unit_divisor=1024, desc="tokenizing"
    ) as bar:

        def on_progress(progress: Progress) -> None:
            nonlocal documents, tokens, noted
            documents += progress.documents
            if progress.is_new:
                tokens += progress.tokens
                now = time.monotonic()
                if world_size == 1 and now - noted >= NOTE_SECONDS:
                    work.note_seconds()
                    noted = now
                rate = tokens / max(now - begin, 1e-3)
                bar.set_postfix_str(f"{documents:,} documents, {rate:,.0f} tokens/s", refresh=False)
            else:
                bar.initial += progress.stored_bytes  # what was there is no part of the speed
            bar.update(progress.stored_bytes)

        tokenize_units(
            units,
            plan.sources,
            plan.recipe,
            work.segments_folder,
            plan.segment_characters,
            plan.config["on_bad_rows"] == "skip",
            workers,
            on_progress,
        )


def arrange_work(work: Work) -> Arrangement:
    """Phase 2: decides which documents make which blocks; or what was decided."""
    plan = work.plan
    there = load_arrangement(work.arrangement_folder)
    if there is not None:
        return there
    segments = work.segments()
    return arrange(segments, plan.sources, plan.settings, work.arrangement_folder)


def write_work(work: Work, workers: int, rank: int = 0, world_size: int = 1) -> None:
    """Phase 3: writes groups of shards."""
    job, splits = _write_job(work), arrange_work(work).splits
    dtype = job.segments.dtype
    tasks = [(split, group) for split in splits.values() for group in range(group_count(split, dtype, job.settings))]
    with tqdm(total=sum(split.blocks for split in splits.values()), unit=" blocks", desc="writing") as bar:
        write_groups(job, tasks[rank::world_size], workers, bar.update)


def finish_work(work: Work) -> dict[str, Any]:
    """Phase 4: joins the groups' indexes, describes the whole, and puts it in its place.

    Returns:
        The manifest.
    """
    plan, output, job = work.plan, work.plan.output, _write_job(work)
    arrangement = arrange_work(work)
    figures = {name: finish_split(job, split) for name, split in arrangement.splits.items()}
    manifest = build_manifest(plan, arrangement, figures, work.counts(), work.seconds())
    write_manifest(job.data, manifest)
    if output.remote:
        upload_files(job.data, [MANIFEST], output.remote)  # the last of all: it says that the others are there
    if output.keeps_local:
        put_in_place(job.data, output.folder, str(output.folder))
    remove_work(work.folder)
    return manifest


def _write_job(work: Work) -> WriteJob:
    return WriteJob(work.segments(), work.folder, work.plan.settings, work.plan.output.remote)
