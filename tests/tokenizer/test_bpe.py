"""The trained tokenizer: exact round trips, special tokens, words kept whole, the same bytes every time."""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bertchen.errors import UserError
from bertchen.tokenizer import train_tokenizer
from bertchen.tokenizer.bpe import SPECIAL_TOKENS, pieces
from bertchen.tokenizer.figures import as_table, measure

TEXTS = [
    "Größere Häuser stehen an der Straße.\nDie Straße führt am Fluss entlang, und die Häuser sind alt.\n"
    "„Wohin führt die Straße?“, fragte sie. – „An den Fluss“, sagte er.\nHäuser und Straßen, 1990 bis 2024.",
    "Der alte Fischer fährt am frühen Morgen hinaus.\n\nAm Morgen ist der Fluss still.  Zwei Fischer,\n"
    "drei Boote und eine Brücke: mehr ist am Fluss nicht zu sehen.\nDer Fischer kennt jede Brücke.",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=420)


def known_to_all(character: str) -> bool:
    """Marks newer than Unicode 3.2 are left out: tokenizers and Python may know different versions, and with
    them different orders of several marks on one letter."""
    return not unicodedata.combining(character) or bool(unicodedata.ucd_3_2_0.combining(character))


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]).filter(known_to_all))
SNIPPETS = st.sampled_from(
    (
        *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\x00", "\ufeff"),
        *("Straße", "straße", "ä", "a\u0308", "\u0301", "ẞ", "Ǖ", "🙂", "👩‍👩‍👧", "한", "\u1112\u1161"),
        *(
            "„",
            "“",
            "‚",
            "‘",
            "»",
            "…",
            "–",
            "▁",
            "▁▁",
            "<0x41>",
            "<0x0A>",
            "[",
            "]",
            "12345",
            "1990",
            "½",
            "²",
        ),
    )
)
SNIPPET_TEXT = st.lists(SNIPPETS, max_size=12).map("".join)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT | SNIPPET_TEXT)
def test_decoding_gives_the_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.unk_token_id not in ids


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=SNIPPET_TEXT)
def test_no_token_holds_parts_of_two_words(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    for token in tokenizer.tokenize(text):
        if token.startswith("<0x"):
            continue
        body = token[1:] if token.startswith(" ") and token.strip() else token
        kinds = {kind(character) for character in body if not unicodedata.combining(character)}
        assert len(kinds) <= 1
        assert "digit" not in kinds or len(body) <= 4


def kind(character: str) -> str:
    if character.isspace():
        return "space"
    if character.isalpha():
        return "letter"
    return "digit" if character.isnumeric() else "sign"


def test_special_tokens_and_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3]
    roles = tokenizer.special_tokens_map
    assert roles == {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    vocab = tokenizer.get_vocab()
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= vocab.keys()
    assert sorted(vocab.values()) == list(range(420))


def test_single_text_has_no_special_tokens_and_a_pair_has_a_separator(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    first, second = "Der Fluss ist still.", "Die Brücke ist alt."
    a, b = tokenizer(first)["input_ids"], tokenizer(second)["input_ids"]
    assert not {0, 1, 2, 3} & {*a, *b}
    pair = tokenizer(first, second)
    assert pair["input_ids"] == [*a, 2, *b]
    assert pair["token_type_ids"] == [0] * (len(a) + 1) + [1] * len(b)
    assert tokenizer(first)["token_type_ids"] == [0] * len(a)


def test_a_word_is_the_same_token_after_a_space_and_at_a_line_s_beginning(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokenizer.tokenize("x Straße")[1:] == tokenizer.tokenize("x\nStraße")[2:] == [" Straße"]


def test_mask_stands_for_a_word_with_its_space(tokenizer: PreTrainedTokenizerFast) -> None:
    word = tokenizer.convert_tokens_to_ids(" Fluss")
    written = tokenizer("Der Fluss ist still.")["input_ids"]
    masked = tokenizer("Der [MASK] ist still.")["input_ids"]
    assert word in written
    assert masked == [3 if index == word else index for index in written]


def test_first_merge_is_the_most_frequent_pair() -> None:
    texts = ["abab abab cab cab bca"] * 5
    words = Counter(word for text in texts for word in [text.split()[0], *(" " + w for w in text.split()[1:])])
    pairs: Counter[str] = Counter()
    for word, count in words.items():
        for left, right in itertools.pairwise(word):
            pairs[left + right] += count
    trained = train_tokenizer(texts, vocab_size=4 + 256 + 4 + 1)
    assert trained.convert_ids_to_tokens(4 + 256 + 4) == pairs.most_common(1)[0][0]


def test_rare_characters_are_written_as_bytes() -> None:
    trained = train_tokenizer(["aaaa bbb cc Ω"], vocab_size=300, min_frequency=2, alphabet_size=3)
    assert set(trained.get_vocab()) >= {"a", "b", " "}
    assert not {"c", "Ω"} & set(trained.get_vocab())
    assert trained.tokenize("Ω") == [f"<0x{byte:02X}>" for byte in "Ω".encode()]


def test_saved_tokenizer_is_loaded_alike(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "  Zwei Straßen\n\nam Fluss [MASK] 🙂"
    assert loaded(text, TEXTS[0])["input_ids"] == tokenizer(text, TEXTS[0])["input_ids"]
    assert loaded.clean_up_tokenization_spaces is False
    assert loaded.decode(loaded.encode("a .b , c ' s\n d")) == "a .b , c ' s\n d"


def test_same_texts_give_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(TEXTS, vocab_size=400, alphabet_size=30) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_too_little_text_gives_a_smaller_vocabulary_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trained = train_tokenizer(["Der Fluss ist still."] * 2, vocab_size=5000)
    assert 260 < len(trained) < 400
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "5000" in warnings[0]
    assert str(len(trained)) in warnings[0]


@pytest.mark.parametrize("vocab_size", [1, 260, 270])
def test_vocabulary_too_small_for_bytes_and_characters(vocab_size: int) -> None:
    with pytest.raises(UserError, match=f"vocab_size={vocab_size} is too small"):
        train_tokenizer(TEXTS, vocab_size=vocab_size)


def test_texts_must_be_readable_twice() -> None:
    with pytest.raises(TypeError, match="twice"):
        train_tokenizer(iter(TEXTS))


def test_no_text() -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(["", ""])


@settings(max_examples=300, deadline=None)
@given(text=st.text("a \n", max_size=60), characters=st.integers(1, 20))
def test_pieces_are_the_text_and_bounded(text: str, characters: int) -> None:
    parts = list(pieces(text, characters))
    assert "".join(parts) == text
    assert all(0 < len(part) <= characters for part in parts)


def test_pieces_do_not_cut_words(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "\n".join(TEXTS)
    parts = list(pieces(text, 80))
    assert len(parts) > 10
    assert [token for part in parts for token in tokenizer.tokenize(part)] == tokenizer.tokenize(text)


def test_figures_are_the_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Der Fluss\nist 🙂 still"
    tokens = tokenizer.tokenize(text)
    figures = measure(tokenizer, "ours", [text, text])
    assert figures.tokens == 2 * len(tokens)
    assert figures.tokens_per_word == len(tokens) / 5
    assert figures.characters_per_token == len(text) / len(tokens)
    assert figures.byte_share == 4 / len(tokens)
    assert figures.unknown_share == 0
    header, row = as_table([figures]).splitlines()
    assert len(header) == len(row)
    assert row.split()[:2] == ["ours", "420"]


def test_literal_special_tokens_in_a_text_are_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for index, token in enumerate(SPECIAL_TOKENS):
        assert tokenizer(f"a{token}b")["input_ids"][1] == index
