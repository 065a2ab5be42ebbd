"""The lock that lets one run of a machine start at a time."""

from __future__ import annotations

import logging
from threading import Event, Thread

import pytest

from bertchen.data.shared_memory import one_run_at_a_time


def test_the_second_run_starts_when_the_first_has_started() -> None:
    order: list[str] = []
    waiting = Event()

    def second() -> None:
        waiting.set()
        with one_run_at_a_time():
            order.append("second")

    thread = Thread(target=second)
    with one_run_at_a_time():
        thread.start()
        waiting.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_run_that_hangs_in_its_start_doesnt_hold_up_others(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), one_run_at_a_time():
        with one_run_at_a_time(patience=0):
            pass
        assert "starting beside it" in caplog.text


def test_the_lock_is_given_back_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError), one_run_at_a_time():
        raise RuntimeError("no data")
    with caplog.at_level(logging.WARNING), one_run_at_a_time(patience=0):
        pass
    assert not caplog.records
