"""Each process learns which other one has failed or died, by a store that all of them share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store, TCPStore

from bertchen.train import peers as module
from bertchen.train.peers import PeerFailed, Peers, watched_peers

BEAT = 0.01


@pytest.fixture
def three() -> tuple[Store, list[Peers]]:
    store = HashStore()
    return store, [Peers(store, rank, 3, BEAT) for rank in range(3)]


def test_nothing_is_wrong_while_all_give_signs_of_life(three: tuple[Store, list[Peers]]) -> None:
    _, peers = three
    assert {each.look() for _ in range(3 * module.SILENT_BEATS) for each in peers} == {None}


def test_a_reason_reaches_all_and_the_first_counts(three: tuple[Store, list[Peers]]) -> None:
    _, peers = three
    peers[1].tell("ValueError: a bug")
    peers[2].tell("RuntimeError: connection closed by peer")
    for each in peers:
        reason = each.look()
        assert reason is not None
        assert reason.startswith("process 1 on ")
        assert reason.endswith(" failed: ValueError: a bug")


@pytest.mark.parametrize("dead", range(3))
def test_one_without_signs_of_life_is_named_to_all(three: tuple[Store, list[Peers]], dead: int) -> None:
    _, peers = three
    alive = [each for each in peers if each.rank != dead]
    for each in peers:
        each.look()
    reasons = {each.look() for _ in range(module.SILENT_BEATS + 2) for each in alive}
    (reason,) = reasons - {None}
    assert f"process {dead} on " in reason
    assert "no sign of life" in reason


@pytest.mark.parametrize("looked", [True, False], ids=["", "before its first look"])
def test_who_died_is_found_within_some_beats(three: tuple[Store, list[Peers]], looked: bool) -> None:
    _, peers = three
    for each in peers if looked else peers[1:]:
        each.look()
    peers[2].watch()
    found = peers[1].who_failed()
    peers[2].is_over()
    assert found is not None
    assert found.startswith("process 0 on ")
    assert found.endswith(" died")


@pytest.fixture
def elsewhere() -> Iterator[tuple[subprocess.Popen[str], Callable[[], Store]]]:
    """A process that holds a store, as the first one of a run does."""
    code = (
        "from torch.distributed import TCPStore; import sys\n"
        "store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        port = int(process.stdout.readline())
        yield (
            process,
            lambda: TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=15)),
        )
        process.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "its machine is gone"])
def test_process_ends_where_the_store_is_gone(
    elsewhere: tuple[subprocess.Popen[str], Callable[[], Store]], monkeypatch: pytest.MonkeyPatch, how: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A stopped process answers nothing, and no connection is closed: as if its machine had lost its power."""
    process, connect = elsewhere
    ends: list[int] = []
    monkeypatch.setattr(module, "GRACE", BEAT)
    monkeypatch.setattr(os, "_exit", ends.append)
    peers = Peers(connect(), 1, 2, BEAT)
    assert peers.look() is None
    process.send_signal(how)
    (_, watch) = peers.watch()
    watch.join(60)
    process.send_signal(signal.SIGCONT)
    assert ends == [1]
    assert capsys.readouterr().err == "error: process 0 has ended, or its machine can't be reached\n"


def test_what_a_collective_raises_gives_way_to_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(Peers):
        def __init__(self, *args: object) -> None: ...
        def watch(self) -> None: ...
        def is_over(self) -> None: ...
        def tell(self, reason: str) -> None:
            told.append(reason)

        def who_failed(self) -> str | None:
            return "process 1 on n2 died"

    told: list[str] = []
    monkeypatch.setattr(module, "Peers", Known)
    monkeypatch.setattr(module, "TCPStore", lambda *args, **options: None)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(PeerFailed, match="process 1 on n2 died"), watched_peers():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:24816")
    with pytest.raises(ValueError, match="a bug"), watched_peers():
        raise ValueError("a bug")
    assert told == ["ValueError: a bug"]
