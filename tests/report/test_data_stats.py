"""scripts/data_stats.py: figures of raw and converted corpora against plain references, pictures, errors."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xxhash
from matplotlib.image import imread
from matplotlib.patches import StepPatch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertchen.config import load_config
from bertchen.config.schema_stats import FolderStatsConfig, StatsConfig
from bertchen.data.manifest import MANIFEST, VERSION
from bertchen.errors import UserError
from bertchen.report import data_stats_folder
from bertchen.report.data_stats import length_histogram
from bertchen.report.data_stats_folder import folder_stats
from bertchen.report.data_stats_raw import raw_stats
from bertchen.report.data_stats_view import check_out, draw_lengths, show_stats, write_stats
from bertchen.tokenizer import tokenizer_fingerprint
from bertchen.tokenizer.figures import TokenCounts, shown_token

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "data_stats.py"
WORDS = ("der", "die", "und", "Straße", "über", "für\nnicht", "größer!", "🙂", "€uro", "한국", "A\u0308rger", "", "b")
BLOCK_SIZE = 64


def make_texts(count: int, seed: int, longest: int = 120) -> list[str]:
    numbers = random.Random(seed)
    return [" ".join(numbers.choices(WORDS, k=numbers.randint(1, longest))) for _ in range(count)]


FIRST, SECOND = make_texts(60, 1), make_texts(40, 2, longest=400)


def write_lines(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [{"text": text, "kind": ["x", "y"][len(text) % 2]} for text in FIRST])
    write_lines(folder / "b.jsonl", [{"text": text} for text in SECOND])
    return folder


def raw(*overrides: str) -> dict[str, Any]:
    return raw_stats(load_config(StatsConfig, overrides, ""))


def converted(folder: Path, *overrides: str) -> dict[str, Any]:
    return folder_stats(str(folder), load_config(FolderStatsConfig, overrides, ""))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def check_tokens(figures: dict[str, Any], ids: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    """The figures of token frequencies against a Counter."""
    counts = Counter(index for document in ids for index in document)
    tokens = counts.total()
    assert figures["tokens"] == tokens
    assert figures["entries_used"] == len(counts)
    assert figures["characters_per_token"] == pytest.approx(sum(map(len, texts)) / tokens)
    assert figures["tokens_per_word"] == pytest.approx(tokens / sum(len(text.split()) for text in texts))
    shares = [count / tokens for count in counts.values()]
    assert figures["unigram_entropy_nats"] == pytest.approx(-sum(share * math.log(share) for share in shares))
    listed = {entry["id"]: entry["count"] for entry in figures["most_frequent"]}
    assert listed == {index: counts[index] for index in listed}
    assert sorted(listed.values(), reverse=True) == sorted(counts.values(), reverse=True)[: len(listed)]
    assert [entry["share"] for entry in figures["most_frequent"]] == [count / tokens for count in listed.values()]


def check_lengths(figures: dict[str, Any], lengths: Sequence[int]) -> None:
    found = figures["tokens_per_document"]
    expected = np.percentile(lengths, [0, 10, 50, 90, 99, 100])
    assert [found[key] for key in ("min", "p10", "p50", "p90", "p99", "max")] == pytest.approx(expected.tolist())
    assert found["mean"] == pytest.approx(np.mean(lengths), abs=0.005)
    histogram = figures["length_histogram"]
    assert histogram["counts"] == np.histogram(lengths, histogram["edges"])[0].tolist()
    assert sum(histogram["counts"]) == len(lengths)


def test_raw_corpus(corpus: Path, tiny_tokenizer: str, other_tokenizer: str) -> None:
    stats = raw(
        f"sources.one.path={corpus}/a.jsonl",
        f"sources.two.path={corpus}/b.jsonl",
        f"tokenizer={tiny_tokenizer}",
        f"compare_to=[{other_tokenizer}]",
        "most_frequent=15",
    )
    for figures, name in zip(stats["tokenizers"], (tiny_tokenizer, other_tokenizer), strict=True):
        ids = encode(AutoTokenizer.from_pretrained(name), FIRST + SECOND)
        check_tokens(figures, ids, FIRST + SECOND)
        check_lengths(figures, [len(document) for document in ids])
        assert len(figures["most_frequent"]) == 15
    tokens = {name: stats["parts"][name].pop("tokens") for name in ("one", "two")}
    assert stats["parts"] == {
        name: {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "words": sum(len(text.split()) for text in texts),
        }
        for name, texts in {"one": FIRST, "two": SECOND}.items()
    }
    assert sum(tokens.values()) == stats["total"]["tokens"] == stats["tokenizers"][0]["tokens"]
    assert stats["notes"] == []


def test_characters_that_became_bytes(corpus: Path, tiny_tokenizer: str) -> None:
    figures = raw(f"source.path={corpus}", f"tokenizer={tiny_tokenizer}", "most_frequent=1000")["tokenizers"][0]
    vocab = AutoTokenizer.from_pretrained(tiny_tokenizer).get_vocab()
    text = "".join(unicodedata.normalize("NFC", text) for text in FIRST + SECOND)
    fallen_back = Counter(character for character in text if character not in vocab)
    assert {"🙂", "€", "한", "Ä"} <= set(fallen_back)
    found = figures["fallen_back"]
    assert {entry["character"]: entry["count"] for entry in found["most_frequent"]} == fallen_back
    assert (found["characters"], found["different"]) == (fallen_back.total(), len(fallen_back))
    assert found["most_frequent"][0]["count"] == max(fallen_back.values())
    assert {"🙂": "SLIGHTLY SMILING FACE"}.items() <= {
        e["character"]: e["name"] for e in found["most_frequent"]
    }.items()
    byte_tokens = sum(len(character.encode()) * count for character, count in fallen_back.items())
    assert figures["byte_tokens"] == byte_tokens
    assert figures["byte_share"] == byte_tokens / figures["tokens"]
    assert figures["unknown_tokens"] == 0


def test_bytes_of_a_character_that_was_cut(loaded_tokenizer: PreTrainedTokenizerBase) -> None:
    vocab = loaded_tokenizer.get_vocab()
    ids = [vocab[f"<0x{byte:02X}>"] for byte in "한🙂é".encode()]
    whole, cut, apart = (TokenCounts(loaded_tokenizer) for _ in range(3))
    whole.add([ids])
    cut.add([ids[:5], ids[5:]])
    apart.add([[*ids[:5], vocab["a"], *ids[5:]]])
    assert whole.fallen_back == Counter("한🙂é")
    assert cut.fallen_back == apart.fallen_back == Counter("한é")
    assert whole.byte_tokens == cut.byte_tokens == apart.byte_tokens == 9


def test_special_tokens_in_a_text_are_text(tmp_path: Path, tiny_tokenizer: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "der [SEP] die [UNK]"}])
    figures = raw(f"source.path={path}", f"tokenizer={tiny_tokenizer}", "most_frequent=1000")["tokenizers"][0]
    assert figures["unknown_tokens"] == 0
    assert "[SEP]" not in {entry["token"] for entry in figures["most_frequent"]}


def test_sampling_and_rules_of_rows(corpus: Path, tiny_tokenizer: str) -> None:
    stats = raw(
        f"source.path={corpus}/a.jsonl",
        f"tokenizer={tiny_tokenizer}",
        "source.sample.fraction=0.5",
        "source.drop_rows.column=kind",
        "source.drop_rows.values=[x]",
        "seed=7",
    )
    offered = [text for text in FIRST if len(text) % 2]
    kept = [text for text in offered if xxhash.xxh64_intdigest(text.encode(), seed=7) < 2**63]
    assert 0 < len(kept) < len(offered)
    assert stats["total"]["documents"] == len(kept)
    assert stats["total"]["characters"] == sum(map(len, kept))
    assert sum(stats["dropped"].values()) == len(FIRST) - len(kept)
    assert stats["bad"] == {}


def test_limits_are_those_of_each_source(corpus: Path, tiny_tokenizer: str) -> None:
    sources = [f"sources.one.path={corpus}/a.jsonl", f"sources.two.path={corpus}/b.jsonl"]
    stats = raw(*sources, f"tokenizer={tiny_tokenizer}", "max_documents=10")
    assert [part["documents"] for part in stats["parts"].values()] == [10, 10]
    assert stats["total"]["characters"] == sum(map(len, FIRST[:10] + SECOND[:10]))
    assert "read no further than max_documents or max_characters: one, two" in stats["notes"][0]
    most = sum(map(len, FIRST[:7]))
    stats = raw(*sources, f"tokenizer={tiny_tokenizer}", f"max_characters={most}")
    assert stats["parts"]["one"]["documents"] == 7
    assert stats["parts"]["two"]["characters"] >= most > stats["parts"]["two"]["characters"] - len(max(SECOND, key=len))


def test_what_only_a_conversion_decides_is_named(corpus: Path, tiny_tokenizer: str) -> None:
    stats = raw(f"source.path={corpus}", f"tokenizer={tiny_tokenizer}", "source.sample.documents=3")
    assert stats["total"]["documents"] == len(FIRST + SECOND)
    assert "not applied here, but by a conversion: sample of source" in stats["notes"][0]


def test_bad_rows(tmp_path: Path, tiny_tokenizer: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "der"}, {"text": 3}, {"text": ""}, {"text": "die"}])
    options = [f"source.path={path}", f"tokenizer={tiny_tokenizer}"]
    with pytest.raises(UserError, match=r"a\.jsonl.*2"):
        raw(*options)
    stats = raw(*options, "on_bad_rows=skip")
    assert stats["total"]["documents"] == 2
    assert sorted(stats["bad"].values()) == [1, 1]


@pytest.mark.parametrize("lengths", [[1], [0, 1, 1], [2**k for k in range(18)], [3, 5, 6, 7, 7, 1023, 1024, 1025]])
def test_histogram_of_lengths(lengths: list[int]) -> None:
    histogram = length_histogram(Counter(lengths))
    edges = histogram["edges"]
    assert histogram["counts"] == np.histogram(lengths, edges)[0].tolist()
    assert sum(histogram["counts"]) == len(lengths)
    assert edges == sorted(set(edges))
    assert {2**power for power in range(max(lengths).bit_length())} <= set(edges)


# ----- converted folders


def write_split(folder: Path, blocks: np.ndarray, compression: str | None = None) -> None:
    from streaming import MDSWriter

    encoding = f"ndarray:{blocks.dtype}:{BLOCK_SIZE}"
    with MDSWriter(
        columns={"input_ids": encoding}, out=str(folder), compression=compression, hashes=["xxh64"], size_limit=2000
    ) as writer:
        for block in blocks:
            writer.write({"input_ids": block})


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """Converts FIRST + SECOND in the plainest way, into two training splits and one for validation."""

    def make(name: str, compression: str | None = None, **changes: Any) -> tuple[Path, dict[str, np.ndarray]]:
        tokenizer = AutoTokenizer.from_pretrained(name)
        folder = tmp_path_factory.mktemp("converted") / "mds"
        ids = [[*encoded, tokenizer.sep_token_id] for encoded in encode(tokenizer, FIRST + SECOND)]
        stream = np.concatenate(ids).astype(np.uint16)
        blocks = stream[: len(stream) // BLOCK_SIZE * BLOCK_SIZE].reshape(-1, BLOCK_SIZE)
        blocks = np.random.default_rng(0).permutation(blocks)
        splits = {"train_64": blocks[:40], "train_512": blocks[40:-20], "val": blocks[-20:]}
        for split, part in splits.items():
            write_split(folder / split, part, compression)
        manifest = {
            "version": VERSION,
            "block_size": BLOCK_SIZE,
            "token_dtype": "uint16",
            "tokenizer": {
                "name": name,
                "fingerprint": tokenizer_fingerprint(tokenizer),
                "vocab_size": len(tokenizer),
                "separator_id": tokenizer.sep_token_id,
            },
            "splits": {split: {"blocks": len(part), "tokens": part.size} for split, part in splits.items()},
            "tokens_per_document": {"mean": 5.5, "min": 1, "p10": 2, "p50": 5.0, "p90": 9, "p99": 9.9, "max": 10},
            "documents_by_length": {"1": 1, "2": 2, "4": 4, "8": 3},
            **changes,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        return folder, splits

    return make


def pieces_of(blocks: np.ndarray, separator: int) -> list[list[int]]:
    pieces: list[list[int]] = []
    for block in blocks.tolist():
        pieces.append([])
        for index in block:
            if index == separator:
                pieces.append([])
            else:
                pieces[-1].append(index)
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_converted_folder(
    compression: str | None, make_folder: Callable[..., Any], tiny_tokenizer: str, other_tokenizer: str
) -> None:
    folder, splits = make_folder(tiny_tokenizer, compression)
    if compression:
        assert not list(folder.rglob("*.mds"))
    before = sorted(folder.rglob("*"))
    stats = converted(folder, f"compare_to=[{other_tokenizer}]")
    assert sorted(folder.rglob("*")) == before

    own, other = (AutoTokenizer.from_pretrained(name) for name in (tiny_tokenizer, other_tokenizer))
    ids = {split: pieces_of(blocks, own.sep_token_id) for split, blocks in splits.items()}
    texts = {split: [own.decode(piece) for piece in pieces] for split, pieces in ids.items()}
    assert {name: part["documents"] for name, part in stats["parts"].items()} == {
        split: int((blocks == own.sep_token_id).sum()) for split, blocks in splits.items()
    }
    assert {name: part["characters"] for name, part in stats["parts"].items()} == {
        split: sum(map(len, pieces)) for split, pieces in texts.items()
    }
    all_texts = list(chain.from_iterable(texts.values()))
    check_tokens(stats["tokenizers"][0], list(chain.from_iterable(ids.values())), all_texts)
    check_tokens(stats["tokenizers"][1], encode(other, all_texts), all_texts)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert stats["tokenizers"][0]["tokens_per_document"] == manifest["tokens_per_document"]
    assert stats["tokenizers"][0]["length_histogram"] == {"edges": [1, 2, 4, 8, 16], "counts": [1, 2, 4, 3]}
    assert stats["tokenizers"][1]["tokens_per_document"] is stats["tokenizers"][1]["length_histogram"] is None
    notes = "\n".join(stats["notes"])
    assert "lengths of documents with other tokenizers are not known" in notes
    assert f"{len(all_texts):,} pieces" in notes
    assert "exactly" not in notes


def test_part_of_a_converted_folder(
    make_folder: Callable[..., Any], tiny_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stats_folder, "_BATCH_TOKENS", BLOCK_SIZE)
    folder, splits = make_folder(tiny_tokenizer)
    stats = converted(folder, "max_characters=1")
    separator = AutoTokenizer.from_pretrained(tiny_tokenizer).sep_token_id
    first_blocks = {name: blocks[:1] for name, blocks in splits.items()}
    assert {name: part["tokens"] for name, part in stats["parts"].items()} == {
        name: int((block != separator).sum()) for name, block in first_blocks.items()
    }
    assert "read no further than max_characters: train_64, train_512, val" in "\n".join(stats["notes"])


@pytest.fixture(scope="session")
def lossy_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A word tokenizer that lowers capitals and doesn't know most words."""
    words = ["[PAD]", "[UNK]", "[SEP]", "[MASK]", "der", "die", "und"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("lossy")
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]").save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_that_loses_text_is_named(make_folder: Callable[..., Any], lossy_tokenizer: str) -> None:
    folder, _ = make_folder(lossy_tokenizer)
    stats = converted(folder)
    assert "can't give the text back exactly" in stats["notes"][-1]
    assert "unknown tokens" in stats["notes"][-1]
    figures = stats["tokenizers"][0]
    assert figures["unknown_tokens"] > 0
    assert figures["byte_tokens"] is figures["byte_share"] is None


def test_other_tokenizer_than_that_of_the_folder(
    make_folder: Callable[..., Any], tiny_tokenizer: str, other_tokenizer: str, tmp_path: Path
) -> None:
    folder, _ = make_folder(tiny_tokenizer)
    with pytest.raises(UserError, match=rf"another tokenizer \({tiny_tokenizer}.*{other_tokenizer}.*compare_to"):
        converted(folder, f"tokenizer={other_tokenizer}")
    moved = tmp_path / "moved"
    AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(moved)
    assert converted(folder, f"tokenizer={moved}")["tokenizers"][0]["name"] == str(moved)


def test_tokenizer_of_the_folder_is_gone(make_folder: Callable[..., Any], tiny_tokenizer: str, tmp_path: Path) -> None:
    folder, _ = make_folder(
        tiny_tokenizer, tokenizer={"name": f"{tmp_path}/gone", "fingerprint": "0", "separator_id": 2}
    )
    with pytest.raises(UserError, match=r"gone: no such folder.*was converted with it: say with tokenizer="):
        converted(folder)


def test_missing_shard(make_folder: Callable[..., Any], tiny_tokenizer: str) -> None:
    folder, _ = make_folder(tiny_tokenizer)
    next((folder / "val").rglob("*.mds")).unlink()
    with pytest.raises(UserError, match=r"val/shard.*missing"):
        converted(folder)


# ----- what people see


def png_of(figure: Figure | None, path: Path) -> np.ndarray:
    assert figure is not None
    figure.savefig(path)
    return imread(path)


def test_picture(corpus: Path, tiny_tokenizer: str, other_tokenizer: str, tmp_path: Path) -> None:
    rows = raw(f"source.path={corpus}", f"tokenizer={tiny_tokenizer}", f"compare_to=[{other_tokenizer}]")["tokenizers"]
    for shown in (rows, rows[:1]):
        figure = draw_lengths(shown, "corpus")
        image = png_of(figure, tmp_path / f"{len(shown)}.png")
        assert image.shape[0] > 300
        assert image.std() > 0.01
        (axis,) = figure.axes
        outlines = [patch for patch in axis.patches if isinstance(patch, StepPatch) and not patch.get_fill()]
        assert [patch.get_data().values.tolist() for patch in outlines] == [
            row["length_histogram"]["counts"] for row in shown
        ]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        medians = [row["tokens_per_document"]["p50"] for row in shown]
        assert [label.rpartition(" ")[2].replace(",", "") for label in labels] == [
            f"{median:.0f}" for median in medians
        ]
    assert draw_lengths([row | {"length_histogram": None} for row in rows], "corpus") is None


def test_tables(corpus: Path, tiny_tokenizer: str, other_tokenizer: str) -> None:
    stats = raw(f"source.path={corpus}", f"tokenizer={tiny_tokenizer}", f"compare_to=[{other_tokenizer}]")
    shown = show_stats(stats)
    parts, figures, tokens, *fallen_back = shown.split("\n\n")
    assert f"{sum(map(len, FIRST + SECOND)):,}" in parts
    assert f"{stats['tokenizers'][1]['tokens']:,}" in figures
    for table in (parts, figures, tokens):
        assert len({len(line) for line in table.splitlines()}) == 1, table
    assert len(tokens.splitlines()) == 1 + 20
    assert all("U+1F642 SLIGHTLY SMILING FACE" in block for block in fallen_back)
    assert len(fallen_back) == 2


def test_tokens_as_people_see_them(loaded_tokenizer: PreTrainedTokenizerBase) -> None:
    vocab = loaded_tokenizer.get_vocab()
    shown = {token: shown_token(loaded_tokenizer, vocab[token]) for token in (" d", "d", "<0xC3>", "[SEP]")}
    assert shown == {" d": "␣d", "d": "d", "<0xC3>": "<0xC3>", "[SEP]": "[SEP]"}
    backends = {"Ġdie": (decoders.ByteLevel(), "Ã"), "▁die": (decoders.Metaspace(), "die")}
    for token, (decoder, second) in backends.items():
        backend = Tokenizer(models.WordLevel({token: 0, second: 1, "[UNK]": 2}, unk_token="[UNK]"))
        backend.decoder = decoder
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
        assert [shown_token(tokenizer, 0), shown_token(tokenizer, 1)] == ["␣die", second]


def test_files(corpus: Path, tiny_tokenizer: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "figures"
    options = [f"source.path={corpus}", f"tokenizer={tiny_tokenizer}", f"out={out}"]

    def run(*overrides: str) -> dict[str, Any]:
        config = load_config(StatsConfig, [*options, *overrides], "")
        folder = check_out(config)
        assert folder is not None
        stats = raw_stats(config)
        assert write_stats(stats, folder) == [out / "stats.json", out / "lengths.png"]
        return stats

    stats = run()
    assert json.loads((out / "stats.json").read_text(encoding="utf-8")) == stats
    assert imread(out / "lengths.png").ndim == 3
    (out / "other").touch()
    with pytest.raises(UserError, match=r"out=.*has a stats\.json already.*overwrite=true"):
        run()
    assert run("overwrite=true", "max_documents=3")["total"]["documents"] == 3
    assert sorted(path.name for path in out.iterdir()) == ["lengths.png", "other", "stats.json"]


def test_out_of_a_yaml_is_the_conversions(tmp_path: Path) -> None:
    path = tmp_path / "corpus.yaml"
    path.write_text("out: mds\noverwrite: true\ntokenizer: x\n", encoding="utf-8")
    assert check_out(load_config(StatsConfig, [str(path)], "")) is None
    (tmp_path / "stats.json").touch()
    with pytest.raises(UserError, match="overwrite=true"):
        check_out(load_config(StatsConfig, [str(path), f"out={tmp_path}"], ""))


ERRORS = {
    "no such folder": (["{dir}/nothing"], r"nothing: no such folder, and no YAML file"),
    "no such YAML": (["{dir}/nothing.yaml"], r"nothing\.yaml: no such YAML file"),
    "no manifest": (["{dir}/corpus"], r"manifest\.json is missing"),
    "folder and YAML": (["{dir}/corpus", "a.yaml"], r"one converted folder alone"),
    "unknown key": (["source.path={dir}/corpus", "most_frequnt=3"], r"most_frequnt .*did you mean most_frequent"),
    "unknown key of a folder": (["{dir}/corpus", "source.path=x"], r"source .*unknown key"),
    "no tokenizer": (["source.path={dir}/corpus"], r"tokenizer is not set"),
    "no source": (["tokenizer={tokenizer}"], r"source"),
    "limit": (["source.path={dir}/corpus", "tokenizer={tokenizer}", "max_documents=0"], r"max_documents=0.*at least 1"),
    "compared to itself": (
        ["source.path={dir}/corpus", "tokenizer={tokenizer}", "compare_to=[{tokenizer}/]"],
        r"compare_to=.*twice",
    ),
    "compared to nothing": (
        ["source.path={dir}/corpus", "tokenizer={tokenizer}", "compare_to=[{dir}/no/tokenizer/]"],
        r"no/tokenizer/: no such folder",
    ),
    "out is a file": (
        ["source.path={dir}/corpus", "tokenizer={tokenizer}", "out={dir}/corpus/a.jsonl"],
        r"out=.*is a file",
    ),
    "out below a file": (
        ["source.path={dir}/corpus", "tokenizer={tokenizer}", "out={dir}/corpus/a.jsonl/x"],
        r"out=.*can't be written",
    ),
    "nothing left": (
        ["source.path={dir}/blank.jsonl", "tokenizer={tokenizer}", "on_bad_rows=skip"],
        r"no document is left",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_cause_and_leave_nothing(
    case: str, corpus: Path, tmp_path: Path, tiny_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from data_stats import main

    write_lines(tmp_path / "blank.jsonl", [{"text": ""}])
    before = sorted(tmp_path.rglob("*"))
    arguments, message = ERRORS[case]
    with pytest.raises(UserError, match=message):
        main([item.format(dir=tmp_path, tokenizer=tiny_tokenizer) for item in arguments])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("override", "code"), [("max_documents=5", 0), ("max_document=5", 2)])
def test_command(override: str, code: int, corpus: Path, tiny_tokenizer: str, tmp_path: Path) -> None:
    yaml = tmp_path / "corpus.yaml"
    yaml.write_text(f"source:\n  path: {corpus}/a.jsonl\ntokenizer: {tiny_tokenizer}\nout: mds\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(yaml), override],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == code, result.stderr
    assert ("characters/token" in result.stdout) == (code == 0)
    assert len(result.stderr.splitlines()) == (code != 0), result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "corpus.yaml"]
