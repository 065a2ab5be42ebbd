"""Noun phrases: article, adjective and noun in agreement, pronouns, names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bertchen.text.german.inflection import (
    DEFINITE,
    DIESER,
    EIN,
    PRONOUN,
    Noun,
    adjective,
    contract,
)


@dataclass(frozen=True)
class Phrase:
    """A noun phrase in its four cases.

    Attributes:
        render: the phrase in a case.
        person: `1s`, `3s`, `1p` or `3p`, for the verb.
        gender: `m`, `f`, `n`, `p`, for pronouns.
        kind: `definite`, `indefinite` or `pronoun`: decides the place in the sentence.
        after: a relative clause or apposition, with commas on both sides.
    """

    render: Callable[[int], str]
    person: str
    gender: str
    kind: str = "definite"
    after: str = ""

    def case(self, case: int) -> str:
        return self.render(case) + self.after

    def behind(self, preposition: str, case: int) -> str:
        """The phrase behind a preposition, in one word with the article where that is usual."""
        if self.after or self.kind != "definite":
            return f"{preposition} {self.case(case)}"
        return contract(preposition, self.case(case))

    def with_after(self, after: str) -> Phrase:
        return replace(self, after=after)


def noun_phrase(noun: Noun, article: str = "der", base: str = "", plural: bool = False, genitive: str = "") -> Phrase:
    """Article, adjective and noun.

    Args:
        noun: the noun; only one with a plural where `plural`.
        article: `der`; `dieser`, `jeder`; `ein`, `kein`, `mein`, `sein`, …; a number such as `drei` or `viele`,
            `einige`, `alle` (plural); or nothing.
        base: adjective, or nothing.
        plural: whether the plural is meant.
        genitive: an attribute behind the noun, such as `des Brotes`.
    """
    gender = "p" if plural else noun.gender

    def render(case: int) -> str:
        word, endings = _article(article, gender, case)
        words = [word] if word else []
        if base:
            words.append(adjective(base, endings, gender, case))
        words.append(noun.form(case, plural))
        if genitive:
            words.append(genitive)
        return " ".join(words)

    definite = article in ("der", "dieser", "jeder", "alle") or article in _POSSESSIVES
    return Phrase(render, "3p" if plural else "3s", gender, "definite" if definite else "indefinite")


_POSSESSIVES = ("mein", "sein", "ihr", "Ihr", "unser")
_EIN_WORDS = ("ein", "kein", *_POSSESSIVES)


def _article(article: str, gender: str, case: int) -> tuple[str, str]:
    """The article's form and the endings that an adjective has behind it."""
    if article == "der":
        return DEFINITE[gender][case], "weak"
    if article in _EIN_WORDS:
        return article + EIN[gender][case], "weak" if gender == "p" else "mixed"
    if article in ("dieser", "jeder"):
        return article[:-2] + DIESER[gender][case], "weak"
    if article in ("viele", "einige", "mehrere"):
        return article[:-1] + DIESER["p"][case], "strong"
    if article == "alle":
        return "all" + DIESER["p"][case], "weak"
    return article, "strong"


def pronoun(phrase: Phrase) -> Phrase:
    """The personal pronoun for a phrase."""
    if phrase.person in _SPEAKERS:
        return _SPEAKERS[phrase.person]
    return Phrase(lambda case: PRONOUN[phrase.gender][case], phrase.person, phrase.gender, "pronoun")


def name_phrase(name: str, gender: str) -> Phrase:
    """A person's name. `Herr` is inflected, names are not (the genitive isn't used)."""

    def render(case: int) -> str:
        return f"Herrn {name[5:]}" if case and name.startswith("Herr ") else name

    return Phrase(render, "3s", gender, "name")


def joined(first: Phrase, second: Phrase) -> Phrase:
    """Two phrases with und between them."""
    return Phrase(lambda case: f"{first.case(case)} und {second.case(case)}", "3p", "p", first.kind)


def _speaker(forms: tuple[str, str, str, str], person: str) -> Phrase:
    return Phrase(lambda case: forms[case], person, "p", "pronoun")


ICH = _speaker(("ich", "mich", "mir", "meiner"), "1s")
WIR = _speaker(("wir", "uns", "uns", "unser"), "1p")
MAN = Phrase(lambda case: ("man", "einen", "einem", "")[case], "3s", "m", "pronoun")
SIE = Phrase(lambda case: ("Sie", "Sie", "Ihnen", "Ihrer")[case], "3p", "p", "pronoun")  # polite address
WER = Phrase(lambda case: ("wer", "wen", "wem", "wessen")[case], "3s", "m", "pronoun")
_SPEAKERS = {"1s": ICH, "1p": WIR}
