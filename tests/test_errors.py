"""What a user can mend ends a command with one line and code 2; anything else is a bug and keeps its traceback."""

from __future__ import annotations

import errno

import pytest

from bertchen.errors import AGAIN_EXIT_CODE, Stop, UserError, is_disk_full, naming_full_disk, user_errors
from bertchen.stores import StoreGone

FULL = [OSError(code, "full", "/runs/x.pt") for code in (errno.ENOSPC, errno.EDQUOT)]


def hidden(cause: Exception) -> Exception:
    """As torch.save raises it: in the handling of the first."""
    try:
        try:
            raise cause
        except OSError:
            raise RuntimeError("unexpected pos")  # noqa: B904
    except RuntimeError as error:
        return error


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught, user_errors():
        raise error
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_a_users_error_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(UserError("lr=fast should be a number"), capsys) == "error: lr=fast should be a number\n"


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_counts_as_one_and_names_the_file(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_disk_full(error)
    assert ended(error, capsys).startswith("error: no space left on the device while writing /runs/x.pt: ")
    assert ended(hidden(error), capsys).startswith("error: no space left")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EACCES, "denied"), KeyError("x")])
def test_bugs_pass(error: Exception) -> None:
    assert not is_disk_full(error)
    with pytest.raises(type(error)), user_errors():
        raise error
    with pytest.raises(type(error)), naming_full_disk("runs"):
        raise error


def test_nothing_happens_without_an_error() -> None:
    with user_errors(), naming_full_disk("runs"):
        pass


def test_a_full_disk_without_a_name_gets_one() -> None:
    with pytest.raises(UserError, match="while writing runs/first"), naming_full_disk("runs/first"):
        raise hidden(OSError(errno.ENOSPC, "full"))
    with pytest.raises(UserError, match=r"while writing /runs/x\.pt"), naming_full_disk("runs/first"):
        raise OSError(errno.ENOSPC, "full", "/runs/x.pt")
    with pytest.raises(UserError, match=r"^mine$"), naming_full_disk("runs/first"):
        raise UserError("mine")


def test_interruption_ends_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending, user_errors():
        raise KeyboardInterrupt
    assert ending.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [Stop("the loader failed", AGAIN_EXIT_CODE), StoreGone("the store is gone")])
def test_what_can_go_on_later_ends_with_a_code_of_its_own(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending, user_errors():
        raise error
    assert ending.value.code == 75
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_stop_is_told_by_the_first_process_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("bertchen.errors.GRACE_SECONDS", 0.0)
    with pytest.raises(SystemExit), user_errors():
        raise Stop("the loader failed", AGAIN_EXIT_CODE)
    assert capsys.readouterr().err == ""
