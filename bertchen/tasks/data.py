"""A task's examples, from its YAML: read, checked, and divided where the published files have no dev or test set."""

from __future__ import annotations

import inspect
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from bertchen.config.load import Config, nearest
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import UserError
from bertchen.tasks.examples import Example, Kind, SpanExample, TagExample, TextExample
from bertchen.tasks.readers import READERS, Reader
from bertchen.tasks.readers.rows import COMPRESSIONS, Skipped, fail
from bertchen.text.hub import hub_files

log = logging.getLogger(__name__)

_OUTSIDE = "O"
_PREFIXES = ("B-", "I-")


@dataclass(frozen=True)
class TaskData:
    """The examples of a task.

    Attributes:
        kind: of the task.
        labels: of a classification, or the entity types of a tagging, in the YAML's order; none of questions.
        levels: of tags; 1 for other tasks.
        splits: `train`, `dev` where there is one, `test` or several that begin so.
    """

    kind: Kind
    labels: list[str]
    levels: int
    splits: dict[str, list[Example]]

    @property
    def tags(self) -> list[str]:
        """The tags of a tagging, in IOB2: O, then B-X and I-X of each type."""
        return [_OUTSIDE, *(prefix + label for label in self.labels for prefix in _PREFIXES)]


def load_task_data(config: Config[FinetuneConfig]) -> TaskData:
    """Reads and checks the examples that `task`, `labels` and `data` name.

    Texts that are in training and in another split are counted in a warning: published sets have some.

    Raises:
        UserError: a key with a value that can't be; a file that isn't there, with how to get it; a broken row; a label
            that isn't in `labels`; an answer that isn't in its context where it says; an id that is there twice; a
            split without examples, or too small for `dev_size` and `test_size`.
    """
    reader = _reader(config)
    _check_labels(config, reader.kind)
    files = {split: _files(config, reader, split) for split in _split_names(config)}
    _check_files(config, files)
    splits = {split: _read(split, paths, reader, config.value.data.options) for split, paths in files.items()}
    for examples in splits.values():
        _check(examples, config.value.labels)
    _check_ids(splits)
    splits = _carve(config, splits)
    splits = {split: _with_ids(examples) for split, examples in splits.items()}
    _warn_of_overlap(splits)
    return TaskData(reader.kind, list(config.value.labels), _levels(splits), splits)


# --- the configuration


def _reader(config: Config[FinetuneConfig]) -> Reader:
    name, data = config.value.data.reader, config.value.data
    if name not in READERS:
        config.fail("data.reader", f"no such reader; {nearest(name, READERS)}")
    reader = READERS[name]
    if config.value.task != reader.kind:
        config.fail("task", f"the examples that the reader {name} gives are for {reader.kind}")
    known = list(inspect.signature(reader.read).parameters)[1:]
    for option in data.options:
        if option not in known:
            told = nearest(option, known) if known else "it has none"
            config.fail(f"data.options.{option}", f"no option of the reader {name}; {told}")
    return reader


def _check_labels(config: Config[FinetuneConfig], kind: Kind) -> None:
    labels = config.value.labels
    least = {"classification": 2, "tagging": 1, "question_answering": 0}[kind]
    if kind == "question_answering" and labels:
        config.fail("labels", "question answering has no labels: leave them out")
    if len(labels) < least:
        config.fail("labels", f"{kind} needs at least {least}")
    for label, times in Counter(labels).items():
        if times > 1:
            config.fail("labels", f"{label} is there {times} times")


def _split_names(config: Config[FinetuneConfig]) -> list[str]:
    """The splits that aren't null: train, dev, tests."""
    splits = config.value.data.splits
    for name, value in splits.items():
        if name not in ("train", "dev") and not name.startswith("test"):
            config.fail(f"data.splits.{name}", "the splits are train, dev, and names that begin with test")
        if value is not None and (not isinstance(value, str) or not value):
            config.fail(f"data.splits.{name}", "should be a file, the name of a split of data.hub, or null")
    names = [name for name, value in splits.items() if value is not None]
    if not names:
        config.fail("data.splits", "names no file: set train, dev or test")
    return sorted(names, key=lambda name: (name != "train", name != "dev"))


def _files(config: Config[FinetuneConfig], reader: Reader, split: str) -> list[str]:
    """The files of a split."""
    data = config.value.data
    value: str = data.splits[split]
    if data.hub is not None:
        if data.folder is not None:
            config.fail("data.hub", "data.folder is set too: examples come from one of the two, the other is null")
        by_pattern = "/" in value or "*" in value
        chosen: dict[str, Any] = {"files": value} if by_pattern else {"split": value}
        paths, commit = hub_files(data.hub, data.config, revision=data.revision, **chosen)
        if commit:
            log.info("%s: %s at commit %s", split, data.hub, commit)
        return paths
    if data.folder is None:
        config.fail("data.folder", "should be the folder of the task's files, or data.hub a data set of the Hub")
    path = os.path.join(os.path.expanduser(data.folder), value)
    if "://" in path or os.path.isfile(path):
        return [path]
    compressed = [path + compression for compression in COMPRESSIONS if os.path.isfile(path + compression)]
    if not compressed:
        source = config.source(f"data.splits.{split}")
        raise UserError(
            f"{path}: no such file (data.splits.{split}, from {source}). {reader.advice}. Put it into "
            f"{data.folder}, or name what is there with data.folder and data.splits.{split}; data.splits.{split}=null "
            "leaves the split out"
        )
    return compressed[:1]


def _check_files(config: Config[FinetuneConfig], files: dict[str, list[str]]) -> None:
    """A file in two splits would be tested on what was trained on."""
    first: dict[str, str] = {}
    for split, paths in files.items():
        for path in paths:
            if path in first:
                config.fail(f"data.splits.{split}", f"the files of {first[path]} too; each split has its own")
            first[path] = split


# --- examples


def _read(split: str, paths: Sequence[str], reader: Reader, options: dict[str, Any]) -> list[Example]:
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for path in paths:
        for item in reader.read(path, **options):
            if isinstance(item, Skipped):
                skipped[item.reason] += 1
            else:
                examples.append(item)
    for reason, count in skipped.items():
        log.warning("%s: %d of %d rows lack %s and are left out", split, count, len(examples) + count, reason)
    if not examples:
        raise UserError(f"{', '.join(paths)}: no examples in the split {split}")
    return examples


def _check(examples: Iterable[Example], labels: Sequence[str]) -> None:
    """Raises for a label that isn't in the list, an answer in another place, or a text that isn't Unicode."""
    known = frozenset(labels)
    for example in examples:
        if isinstance(example, TextExample):
            if example.label not in known:
                fail(example.origin, f"the label {example.label} isn't in labels; {nearest(example.label, known)}")
        elif isinstance(example, TagExample):
            _check_tags(example, known)
        else:
            _check_answers(example)
        for text in _texts(example):
            try:
                text.encode()
            except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no tokenizer takes it
                fail(example.origin, f"not valid Unicode: {error.reason}")


def _check_tags(example: TagExample, types: frozenset[str]) -> None:
    for tags in example.tags:
        if len(tags) != len(example.words):
            fail(example.origin, f"{len(tags)} tags for {len(example.words)} words")
        for word, tag in zip(example.words, tags, strict=True):
            if tag != _OUTSIDE and not (tag.startswith(_PREFIXES) and tag[2:] in types):
                known = f"O, or B- or I- before one of labels; {nearest(tag[2:], types)}"
                fail(example.origin, f"the tag {tag} of {word!r} (sentence from this line on) should be {known}")


def _check_answers(example: SpanExample) -> None:
    for answer in example.answers:
        found = example.context[max(answer.start, 0) : max(answer.start, 0) + len(answer.text)]
        if answer.start < 0 or found != answer.text:
            fail(
                example.origin,
                f"question {example.id}: the answer {answer.text!r} should be at character {answer.start} of its "
                f"context, there is {found!r}",
            )


def _texts(example: Example) -> tuple[str, ...]:
    """What a model reads of it."""
    if isinstance(example, TextExample):
        return (example.text,) if example.pair is None else (example.text, example.pair)
    return example.words if isinstance(example, TagExample) else (example.context, example.question)


def _check_ids(splits: dict[str, list[Example]]) -> None:
    """Raises for an id that is there twice, in one split or two."""
    first: dict[str, Example] = {}
    for examples in splits.values():
        for example in examples:
            other = first.setdefault(example.id, example) if example.id else example
            if other is not example:
                fail(example.origin, f"the id {example.id} is there twice, first in {other.origin}")


def _with_ids(examples: Sequence[Example]) -> list[Example]:
    """Gives examples without an id one that their text makes, with a number where the text was there before."""
    seen: Counter[str] = Counter()
    named: list[Example] = []
    for example in examples:
        if not example.id:
            id = _digest("id", *_texts(example))
            seen[id] += 1
            example = replace(example, id=id if seen[id] == 1 else f"{id}-{seen[id]}")
        named.append(example)
    return named


def _levels(splits: dict[str, list[Example]]) -> int:
    """Of tags, the same for all examples."""
    levels = None
    for examples in splits.values():
        for example in examples:
            if isinstance(example, TagExample):
                levels = levels or len(example.tags)
                if len(example.tags) != levels:
                    fail(example.origin, f"{len(example.tags)} levels of tags, those before it have {levels}")
    return levels or 1


def _warn_of_overlap(splits: dict[str, list[Example]]) -> None:
    """Logs how many examples of the other splits have been read in training; such figures are better than they are."""
    trained = {_group(example) for example in splits.get("train", ())}
    for split, examples in splits.items():
        known = sum(_group(example) in trained for example in examples) if split != "train" else 0
        if known:
            log.warning("%s: the texts of %d of %d examples are in train too", split, known, len(examples))


# --- dev and test from the training set


def _carve(config: Config[FinetuneConfig], splits: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """Moves `test_size` and `dev_size` examples of train to test and dev, where these aren't given."""
    data = config.value.data
    wanted = {"test": data.test_size, "dev": data.dev_size}
    if any(split.startswith("test") for split in splits):
        wanted["test"] = None
    if "dev" in splits:
        wanted["dev"] = None
    carved: dict[str, list[Example]] = {}
    rest = splits.get("train", [])
    # The test set comes first, so that a change of dev_size leaves it as it is.
    for split, size in wanted.items():
        if size is None:
            continue
        if size < 1:
            config.fail(f"data.{split}_size", "should be at least 1, or null")
        if size >= len(rest):
            config.fail(f"data.{split}_size", f"should be less than the {len(rest)} examples of train that are left")
        carved[split], rest = divide(rest, size, f"{data.split_seed} {split}")
        if not carved[split] or not rest:
            config.fail(f"data.{split}_size", "train can't be divided so: its examples belong together")
    if not carved:
        return splits
    named = {**splits, "train": rest, **carved}
    return {split: named[split] for split in sorted(named, key=lambda name: (name != "train", name != "dev"))}


def divide(examples: Sequence[Example], size: int, seed: str) -> tuple[list[Example], list[Example]]:
    """So many examples and the others, both in their order; which ones depends on ids and texts alone.

    Examples with the same text, and questions about the same context, stay together. Groups are taken by the hash of
    seed and smallest id, without those that would be too many; so it may be a few less than `size`.
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(_group(example), []).append(index)
    by_hash = sorted(
        (_digest(seed, min(examples[index].id for index in members) or text), text) for text, members in groups.items()
    )
    chosen: set[int] = set()
    for _, text in by_hash:
        if len(chosen) + len(groups[text]) <= size:
            chosen.update(groups[text])
    return (
        [example for index, example in enumerate(examples) if index in chosen],
        [example for index, example in enumerate(examples) if index not in chosen],
    )


def _group(example: Example) -> str:
    """What it shares with examples that have to be on the same side: a hash of the text that an answer lies in."""
    texts = (example.context,) if isinstance(example, SpanExample) else _texts(example)
    return _digest("group", *texts)


def _digest(*parts: str) -> str:
    """Sixteen hexadecimal digits. Lengths are hashed too, so that no two lists of parts give the same bytes."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        hashed.update(len(raw).to_bytes(8, "little") + raw)
    return hashed.hexdigest()
