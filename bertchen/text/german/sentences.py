"""Sentences of many kinds about a scene."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from bertchen.text.german.clauses import Clause, infinitive, main_clause, question, relative, subordinate
from bertchen.text.german.inflection import ACC, NOM, RELATIVE, Noun, comparative, verb
from bertchen.text.german.lexicon import Frame
from bertchen.text.german.phrases import SIE, WER, Phrase, noun_phrase, pronoun
from bertchen.text.german.scene import NUMBERS, Scene, Subject, again, both, first_person, words

_GRADABLE = words(
    "alt berühmt breit dick dunkel frisch genau groß hell hoch jung kalt klein kurz lang laut leicht neu schmal "
    "schnell schwer schwierig schön stark süß teuer warm weich wertvoll wichtig"
)
# Not both of one thing.
_OPPOSITES = tuple(
    frozenset(pair.split("/"))
    for pair in words(
        "kurz/lang leer/voll jung/alt neu/alt frisch/alt leicht/schwer leicht/schwierig einfach/schwierig rot/grün "
        "rot/weiß rot/blau braun/weiß braun/schwarz weiß/schwarz falsch/richtig genau/falsch kühn/falsch hell/dunkel "
        "klein/groß leise/laut billig/teuer gut/schlecht gut/traurig stark/schwach hell/schwach zufrieden/unzufrieden "
        "gültig/teuer weiß/dunkel weich/kalt rot/trocken zart/dick klug/kurz klar/giftig"
    )
)
_DEGREES = ("", "", "sehr", "wirklich", "besonders", "ziemlich", "nicht mehr")
_REASONS = ("weil", "obwohl", "während", "bevor", "da")
_ORDER = ("dann", "danach", "zuerst", "schließlich", "trotzdem", "deshalb", "außerdem", "bald darauf", "nun")
_KNOWING = ("wissen", "hoffen", "glauben", "erzählen", "hören", "sehen", "vergessen", "bemerken")
_TRYING = ("versuchen", "beginnen", "hoffen", "beschließen", "planen", "vergessen")
_MODALS = ("können", "müssen", "wollen", "sollen", "dürfen")


def finish(text: str, mark: str = ".") -> str:
    """Begins with a capital, ends with the mark, and has no comma before either."""
    text = re.sub(r",(?=,|$)", "", text)
    return text[0].upper() + text[1:] + mark


class Sentences:
    """Writes sentences about a scene, one after the other; pronouns refer to the last sentence's subject."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._last: Subject | None = None
        self._past = scene.tense != "present"
        # Of what happens now and what happened before, in the tenses that tell one act or a state.
        self._simple = "preterite" if self._past else "present"
        self._before = "pluperfect" if self._past else "perfect"
        self._is = verb("sein").preterite if self._past else verb("sein").present
        kinds: dict[Callable[[], str], int] = {
            self.simple: 22,
            self.ordered: 8,
            self.modal: 8,
            self.reason: 9,
            self.reason_first: 6,
            self.coordination: 6,
            self.purpose: 5,
            self.attempt: 4,
            self.knowledge: 5,
            self.relative_subject: 4,
            self.relative_object: 5,
            self.passive: 7,
            self.state: 8,
            self.comparison: 3,
            self.existence: 4,
            self.said: 7,
            self.asked: 4,
            self.reported: 3,
            self.follow_up: 5,
            self.of_part: 4,
            self.several: 4,
            self.thing: 5,
            self.earlier: 4,
            self.negated: 3,
        }
        self._kinds = tuple(kinds)
        self._weights = tuple(kinds.values())

    def paragraph(self, count: int) -> str:
        """So many sentences of random kinds."""
        writers = self.scene.rng.choices(self._kinds, self._weights, k=count)
        return " ".join(writer() for writer in writers)

    def subject(self) -> Subject:
        """The last sentence's subject as a pronoun, the hero, or somebody else."""
        scene = self.scene
        if self._last is not None and scene.chance(0.4):
            return again(self._last)
        self._last = scene.reference(scene.hero) if scene.chance(0.5) else scene.someone()
        if scene.chance(0.04) and not scene.first_person:
            self._last = both(scene.reference(scene.hero), scene.reference(scene.partner))
        return self._last

    def other_than(self, subject: Subject, again_probability: float) -> Subject:
        """The subject of a second clause: the first's as a pronoun, or somebody else."""
        if self.scene.chance(again_probability):
            return again(subject)
        other = self.scene.someone()
        same = other.phrase.case(NOM) == subject.phrase.case(NOM)
        return again(subject) if same else other

    # One clause

    def simple(self) -> str:
        scene = self.scene
        tense = scene.one(("present",) * 8 + ("future", "perfect")) if scene.tense == "present" else ""
        clause = scene.clause(self.subject(), tense)
        return finish(main_clause(clause, scene.one(("subject", "subject", "time", "time", "place"))))

    def ordered(self) -> str:
        clause = replace(self.scene.clause(self.subject()), time="")
        return finish(main_clause(clause, self.scene.one(_ORDER)))

    def modal(self) -> str:
        scene = self.scene
        clause = replace(scene.clause(self.subject(), self._simple), manner="")
        modal = scene.one(_MODALS if self._past else (*_MODALS, "möchten"))
        return finish(main_clause(replace(clause, modal=modal), scene.one(("subject", "time"))))

    def passive(self) -> str:
        scene = self.scene
        for _ in range(4):
            clause = scene.clause(scene.someone(), self._simple, owner=False)
            if clause.accusative is not None and clause.accusative.person[0] == "3":
                self._last = None
                modal = scene.one(("müssen", "können", "sollen", "dürfen")) if scene.chance(0.25) else ""
                first = scene.one(("subject", "time", "place"))
                return finish(main_clause(replace(clause, passive=True, modal=modal), first))
        return self.simple()

    def negated(self) -> str:
        """With nicht; with kein where the object has no definite article."""
        scene = self.scene
        clause = scene.clause(self.subject(), bare=True)
        if clause.accusative is not None and clause.accusative.kind == "indefinite":
            noun = scene.one(scene.objects)
            needing = Clause(clause.subject, verb("brauchen"), self._simple)
            clause = replace(needing, accusative=scene.noun(noun, "kein", plural=scene.chance(0.3)))
        else:
            clause = replace(clause, negated=True)
        if scene.chance(0.5):
            clause = replace(clause, time=scene.time(clause.tense))
        return finish(main_clause(clause, scene.one(("subject", "time"))))

    def thing(self) -> str:
        drawn = self.scene.thing_subject()
        if drawn is None:
            return self.state()
        self._last = None
        subject, frame = drawn
        clause = self.scene.clause(subject, self._simple, frame)
        return finish(main_clause(clause, self.scene.one(("subject", "time", "place"))))

    def several(self) -> str:
        """Not this but that; both this and that; neither; or three things."""
        scene = self.scene
        frames = [frame for frame in scene.topic.frames if len(frame.accusative) > 2]
        frame = scene.one(frames)
        noun = scene.one(frame.subjects)
        self._last = None
        who = Subject(scene.noun(noun, "der", adjective=0.2), noun)
        a, b, c = (scene.noun(thing, "der", adjective=0.2) for thing in scene.rng.sample(frame.accusative, 3))
        pattern = scene.one(("nicht {}, sondern {}", "sowohl {} als auch {}", "weder {} noch {}", "{}, {} und {}"))
        listed = Phrase(lambda case: pattern.format(a.case(case), b.case(case), c.case(case)), "3p", "p", "indefinite")
        return finish(main_clause(replace(scene.clause(who, frame=frame, bare=True), accusative=listed)))

    # States

    def state(self) -> str:
        scene = self.scene
        noun = scene.one((*scene.focus, *scene.topic.people, *scene.topic.masses))
        self._last = None
        plural = noun.plural is not None and scene.chance(0.25)
        phrase = scene.noun(noun, scene.one(("der", "der", "dieser")), plural=plural, adjective=0)
        degree = scene.one(_DEGREES)
        words = (phrase.case(NOM), self._is[phrase.person], degree, self._adjectives(noun, single=bool(degree)))
        return finish(" ".join(word for word in words if word))

    def comparison(self) -> str:
        scene = self.scene
        one, two = scene.one(scene.focus), scene.one(scene.topic.things)
        shared = [base for base in one.adjectives if base in two.adjectives and base in _GRADABLE]
        if one is two or not shared:
            return self.state()
        self._last = None
        base = scene.one(shared)
        first, second = noun_phrase(one).case(NOM), noun_phrase(two).case(NOM)
        measure = f"so {base} wie" if scene.chance(0.4) else f"{comparative(base)} als"
        return finish(f"{first} {self._is['3s']} {measure} {second}")

    def existence(self) -> str:
        scene = self.scene
        self._last = None
        article = scene.one(("ein", "ein", "kein", "viele", "einige", *NUMBERS))
        plural = article not in ("ein", "kein")
        what = scene.noun(scene.one(scene.topic.objects), article, plural=plural, adjective=0.4)
        return finish(f"{scene.place()} {'gab' if self._past else 'gibt'} es {what.case(ACC)}")

    def of_part(self) -> str:
        scene = self.scene
        part = scene.one(scene.topic.parts)
        phrase = scene.part(part)
        if scene.chance(0.5):
            self._last = None
            return finish(f"{phrase.case(NOM)} {self._is['3s']} {self._adjectives(part.noun)}")
        looking = Clause(self.subject().phrase, verb(scene.one(("prüfen", "betrachten", "beschreiben"))), scene.tense)
        looking = replace(looking, accusative=phrase, time=scene.time(scene.tense) if scene.chance(0.3) else "")
        return finish(main_clause(looking, scene.one(("subject", "time"))))

    def _adjectives(self, noun: Noun, single: bool = False) -> str:
        pair = self.scene.rng.sample(noun.adjectives, min(2, len(noun.adjectives)))
        if single or frozenset(pair) in _OPPOSITES or self.scene.chance(0.5):
            return pair[0]
        return " und ".join(pair)

    # Two clauses

    def reason(self) -> str:
        scene = self.scene
        subject = self.subject()
        first = scene.clause(subject)
        second = scene.clause(self.other_than(subject, 0.5), bare=True, unlike=first)
        return finish(f"{main_clause(first)}, {subordinate(second, scene.one(_REASONS))}")

    def reason_first(self) -> str:
        scene = self.scene
        subject = self.subject()
        first = scene.clause(subject, bare=scene.chance(0.6))
        second = scene.clause(self.other_than(subject, 0.5), bare=True, unlike=first)
        conjunctions = (*_REASONS, "als") if self._past else (*_REASONS, "wenn", "sobald")
        return finish(f"{subordinate(first, scene.one(conjunctions))}, {question(second)}")

    def earlier(self) -> str:
        """After something had been done, something else was done."""
        scene = self.scene
        subject = self.subject()
        first = scene.clause(subject, self._before, bare=True)
        second = scene.clause(again(subject), self._simple, bare=True, unlike=first)
        return finish(f"{subordinate(first, 'nachdem')}, {question(second)}")

    def coordination(self) -> str:
        scene = self.scene
        subject = self.subject()
        first = scene.clause(subject, bare=scene.chance(0.5))
        second = scene.clause(self.other_than(subject, 0.3), bare=True, unlike=first)
        return finish(f"{main_clause(first)}{scene.one((' und', ', aber', ', denn', ', und'))} {main_clause(second)}")

    def purpose(self) -> str:
        scene = self.scene
        subject = self.subject()
        going = Clause(subject.phrase, verb("gehen"), scene.tense, tail=scene.place(case=ACC))
        if scene.chance(0.5):
            going = replace(going, time=scene.time(scene.tense))
        aim = infinitive(scene.clause(subject, bare=True), "um")
        return finish(f"{main_clause(going, scene.one(('subject', 'time')))}, {aim}")

    def attempt(self) -> str:
        scene = self.scene
        subject = self.subject()
        trying = Clause(subject.phrase, verb(scene.one(_TRYING)), scene.tense)
        if scene.chance(0.4):
            trying = replace(trying, time=scene.time(scene.tense))
        what = infinitive(scene.clause(subject, bare=True))
        return finish(f"{main_clause(trying, scene.one(('subject', 'time')))}, {what}")

    def knowledge(self) -> str:
        """Somebody knows that, or doesn't know whether, somebody does something."""
        scene = self.scene
        subject = self.subject()
        tense = self._simple if scene.chance(0.6) else self._before
        fact = scene.clause(self.other_than(subject, 0.1), tense, bare=True)
        if scene.chance(0.3):
            knowing = Clause(subject.phrase, verb("wissen"), self._simple, negated=True)
            return finish(f"{main_clause(knowing)}, {subordinate(fact, scene.one(('ob', 'wann', 'warum', 'wo')))}")
        knowing = Clause(subject.phrase, verb(scene.one(_KNOWING)), self._simple)
        return finish(f"{main_clause(knowing)}, {subordinate(fact, 'dass')}")

    def relative_subject(self) -> str:
        scene = self.scene
        noun = scene.one(scene.topic.people)
        phrase = scene.noun(noun, "der", plural=scene.chance(0.3), adjective=0.2)
        about = scene.clause(Subject(phrase, noun), self._simple, bare=True)
        self._last = None
        subject = Subject(phrase.with_after(relative(about, phrase, "subject")), noun)
        return finish(main_clause(scene.clause(subject, bare=True, unlike=about)))

    def relative_object(self) -> str:
        """Somebody looks for something that is so, or that somebody has done something with."""
        scene = self.scene
        subject = self.subject()
        noun = scene.one(scene.objects)
        thing = scene.noun(noun, "der", adjective=0.3)
        makers = self._frames_with(noun)
        if makers and scene.chance(0.7):
            frame = scene.one(makers)
            maker = scene.one(frame.subjects)
            who = Subject(scene.noun(maker, "der", adjective=0.1), maker)
            after = relative(scene.clause(who, self._before, frame, bare=True), thing, "accusative")
        else:
            after = f", {RELATIVE[noun.gender][NOM]} {self._adjectives(noun)} {self._is['3s']},"
        looking = Clause(subject.phrase, verb(scene.one(("suchen", "brauchen", "sehen", "beschreiben"))), self._simple)
        return finish(main_clause(replace(looking, accusative=thing.with_after(after))))

    def follow_up(self) -> str:
        """Two sentences about one thing, the second with pronouns for it and for who does it."""
        scene = self.scene
        subject = self.subject()
        noun = scene.one(scene.objects)
        thing = scene.noun(noun, "der", adjective=0.4)
        taking = Clause(subject.phrase, verb(scene.one(("holen", "suchen", "finden", "sehen"))), scene.tense)
        taking = replace(taking, accusative=thing, time=scene.time(scene.tense) if scene.chance(0.4) else "")
        frames = [
            frame
            for frame in self._frames_with(noun)
            if subject.noun in frame.subjects and frame.verb is not taking.verb
        ]
        frame = scene.one(frames) if frames else None
        second = scene.clause(again(subject), frame=frame, bare=True)
        if frame:
            second = replace(second, accusative=pronoun(thing))
        first = finish(main_clause(taking, scene.one(("subject", "time"))))
        return f"{first} {finish(main_clause(second, scene.one(('dann', 'danach', 'subject'))))}"

    def _frames_with(self, noun: Noun) -> Sequence[Frame]:
        return [frame for frame in self.scene.topic.frames if noun in frame.accusative]

    # Speech

    def said(self) -> str:
        who = self.subject()
        says = self._says(who, "sagen", "sagen", "erklären", "rufen")
        if self.scene.chance(0.4):
            return f"{finish(who.phrase.case(NOM), '')} {says}: „{finish(self.statement(who))}“"
        return f"„{finish(self.statement(who), '')}“, {says} {who.phrase.case(NOM)}."

    def asked(self) -> str:
        who = self.subject()
        return f"„{finish(self.question(), '?')}“, {self._says(who, 'fragen')} {who.phrase.case(NOM)}."

    def reported(self) -> str:
        scene = self.scene
        who = self.subject()
        inner = scene.clause(again(who), "reported", bare=scene.chance(0.5))
        return finish(f"{who.phrase.case(NOM)} {self._says(who, 'sagen', 'erzählen')}, {main_clause(inner)}")

    def statement(self, who: Subject) -> str:
        """What somebody says of himself or herself, without the mark."""
        scene = self.scene
        tense = scene.one(("present", "present", "perfect", "future"))
        clause = scene.clause(first_person(who), tense, bare=scene.chance(0.4))
        if tense == "present" and scene.chance(0.4):
            clause = replace(clause, modal=scene.one((*_MODALS, "möchten")), manner="")
        return main_clause(clause, scene.one(("subject", "time")))

    def question(self) -> str:
        """A question, without the mark: to somebody (Sie), for who, or for when, why and where."""
        scene = self.scene
        noun = scene.one(scene.topic.people)
        draw = scene.rng.random()
        if draw < 0.35:
            clause = scene.clause(Subject(SIE, noun), "present", bare=True)
            return question(replace(clause, modal=scene.one(("können", "wollen", "müssen", "möchten"))))
        tense = scene.one(("present", "perfect"))
        if draw < 0.6:
            return main_clause(scene.clause(Subject(WER, noun), tense, bare=True))
        clause = scene.clause(scene.someone(), tense, bare=True)
        return question(clause, scene.one(("wann", "warum", "wo", "wie oft", "")))

    def _says(self, who: Subject, *verbs: str) -> str:
        saying = verb(self.scene.one(verbs))
        return (saying.preterite if self._past else saying.present)[who.phrase.person]
