"""MinHash bands: how often texts share one, against the formula and against datasketch's own estimate."""

from __future__ import annotations

import math
import os
import random
import struct
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import xxhash
from datasketch import MinHash

from bertchen.text.near_duplicates import NearDuplicates

NGRAM = 5
SENTENCE = "Am Morgen geht die alte Frau mit ihrem Hund durch den Wald hinunter zum Fluß, wo die grünen Boote liegen."


def ngrams(text: str, ngram: int = NGRAM) -> set[tuple[str, ...]]:
    """Of a text of words in lower case between blanks."""
    words = text.split(" ")
    return {tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)}


def jaccard(first: str, second: str) -> float:
    one, other = ngrams(first), ngrams(second)
    return len(one & other) / len(one | other)


def pair(numbers: random.Random, common: int, own: int) -> tuple[str, str]:
    """Two texts that begin with the same `common` words and end in `own` words that stand in no other text."""

    def words(count: int) -> list[str]:
        return [f"w{numbers.getrandbits(48)}" for _ in range(count)]

    beginning = words(common)
    return " ".join(beginning + words(own)), " ".join(beginning + words(own))


@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (5, 2)])
@pytest.mark.parametrize(("common", "own"), [(80, 60), (80, 24), (80, 12), (100, 6)])
def test_pairs_share_a_band_as_often_as_the_formula_says(bands: int, rows: int, common: int, own: int) -> None:
    numbers = random.Random(f"{bands} {common} {own}")
    near = NearDuplicates(NGRAM, bands, rows)
    found, expected, variance = 0, 0.0, 0.0
    for _ in range(400):
        first, second = pair(numbers, common, own)
        probability = 1 - (1 - jaccard(first, second) ** rows) ** bands
        expected += probability
        variance += probability * (1 - probability)
        found += bool(np.any(near.band_hashes(first) == near.band_hashes(second)))
    assert abs(found - expected) <= 4 * math.sqrt(variance) + 0.5


def test_equal_rows_of_the_signature_estimate_the_jaccard_similarity() -> None:
    near = NearDuplicates(NGRAM, bands=64, rows=16)
    numbers = random.Random(1)
    for common, own in ((30, 300), (150, 80), (300, 20)):
        first, second = pair(numbers, common, own)
        estimate = np.mean(near.signature(first) == near.signature(second))
        exact = jaccard(first, second)
        assert abs(estimate - exact) <= 4 * math.sqrt(exact * (1 - exact) / 1024)


@pytest.mark.parametrize("count", [5, 6, 300, 5000])
def test_signature_is_that_of_datasketch(count: int) -> None:
    numbers = random.Random(count)
    texts = [" ".join(f"w{numbers.randrange(60)}" for _ in range(count)) for _ in range(2)]
    own, reference = [], []
    for text in texts:
        minhash = MinHash(num_perm=112, seed=7, hashfunc=lambda gram: xxhash.xxh64(gram).intdigest(), scheme="affine64")
        for gram in ngrams(text):
            minhash.update(" ".join(gram).encode())
        reference.append(minhash)
        own.append(NearDuplicates(seed=7).signature(text))
        assert own[-1].tolist() == minhash.digest().tolist()
    assert np.mean(own[0] == own[1]) == reference[0].jaccard(reference[1])


def test_band_is_the_hash_of_its_rows() -> None:
    near = NearDuplicates(bands=6, rows=3)
    signature = near.signature(SENTENCE).tolist()
    expected = [xxhash.xxh64(struct.pack("<3Q", *signature[3 * b : 3 * b + 3]), seed=b).intdigest() for b in range(6)]
    bands = near.band_hashes(SENTENCE)
    assert (bands.dtype, bands.tolist()) == (np.uint64, expected)


def test_bands_are_equal_where_all_rows_are_and_nowhere_else() -> None:
    near = NearDuplicates(bands=40, rows=2)
    numbers = random.Random(3)
    seen = set()
    for _ in range(50):
        first, second = pair(numbers, 60, 20)
        rows = (near.signature(first) == near.signature(second)).reshape(40, 2).all(axis=1)
        assert np.array_equal(near.band_hashes(first) == near.band_hashes(second), rows)
        seen |= set(rows.tolist())
    assert seen == {True, False}


@pytest.mark.parametrize("text", [SENTENCE, "zwei Wörter", "", " \n", "… !?", "ß" * 3000, "a b " * 5000])
def test_equal_texts_share_all_bands(text: str) -> None:
    near = NearDuplicates()
    assert near.band_hashes(text).shape == (14,)
    assert np.array_equal(near.band_hashes(text), near.band_hashes(text))


@pytest.mark.parametrize(
    "other",
    [
        SENTENCE.upper(),
        SENTENCE.replace(",", " –").replace(".", "!"),
        SENTENCE.replace(" ", "\n\t "),
        unicodedata.normalize("NFD", SENTENCE),
    ],
)
def test_case_punctuation_and_white_space_make_no_difference(other: str) -> None:
    assert other != SENTENCE
    assert np.array_equal(NearDuplicates().band_hashes(SENTENCE), NearDuplicates().band_hashes(other))


def test_texts_shorter_than_an_ngram_are_near_those_of_the_same_words_alone() -> None:
    near = NearDuplicates(ngram=5)
    bands = near.band_hashes("Guten Morgen, Frau Schmidt")
    assert np.array_equal(bands, near.band_hashes("guten Morgen Frau Schmidt!"))
    for other in ("Guten Morgen, Frau Müller", "Guten Morgen, Frau", "Morgen Frau Schmidt guten", ""):
        assert not np.any(bands == near.band_hashes(other))


def test_texts_without_words_are_not_near_each_other() -> None:
    near = NearDuplicates()
    assert not np.any(near.band_hashes("* * *") == near.band_hashes("---"))
    assert not np.any(near.band_hashes("* * *") == near.band_hashes(""))


def test_seed_changes_the_bands() -> None:
    assert not np.any(NearDuplicates(seed=1).band_hashes(SENTENCE) == NearDuplicates(seed=2).band_hashes(SENTENCE))


def test_other_processes_come_to_the_same_bands() -> None:
    code = "import sys; from bertchen.text.near_duplicates import NearDuplicates\n"
    code += "print(*NearDuplicates().band_hashes(sys.argv[1]))"
    expected = [str(band) for band in NearDuplicates().band_hashes(SENTENCE)]
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    run = subprocess.run(
        [sys.executable, "-c", code, SENTENCE], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == expected
