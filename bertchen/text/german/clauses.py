"""Clauses: verb forms and German word order.

One `Clause` can be written as a main clause (finite verb second), a question (first), a subordinate clause (last),
an infinitive with zu, a relative clause or a passive. The order between subject and verb's end is pronouns, time,
dative, definite accusative, nicht, manner, place, indefinite accusative, prepositional object.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bertchen.text.german.inflection import ACC, DAT, NOM, RELATIVE, Verb, verb
from bertchen.text.german.phrases import Phrase

_REFLEXIVE = {"1s": "mich", "3s": "sich", "1p": "uns", "3p": "sich"}
# Subjunctive of indirect speech and the polite wish, where they differ from the indicative.
_HABE = {"1s": "hätte", "3s": "habe", "1p": "hätten", "3p": "hätten"}
_SEI = {"1s": "sei", "3s": "sei", "1p": "seien", "3p": "seien"}
_WISH = {"1s": "möchte", "3s": "möchte", "1p": "möchten", "3p": "möchten"}
MODALS = ("können", "müssen", "wollen", "sollen", "dürfen")


@dataclass(frozen=True)
class Clause:
    """What a clause says, before it is put in order.

    Attributes:
        tense: `present`, `preterite`, `perfect`, `pluperfect`, `future` or `reported` (he said that he had …).
        modal: a modal verb, `möchten`, or nothing; then `tense` is `present` or `preterite`.
        passive: the accusative becomes the subject, the subject is left out.
        tail: the prepositional object, or where to.
        negated: with nicht.
    """

    subject: Phrase
    verb: Verb
    tense: str
    accusative: Phrase | None = None
    dative: Phrase | None = None
    tail: str = ""
    time: str = ""
    manner: str = ""
    place: str = ""
    modal: str = ""
    passive: bool = False
    negated: bool = False


def main_clause(clause: Clause, first: str = "subject") -> str:
    """The clause with the finite verb second.

    `first` says what comes first: `subject`, `time`, `manner`, `place`, `accusative`, a word such as `dann`
    (written as it is) or nothing, for a question that begins with the verb. What the clause lacks is left for
    the subject.
    """
    clause = _active_or_passive(clause)
    finite, rest = _verbs(clause)
    if first == "subject" or not _has(clause, first):
        return _join(clause.subject.case(NOM), finite, *_middle(clause), rest)
    if first in ("time", "manner", "place"):
        front = getattr(clause, first)
        clause = replace(clause, **{first: ""})
    elif first == "accusative":
        assert clause.accusative is not None
        front = clause.accusative.case(ACC)
        clause = replace(clause, accusative=None)
    else:
        front = first
    return _join(front, finite, *_middle(clause, clause.subject), rest)


def question(clause: Clause, word: str = "") -> str:
    """A question, with a word such as wann or without, without its mark."""
    clause = _active_or_passive(clause)
    finite, rest = _verbs(clause)
    return _join(word, finite, *_middle(clause, clause.subject), rest)


def subordinate(clause: Clause, conjunction: str) -> str:
    """The clause behind a conjunction, the finite verb last, without commas."""
    clause = _active_or_passive(clause)
    return _join(conjunction, clause.subject.case(NOM), *_middle(clause), _final_verbs(clause))


def infinitive(clause: Clause, before: str = "") -> str:
    """The clause as an infinitive with zu: `(um) das Brot in die Tüte zu packen`."""
    return _join(before, *_middle(clause), clause.verb.zu())


def relative(clause: Clause, antecedent: Phrase, role: str) -> str:
    """The clause about `antecedent`, its `subject`, `accusative` or `dative`, with commas on both sides."""
    case = {"subject": NOM, "accusative": ACC, "dative": DAT}[role]
    word = RELATIVE[antecedent.gender][case]
    if role == "subject":
        clause = replace(clause, subject=replace(antecedent, after="", kind="pronoun"))
        return f", {_join(word, *_middle(clause), _final_verbs(clause))},"
    clause = replace(clause, **{role: None})
    return f", {subordinate(clause, word)},"


def _active_or_passive(clause: Clause) -> Clause:
    if clause.passive:
        assert clause.accusative is not None
        return replace(clause, subject=clause.accusative, accusative=None)
    return clause


def _has(clause: Clause, first: str) -> bool:
    return bool(getattr(clause, first)) if first in ("time", "manner", "place", "accusative") else True


def _middle(clause: Clause, subject: Phrase | None = None) -> list[str]:
    """What stands between the finite verb, or the conjunction, and the verbs at the end, in order."""
    accusative = clause.accusative
    kind = accusative.kind if accusative else ""
    object_ = accusative.case(ACC) if accusative else ""
    # Without the subject in front, a reflexive pronoun follows the subject if that is a pronoun, else comes first.
    reflexive = _REFLEXIVE[clause.subject.person] if clause.verb.reflexive else ""
    own = subject.case(NOM) if subject else ""
    early = bool(subject and subject.kind == "pronoun")
    dative = clause.dative.case(DAT) if clause.dative else ""
    dative_pronoun = bool(clause.dative and clause.dative.kind == "pronoun")
    definite = kind in ("definite", "name")
    return [
        own if early else "",
        reflexive,
        object_ if kind == "pronoun" else "",
        dative if dative_pronoun else "",
        "" if early else own,
        clause.time,
        "" if dative_pronoun else dative,
        object_ if definite else "",
        "nicht" if clause.negated else "",
        clause.manner,
        clause.place,
        object_ if kind == "indefinite" else "",
        clause.tail,
    ]


def _verbs(clause: Clause) -> tuple[str, str]:
    """The finite verb and what stands at the end of a main clause."""
    person = clause.subject.person
    lexical = clause.verb
    if clause.modal:
        finite = _WISH[person] if clause.modal == "möchten" else _form(verb(clause.modal), clause.tense, person)
        return finite, f"{lexical.participle} werden" if clause.passive else lexical.full(lexical.infinitive)
    if clause.passive:
        return _form(verb("werden"), clause.tense, person), lexical.participle
    if clause.tense in ("present", "preterite"):
        return _form(lexical, clause.tense, person), lexical.particle
    if clause.tense == "future":
        return verb("werden").present[person], lexical.full(lexical.infinitive)
    if clause.tense == "reported":
        return (_HABE if lexical.auxiliary == "haben" else _SEI)[person], lexical.participle
    auxiliary = verb(lexical.auxiliary)
    return (auxiliary.present if clause.tense == "perfect" else auxiliary.preterite)[person], lexical.participle


def _final_verbs(clause: Clause) -> str:
    finite, rest = _verbs(clause)
    simple = clause.tense in ("present", "preterite") and not clause.modal and not clause.passive
    return clause.verb.full(finite) if simple else f"{rest} {finite}"


def _form(verb: Verb, tense: str, person: str) -> str:
    return (verb.present if tense == "present" else verb.preterite)[person]


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)
