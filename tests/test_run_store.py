"""A run's folder in a store, over HTTP and on a path: whole at every moment, and foreign things are left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faulty_store import BUCKET, FaultyStore

from bertchen import run_store
from bertchen.run_store import LATEST, Content, RunStore, StoredCheckpoint, content_of
from bertchen.stores import StoreError, StoreGone

PREFIX = "runs/one"
URL = f"s3://{BUCKET}/{PREFIX}"
METRICS = b'{"step": 0}\n{"step": 1}\n'


@pytest.fixture(params=["s3", "path"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    if request.param == "path":
        return RunStore(str(tmp_path / "shared/one"), patience=0.1)
    request.getfixturevalue("faulty_store")
    return RunStore(URL, patience=30.0)


def upload(store: RunStore, folder: Path, step: int, earlier: list[StoredCheckpoint]) -> StoredCheckpoint:
    """A checkpoint of the step, and two lines of metrics that belong to it."""
    path = folder / f"ep0-ba{step}-rank0.pt"
    path.write_bytes(f"weights of {step}".encode() * 100)
    checkpoint = StoredCheckpoint(path.name, step, content_of(path), {"metrics.jsonl": Content.of(METRICS)})
    store.put(path, path.name)
    store.put_bytes("metrics.jsonl", METRICS + b'{"step": 2}\n')
    store.name_checkpoints([checkpoint, *earlier])
    return checkpoint


def test_nothing_is_there_before_a_run(store: RunStore) -> None:
    assert store.names() == []
    assert store.checkpoints() == []
    store.clear()
    store.check()
    assert store.names() == []


def test_what_is_named_is_fetched_as_it_was(store: RunStore, tmp_path: Path) -> None:
    first = upload(store, tmp_path, 4, [])
    second = upload(store, tmp_path, 8, [first])
    assert store.checkpoints() == [second, first]
    assert store.names() == ["ep0-ba4-rank0.pt", "ep0-ba8-rank0.pt", LATEST, "metrics.jsonl"]
    there = tmp_path / "there"
    there.mkdir()
    assert store.fetch(second, there / "x.pt") is None
    assert store.fetch_log(second, "metrics.jsonl", there / "metrics.jsonl") is None
    assert (there / "x.pt").read_bytes() == (tmp_path / second.name).read_bytes()
    assert (there / "metrics.jsonl").read_bytes() == METRICS, "what belongs to the checkpoint, and no more"
    assert len(list(there.iterdir())) == 2


def test_checkpoints_that_are_no_longer_named_are_removed(store: RunStore, tmp_path: Path) -> None:
    first = upload(store, tmp_path, 4, [])
    store.put(tmp_path / first.name, "ep0-ba6-rank0.pt")  # its writer was killed before it was named
    second = upload(store, tmp_path, 8, [])
    assert store.checkpoints() == [second]
    assert store.names() == [second.name, LATEST, "metrics.jsonl"]


def test_clearing_leaves_foreign_things(store: RunStore, tmp_path: Path) -> None:
    upload(store, tmp_path, 4, [])
    for name in ("hf/config.json", "config.yaml", "thesis.tex", "data/index.json"):
        store.put_bytes(name, b"x")
    store.clear()
    assert store.names() == []
    assert store.filesystem.exists(f"{store.root}/thesis.tex")
    assert store.filesystem.exists(f"{store.root}/data/index.json")


@pytest.mark.parametrize("spoil", [lambda held: held[:-1], lambda held: held[:-1] + b"x", None])
def test_what_is_damaged_is_not_fetched(store: RunStore, tmp_path: Path, spoil) -> None:
    checkpoint = upload(store, tmp_path, 4, [])
    if spoil is None:
        store.filesystem.rm_file(f"{store.root}/{checkpoint.name}")
    else:
        store.put_bytes(checkpoint.name, spoil((tmp_path / checkpoint.name).read_bytes()))
    there = tmp_path / "there"
    there.mkdir()
    reason = store.fetch(checkpoint, there / "x.pt")
    assert reason is not None
    assert ("isn't there" in reason) == (spoil is None)
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1, "checkpoints": [{}]}'])
def test_a_list_that_is_not_ours_is_named(store: RunStore, content: bytes) -> None:
    store.put_bytes(LATEST, content)
    with pytest.raises(StoreError, match=r"one/latest\.json: can't be understood"):
        store.checkpoints()


def test_the_list_can_be_read_by_people(store: RunStore, tmp_path: Path) -> None:
    checkpoint = upload(store, tmp_path, 4, [])
    listed = json.loads(store.filesystem.cat_file(f"{store.root}/{LATEST}"))
    assert listed == {
        "version": 1,
        "checkpoints": [
            {
                "name": "ep0-ba4-rank0.pt",
                "step": 4,
                "content": {"bytes": 1200, "xxh64": checkpoint.content.xxh64},
                "logs": {"metrics.jsonl": {"bytes": 24, "xxh64": Content.of(METRICS).xxh64}},
            }
        ],
    }


@pytest.mark.parametrize("fault", [(500, 503), "cut", "flip"])
def test_faults_of_one_request_in_five_cost_nothing(faulty_store: FaultyStore, tmp_path: Path, fault) -> None:
    store = RunStore(URL, patience=60.0)
    faulty_store.one_in, faulty_store.fault = 5, fault
    # A bit that flips in the list itself is noticed where it no longer is one.
    faulty_store.where = lambda name: fault != "flip" or not name.endswith(LATEST)
    named: list[StoredCheckpoint] = []
    for step in range(4, 20, 4):
        named = [upload(store, tmp_path, step, named[:1]), *named[:1]]
    there = tmp_path / "there"
    there.mkdir()
    fetched = [store.fetch(each, there / each.name) for each in store.checkpoints()]
    faulty_store.one_in = 0
    assert store.checkpoints() == named
    assert fetched.count(None) == 2 or fault == "flip", "twice a flipped bit is taken for the store's"
    for path in there.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


@pytest.mark.usefixtures("faulty_store")
def test_large_files_go_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    monkeypatch.setattr(run_store, "_PART_BYTES", 5 << 20)  # the least that S3 takes
    path.write_bytes(bytes(range(256)) * (44 << 10))
    store, parts = RunStore(URL, patience=30.0), []
    store.put(path, "ep0-ba1-rank0.pt", lambda: parts.append(1))
    assert len(parts) == 3
    checkpoint = StoredCheckpoint("ep0-ba1-rank0.pt", 1, content_of(path), {})
    assert store.fetch(checkpoint, tmp_path / "back") is None


def test_a_store_that_is_gone_is_named_after_the_patience(
    faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = RunStore(URL, patience=0.0)
    with faulty_store.gone(), pytest.raises(StoreGone, match=rf"writing .*{PREFIX}"):
        store.check()


@pytest.mark.fault("credentials wrong")
@pytest.mark.parametrize("secret", ["a-wrong-secret-of-mine", None])
def test_credentials_that_are_refused_name_the_variable(
    faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch, secret: str | None
) -> None:
    faulty_store.secrets = {"AN-INVENTED-KEY-ID": "an-invented-secret"}
    RunStore(URL, patience=30.0).check()
    if secret is None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(StoreError, match=r"AWS_SECRET_ACCESS_KEY") as caught:
        RunStore(URL, patience=30.0).check()
    assert not isinstance(caught.value, StoreGone)
    assert str(secret) not in str(caught.value)


@pytest.mark.parametrize("url", ["nosuch://bucket/run", "s3n5://x/y"])
def test_a_store_that_nobody_knows(url: str) -> None:
    with pytest.raises(ValueError, match=r"no store that can be written"):
        RunStore(url, patience=1.0)


def test_a_bucket_that_is_not_there(faulty_store: FaultyStore) -> None:
    with pytest.raises(StoreError, match=r"no such bucket"):
        RunStore("s3://another/run", patience=1.0).check()
