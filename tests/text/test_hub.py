"""Data sets of the Hub: which files are found, how they are read, and what is said where that can't be.

Everything is asked of a Hub in a thread, by a process of its own.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hub_server import TOKEN, HubServer

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "yamls/data").glob("*.yaml"))


class Worker:
    """Asks questions of a process that knows the Hub at `endpoint`."""

    def __init__(self, endpoint: str, home: Path, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        places = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
        self.environment = {**kept, **places, **environment}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("hub_worker.py"))],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, call: str, token: str | None = None, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": call, "token": token, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                answer = json.loads(line.removeprefix("ANSWER "))
                assert "traceback" not in answer, answer["traceback"]
                return answer
        raise AssertionError("the process ended")

    def result(self, call: str, **arguments: Any) -> Any:
        answer = self.ask(call, **arguments)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def error(self, call: str, **arguments: Any) -> str:
        return self.ask(call, **arguments)["error"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        fill(server)
        yield server


@pytest.fixture(scope="module")
def worker(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(hub.url, tmp_path_factory.mktemp("home"))
    yield worker
    worker.close()


def json_lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def parquet(**columns: list[Any]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def card(**configs: dict[str, str]) -> bytes:
    """A README.md with files by configuration and split."""
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for name, splits in configs.items()
    ]
    return f"---\nconfigs: {json.dumps(entries)}\n---\n# A corpus\n".encode()


def c4(name: str, *texts: str) -> dict[str, bytes]:
    pages = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://de"} for text in texts]
    return {f"multilingual/{name}.json.gz": gzip.compress(json_lines(*pages))}


def oscar(name: str, **warnings: list[str] | None) -> dict[str, bytes]:
    pages = [
        {
            "content": text,
            "warc_headers": {},
            "metadata": {"identification": {"label": "de"}, "quality_warnings": found},
        }
        for text, found in warnings.items()
    ]
    return {f"de_meta/{name}.jsonl.zst": zstandard.ZstdCompressor().compress(json_lines(*pages))}


def article(title: str, text: str) -> dict[str, list[str]]:
    return {"id": ["1"], "url": ["https://de.wikipedia.org"], "title": [title], "text": [text]}


SHARDS = [f"c4-de.tfrecord-{number:05d}-of-00160" for number in range(160)]
C4 = {
    "README.md": card(
        en={"train": "en/c4-train.*.json.gz"},
        de={"train": "multilingual/c4-de.*.json.gz", "validation": "multilingual/c4-de-validation.*.json.gz"},
    ),
    "en/c4-train.00000-of-01024.json.gz": gzip.compress(json_lines({"text": "English"})),
    **{path: raw for shard in SHARDS for path, raw in c4(shard, f"Seite {shard}", "").items()},
    **c4("c4-de-validation.tfrecord-00000-of-00016", "Validierung"),
    **c4("c4-fr.tfrecord-00000-of-00016", "français"),
}
CULTURAX = {
    "README.md": card(de={"train": "de/*.parquet"}, fr={"train": "fr/*.parquet"}),
    **{
        f"de/de_part_{number:05d}.parquet": parquet(
            text=[f"Teil {number}"], timestamp=["2020"], url=["https://de"], source=["mC4"]
        )
        for number in range(3)
    },
    "fr/fr_part_00000.parquet": parquet(text=["français"], timestamp=["2020"], url=["https://fr"], source=["mC4"]),
}
OSCAR = {
    "README.md": b"# OSCAR\n",
    "OSCAR-2301.py": b"raise RuntimeError\n",
    **oscar("de_meta_part_1", gut=None, klein=["tiny"], lang=["long"]),
    **oscar("de_meta_part_2", erwachsen=["noisy", "adult"], fein=[]),
    "de_meta/de_sha256.txt": b"0\n",
    "fr_meta/fr_meta_part_1.jsonl.zst": b"",
}
WIKIPEDIA = {
    "README.md": card(
        **{
            "20231101.de": {"train": "20231101.de/train-*"},
            "20231101.fr": {"train": "20231101.fr/train-*"},
        }
    ),
    "20231101.de/train-00000-of-00002.parquet": parquet(**article("Köln", "Köln liegt am Rhein.")),
    "20231101.de/train-00001-of-00002.parquet": parquet(**article("Bonn", "Bonn auch.")),
    "20231101.fr/train-00000-of-00001.parquet": parquet(**article("Cologne", "sur le Rhin")),
}
CC100 = lzma.compress(b"Absatz eins\nAbsatz zwei\n\nneues Dokument\n\n")
PLAIN = {"data/train-00000.jsonl": json_lines({"text": "üben"}), "data/test-00000.jsonl": json_lines({"text": "T"})}


def fill(hub: HubServer) -> None:
    hub.add("allenai/c4", C4)
    hub.add("uonlp/CulturaX", CULTURAX, gated=True)
    hub.add("oscar-corpus/OSCAR-2301", OSCAR, gated=True)
    hub.add("wikimedia/wikipedia", WIKIPEDIA)
    hub.add("user/plain", {"data/train-00000.jsonl": json_lines({"text": "alt"})}, ref="v1")
    hub.add("user/plain", PLAIN)
    hub.add("user/secret", PLAIN, private=True)
    hub.add("user/tables", {"train.csv": b"text\na\n"})
    hub.add("user/nothing", {"README.md": b"# Nothing\n"})
    hub.files["/cc-100/de.txt.xz"] = CC100


def commit(hub: HubServer, name: str, ref: str = "main") -> str:
    return hub.repositories[name].refs[ref]


# --- what is found


def test_configuration_and_split(hub: HubServer, worker: Worker) -> None:
    sha = commit(hub, "allenai/c4")
    root = f"hf://datasets/allenai/c4@{sha}/multilingual"
    paths, found = worker.result("files", name="allenai/c4", config="de")
    assert (paths, found) == ([f"{root}/{shard}.json.gz" for shard in SHARDS], sha)
    paths, _ = worker.result("files", name="allenai/c4", config="de", split="validation")
    assert paths == [f"{root}/c4-de-validation.tfrecord-00000-of-00016.json.gz"]
    assert worker.result("read", paths=paths) == ["Validierung"]


def test_files_by_their_names_without_a_card(hub: HubServer, worker: Worker) -> None:
    paths, _ = worker.result("files", name="user/plain")
    assert worker.result("read", paths=paths) == ["üben"]
    paths, _ = worker.result("files", name="user/plain", split="test")
    assert worker.result("read", paths=paths) == ["T"]


@pytest.mark.parametrize("by", ["ref", "commit"])
def test_revisions(hub: HubServer, worker: Worker, by: str) -> None:
    old = commit(hub, "user/plain", "v1")
    revision = "v1" if by == "ref" else old
    paths, found = worker.result("files", name="user/plain", revision=revision)
    assert found == old
    assert worker.result("read", paths=paths) == ["alt"]


def test_patterns(hub: HubServer, worker: Worker) -> None:
    sha = commit(hub, "user/plain")
    both = [f"hf://datasets/user/plain@{sha}/data/{name}-00000.jsonl" for name in ("test", "train")]
    for pattern in ("data/*.jsonl", "**/*.jsonl", "data", ["data/train*", "data/te*.jsonl"]):
        assert worker.result("files", name="user/plain", files=pattern) == [both, sha]
    assert worker.result("files", name="user/plain", files="data/train-*", revision="v1")[0] == [
        f"hf://datasets/user/plain@{commit(hub, 'user/plain', 'v1')}/data/train-00000.jsonl"
    ]


def test_versions_are_those_of_the_content(hub: HubServer, worker: Worker) -> None:
    """Two commits with the same file give the same version, one with another gives another."""
    first, second = hub.add("user/grown", PLAIN), hub.add("user/grown", {**PLAIN, "more.md": b"#"})
    third = hub.add("user/grown", {"data/train-00000.jsonl": json_lines({"text": "eben"})})
    paths = [f"hf://datasets/user/grown@{sha}/data/train-00000.jsonl" for sha in (first, second, third)]
    versions = worker.result("versions", paths=paths)
    assert versions[0] == versions[1] != versions[2]
    assert versions[0][0] == len(PLAIN["data/train-00000.jsonl"])


def test_only_what_is_read_is_fetched(hub: HubServer, worker: Worker) -> None:
    hub.requests.clear()
    worker.result("files", name="allenai/c4", config="de")
    fetched = [path for method, path in hub.requests if method == "GET" and path.endswith(".json.gz")]
    assert not fetched


def test_private_data_set(worker: Worker) -> None:
    message = worker.error("files", name="user/secret")
    assert re.search(r"^user/secret: no such data set on http://127.*HF_TOKEN", message)
    paths, _ = worker.result("files", name="user/secret", token=TOKEN)
    assert worker.result("read", paths=paths, token=TOKEN) == ["üben"]


@pytest.mark.slow
def test_an_interrupted_conversion_goes_on_with_its_commit(hub: HubServer, worker: Worker, tmp_path: Path) -> None:
    """Through the command: a bad row ends it, the branch moves on, and what is read then is still the first commit."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "alt": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"text": f"alt {number} " * 2000} for number in range(300)]  # so much that a part is saved before the end
    first = hub.add("user/moving", {"data/a.jsonl": json_lines(*rows, {"text": 1})})
    command = [
        sys.executable, str(ROOT / "scripts/convert_dataset.py"), "source.hub=user/moving", "block_size=8",
        "val_blocks=2", f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'mds'}", "workers=1",
    ]  # fmt: skip
    run = partial(subprocess.run, env=worker.environment, capture_output=True, text=True)
    assert "a.jsonl, line 301" in run(command).stderr
    assert (tmp_path / "mds.partial").is_dir()
    second = hub.add("user/moving", {"data/a.jsonl": json_lines({"text": "neu"})})
    done = run([*command, "on_bad_rows=skip"])
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "mds/manifest.json").read_text())
    assert manifest["sources"]["moving"]["revision"] == first != second
    assert manifest["documents"] == {"read": 301, "kept": 300}
    other = run([*command, "source.revision=main", "on_bad_rows=skip", f"out={tmp_path / 'other'}"])
    assert other.returncode == 2, "the new one's text is too short, which shows that it was read"


# --- what can't be found


@pytest.mark.parametrize("files", [None, "de_meta/*.jsonl.zst"])
@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_gated(hub: HubServer, worker: Worker, files: str | None, token: str | None) -> None:
    name = "oscar-corpus/OSCAR-2301" if files else "uonlp/CulturaX"
    message = worker.error("files", name=name, config=None if files else "de", files=files, token=token)
    assert message.startswith(f"{name} is gated: accept its terms on {hub.url}/datasets/{name}, and set")
    assert "HF_TOKEN" in message


def test_access_that_is_lost_while_reading(hub: HubServer, worker: Worker) -> None:
    paths, _ = worker.result("files", name="uonlp/CulturaX", config="de", token=TOKEN)
    assert worker.result("read", paths=paths, token=TOKEN) == ["Teil 0", "Teil 1", "Teil 2"]
    message = worker.error("read", paths=paths)
    assert re.match(rf"{paths[0]}: can't be read: .*401", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "user/missing"}, r"^user/missing: no such data set on http://127\S+, and no such folder"),
        ({"name": "no/such/folder"}, "^no/such/folder: no such folder, and no name of a data set of the Hub"),
        ({"name": "user/plain", "revision": "v9"}, "^user/plain has no revision v9"),
        ({"name": "allenai/c4", "config": "dee"}, r"^allenai/c4 has no configuration dee; did you mean de\?"),
        ({"name": "allenai/c4", "config": "xyz"}, "^allenai/c4 has no configuration xyz; known: de, en"),
        ({"name": "allenai/c4"}, "^allenai/c4 has several configurations: set config to one of en, de"),
        (
            {"name": "allenai/c4", "config": "de", "split": "test"},
            r"^allenai/c4 has no split test; splits of de: train, validation \(set split\)",
        ),
        ({"name": "user/plain", "split": "train[:10%]"}, "^user/plain has no split train"),
        ({"name": "user/tables"}, r"train\.csv: unknown kind of file; known: \.jsonl"),
        ({"name": "user/tables", "files": "*"}, "none of its 1 files is of a known kind"),
        ({"name": "user/nothing"}, "^user/nothing: .*data files"),
        ({"name": "user/plain", "files": "*.parquet"}, r"@\w+/\*\.parquet: matches no file"),
    ],
)
def test_errors(worker: Worker, arguments: dict[str, str], message: str) -> None:
    assert re.search(message, worker.error("files", **arguments))


def test_loading_script(worker: Worker) -> None:
    message = worker.error("files", name="oscar-corpus/OSCAR-2301", config="de", token=TOKEN)
    assert re.search(r"^oscar-corpus/OSCAR-2301: .*scripts.*OSCAR-2301\.py.*files=PATTERN", message)


def test_no_hub(tmp_path: Path) -> None:
    with HubServer() as closed:
        url = closed.url
    worker = Worker(url, tmp_path)
    message = worker.error("files", name="allenai/c4", config="de")
    worker.close()
    assert message.startswith(f"allenai/c4: the Hub ({url}) can't be reached")


def test_offline(hub: HubServer, tmp_path: Path) -> None:
    worker = Worker(hub.url, tmp_path, HF_HUB_OFFLINE="1")
    message = worker.error("files", name="allenai/c4", config="de")
    worker.close()
    assert re.match(r"allenai/c4: the Hub .* can't be reached or doesn't answer: .*offline", message)


# --- local folders like repositories


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


def test_local_folder_with_a_card(worker: Worker, tmp_path: Path) -> None:
    folder = unpack(WIKIPEDIA, tmp_path / "wikipedia")
    paths, found = worker.result("files", name=str(folder), config="20231101.de")
    assert found is None
    assert paths == [str(folder / f"20231101.de/train-0000{number}-of-00002.parquet") for number in (0, 1)]
    assert re.search(
        "has no configuration 20231101.es; did you mean 20231101.",
        worker.error("files", name=str(folder), config="20231101.es"),
    )
    assert "which has no revision v1" in worker.error("files", name=str(folder), config="20231101.de", revision="v1")


def test_local_folder_without_a_card(worker: Worker, tmp_path: Path) -> None:
    folder = unpack(PLAIN, tmp_path / "plain")
    assert worker.result("files", name=str(folder), split="test")[0] == [str(folder / "data/test-00000.jsonl")]
    assert worker.result("files", name=str(folder), files="data/tr*")[0] == [str(folder / "data/train-00000.jsonl")]


# --- the YAMLs


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack({"a.txt": b"Erstes Buch", "b/c.txt": b"Zweites Buch"}, tmp_path_factory.mktemp("books"))


def expected_sources(hub: HubServer, books: Path) -> dict[str, tuple[list[str], list[dict[str, Any]]]]:
    """By YAML: what is given on the command line, and what should come out; rows as often as they are checked."""
    empty = {"reason": "empty", "is_bad": True}
    wiki = {"revision": commit(hub, "wikimedia/wikipedia"), "rows": ["Köln liegt am Rhein.", "Bonn auch."]}
    both_books = {"revision": None, "rows": ["Erstes Buch", "Zweites Buch"]}
    dropped = [{"reason": f"drop_rows: {warning}", "is_bad": False} for warning in ("tiny", "noisy")]
    return {
        "books": ([f"source.path={books}"], [{"name": "source", "fraction": None, **both_books}]),
        # 1.25 % of 160 files are two, whole.
        "c4": ([], [{"name": "c4", "fraction": None, "files": 2, "rows": [..., empty, ..., empty]}]),
        "cc100": (
            [f"source.path={hub.url}/cc-100/de.txt.xz"],
            [{"name": "source", "bytes": len(CC100), "rows": ["Absatz eins\nAbsatz zwei", "neues Dokument"]}],
        ),
        # 2 % of three files: one of them, and 6 % of it.
        "culturax": ([], [{"name": "CulturaX", "fraction": 0.06, "files": 1, "rows": [...]}]),
        "hub": (
            ["source.hub=user/plain"],
            [{"name": "plain", "revision": commit(hub, "user/plain"), "rows": ["üben"]}],
        ),
        "local": ([f"source.path={books}"], [{"name": "source", **both_books}]),
        "oscar": (
            ["source.sample.by=document"],
            [
                {
                    "name": "OSCAR-2301",
                    "revision": commit(hub, "oscar-corpus/OSCAR-2301"),
                    "fraction": 0.2,
                    "rows": ["gut", dropped[0], "lang", dropped[1], "fein"],
                }
            ],
        ),
        "wiki_books": (
            [f"sources.books.path={books}"],
            [{"name": "wiki", "weight": 0.75, **wiki}, {"name": "books", "weight": 0.25, **both_books}],
        ),
        "wikipedia": ([], [{"name": "wikipedia", "fraction": None, **wiki}]),
    }


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yamls_read_their_corpora(hub: HubServer, worker: Worker, books: Path, path: Path) -> None:
    given, expected = expected_sources(hub, books)[path.stem]
    found = worker.result("sources", argv=[str(path), "tokenizer=t", "out=o", *given], token=TOKEN)
    assert len(found) == len(expected)
    for source, right in zip(found, expected, strict=True):
        rows = right.pop("rows")
        assert len(source["rows"]) == len(rows)
        assert [row for row, right_row in zip(source["rows"], rows, strict=True) if right_row is not ...] == [
            row for row in rows if row is not ...
        ]
        source["files"] = len(source["files"]) if "files" in right else None
        assert {name: source[name] for name in right} == right


def test_gated_corpora_name_their_key(worker: Worker) -> None:
    message = worker.error("sources", argv=[str(ROOT / "yamls/data/oscar.yaml"), "tokenizer=t", "out=o"])
    assert message.startswith("source.hub: oscar-corpus/OSCAR-2301 is gated")
