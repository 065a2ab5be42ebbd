"""Figures about a corpus as people see them: tables for the terminal, a picture of the lengths, files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertchen.config import Config
from bertchen.config.load import COMMAND_LINE
from bertchen.config.schema_stats import FolderStatsConfig, StatsConfig
from bertchen.conversion.tally import PERCENTILES
from bertchen.errors import UserError, disk_full, is_disk_full
from bertchen.tokenizer.figures import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATS, PICTURE = "stats.json", "lengths.png"
_COLORS = ("#2f6690", "#d1495b", "#3a7d44", "#8d5a97", "#c77d0a")
_MOST_TICKS = 11
_TITLE_CHARACTERS = 60


def show_stats(stats: Mapping[str, Any]) -> str:
    """The figures for the terminal."""
    rows = stats["tokenizers"]
    names = short_names([row["name"] for row in rows])
    blocks = [_parts_table(stats), _figures_table(rows, names), _tokens_table(rows, names)]
    fallen_back = [(row["fallen_back"], name) for row, name in zip(rows, names, strict=True)]
    blocks += [_fallen_back(found, name) for found, name in fallen_back if found["characters"]]
    if stats["notes"]:
        blocks.append("\n".join(f"note: {note}" for note in stats["notes"]))
    return "\n\n".join(blocks)


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path, or the paths as they are where these parts don't tell them apart."""
    last = [os.path.basename(os.path.normpath(name)) for name in names]
    return last if len(set(last)) == len(last) else list(names)


def draw_lengths(rows: Sequence[Mapping[str, Any]], corpus: str) -> Figure | None:
    """The histogram of document lengths of the tokenizers that have one, None if none has.

    Args:
        rows: `tokenizers` of the figures.
        corpus: for the title.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    names = short_names([row["name"] for row in rows])
    drawn = [(name, row) for name, row in zip(names, rows, strict=True) if row["length_histogram"]]
    if not drawn:
        return None
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axis = figure.subplots()
    first, last = _range([row["length_histogram"] for _, row in drawn])
    for number, (name, row) in enumerate(drawn):
        edges, counts = row["length_histogram"]["edges"], row["length_histogram"]["counts"]
        color = _COLORS[number % len(_COLORS)]
        label = f"{name}: median {_rounded(row['tokens_per_document']['p50'])}"
        edges = [max(edge, 0.5) for edge in edges]  # a logarithmic axis has no 0
        if number == 0:
            axis.stairs(counts, edges, fill=True, color=color, alpha=0.25)
        axis.stairs(counts, edges, color=color, linewidth=1.8, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xlim(first, last)
    axis.set_ylim(bottom=0)
    powers = [2**power for power in range(64) if first <= 2**power <= last]
    axis.set_xticks(powers[:: 1 + len(powers) // (_MOST_TICKS + 1)])
    axis.xaxis.set_minor_locator(NullLocator())
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlabel("length of a document (tokens, logarithmic)")
    axis.set_ylabel("number of documents")
    title = corpus if len(corpus) <= _TITLE_CHARACTERS else f"…{corpus[-_TITLE_CHARACTERS:]}"
    axis.set_title(f"Lengths of documents: {title}", loc="left")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def check_out(config: Config[StatsConfig] | Config[FolderStatsConfig]) -> Path | None:
    """The folder to write to, None where nothing is to be written; nothing is made yet.

    `out` and `overwrite` count where the command line gives them: in a YAML they are those of the conversion.

    Raises:
        UserError: it is a file, can't be written, or holds what would be written.
    """
    given = {key: getattr(config.value, key) for key in ("out", "overwrite") if config.source(key) == COMMAND_LINE}
    if given.get("out") is None:
        return None
    folder = Path(given["out"]).expanduser()
    if not given["out"]:
        config.fail("out", "name the folder to write")
    if folder.exists() and not folder.is_dir():
        config.fail("out", "is a file: name a folder")
    there = [name for name in (STATS, PICTURE) if (folder / name).exists()]
    if there and not given.get("overwrite"):
        config.fail("out", f"has a {there[0]} already: choose another folder, or replace it with overwrite=true")
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        config.fail("out", f"can't be written: {above} is no folder that you may write to")
    return folder


def write_stats(stats: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes stats.json, and lengths.png if there are lengths, into the folder, which is made; the files' paths.

    Raises:
        UserError: they can't be written; each is there whole or not at all.
    """
    figure = draw_lengths(stats["tokenizers"], stats["corpus"])
    writers: dict[str, Callable[[Path], Any]] = {
        STATS: lambda path: path.write_text(json.dumps(stats, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    }
    if figure is not None:
        writers[PICTURE] = lambda path: figure.savefig(path, dpi=150, format="png")
    for name, write in writers.items():
        with _replacing(folder / name) as path:
            write(path)
    return [folder / name for name in writers]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path that takes the place of `path` if the body succeeds."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise (
            disk_full(error, path) if is_disk_full(error) else UserError(f"{path} can't be written: {error.strerror}")
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _parts_table(stats: Mapping[str, Any]) -> str:
    kind = {"raw": "source", "converted": "split"}[stats["kind"]]
    columns = ("documents", "characters", "words", "tokens")
    rows = dict(stats["parts"]) | ({"total": stats["total"]} if len(stats["parts"]) > 1 else {})
    lines = [(kind, *columns), *((name, *(f"{part[key]:,}" for key in columns)) for name, part in rows.items())]
    left_out = [f"left out, {reason}: {count:,}" for key in ("bad", "dropped") for reason, count in stats[key].items()]
    return "\n".join((aligned(lines), *left_out))


_FIGURES: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("entries", lambda row: f"{row['vocab_size']:,}"),
    ("  that occur", lambda row: f"{row['entries_used']:,}"),
    ("tokens", lambda row: f"{row['tokens']:,}"),
    ("characters/token", lambda row: f"{row['characters_per_token']:.3f}"),
    ("tokens/word", lambda row: f"{row['tokens_per_word']:.3f}"),
    ("byte-fallback tokens", lambda row: "-" if row["byte_tokens"] is None else f"{row['byte_tokens']:,}"),
    ("  share", lambda row: "-" if row["byte_share"] is None else f"{row['byte_share']:.4%}"),
    ("unknown tokens", lambda row: f"{row['unknown_tokens']:,}"),
    ("  share", lambda row: f"{row['unknown_share']:.4%}"),
    ("unigram entropy (nats/token)", lambda row: f"{row['unigram_entropy_nats']:.3f}"),
)


def _figures_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    lines = [("tokenizer", *names), *((label, *map(cell, rows)) for label, cell in _FIGURES)]
    lines.append(("tokens/document", *("" for _ in rows)))
    for key in (*PERCENTILES, "mean"):
        lines.append((f"  {key}", *(_rounded((row["tokens_per_document"] or {}).get(key)) for row in rows)))
    return aligned(lines)


def _tokens_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    header = [cell for name in names for cell in (name, "count", "share")]
    lines = [["most frequent tokens", *header]]
    for rank in range(max(len(row["most_frequent"]) for row in rows)):
        line = [str(rank + 1)]
        for row in rows:
            token = next(iter(row["most_frequent"][rank : rank + 1]), None)
            line += [token["text"], f"{token['count']:,}", f"{token['share']:.2%}"] if token else [""] * 3
        lines.append(line)
    return aligned(lines)


def _fallen_back(found: Mapping[str, Any], name: str) -> str:
    lines = []
    for entry in found["most_frequent"]:
        character = entry["character"] if entry["character"].isprintable() else " "
        lines.append([f"  {entry['code_point']} {entry['name']}", f"{entry['count']:,}", character])
    head = f"{name}: {found['characters']:,} characters became bytes, {found['different']:,} different ones"
    return f"{head}\n{aligned(lines)}"


def _rounded(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def _range(histograms: Sequence[Mapping[str, Sequence[float]]]) -> tuple[float, float]:
    """The edges around all lengths that occur."""
    low, high = [], []
    for histogram in histograms:
        used = [place for place, count in enumerate(histogram["counts"]) if count]
        low.append(histogram["edges"][used[0]])
        high.append(histogram["edges"][used[-1] + 1])
    return max(min(low), 0.5), max(high)
