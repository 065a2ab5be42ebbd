"""German inflection: nouns, articles, adjectives and verbs.

Cases are numbered 0 to 3 (nominative, accusative, dative, genitive); genders are `m`, `f`, `n`, and `p` for the
plural, which has one gender only. A person is `1s`, `3s`, `1p` or `3p`: first or third, singular or plural.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

NOM, ACC, DAT, GEN = range(4)

Forms = dict[str, tuple[str, str, str, str]]

DEFINITE: Forms = {
    "m": ("der", "den", "dem", "des"),
    "f": ("die", "die", "der", "der"),
    "n": ("das", "das", "dem", "des"),
    "p": ("die", "die", "den", "der"),
}
RELATIVE: Forms = {
    "m": ("der", "den", "dem", "dessen"),
    "f": ("die", "die", "der", "deren"),
    "n": ("das", "das", "dem", "dessen"),
    "p": ("die", "die", "denen", "deren"),
}
PRONOUN: Forms = {
    "m": ("er", "ihn", "ihm", "seiner"),
    "f": ("sie", "sie", "ihr", "ihrer"),
    "n": ("es", "es", "ihm", "seiner"),
    "p": ("sie", "sie", "ihnen", "ihrer"),
}
# Endings of ein, kein, mein, …; of dieser, jeder, viele, …; and of adjectives by what stands before them.
EIN: Forms = {
    "m": ("", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("", "", "em", "es"),
    "p": ("e", "e", "en", "er"),
}
DIESER: Forms = {
    "m": ("er", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("es", "es", "em", "es"),
    "p": ("e", "e", "en", "er"),
}
WEAK: Forms = {
    "m": ("e", "en", "en", "en"),
    "f": ("e", "e", "en", "en"),
    "n": ("e", "e", "en", "en"),
    "p": ("en", "en", "en", "en"),
}
MIXED: Forms = {
    "m": ("er", "en", "en", "en"),
    "f": ("e", "e", "en", "en"),
    "n": ("es", "es", "en", "en"),
    "p": ("en", "en", "en", "en"),
}
STRONG: Forms = {
    "m": ("er", "en", "em", "en"),
    "f": ("e", "e", "er", "er"),
    "n": ("es", "es", "em", "en"),
    "p": ("e", "e", "en", "er"),
}

_UMLAUTS = {
    "alt": "älter",
    "groß": "größer",
    "hoch": "höher",
    "jung": "jünger",
    "kalt": "kälter",
    "kurz": "kürzer",
    "lang": "länger",
    "stark": "stärker",
    "warm": "wärmer",
}

_CONTRACTIONS = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("an", "dem"): "am",
    ("an", "das"): "ans",
    ("von", "dem"): "vom",
    ("bei", "dem"): "beim",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
}


@dataclass(frozen=True, eq=False)
class Noun:
    """A noun. `genitive` is that of the singular; `plural` is None where there is none."""

    lemma: str
    gender: str
    genitive: str
    plural: str | None
    adjectives: tuple[str, ...] = ()

    def form(self, case: int, plural: bool = False) -> str:
        if plural:
            assert self.plural is not None
            return self.plural + ("n" if case == DAT and self.plural[-1] not in "ns" else "")
        if case == GEN:
            return self.genitive
        weak = self.gender == "m" and self.genitive.endswith("n")
        return self.genitive if weak and case != NOM else self.lemma


def noun(line: str) -> Noun:
    """Reads `der Bäcker -s Bäcker: fleißig müde`: article, nominative, genitive's ending, plural, adjectives.

    `-` in place of a plural says that there is none, in place of the ending that the genitive has none.
    """
    head, _, adjectives = line.partition(":")
    article, lemma, ending, plural = head.split()
    gender = {"der": "m", "die": "f", "das": "n"}[article]
    genitive = lemma + ending.removeprefix("-")
    return Noun(lemma, gender, genitive, None if plural == "-" else plural, tuple(adjectives.split()))


@cache
def adjective(base: str, endings: str, gender: str, case: int) -> str:
    """An adjective before a noun; `endings` is `weak`, `mixed` or `strong`."""
    table = {"weak": WEAK, "mixed": MIXED, "strong": STRONG}[endings]
    if base == "hoch":
        stem = "hoh"
    elif base.endswith(("uer", "auer")):
        stem = base[:-2] + "r"  # teuer, sauer: teure, saure
    elif base.endswith("el"):
        stem = base[:-2] + "l"  # dunkel: dunkle
    else:
        stem = base.removesuffix("e")  # leise: leise
    return stem + table[gender][case]


def comparative(base: str) -> str:
    """`frischer`, `dunkler`, `größer`."""
    return _UMLAUTS.get(base) or adjective(base, "weak", "m", NOM) + "r"


def contract(preposition: str, phrase: str) -> str:
    """The preposition before a noun phrase with a definite article: `in` + `dem Hafen` is `im Hafen`."""
    article, _, rest = phrase.partition(" ")
    short = _CONTRACTIONS.get((preposition, article))
    return f"{short} {rest}" if short else f"{preposition} {phrase}"


@dataclass(frozen=True)
class Verb:
    """A verb; `particle` is what a main clause parts from it (`ein` in `packt … ein`)."""

    infinitive: str
    present: dict[str, str]
    preterite: dict[str, str]
    participle: str
    auxiliary: str
    particle: str = ""
    reflexive: bool = False

    def full(self, form: str) -> str:
        """A form with its particle, as at the end of a clause: `einpackt`."""
        return self.particle + form

    def zu(self) -> str:
        """The infinitive with zu: `zu packen`, `einzupacken`."""
        return f"{self.particle}zu{self.infinitive}" if self.particle else f"zu {self.infinitive}"


# infinitive, third person of the present and of the preterite, participle
_STRONG = """
backen backt backte gebacken | beginnen beginnt begann begonnen
beschließen beschließt beschloss beschlossen | beschreiben beschreibt beschrieb beschrieben
besteigen besteigt bestieg bestiegen | beziehen bezieht bezog bezogen | braten brät briet gebraten
bringen bringt brachte gebracht | empfehlen empfiehlt empfahl empfohlen | essen isst aß gegessen
fahren fährt fuhr gefahren | fangen fängt fing gefangen | finden findet fand gefunden
geben gibt gab gegeben | gefallen gefällt gefiel gefallen | gehen geht ging gegangen
gelingen gelingt gelang gelungen | gewinnen gewinnt gewann gewonnen | gießen gießt goss gegossen
graben gräbt grub gegraben | greifen greift griff gegriffen | halten hält hielt gehalten
helfen hilft half geholfen | klingen klingt klang geklungen
kommen kommt kam gekommen | laden lädt lud geladen | laufen läuft lief gelaufen
leihen leiht lieh geliehen | lesen liest las gelesen | melken melkt melkte gemolken
messen misst maß gemessen | nehmen nimmt nahm genommen | rufen ruft rief gerufen
scheren schert schor geschoren | schieben schiebt schob geschoben
schießen schießt schoss geschossen | schlagen schlägt schlug geschlagen
schleifen schleift schliff geschliffen | schließen schließt schloss geschlossen
schneiden schneidet schnitt geschnitten | schreiben schreibt schrieb geschrieben
sehen sieht sah gesehen | singen singt sang gesungen | sprechen spricht sprach gesprochen
steigen steigt stieg gestiegen | streichen streicht strich gestrichen | treffen trifft traf getroffen
tragen trägt trug getragen
treiben treibt trieb getrieben | treten tritt trat getreten | trinken trinkt trank getrunken
unterschreiben unterschreibt unterschrieb unterschrieben | verbinden verbindet verband verbunden
vergessen vergisst vergaß vergessen | vergleichen vergleicht verglich verglichen
verlieren verliert verlor verloren | verschreiben verschreibt verschrieb verschrieben
versprechen verspricht versprach versprochen | verstehen versteht verstand verstanden
wachsen wächst wuchs gewachsen | waschen wäscht wusch gewaschen | werfen wirft warf geworfen
ziehen zieht zog gezogen
"""
_STRONG_FORMS = {item.split()[0]: item.split()[1:] for line in _STRONG.strip().splitlines() for item in line.split("|")}
_WITH_SEIN = {
    *("ab|fahren", "an|kommen", "auf|treten", "aus|laufen", "ein|steigen", "gehen", "gelingen", "heilen"),
    *("klettern", "kommen", "reifen", "wachsen", "wandern"),
}
_INSEPARABLE = ("be", "emp", "ent", "er", "ge", "miss", "ver", "zer", "über", "unter", "wieder")
_SIMPLE = {"bellen", "ernten"}  # begin like an inseparable prefix, but aren't one

_IRREGULAR = {
    "sein": (("bin", "ist", "sind", "sind"), ("war", "war", "waren", "waren"), "gewesen", "sein"),
    "haben": (("habe", "hat", "haben", "haben"), ("hatte", "hatte", "hatten", "hatten"), "gehabt", "haben"),
    "werden": (("werde", "wird", "werden", "werden"), ("wurde", "wurde", "wurden", "wurden"), "geworden", "sein"),
    "können": (("kann", "kann", "können", "können"), ("konnte", "konnte", "konnten", "konnten"), "gekonnt", "haben"),
    "müssen": (("muss", "muss", "müssen", "müssen"), ("musste", "musste", "mussten", "mussten"), "gemusst", "haben"),
    "wollen": (("will", "will", "wollen", "wollen"), ("wollte", "wollte", "wollten", "wollten"), "gewollt", "haben"),
    "sollen": (("soll", "soll", "sollen", "sollen"), ("sollte", "sollte", "sollten", "sollten"), "gesollt", "haben"),
    "dürfen": (("darf", "darf", "dürfen", "dürfen"), ("durfte", "durfte", "durften", "durften"), "gedurft", "haben"),
    "wissen": (("weiß", "weiß", "wissen", "wissen"), ("wusste", "wusste", "wussten", "wussten"), "gewusst", "haben"),
}
_PERSONS = ("1s", "3s", "1p", "3p")


@cache
def verb(name: str) -> Verb:
    """A verb by its name: `backen`, `ein|packen` (separable), `sich+freuen` (reflexive)."""
    reflexive = name.startswith("sich+")
    name = name.removeprefix("sich+")
    particle, _, infinitive = name.rpartition("|")
    if infinitive in _IRREGULAR:
        present, preterite, participle, auxiliary = _IRREGULAR[infinitive]
        return Verb(
            infinitive,
            dict(zip(_PERSONS, present, strict=True)),
            dict(zip(_PERSONS, preterite, strict=True)),
            particle + participle,
            auxiliary,
            particle,
            reflexive,
        )
    stem = infinitive.removesuffix("n").removesuffix("e")
    third, past, participle = _STRONG_FORMS.get(infinitive) or _weak_forms(infinitive, stem)
    first = re.sub("el$", "l", stem) + "e" if infinitive.endswith("eln") else stem + "e"
    past_plural = past + ("n" if past.endswith("e") else "en")
    return Verb(
        infinitive,
        {"1s": first, "3s": third, "1p": infinitive, "3p": infinitive},
        {"1s": past, "3s": past, "1p": past_plural, "3p": past_plural},
        particle + participle,
        "sein" if name in _WITH_SEIN else "haben",
        particle,
        reflexive,
    )


def _weak_forms(infinitive: str, stem: str) -> tuple[str, str, str]:
    # An e eases the ending: arbeitet, öffnet, but lernt, wohnt, stimmt.
    e = "e" if re.search(r"([td]|[^aeiouäöülrhmn][mn]|chn)$", stem) else ""
    bare = infinitive.endswith("ieren") or (infinitive.startswith(_INSEPARABLE) and infinitive not in _SIMPLE)
    return stem + e + "t", stem + e + "te", ("" if bare else "ge") + stem + e + "t"
