"""From examples to inputs: against the tokenizers' own templates and windows; words and answers there and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FAMILIES, POSITIONS, shared

from bertchen.config.schema_finetune import EncodingConfig
from bertchen.errors import UserError
from bertchen.tasks.answers import best_answers, decode_tags
from bertchen.tasks.data import TaskData
from bertchen.tasks.encoding import Features, encode
from bertchen.tasks.examples import Answer, Example, Origin, SpanExample, TagExample, TextExample

HERE = Origin("train.tsv", 7)
LABELS = ["gut", "schlecht"]
TYPES = ["PER", "ORT"]
SENTENCE = "Der Hund von Köln springt über (1998) Übermut! "
LIMITED = [family for family in FAMILIES if "mosaicbert" not in family]
# Decomposed umlauts, several marks on a letter, emoji with modifiers, ligatures, wide letters, bytes of all kinds.
WORDS = [
    "Straße",
    "Köln",
    "Ko\u0308ln",
    "e\u0301\u0323a",
    "😀",
    "👍🏽",
    "naïve",
    "½",
    "ﬁne",
    "Ａ",
    "Übermut",
    "x",
    "日本",
    "Ω",
]
GAPS = [" ", "  ", "\n", "\n\n", " \n ", "\t", "   "]


def task(kind: str, examples: list[Example], levels: int = 1) -> TaskData:
    labels = {"classification": LABELS, "tagging": TYPES, "question_answering": []}[kind]
    return TaskData(kind, labels, levels, {"train": examples})  # type: ignore[arg-type]


def features_of(
    family: str, kind: str, examples: list[Example], training: bool = False, **chosen: object
) -> list[Features]:
    return encode(examples, shared(family), task(kind, examples), EncodingConfig(**chosen), training)  # type: ignore[arg-type]


def text(content: str, pair: str | None = None) -> TextExample:
    return TextExample("1", content, "schlecht", HERE, pair)


def question(context: str, start: int = 0, end: int = 0, asked: str = "Wer ist das?") -> SpanExample:
    answers = (Answer(context[start:end], start),) if end > start else ()
    return SpanExample("1", asked, context, answers, HERE)


# -- the tokenizers' own templates and limits ----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", [None, "Wer hat Öl?"])
def test_special_tokens_and_types_are_the_tokenizer_s(family: str, pair: str | None) -> None:
    encoder = shared(family)
    [feature] = features_of(family, "classification", [text(SENTENCE, pair)])
    expected = encoder.tokenizer(*((SENTENCE,) if pair is None else (SENTENCE, pair)), return_token_type_ids=True)
    assert feature.input_ids.tolist() == expected["input_ids"]
    assert feature.label == 1
    if encoder.token_types:
        assert feature.token_type_ids.tolist() == expected["token_type_ids"]
    else:
        assert feature.token_type_ids is None


def test_ours_has_no_special_tokens_but_between() -> None:
    tokenizer = shared("mosaicbert").tokenizer
    plain = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (SENTENCE, "Öl?")]
    [single] = features_of("mosaicbert", "classification", [text(SENTENCE)])
    [pair] = features_of("mosaicbert", "classification", [text(SENTENCE, "Öl?")])
    assert single.input_ids.tolist() == plain[0]
    assert pair.input_ids.tolist() == [*plain[0], tokenizer.sep_token_id, *plain[1]]


@pytest.mark.parametrize("family", LIMITED)
def test_truncation_is_the_tokenizer_s(family: str) -> None:
    long = SENTENCE * 20
    [feature] = features_of(family, "classification", [text(long)])
    expected = shared(family).tokenizer(long, truncation=True, max_length=POSITIONS)["input_ids"]
    assert feature.input_ids.tolist() == expected
    [pair] = features_of(family, "classification", [text(long, long)])
    assert len(pair.input_ids) == POSITIONS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stride", [0, 7])
def test_windows_are_the_tokenizer_s(family: str, stride: int) -> None:
    context = SENTENCE * 30
    features = features_of(
        family, "question_answering", [question(context)], long_inputs="windows", max_length=POSITIONS, stride=stride
    )
    expected = shared(family).tokenizer(
        "Wer ist das?", context, truncation="only_second", max_length=POSITIONS, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_token_type_ids=True,
    )  # fmt: skip
    assert len(features) > 3
    assert [feature.input_ids.tolist() for feature in features] == expected["input_ids"]
    for index, feature in enumerate(features):
        inside = np.array([which == 1 for which in expected.sequence_ids(index)])
        assert feature.example == 0
        assert (feature.offsets[~inside] == -1).all()
        np.testing.assert_array_equal(feature.offsets[inside], np.array(expected["offset_mapping"][index])[inside])
        if feature.token_type_ids is not None:
            assert feature.token_type_ids.tolist() == expected["token_type_ids"][index]


def test_long_inputs_by_default() -> None:
    """Ours reads everything; where positions are learned texts are cut, and questions get windows."""
    long = SENTENCE * 20
    for kind, example in (("classification", text(long)), ("question_answering", question(long))):
        [whole] = features_of("mosaicbert", kind, [example])
        assert len(whole) > 200
        limited = features_of("bert", kind, [example])
        assert (len(limited) > 1) == (kind == "question_answering")
        assert max(map(len, limited)) <= POSITIONS
        [cut] = features_of("bert", kind, [example], long_inputs="truncate")
        assert len(cut) == POSITIONS


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 400), limit=st.integers(10, 80), stride=st.integers(0, 200), asked=st.integers(1, 60))
def test_windows_cover_the_context(length: int, limit: int, stride: int, asked: int) -> None:
    """Every token is in a window, no window is too long, and there are not more than a step of a quarter would give."""
    example = question("x" + " x" * (length - 1), asked=" ".join(["Wer"] * asked))
    features = features_of(
        "mosaicbert", "question_answering", [example], long_inputs="windows", max_length=limit, stride=stride
    )
    covered = {tuple(place) for feature in features for place in feature.offsets.tolist() if place[0] >= 0}
    whole = features_of("mosaicbert", "question_answering", [example])[0].offsets
    assert covered == {tuple(place) for place in whole.tolist() if place[0] >= 0}
    assert max(map(len, features)) <= limit
    assert len(features) <= 1 + len(covered) / ((limit - 1) // 4)


def test_windows_of_texts() -> None:
    features = features_of(
        "bert", "classification", [text("Der"), text(SENTENCE * 20)], long_inputs="windows", stride=8
    )
    assert [feature.example for feature in features] == [0] + [1] * (len(features) - 1)
    assert len(features) > 5
    assert {feature.label for feature in features} == {1}


def test_empty_texts_and_unknown_labels() -> None:
    """A text of which nothing is left is a separator, not a row without a token."""
    example = replace(text(""), label="?")
    assert features_of("mosaicbert", "classification", [example])[0].input_ids.tolist() == [2]
    assert features_of("bert", "classification", [example])[0].label is None


@pytest.mark.parametrize(
    ("family", "chosen", "message"),
    [
        ("bert", {"max_length": POSITIONS + 1}, f"reads at most {POSITIONS} tokens"),
        ("bert", {"max_length": 32, "long_inputs": "whole"}, "contradict"),
        ("bert", {"long_inputs": "whole"}, r"train.tsv:7: example 1 has \d+ tokens"),
        ("bert", {"long_inputs": "cut"}, "known: auto, truncate, windows, whole"),
        ("bert", {"stride": -1}, "should be 0 or more"),
        ("bert", {"max_length": 5}, "should be at least 7"),
        ("mosaicbert", {"long_inputs": "windows"}, "has no limit of its own"),
    ],
)
@pytest.mark.parametrize("kind", ["classification", "tagging", "question_answering"])
def test_settings_that_can_not_be(family: str, chosen: dict[str, object], message: str, kind: str) -> None:
    tags = ("O",) * 200
    example = {
        "classification": text(SENTENCE * 20),
        "tagging": TagExample("1", ("Der",) * 200, (tags,), HERE),
        "question_answering": question(SENTENCE * 20),
    }[kind]
    with pytest.raises(UserError, match=message):
        features_of(family, kind, [example], **chosen)


# -- answers -------------------------------------------------------------------------------------------------


def answered(example: SpanExample, features: list[Features], n_best: int = 20) -> str:
    """What is read off when the model points at the very tokens that it is trained to point at."""
    windows = []
    for feature in features:
        start, end = np.zeros(len(feature), np.float32), np.zeros(len(feature), np.float32)
        start[feature.start], end[feature.end] = 9, 9
        windows.append((feature, start, end))
    return best_answers(example, windows, n_best, max_answer_tokens=10_000)[0].text


@settings(max_examples=80, deadline=None)
@given(data=st.data(), family=st.sampled_from(list(FAMILIES)))
def test_an_answer_of_whole_words_is_read_off_exactly(data: st.DataObject, family: str) -> None:
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30))
    gaps = data.draw(st.lists(st.sampled_from(GAPS), min_size=len(words), max_size=len(words)))
    starts = np.cumsum([0, *(len(word) + len(gap) for word, gap in zip(words, gaps, strict=True))]).tolist()
    context = "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    example = question(context, starts[first], starts[last] + len(words[last]))
    chosen = data.draw(st.sampled_from([{}, {"long_inputs": "windows", "max_length": POSITIONS, "stride": 40}]))
    features = features_of(family, "question_answering", [example], **chosen)
    if any(feature.end for feature in features):
        assert answered(example, features) == example.answers[0].text
    else:
        assert chosen or shared(family).max_length  # parted by windows


@settings(max_examples=100, deadline=None)
@given(data=st.data(), family=st.sampled_from(list(FAMILIES)))
def test_whatever_the_model_says_the_answer_is_a_piece_of_the_context(data: st.DataObject, family: str) -> None:
    alphabet = st.sampled_from("aäÄ ß\n\t\u0308\u0301\u200d\u200b\ufeff\u00ad😀🏽👨ﬁ½日Ώ.,(\u00a0▁[")
    context = data.draw(st.text(alphabet, min_size=1, max_size=60))
    start = data.draw(st.integers(0, len(context) - 1))
    example = question(context, start, data.draw(st.integers(start + 1, len(context))))
    features = features_of(family, "question_answering", [example])
    numbers = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    windows = [(feature, *numbers.normal(size=(2, len(feature))).astype(np.float32)) for feature in features]
    found = best_answers(example, windows)
    for answer in found:
        assert 0 <= answer.start < answer.end <= len(context)
        assert answer.text == context[answer.start : answer.end] == answer.text.strip()
    assert len({(answer.start, answer.end) for answer in found}) == len(found)


def test_an_answer_parted_by_windows_is_in_the_one_that_holds_it() -> None:
    context = " ".join(f"{number}" for number in range(1000, 1200))
    start = context.index("1100")
    example = question(context, start, start + 9)
    for training in (True, False):
        features = features_of(
            "mosaicbert", "question_answering", [example], training, long_inputs="windows", max_length=60, stride=30
        )
        inside = [feature for feature in features if feature.end]
        assert 1 <= len(inside) <= 2
        assert all((feature.start, feature.end) == (0, 0) for feature in features if not feature.end)
        assert all((feature.offsets is None) == training for feature in features)
        for feature in inside:
            ids = feature.input_ids[feature.start : feature.end + 1]
            assert shared("mosaicbert").tokenizer.decode(ids).strip() == "1100 1101"


@pytest.mark.parametrize("family", ["mosaicbert", "bert"])
def test_questions_that_are_too_long_leave_half_of_the_room(family: str) -> None:
    example = question(SENTENCE * 5, 0, 3, asked="Wer hat das Rathaus gebaut? " * 30)
    features = features_of(family, "question_answering", [example], max_length=40)
    assert {len(feature) for feature in features[:-1]} == {40}
    assert features[0].end
    assert answered(example, features) == "Der"


def test_questions_without_an_answer() -> None:
    [feature] = features_of("mosaicbert", "question_answering", [question("Der Hund.")], training=True)
    assert (feature.start, feature.end) == (0, 0)


# -- words ---------------------------------------------------------------------------------------------------


def sentence(words: list[str], levels: int = 2) -> TagExample:
    tags = TaskData("tagging", TYPES, 1, {}).tags
    choices = tuple(
        tuple(tags[(place * 7 + level) % len(tags)] for place in range(len(words))) for level in range(levels)
    )
    return TagExample("1", tuple(words), choices, HERE)


def read_off(example: TagExample, features: list[Features]) -> list[list[str]]:
    """The tags decoded when the model says the right thing at each word's first token, and noise elsewhere."""
    logits = []
    for feature in features:
        scores = np.random.default_rng(0).normal(size=(len(feature), len(example.tags), 5)).astype(np.float32)
        for token, tags in zip(feature.word_starts, feature.tags, strict=True):
            for level, tag in enumerate(tags):
                scores[token, level] = np.eye(5)[tag] * 9
        logits.append(scores)
    return decode_tags([example], features, logits, TYPES)[0]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from([*WORDS, "(", "\"", "z.B.", "1998/99"]), min_size=1, max_size=60),
       family=st.sampled_from(list(FAMILIES)), stride=st.sampled_from([0, 20]))  # fmt: skip
def test_tags_there_and_back(words: list[str], family: str, stride: int) -> None:
    example = sentence(words)
    features = features_of(family, "tagging", [example], long_inputs="windows", max_length=POSITIONS, stride=stride)
    assert read_off(example, features) == [list(level) for level in example.tags]
    assert sorted({int(word) for feature in features for word in feature.words}) == list(range(len(words)))


@pytest.mark.parametrize("family", FAMILIES)
def test_words_begin_at_their_first_token(family: str) -> None:
    words = ["Der", "Hund", "springt", "über", "Köln", "."]
    [feature] = features_of(family, "tagging", [sentence(words)])
    tokenizer = shared(family).tokenizer
    assert feature.words.tolist() == list(range(len(words)))
    ends = [*feature.word_starts[1:], len(feature)]
    special = set(tokenizer.all_special_ids)
    for word, start, end in zip(words, feature.word_starts, ends, strict=True):
        ids = [token for token in feature.input_ids[start:end].tolist() if token not in special]
        assert tokenizer.decode(ids).replace(" ", "") == word


def test_our_words_have_the_tokens_of_running_text() -> None:
    """With the space before a word in its token, as in pretraining."""
    words = ["Der", "Hund", "springt"]
    [feature] = features_of("mosaicbert", "tagging", [sentence(words)])
    assert feature.input_ids.tolist() == shared("mosaicbert").tokenizer("Der Hund springt")["input_ids"]


def test_words_without_a_token_are_outside() -> None:
    """BERT drops a zero-width space, and what is cut off has no token either."""
    example = sentence(["Der", "\u200b", "Hund"])
    features = features_of("bert", "tagging", [example])
    assert features[0].words.tolist() == [0, 2]
    assert [level[1] for level in read_off(example, features)] == ["O", "O"]
    long = sentence(["Köln"] * 200)
    features = features_of("bert", "tagging", [long])
    tags = read_off(long, features)
    kept = len(features[0].words)
    assert 0 < kept < 200
    assert [level[:kept] for level in tags] == [list(level[:kept]) for level in long.tags]
    assert {tag for level in tags for tag in level[kept:]} == {"O"}
