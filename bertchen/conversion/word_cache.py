"""Encoding at the speed of looking words up: what stands between two spaces is encoded once and remembered.

Language repeats its words, and a BPE without context gives a word the same tokens each time. So a text is cut where
no token can cross, its pieces are looked up, and only those that are new pass the tokenizers library, many at a time.
The result is the library's, token for token. That a cut before a run of spaces is safe follows from the tokenizer's
normalizer and pre-tokenizer, so it is done for those of
`bertchen.tokenizer.bpe` alone (`cuts_at_spaces`): in its patterns a space stands at the head of a token or among other
spaces, and what is matched doesn't depend on what came before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

PART_CHARACTERS = 1 << 20
MAX_WORDS = 1 << 18
_MAX_WORD_CHARACTERS = 48

# White space of the tokenizers library's regular expressions; Python's has the separators U+001C to U+001F too.
_SPACES = r"\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LINE_START = re.compile(rf"\n(?=[^{_SPACES}]| )")
# Characters that the normal form C leaves as they are, whatever their neighbours, in every version of Unicode.
_UNSAFE = re.compile(r"[^\x00-\u02ff\u2010-\u2027\u2030-\u205e\u20ac]")
_RUNS = re.compile(r" *[^ ]+| +")


class WordCache:
    """Texts to token ids, for a tokenizer that `cuts_at_spaces`.

    Args:
        as_json: the tokenizer's JSON.
        dtype: of the ids.
        max_words: so many pieces are remembered at most, about 150 bytes each; when they are more, all are forgotten.
    """

    def __init__(self, as_json: str, dtype: np.dtype, max_words: int = MAX_WORDS) -> None:
        backend = Tokenizer.from_str(as_json)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._normalizer = backend.normalizer
        backend.normalizer = None  # type: ignore[assignment]  # what it gets is normalized
        self._backend, self._dtype, self._max_words = backend, dtype, max_words
        # Words as they come from `str.split`, without the one space before them; and pieces as they are.
        self._words: dict[str, bytes] = {}
        self._pieces: dict[str, bytes] = {}

    def __call__(self, texts: list[str]) -> list[npt.NDArray]:
        """The ids of each text, without special tokens; a text that spells one is text."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> npt.NDArray:
        raw = b"".join([self._encode_part(part) for part in _parts(self._normalized(text))])
        return np.frombuffer(raw, dtype=self._dtype)

    def _normalized(self, text: str) -> str:
        if _UNSAFE.search(text):
            return self._normalizer.normalize_str(text)
        return _LINE_START.sub("\n ", text) if "\n" in text else text

    def _encode_part(self, part: str) -> bytes:
        """The ids of a part that begins the text or follows a cut."""
        if "  " in part or part.endswith(" "):
            return self._look_up(_RUNS.findall(part), self._pieces, "")
        first, *words = part.split(" ")
        ids = self._look_up([first], self._pieces, "") if first else b""
        return ids + self._look_up(words, self._words, " ")

    def _encode_pieces(self, pieces: list[str]) -> Iterator[bytes]:
        """The ids of each piece; none is empty. As words of one text, which makes one object and not one for each."""
        encoded = self._backend.encode(pieces, is_pretokenized=True, add_special_tokens=False)
        raw = np.array(encoded.ids, dtype=self._dtype).tobytes()
        ends = np.searchsorted(encoded.word_ids, np.arange(len(pieces)), side="right") * self._dtype.itemsize
        begin = 0
        for end in ends.tolist():
            yield raw[begin:end]
            begin = end

    def _look_up(self, pieces: list[str], known: dict[str, bytes], before: str) -> bytes:
        missing = list(set(pieces).difference(known))
        if missing:
            known.update(zip(missing, self._encode_pieces([before + piece for piece in missing]), strict=True))
        joined = b"".join(map(known.__getitem__, pieces))
        if len(known) > self._max_words:
            known.clear()
        else:
            for piece in missing:
                if len(piece) > _MAX_WORD_CHARACTERS:  # hardly to come again
                    del known[piece]
        return joined


def _parts(text: str) -> Iterator[str]:
    """Pieces of about `PART_CHARACTERS`, cut before a run of spaces, so that what is made of one stays small."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = text.find(" ", start + PART_CHARACTERS)
        while end > 0 and text[end - 1] == " ":  # in the middle of a run
            end = text.find(" ", end + 1)
        if end < 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]
