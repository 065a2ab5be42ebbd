"""The lexicon of the sample text: topics with their nouns and with frames that say what goes with what.

A topic is written in lines. `W`, `G`, `T` and `B` lines hold a noun (`inflection.noun`): who works there, who comes as
a guest, things to handle, and what isn't to be handled (a question, a mountain); `M` a mass noun (no plural, no
indefinite article); a line that begins with `in`, `an` or `auf` a place; `X` a part, behind `<` of what. Every other
line is a frame: subject, verb, objects, manners.

    W legen acc:Brot,Brezel in+acc:Korb m:vorsichtig

Who works there lays bread or a pretzel into a basket, perhaps cautiously. A bare `m` stands for manners that suit
any careful work. Objects are lemmas of any topic, or `W` or `G`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from bertchen.text.german import topics_town, topics_work
from bertchen.text.german.inflection import ACC, DAT, Noun, Verb, noun, verb

CAREFUL = (
    *("sorgfältig", "vorsichtig", "langsam", "schnell", "allein", "ohne Hilfe", "in aller Ruhe"),
    *("mit viel Geduld", "mit großer Mühe"),
)


@dataclass(frozen=True)
class Place:
    preposition: str
    noun: Noun


@dataclass(frozen=True)
class Part:
    noun: Noun
    wholes: tuple[Noun, ...]


@dataclass(frozen=True)
class Frame:
    """A verb with what may stand in its places; an empty tuple is a place that the verb doesn't have."""

    verb: Verb
    subjects: tuple[Noun, ...]
    accusative: tuple[Noun, ...] = ()
    dative: tuple[Noun, ...] = ()
    preposition: str = ""
    case: int = ACC
    prepositional: tuple[Noun, ...] = ()
    manners: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topic:
    titles: tuple[str, ...]
    workers: tuple[Noun, ...]
    guests: tuple[Noun, ...]
    objects: tuple[Noun, ...]
    matters: tuple[Noun, ...]
    masses: tuple[Noun, ...]
    places: tuple[Place, ...]
    parts: tuple[Part, ...]
    frames: tuple[Frame, ...]

    @property
    def things(self) -> tuple[Noun, ...]:
        return self.objects + self.matters

    @property
    def people(self) -> tuple[Noun, ...]:
        return self.workers + self.guests


_SOURCES = tuple(text for module in (topics_work, topics_town) for name, text in vars(module).items() if name.isupper())


@lru_cache(maxsize=1)
def topics() -> tuple[Topic, ...]:
    """All topics."""
    known: dict[str, Noun] = {}
    for source in _SOURCES:
        for line in source.strip().splitlines():
            _, rest = line.split(" ", 1)
            if rest.startswith(("der ", "die ", "das ")):
                _learn(rest.partition("<")[0], known)
    return tuple(_topic(source, known) for source in _SOURCES)


def _learn(line: str, known: dict[str, Noun]) -> None:
    new = noun(line)
    old = known.get(new.lemma)
    if old is None or not old.adjectives:
        known[new.lemma] = new


def _topic(source: str, known: dict[str, Noun]) -> Topic:
    nouns: dict[str, list[Noun]] = {kind: [] for kind in "WGTBM"}
    places, parts, frames = [], [], []
    titles: tuple[str, ...] = ()
    for line in source.strip().splitlines():
        kind, rest = line.split(" ", 1)
        if kind == "title:":
            titles = tuple(rest.split(" / "))
        elif not rest.startswith(("der ", "die ", "das ")):
            frames.append(line)
        elif kind in nouns:
            nouns[kind].append(_with_adjectives(rest, known))
        elif kind == "X":
            part, _, wholes = rest.partition("<")
            parts.append(Part(noun(part), tuple(known[lemma] for lemma in wholes.split())))
        else:
            places.append(Place(kind, _with_adjectives(rest, known)))
    groups = {kind: tuple(members) for kind, members in nouns.items()}
    own = [*(member for members in groups.values() for member in members), *(place.noun for place in places)]
    known = known | {member.lemma: member for member in own}
    return Topic(
        titles,
        groups["W"],
        groups["G"],
        groups["T"],
        groups["B"],
        groups["M"],
        tuple(places),
        tuple(parts),
        tuple(_frame(line, groups, known) for line in frames),
    )


def _with_adjectives(line: str, known: dict[str, Noun]) -> Noun:
    new = noun(line)
    return new if new.adjectives else known[new.lemma]


def _frame(line: str, groups: dict[str, tuple[Noun, ...]], known: dict[str, Noun]) -> Frame:
    def members(names: str) -> tuple[Noun, ...]:
        return tuple(
            member for name in names.split(",") for member in (groups[name] if name in groups else (known[name],))
        )

    subjects, verb_name, *rest = line.split(" ")
    fields: dict = {}
    for item in rest:
        key, _, values = item.partition(":")
        if key == "m":
            fields["manners"] = tuple(values.split(",")) if values else CAREFUL
        elif key == "acc":
            fields["accusative"] = members(values)
        elif key == "dat":
            fields["dative"] = members(values)
        else:
            preposition, _, case = key.partition("+")
            fields |= {"preposition": preposition, "case": {"acc": ACC, "dat": DAT}[case]}
            fields["prepositional"] = members(values)
    return Frame(verb(verb_name), members(subjects), **fields)
