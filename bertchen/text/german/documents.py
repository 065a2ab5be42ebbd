"""Documents of several kinds: stories, diaries, letters, guides, news, portraits and conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from bertchen.text.german.clauses import Clause, main_clause
from bertchen.text.german.inflection import ACC, GEN, NOM, verb
from bertchen.text.german.lexicon import Topic, topics
from bertchen.text.german.phrases import MAN, noun_phrase
from bertchen.text.german.scene import MONTHS, NUMBERS, TOWNS, WEEKDAYS, Scene, Subject, again
from bertchen.text.german.sentences import Sentences, finish

_DAYS = ("ein ruhiger Abend", "ein nebliger Morgen", "ein heller Nachmittag", "ein langer Tag")
_SEASONS = {
    "ein kalter Wintertag": (11, 0, 1),
    "ein milder Frühlingstag": (2, 3, 4),
    "ein heißer Sommertag": (5, 6, 7),
    "ein stürmischer Herbsttag": (8, 9, 10),
}
_STREETS = ("Bahnhofstraße", "Gartenstraße", "Goethestraße", "Mühlenstraße", "Hauptstraße", "Schillerstraße")
_OPENINGS = (
    *("heute will ich dir von meiner Arbeit erzählen.", "vielen Dank für deinen langen Brief."),
    *("endlich finde ich Zeit, dir zu schreiben.", "seit einer Woche bin ich nun wieder zu Hause."),
    *("du hast gefragt, wie es mir geht.", "ich hoffe, dass du gesund bist."),
)
_CLOSINGS = (
    *("Schreib mir bald!", "Wann kommst du uns besuchen?", "Ich freue mich auf deine Antwort."),
    *("Bald erzähle ich dir mehr.", "Hoffentlich sehen wir uns im Sommer."),
)
_GREETINGS = ("Viele Grüße", "Herzliche Grüße", "Alles Gute")
_FIRST, _NEXT, _LAST = ("zuerst", "am Anfang"), ("dann", "danach", "anschließend", "nun"), ("zum Schluss", "am Ende")
_ANSWERS = ("Ja", "Nein", "Natürlich", "Vielleicht", "Das weiß ich nicht", "Warum nicht", "Das ist richtig")


def document(rng: Random) -> str:
    """One document on a random topic; its paragraphs are separated by an empty line."""
    topic = topics()[int(rng.random() * len(topics()))]
    write = rng.choices(tuple(_KINDS), tuple(_KINDS.values()))[0]
    paragraphs = write(rng, topic)
    if write not in (_letter, _diary) and rng.random() < 0.6:
        paragraphs.insert(0, rng.choice(topic.titles))
    return "\n\n".join(paragraphs)


def _day(scene: Scene) -> str:
    return scene.rng.choice((*_DAYS, *(day for day, months in _SEASONS.items() if scene.month in months)))


def _body(rng: Random, sentences: Sentences, most: int) -> list[str]:
    return [sentences.paragraph(rng.randrange(3, 9)) for _ in range(rng.randrange(1, most + 1))]


def _story(rng: Random, topic: Topic) -> list[str]:
    scene = Scene(rng, topic, rng.choice(("preterite", "preterite", "present")))
    past = scene.tense == "preterite"
    name, noun = scene.hero.full().case(NOM), scene.hero.noun
    what = scene.noun(noun, "ein", adjective=0.6).case(NOM)
    works = "arbeitete" if past else "arbeitet"
    day = f"Es {'war' if past else 'ist'} {_day(scene)} im {MONTHS[scene.month]}."
    openings = (
        f"{name}, {what} aus {scene.town}, {works} seit vielen Jahren {scene.place()}.",
        f"In {scene.town} {'lebte' if past else 'lebt'} {what}.",
        f"{name} {'war' if past else 'ist'} {what}.",
    )
    ending = rng.choice(
        (
            f"Am Abend {'war' if past else 'ist'} {scene.reference(scene.hero).phrase.case(NOM)} müde, aber zufrieden.",
            f"So {'endete' if past else 'endet'} dieser Tag in {scene.town}.",
            f"Bald {'wurde' if past else 'wird'} es dunkel, und alle {'gingen' if past else 'gehen'} nach Hause.",
        )
    )
    sentences = Sentences(scene)
    paragraphs = _body(rng, sentences, 9)
    paragraphs[0] = f"{day if rng.random() < 0.5 else ''} {rng.choice(openings)} {paragraphs[0]}".strip()
    paragraphs[-1] += f" {ending}"
    return paragraphs


def _diary(rng: Random, topic: Topic) -> list[str]:
    scene = Scene(rng, topic, "perfect", first_person=True)
    heading = f"{rng.choice(WEEKDAYS)}, {scene.date()}"
    start = rng.choice(
        (
            f"Heute war {_day(scene)}.",
            f"Seit drei Wochen arbeite ich nun {scene.place()}.",
            "Ich bin früh aufgestanden.",
            "In der Nacht habe ich schlecht geschlafen.",
        )
    )
    paragraphs = _body(rng, Sentences(scene), 4)
    paragraphs[0] = f"{start} {paragraphs[0]}"
    return [heading, *paragraphs]


def _letter(rng: Random, topic: Topic) -> list[str]:
    scene = Scene(rng, topic, "perfect", first_person=True)
    partner, hero = scene.partner, scene.hero
    female = partner.gender == "f"
    paragraphs = _body(rng, Sentences(scene), 3)
    paragraphs[0] = f"{rng.choice(_OPENINGS)} {paragraphs[0]}"
    return [
        f"{scene.town}, am {scene.date()} {rng.randrange(1950, 2024)}",
        f"{'Liebe' if female else 'Lieber'} {partner.first},",
        *paragraphs,
        rng.choice(_CLOSINGS),
        f"{rng.choice(_GREETINGS)}\n{'Deine' if hero.gender == 'f' else 'Dein'} {hero.first}",
    ]


def _guide(rng: Random, topic: Topic) -> list[str]:
    """How something is done, with man and with the passive."""
    scene = Scene(rng, topic, "present")
    frames = [frame for frame in topic.frames if frame.accusative and frame.subjects == topic.workers]
    rng.shuffle(frames)
    steps = []
    for number, frame in enumerate(frames[: rng.randrange(4, 9)]):
        subject = Subject(MAN, scene.hero.noun)
        clause = replace(scene.clause(subject, "present", frame, owner=False), time="")
        word = rng.choice(_FIRST if number == 0 else _NEXT)
        draw = rng.random()
        if draw < 0.35:
            clause = replace(clause, passive=True, modal=rng.choice(("", "", "müssen", "können")))
        elif draw < 0.6:
            clause = replace(clause, modal=rng.choice(("müssen", "können", "sollen")))
        steps.append(finish(main_clause(clause, word)))
    end = finish(f"{rng.choice(_LAST)} ist {scene.noun(scene.hero.noun, 'der', adjective=0).case(NOM)} zufrieden")
    half = len(steps) // 2
    tip = Sentences(scene).paragraph(rng.randrange(2, 5))
    return [" ".join(steps[:half]), " ".join([*steps[half:], end]), tip]


def _news(rng: Random, topic: Topic) -> list[str]:
    scene = Scene(rng, topic, "preterite")
    guests = rng.choice(topic.guests)
    many = noun_phrase(guests, "der", plural=True)
    place = rng.choice(topic.places)
    into = scene.noun(place.noun, "der", adjective=0).behind(place.preposition, ACC)
    year = rng.randrange(1990, 2024)
    head = f"{scene.town}, {scene.date()} {year}."
    facts = [
        f"Mehr als {rng.randrange(2, 90) * 10} {guests.form(NOM, plural=True)} kamen am {rng.choice(WEEKDAYS)} {into}.",
        f"Die Zahl {many.case(GEN)} ist seit {year - rng.randrange(1, 9)} um {rng.randrange(2, 60)} Prozent gestiegen.",
        f"Im Jahr {year - 1} waren es noch {rng.randrange(20, 900)} {guests.form(NOM, plural=True)}.",
    ]
    sold = [
        noun
        for frame in topic.frames
        if frame.verb.infinitive in ("kaufen", "verkaufen", "bestellen")
        for noun in frame.accusative
        if noun.plural
    ]
    if sold:
        what = noun_phrase(rng.choice(sold), "ein").case(NOM)
        facts.append(finish(f"{what} kostet {rng.randrange(1, 90)},{rng.randrange(10)}0 Euro"))
    paragraphs = _body(rng, Sentences(scene), 3)
    first, *others = rng.sample(facts, 3)
    paragraphs[0] = f"{head} {first} {paragraphs[0]}"
    return [*paragraphs, f"{' '.join(others)} {Sentences(scene).said()}"]


def _portrait(rng: Random, topic: Topic) -> list[str]:
    """Somebody's life, with years and places."""
    scene = Scene(rng, topic, "present")
    hero = scene.hero
    she, her = ("sie", "ihr") if hero.gender == "f" else ("er", "sein")
    born = rng.randrange(1930, 1990)
    age = rng.randrange(15, 30)
    trades = [noun.lemma for other in topics() for noun in other.workers]
    father = rng.choice([trade for trade in trades if not trade.endswith("in") and trade != "Magd"])
    mother = rng.choice([trade for trade in trades if trade.endswith("in")])
    life = [
        f"{hero.full().case(NOM)} wurde am {scene.date()} {born} in {rng.choice(TOWNS)} geboren.",
        f"{her.capitalize()} Vater war {father}, {her}e Mutter war {mother}.",
        f"Mit {age} Jahren kam {she} nach {scene.town}.",
        f"Seit {born + age} arbeitet {she} {scene.place()}.",
        f"Heute wohnt {she} in der {rng.choice(_STREETS)} {rng.randrange(1, 120)}.",
        f"{she.capitalize()} hat {rng.choice(NUMBERS)} Kinder und {rng.choice(('einen Hund', 'eine Katze'))}.",
    ]
    kept = [life[0], *(fact for fact in life[1:] if rng.random() < 0.7)]
    return [" ".join(kept), *_body(rng, Sentences(scene), 3)]


def _conversation(rng: Random, topic: Topic) -> list[str]:
    scene = Scene(rng, topic, "preterite")
    sentences = Sentences(scene)
    people = [
        Subject(person.title() if rng.random() < 0.3 else person.full(), person.noun)
        for person in (scene.hero, scene.partner)
    ]
    meeting = Clause(people[0].phrase, verb("treffen"), "preterite", people[1].phrase, time=scene.time("preterite"))
    lines = [finish(main_clause(replace(meeting, place=scene.place()), rng.choice(("subject", "time"))))]
    for number in range(rng.randrange(3, 8)):
        asking, answering = people[number % 2], people[1 - number % 2]
        lines.append(f"„{finish(sentences.question(), '?')}“, fragte {asking.phrase.case(NOM)}.")
        answer = f"{rng.choice(_ANSWERS)}. " if rng.random() < 0.5 else ""
        said = finish(sentences.statement(answering), "")
        who = again(answering) if rng.random() < 0.3 else answering
        lines.append(f"„{answer}{said}“, {rng.choice(('antwortete', 'sagte', 'erklärte'))} {who.phrase.case(NOM)}.")
    return ["\n".join(lines), *([sentences.paragraph(3)] if rng.random() < 0.5 else [])]


_KINDS: dict[Callable[[Random, Topic], list[str]], int] = {
    _story: 30,
    _diary: 12,
    _letter: 12,
    _guide: 8,
    _news: 14,
    _portrait: 12,
    _conversation: 12,
}
