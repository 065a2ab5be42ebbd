"""BERTchen's tokenizer: byte-pair encoding in the manner of SentencePiece, with byte fallback and no `[CLS]`.

What is notable:

- It is exact: `decode(encode(text))` is the NFC form of `text`. A character without an entry of its own is
  written as the bytes of its UTF-8 form (`<0xC3>`), so nothing ever becomes `[UNK]`. SentencePiece's sign for
  the space, `▁`, is not used: the space is an ordinary character at the head of a word's first token, and so
  text that holds a `▁` survives too.
- A word at the beginning of a line is the same token as one after a space. Without that, every frequent word
  would need two entries. The normalizer puts a space behind a line feed that a word, a sign or a space
  follows, and the decoder takes one away behind each line feed, which undoes it exactly.
- No token crosses a word, a number of four digits or a run of signs.
- `[MASK]` takes the space before it, as the tokens do that it stands for: `ist [MASK].` needs no care.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from bertchen.errors import UserError

PAD, UNK, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[SEP]", "[MASK]")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

# A line feed before anything but white space, or before a space: see the module's docstring.
_LINE_START = r"\n(?=[\S ])"
_WORDS = "|".join(
    (
        r" ?\p{L}[\p{L}\p{M}]*",  # a word; \p{M} are the marks that NFC leaves apart
        r" ?\p{N}{1,4}",  # a number, so that a year is whole
        r" ?[^\s\p{L}\p{N}]+",  # a run of signs
        r" +(?= \S)",  # spaces, but for the last, which goes to what follows
        r" +",
        r"\n+",
        r"[^\S\n ]+",  # tabs, no-break spaces, …
    )
)
_PIECE_CHARACTERS = 10_000

logger = logging.getLogger(__name__)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 32768,
    *,
    min_frequency: int = 2,
    alphabet_size: int = 1000,
    progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; the same texts give the same tokenizer, byte for byte.

    Entries: the special tokens (0 to 3), the 256 bytes, the alphabet, then the merges, most frequent first.

    Args:
        texts: documents, read twice (characters, then words), so not a one-off iterator. Documents of any
            length: they are fed in pieces of about 10,000 characters.
        vocab_size: number of entries; fewer, with a warning, where the text is too small for so many.
        min_frequency: a pair of tokens must occur so often to be merged, and a character to have an entry.
        alphabet_size: at most so many characters have an entry, the most frequent; the others are bytes.
        progress: shows the trainer's progress bars.

    Returns:
        A tokenizer whose single sequence is A, whose pair is A [SEP] B with token types 0 and 1.

    Raises:
        UserError: there is no text, or the bytes and the alphabet alone need more than `vocab_size` entries.
        TypeError: `texts` can be read only once.
    """
    if iter(texts) is texts:
        raise TypeError("texts is read twice: give a list or an object whose iter() starts from the beginning")
    fixed = len(SPECIAL_TOKENS) + len(BYTE_TOKENS)
    if vocab_size <= fixed:
        raise _too_small(vocab_size, fixed, "its characters")

    counts: Counter[str] = Counter()
    number_of_pieces = 0
    for piece in _all_pieces(texts):
        counts.update(unicodedata.normalize("NFC", piece))
        number_of_pieces += 1
    if not counts:
        raise UserError("there is no text to train a tokenizer on")
    ranked = sorted((-count, character) for character, count in counts.items() if count >= min_frequency)
    alphabet = [character for _, character in ranked[:alphabet_size]]
    if fixed + len(alphabet) > vocab_size:
        raise _too_small(vocab_size, fixed, f"{len(alphabet)} characters")

    blank = Tokenizer(models.BPE())
    blank.normalizer, blank.pre_tokenizer = bpe_normalizer(), bpe_pre_tokenizer()
    trainer = BpeTrainer(
        vocab_size=vocab_size - fixed,
        min_frequency=min_frequency,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=progress,
    )
    blank.train_from_iterator(_all_pieces(texts), trainer, length=number_of_pieces)
    tokenizer = _assemble(json.loads(blank.to_str())["model"])
    if len(tokenizer) < vocab_size:
        logger.warning(
            "warning: the text is too small for vocab_size=%d: the tokenizer has %d entries",
            vocab_size,
            len(tokenizer),
        )
    return tokenizer


def pieces(text: str, characters: int = _PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts a text into pieces of at most `characters` that, joined, are the text again.

    Cuts fall before a line feed, else before a space, so that words stay whole and keep what precedes them;
    only a run without either is cut inside.
    """
    start = 0
    while len(text) - start > characters:
        end = _cut(text, start, start + characters)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _cut(text: str, start: int, end: int) -> int:
    for separator in "\n ":
        found = text.rfind(separator, start, end + 1)
        # Back to the beginning of a run of separators: the pre-tokenizer takes it whole.
        found = start + len(text[start : max(found, start)].rstrip(separator))
        if found > start:
            return found
    return end


def _all_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from pieces(text)


def bpe_normalizer() -> normalizers.Normalizer:
    """The normal form C, and a space at the beginning of lines."""
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(_LINE_START), "\n ")])


def bpe_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Words, numbers and runs of signs, each with the space before it; white space apart."""
    return pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")


def cuts_at_spaces(as_json: str) -> bool:
    """Whether a tokenizer cuts text as this one does, so that no token crosses the beginning of a run of spaces.

    Args:
        as_json: the tokenizer's JSON.
    """
    ours = Tokenizer(models.BPE())
    ours.normalizer, ours.pre_tokenizer = bpe_normalizer(), bpe_pre_tokenizer()
    expected, given = json.loads(ours.to_str()), json.loads(as_json)
    return (
        all(given[part] == expected[part] for part in ("normalizer", "pre_tokenizer"))
        and given["model"]["type"] == "BPE"
        and not given["model"]["dropout"]
        and all(token["special"] for token in given["added_tokens"])
    )


def _assemble(trained: dict) -> PreTrainedTokenizerFast:
    """The finished tokenizer from a trained BPE.

    The bytes enter here: given to the trainer they would be special tokens, and then text that spells
    `<0x41>` would be read as the letter A.
    """
    learned = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    vocab = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *BYTE_TOKENS, *learned))}
    merges = [tuple(pair) for pair in trained["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK, byte_fallback=True))
    backend.normalizer, backend.pre_tokenizer = bpe_normalizer(), bpe_pre_tokenizer()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("\n ", "\n")])
    backend.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {SEP} $B:1", special_tokens=[(SEP, vocab[SEP])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        sep_token=SEP,
        mask_token=AddedToken(MASK, lstrip=True, special=True),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _too_small(vocab_size: int, fixed: int, characters: str) -> UserError:
    return UserError(
        f"vocab_size={vocab_size} is too small: {len(SPECIAL_TOKENS)} special tokens, {len(BYTE_TOKENS)} "
        f"bytes and {characters} come to more; raise vocab_size (BERTchen: 32768) or lower alphabet_size"
    )
