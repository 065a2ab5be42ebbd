"""The sample text: the same for the same seed, varied, and German in what a regular expression can check."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bertchen.errors import UserError
from bertchen.text.files import resolve_paths
from bertchen.text.readers import read_documents
from bertchen.text.sample import generate_documents, write_sample

ROOT = Path(__file__).resolve().parents[2]
CHARACTERS = 1_000_000
DOCUMENTS = list(generate_documents(seed=1, characters=CHARACTERS))
TEXT = "\n".join(DOCUMENTS)

# Gender, singular, genitive, plural and its dative of nouns of all topics, written down for this test.
NOUNS = {
    ("n", "Brot", "Brotes", "Brote", "Broten"),
    ("m", "Kuchen", "Kuchens", "Kuchen", "Kuchen"),
    ("f", "Torte", "Torte", "Torten", "Torten"),
    ("m", "Ofen", "Ofens", "Öfen", "Öfen"),
    ("f", "Bäckerin", "Bäckerin", "Bäckerinnen", "Bäckerinnen"),
    ("m", "Apfel", "Apfels", "Äpfel", "Äpfeln"),
    ("n", "Beet", "Beetes", "Beete", "Beeten"),
    ("m", "Strauch", "Strauches", "Sträucher", "Sträuchern"),
    ("n", "Schiff", "Schiffes", "Schiffe", "Schiffen"),
    ("f", "Kiste", "Kiste", "Kisten", "Kisten"),
    ("m", "Anker", "Ankers", "Anker", "Ankern"),
    ("n", "Brett", "Brettes", "Bretter", "Brettern"),
    ("f", "Säge", "Säge", "Sägen", "Sägen"),
    ("m", "Stuhl", "Stuhles", "Stühle", "Stühlen"),
    ("f", "Kuh", "Kuh", "Kühe", "Kühen"),
    ("n", "Pferd", "Pferdes", "Pferde", "Pferden"),
    ("m", "Traktor", "Traktors", "Traktoren", "Traktoren"),
    ("f", "Suppe", "Suppe", "Suppen", "Suppen"),
    ("n", "Messer", "Messers", "Messer", "Messern"),
    ("m", "Gast", "Gastes", "Gäste", "Gästen"),
    ("f", "Hütte", "Hütte", "Hütten", "Hütten"),
    ("m", "Rucksack", "Rucksacks", "Rucksäcke", "Rucksäcken"),
    ("n", "Zelt", "Zeltes", "Zelte", "Zelten"),
    ("f", "Aufgabe", "Aufgabe", "Aufgaben", "Aufgaben"),
    ("m", "Aufsatz", "Aufsatzes", "Aufsätze", "Aufsätzen"),
    ("n", "Heft", "Heftes", "Hefte", "Heften"),
    ("m", "Koffer", "Koffers", "Koffer", "Koffern"),
    ("f", "Fahrkarte", "Fahrkarte", "Fahrkarten", "Fahrkarten"),
    ("n", "Signal", "Signals", "Signale", "Signalen"),
    ("m", "Arzt", "Arztes", "Ärzte", "Ärzten"),
    ("f", "Ärztin", "Ärztin", "Ärztinnen", "Ärztinnen"),
    ("n", "Medikament", "Medikaments", "Medikamente", "Medikamenten"),
    ("f", "Handschrift", "Handschrift", "Handschriften", "Handschriften"),
    ("m", "Roman", "Romans", "Romane", "Romanen"),
    ("n", "Regal", "Regals", "Regale", "Regalen"),
    ("f", "Geige", "Geige", "Geigen", "Geigen"),
    ("m", "Flügel", "Flügels", "Flügel", "Flügeln"),
    ("n", "Lied", "Liedes", "Lieder", "Liedern"),
    ("n", "Gemälde", "Gemäldes", "Gemälde", "Gemälden"),
    ("f", "Vase", "Vase", "Vasen", "Vasen"),
    ("m", "Versuch", "Versuchs", "Versuche", "Versuchen"),
    ("n", "Mikroskop", "Mikroskops", "Mikroskope", "Mikroskopen"),
    ("f", "Mannschaft", "Mannschaft", "Mannschaften", "Mannschaften"),
    ("m", "Pokal", "Pokals", "Pokale", "Pokalen"),
    ("m", "Antrag", "Antrags", "Anträge", "Anträgen"),
    ("f", "Brücke", "Brücke", "Brücken", "Brücken"),
    ("n", "Projekt", "Projekts", "Projekte", "Projekten"),
}
# What may stand before the singular (without the genitive) of each gender, and the endings of an adjective between.
SINGULAR = {
    "m": {"der": "e", "den": "en", "dem": "en", "ein": "er", "einen": "en", "einem": "en", "im": "en", "am": "en"},
    "f": {"die": "e", "der": "en", "eine": "e", "einer": "en", "zur": "en"},
    "n": {"das": "e", "dem": "en", "ein": "es", "einem": "en", "im": "en", "am": "en", "ins": "e", "ans": "e"},
}
SINGULAR["m"] |= {"dieser": "e", "diesen": "en", "diesem": "en", "kein": "er", "keinen": "en", "vom": "en"}
SINGULAR["f"] |= {"diese": "e", "dieser": "en", "keine": "e"}
SINGULAR["n"] |= {"dieses": "e", "diesem": "en", "kein": "es", "vom": "en"}
PLURAL = {"die": "en", "der": "en", "diese": "en", "alle": "en", "keine": "en", "viele": "e", "einige": "e"}
DATIVE_PLURAL = {"den": "en", "diesen": "en", "allen": "en", "vielen": "en", "einigen": "en"}
ARTICLES = sorted({*SINGULAR["m"], *SINGULAR["f"], *SINGULAR["n"], *PLURAL, *DATIVE_PLURAL, "des", "eines"})


def allowed(form: str) -> dict[str, set[str]]:
    """Article to possible endings of an adjective, for each reading of the form."""
    result: dict[str, set[str]] = {}
    for gender, singular, genitive, plural, dative in NOUNS:
        readings: list[dict[str, str]] = []
        if form == singular:
            readings.append(SINGULAR[gender])
        if form == genitive and gender != "f":
            readings.append({"des": "en", "eines": "en"})
        if form == plural:
            readings.append(PLURAL)
        if form == dative:
            readings.append(DATIVE_PLURAL)
        for reading in readings:
            for article, ending in reading.items():
                result.setdefault(article, set()).add(ending)
    return result


def test_articles_adjectives_and_nouns_agree() -> None:
    forms = sorted({form for _, *row in NOUNS for form in row}, key=len, reverse=True)
    # Not behind a comma: there, der, die and das are relative pronouns.
    pattern = re.compile(rf"(?<!, )\b({'|'.join(ARTICLES)}) (?:([a-zäöüß]+) )?({'|'.join(forms)})\b", re.IGNORECASE)
    found = 0
    for match in pattern.finditer(TEXT):
        article, adjective, form = match[1].lower(), match[2], match[3]
        if form[0].islower():
            continue
        endings = allowed(form)
        context = TEXT[max(match.start() - 40, 0) : match.end() + 20]
        assert article in endings, context
        assert not adjective or any(adjective.endswith(ending) for ending in endings[article]), context
        found += 1
    assert found > 2000


def test_subordinate_clauses_end_with_a_verb() -> None:
    """So never with a noun, a name, or a word that says how or when."""
    others = {
        "nicht",
        "gern",
        "schnell",
        "langsam",
        "allein",
        "sorgfältig",
        "vorsichtig",
        "sehr",
        "gut",
        "lange",
        "oft",
    }
    clauses = re.findall(r"\b(?:weil|obwohl|dass|bevor|nachdem|während|sobald|ob) ([^,.?“]*)[,.?“]", TEXT)
    assert len(clauses) > 500
    for clause in clauses:
        last = clause.split()[-1]
        assert last[0].islower(), clause
        assert last not in others, clause


def test_quotation_marks_are_balanced_and_sentences_well_formed() -> None:
    for document in DOCUMENTS:
        assert re.sub(r"[^„“]", "", document).replace("„“", "") == ""
        assert not re.search(r",[.?“,]|  | [.,?]|,,|\.\.", document), document
        for paragraph in re.split(r"\n+", document):
            assert paragraph == paragraph.strip() != ""
        for start in re.findall(r"[.?] ([^\d„])", document):
            assert start.isupper()


@pytest.mark.parametrize("what", ["weil", "?", "ß", "am 12. ", "Prozent", ", um ", "hätten", "wurden", "Herrn"])
def test_constructions_occur(what: str) -> None:
    assert what in TEXT


def test_same_seed_gives_the_same_text_in_every_process() -> None:
    code = (
        "import hashlib; from bertchen.text.sample import generate_documents; "
        "print(hashlib.sha256('|'.join(generate_documents(5, 60_000)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert list(generate_documents(5, 60_000)) != list(generate_documents(6, 60_000))


def test_sizes_and_variety() -> None:
    lengths = [len(document) for document in DOCUMENTS]
    assert CHARACTERS <= sum(lengths) < CHARACTERS + max(lengths)
    assert max(lengths) > 5 * min(lengths)
    assert len(set(DOCUMENTS)) == len(DOCUMENTS)
    shorter = list(generate_documents(1, 50_000))
    assert shorter == DOCUMENTS[: len(shorter)]
    sentences = re.split(r"(?<=[.?]) ", TEXT)
    assert len(set(sentences)) > 0.8 * len(sentences)


def test_documents_keep_a_topic() -> None:
    """Nouns of a document's first half are in its second far more often than in another document."""
    halves = [
        (set(re.findall(r"[A-ZÄÖÜ][a-zäöüß]{4,}", text[: len(text) // 2])), text[len(text) // 2 :])
        for text in DOCUMENTS
        if len(text) > 1200
    ]
    own = sum(word in second for first, second in halves for word in first)
    foreign = sum(word in other for (first, _), (_, other) in itertools.pairwise(halves) for word in first)
    assert own > 3 * foreign


def test_there_is_something_to_learn() -> None:
    """The word before says much about a word: what a model must learn first to fall below the unigram entropy."""
    words = [re.findall(r"\w+|[^\w\s]", document) for document in DOCUMENTS]
    split = len(words) * 9 // 10
    train, held_out = words[:split], words[split:]
    single = Counter(word for document in train for word in document)
    pairs = Counter(pair for document in train for pair in itertools.pairwise(document))
    total = sum(single.values())
    unigram = bigram = count = 0.0
    for document in held_out:
        for before, word in itertools.pairwise(document):
            one = (single[word] + 1) / (total + len(single))
            two = pairs[before, word] / single[before] if single[before] else 0.0
            unigram -= math.log(one)
            bigram -= math.log(0.1 * one + 0.9 * two)
            count += 1
    assert bigram / count < 0.75 * unigram / count


def test_written_files_hold_the_documents(tmp_path: Path) -> None:
    paths = write_sample(str(tmp_path / "sample"), seed=3, characters=30_000)
    assert sorted(paths) == sorted(str(path) for path in (tmp_path / "sample").iterdir())
    assert {Path(path).suffix for path in paths} == {".zst", ".jsonl"}
    texts = [document.text for document in read_documents(resolve_paths(str(tmp_path / "sample")))]
    assert sorted(texts) == sorted(generate_documents(3, 30_000))
    ids = [document.text for document in read_documents(paths, text_column="id")]
    assert len(set(ids)) == len(texts)
    with pytest.raises(UserError, match="is not empty"):
        write_sample(str(tmp_path / "sample"))
    write_sample(str(tmp_path / "sample"), characters=1000, overwrite=True)


@pytest.mark.parametrize(("override", "code"), [("characters=5000", 0), ("characters=0", 2), ("charakters=9", 2)])
def test_command(override: str, code: int, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts/write_sample.py"), f"out={tmp_path}/sample", override]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert (tmp_path / "sample").exists() == (code == 0)
    assert len(result.stderr.splitlines()) == (1 if code else 0)
