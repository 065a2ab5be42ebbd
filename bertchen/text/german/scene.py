"""A scene: who does what, where and when in one document, as clauses that are ready to be written.

The scene keeps a document coherent: one topic, a few people with names, a few things that come up again, one
town, one month, one tense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from bertchen.text.german.clauses import Clause
from bertchen.text.german.inflection import ACC, DAT, GEN, Noun
from bertchen.text.german.lexicon import Frame, Part, Place, Topic
from bertchen.text.german.phrases import ICH, SIE, WIR, Phrase, joined, name_phrase, noun_phrase, pronoun

Item = TypeVar("Item")


def words(text: str) -> tuple[str, ...]:
    """The words of a list that is written as one string."""
    return tuple(text.split())


TOWNS = words(
    "Lübeck Kiel Hamburg Bremen Köln Münster Würzburg Nürnberg Görlitz Weimar Jena Göttingen Tübingen "
    "Osnabrück Rostock Fürth Gießen Erfurt Bonn Ulm Freiburg Leipzig Dresden Kassel Trier Passau"
)
WOMEN = words("Anna Käthe Lena Sophie Martha Helga Eva Gisela Katrin Ulrike Bärbel Renate Johanna")
MEN = words("Jürgen Karl Björn Günther Peter Paul Stefan Martin Uwe Emil Anton Sören Otto Jörg")
SURNAMES = words(
    "Becker Schröder Müller Krüger Weber Köhler Jäger Böhm Vogel Lehmann Brandt Großmann Schäfer Kaiser "
    "Möller Hahn Lange Huber Günzel Sommer Winter Roth Pohl Bergmann Förster"
)
MONTHS = words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember")
WEEKDAYS = words("Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag")
NUMBERS = words("zwei drei vier fünf sechs sieben acht neun zehn elf zwölf")

_TIMES = {
    "present": (
        *("heute", "jeden Morgen", "am Morgen", "am Abend", "oft", "manchmal", "meistens", "im Sommer", "im Winter"),
        *(
            "am Wochenende",
            "gegen Mittag",
            "am Nachmittag",
            "jeden Tag",
            "zweimal in der Woche",
            "selten",
            "am frühen Morgen",
        ),
    ),
    "past": (
        *("gestern", "am Morgen", "am Abend", "am Nachmittag", "damals", "an diesem Tag", "am nächsten Tag"),
        *("kurz vor Mittag", "am frühen Morgen", "vor zwei Wochen", "im vergangenen Winter", "an einem kalten Tag"),
        *("spät am Abend", "in der vergangenen Woche", "nach dem Essen", "kurz danach"),
    ),
    "future": ("morgen", "bald", "im nächsten Jahr", "in der nächsten Woche", "am nächsten Montag", "später"),
}


@dataclass(frozen=True)
class Person:
    """Someone with a name: first name, surname, `m` or `f`, and the noun for what he or she is."""

    first: str
    last: str
    noun: Noun

    @property
    def gender(self) -> str:
        return self.noun.gender

    def full(self) -> Phrase:
        return name_phrase(f"{self.first} {self.last}", self.gender)

    def title(self) -> Phrase:
        return name_phrase(f"{'Frau' if self.gender == 'f' else 'Herr'} {self.last}", self.gender)


@dataclass(frozen=True)
class Subject:
    """A subject and the noun that decides what it can do."""

    phrase: Phrase
    noun: Noun


class Scene:
    """Draws subjects, objects, times and places that fit together.

    Args:
        tense: `present`, `preterite` or `perfect`: the tense that the document is told in.
        first_person: whether the hero tells it.
    """

    def __init__(self, rng: Random, topic: Topic, tense: str, first_person: bool = False) -> None:
        self.rng = rng
        self.first_person = first_person
        self.topic = topic
        self.tense = tense
        self.town = self.one(TOWNS)
        self.month = rng.randrange(12)
        self.hero = self._person(topic.workers)
        self.partner = self._person(topic.people, other_than=self.hero)
        self.focus = tuple(rng.sample(topic.things, 5))
        self.objects = tuple(noun for noun in self.focus if noun in topic.objects) or topic.objects
        self._frames = {
            person: tuple(frame for frame in topic.frames if person in frame.subjects) for person in topic.people
        }
        self._of_things = tuple(frame for frame in topic.frames if frame.subjects[0] not in topic.people)

    def one(self, items: Sequence[Item]) -> Item:
        return items[int(self.rng.random() * len(items))]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _person(self, nouns: Sequence[Noun], other_than: Person | None = None) -> Person:
        noun = self.one(
            [noun for noun in nouns if noun.gender in "mf" and not (other_than and noun is other_than.noun)]
        )
        firsts = [name for name in (WOMEN if noun.gender == "f" else MEN) if not other_than or name != other_than.first]
        lasts = [name for name in SURNAMES if not other_than or name != other_than.last]
        return Person(self.one(firsts), self.one(lasts), noun)

    # Subjects

    def reference(self, person: Person) -> Subject:
        """A person who is known already: first name, title and surname, what he or she is; or `ich`, `wir`."""
        if self.first_person and person is self.hero:
            return Subject(WIR if self.chance(0.2) else ICH, person.noun)
        draw = self.rng.random()
        if draw < 0.35:
            phrase = name_phrase(person.first, person.gender)
        elif draw < 0.6:
            phrase = person.title()
        else:
            phrase = self.noun(person.noun, "der", adjective=0.15)
        return Subject(phrase, person.noun)

    def someone(self) -> Subject:
        """One or several people without a name, or the partner."""
        draw = self.rng.random()
        if draw < 0.3:
            return self.reference(self.partner)
        noun = self.one(self.topic.people)
        if draw < 0.75:
            return Subject(self.noun(noun, self.one(("der", "der", "ein")), adjective=0.3), noun)
        article = self.one(("der", "der", "viele", "einige", "alle", *NUMBERS[:4]))
        return Subject(self.noun(noun, article, plural=True, adjective=0.2), noun)

    def thing_subject(self) -> tuple[Subject, Frame] | None:
        """A thing that does something, with the frame that says what; None where the topic has none."""
        if not self._of_things:
            return None
        frame = self.one(self._of_things)
        noun = self.one(frame.subjects)
        plural = noun.plural is not None and self.chance(0.3)
        return Subject(self.noun(noun, "der", plural=plural, adjective=0.4), noun), frame

    # Noun phrases

    def noun(
        self, noun: Noun, article: str, plural: bool = False, adjective: float = 0.35, genitive: str = ""
    ) -> Phrase:
        base = self.one(noun.adjectives) if noun.adjectives and self.chance(adjective) else ""
        return noun_phrase(noun, article, base, plural, genitive)

    def object(self, noun: Noun, owner: Phrase | None) -> Phrase:
        """A noun as an object: with an article, a number, a possessive of its owner, …"""
        if noun is self.partner.noun and self.chance(0.4):
            return self.reference(self.partner).phrase
        if noun.plural is None:
            return self.noun(noun, self.one(("der", "der", "")), adjective=0.4)
        draw = self.rng.random()
        if draw < 0.5 or (draw < 0.9 and noun in self.topic.people):
            return self.noun(noun, "der")
        if draw < 0.64:
            return self.noun(noun, "ein", adjective=0.5)
        if draw < 0.72:
            return self.noun(noun, _possessive(owner) if owner else "der")
        if draw < 0.77:
            return self.noun(noun, "dieser", plural=self.chance(0.3), adjective=0.2)
        if draw < 0.9:
            return self.noun(noun, "der", plural=True)
        return self.noun(noun, self.one(("viele", "einige", "mehrere", *NUMBERS)), plural=True, adjective=0.3)

    def part(self, part: Part) -> Phrase:
        """A part of something, with the whole in the genitive."""
        whole = self.noun(self.one(part.wholes), "der", adjective=0.4)
        return self.noun(part.noun, "der", adjective=0, genitive=whole.case(GEN))

    def place(self, place: Place | None = None, case: int = DAT) -> str:
        """Where, or (accusative) where to."""
        place = place or self.one(self.topic.places)
        return self.noun(place.noun, "der", adjective=0.15).behind(place.preposition, case)

    def time(self, tense: str) -> str:
        if tense in ("preterite", "perfect", "pluperfect", "reported"):
            draw = self.rng.random()
            if draw < 0.1:
                return f"am {self.date()}"
            if draw < 0.2:
                return f"am {self.one(WEEKDAYS)}"
            return self.one(_TIMES["past"])
        if self.chance(0.1) and tense == "present":
            return f"um {self.one(NUMBERS)} Uhr"
        return self.one(_TIMES[tense])

    def date(self) -> str:
        """A day in the month in which the document is set."""
        return f"{self.rng.randrange(1, 29)}. {MONTHS[self.month]}"

    # Clauses

    def clause(
        self,
        subject: Subject,
        tense: str = "",
        frame: Frame | None = None,
        bare: bool = False,
        unlike: Clause | None = None,
        owner: bool = True,
    ) -> Clause:
        """What a subject does.

        Args:
            tense: the scene's if not given.
            frame: a random one if not given.
            bare: without time, manner and place.
            unlike: not what this other clause says.
            owner: whether objects may be the subject's own (its `sein`, `ihr`).
        """
        tense = tense or self.tense
        frame = frame or self._frame(subject.noun, unlike)
        of = subject.phrase if owner else None
        clause = Clause(subject.phrase, frame.verb, tense)
        accusative = self._pick(frame.accusative, subject.noun)
        if accusative:
            clause = replace(clause, accusative=self.object(accusative, of))
        dative = self._pick(frame.dative, subject.noun)
        if dative:
            clause = replace(clause, dative=self.object(dative, of))
        target = self._pick(frame.prepositional, accusative)
        if target:
            is_place = any(place.noun is target for place in self.topic.places)
            phrase = self.noun(target, "der") if is_place else self.object(target, of)
            clause = replace(clause, tail=phrase.behind(frame.preposition, frame.case))
        if bare:
            return clause
        directed = frame.case == ACC and frame.preposition in ("in", "an", "auf")
        located = not directed and not any(place.noun is accusative for place in self.topic.places)
        return replace(
            clause,
            time=self.time(tense) if self.chance(0.45) else "",
            manner=self.one(frame.manners) if frame.manners and self.chance(0.35) else "",
            place=self.place() if located and self.chance(0.3) else "",
        )

    def _frame(self, noun: Noun, unlike: Clause | None) -> Frame:
        """A frame, more often one with the things that this document is about."""
        frames = self._frames[noun]
        if unlike is not None:
            frames = tuple(frame for frame in frames if frame.verb is not unlike.verb)
        frame = self.one(frames)
        for _ in range(2):
            if any(noun in self.focus for noun in frame.accusative):
                break
            frame = self.one(frames)
        return frame

    def _pick(self, nouns: Sequence[Noun], other_than: Noun | None) -> Noun | None:
        if not nouns:
            return None
        if self.chance(0.7):
            nouns = [noun for noun in nouns if noun in self.focus] or nouns
        return self.one([noun for noun in nouns if noun is not other_than] or nouns)


def both(first: Subject, second: Subject) -> Subject:
    """Two people together; they do what the first can do."""
    return Subject(joined(first.phrase, second.phrase), first.noun)


def again(subject: Subject) -> Subject:
    """The subject as a pronoun."""
    return Subject(pronoun(subject.phrase), subject.noun)


def first_person(subject: Subject) -> Subject:
    """The subject as `ich` or `wir`, for what it says itself."""
    return Subject(ICH if subject.phrase.person in ("1s", "3s") else WIR, subject.noun)


def _possessive(phrase: Phrase) -> str:
    if phrase is SIE:
        return "Ihr"
    if phrase.person in ("1s", "1p"):
        return "mein" if phrase.person == "1s" else "unser"
    return "ihr" if phrase.gender in "fp" else "sein"
