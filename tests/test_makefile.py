"""The Makefile, its search for an interpreter, .ci/run and the lock files; nothing real is installed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIND_PYTHON = ROOT / "scripts" / "find_python.sh"
MAKE = shutil.which("make")
SH = shutil.which("sh")

PYTEST = "-m pytest --numprocesses logical --maxprocesses 8 --dist worksteal"

needs_make = pytest.mark.skipif(MAKE is None, reason="needs make")

SHIM = 'echo "pyenv: $0: command not found" >&2; exit 127'


def executable(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{SH}\n{body}\n")
    path.chmod(0o755)
    return path


def python(path: Path, minor: int = 11, venv: bool = True) -> Path:
    """An interpreter that says of itself that it is Python 3.`minor`, with or without its venv module."""
    start = f"import sys; sys.version_info = (3, {minor}, 0); sys.executable = '{path}'; "
    if not venv:
        start += "sys.modules['ensurepip'] = None; "
    return executable(path, f'exec {sys.executable} -c "{start} exec(sys.argv[1])" "$2"')


@pytest.fixture
def find(tmp_path):
    def find(*arguments: str, **environment: str):
        env = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home"), **environment}
        command = [SH, str(FIND_PYTHON), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    return find


def assert_found(result, path: Path):
    assert result.stderr == ""
    assert (result.returncode, result.stdout) == (0, f"{path}\n")


@pytest.mark.parametrize("minor", [10, 11, 12])
def test_find_python_takes_a_supported_python3(find, tmp_path, minor):
    expected = python(tmp_path / "bin" / "python3", minor)
    assert_found(find(), expected)


def test_find_python_passes_over_what_does_not_serve(find, tmp_path):
    folder = tmp_path / "bin"
    executable(folder / "python3", SHIM)
    python(folder / "python3.12", venv=False)
    executable(folder / "python3.11", SHIM)
    expected = python(folder / "python3.10", 10)
    python(folder / "python", 11)
    assert_found(find(), expected)


@pytest.mark.parametrize("minor", [8, 9, 13])
def test_find_python_passes_over_other_versions(find, tmp_path, minor):
    python(tmp_path / "bin" / "python3", minor)
    expected = python(tmp_path / "bin" / "python3.11", 11)
    assert_found(find(), expected)


@pytest.mark.parametrize("root", [None, "elsewhere"])
def test_find_python_looks_into_pyenv_last(find, tmp_path, root):
    folder = tmp_path / "bin"
    for name in ("python3", "python3.11", "python3.12"):
        executable(folder / name, SHIM)
    pyenv = tmp_path / (root or "home/.pyenv")
    environment = {"PYENV_ROOT": str(pyenv)} if root else {}
    python(pyenv / "versions" / "3.9.18" / "bin" / "python3", 9)
    expected = python(pyenv / "versions" / "3.12.1" / "bin" / "python3", 12)
    assert_found(find(**environment), expected)


@pytest.mark.parametrize("by_path", [False, True])
def test_find_python_obeys_the_caller(find, tmp_path, by_path):
    python(tmp_path / "bin" / "python3", 12)
    chosen = python(tmp_path / "bin" / "mine", 10)
    assert_found(find(str(chosen) if by_path else "mine"), chosen)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: executable(path, SHIM), "does not run"),
        (lambda path: python(path, 13), "is Python 3.13"),
        (lambda path: python(path, 11, venv=False), "python3.11-venv"),
        (lambda path: path, "does not run"),
    ],
)
def test_find_python_takes_nothing_else_than_what_the_caller_named(find, tmp_path, make, reason):
    python(tmp_path / "bin" / "python3", 12)
    make(tmp_path / "bin" / "mine")
    result = find("mine")
    assert (result.returncode, result.stdout) == (1, "")
    assert "PYTHON=mine" in result.stderr
    assert reason in result.stderr


def test_find_python_says_what_it_looked_at(find, tmp_path):
    python(tmp_path / "bin" / "python3", 13)
    python(tmp_path / "bin" / "python3.11", 11, venv=False)
    result = find()
    assert (result.returncode, result.stdout) == (1, "")
    assert "3.10, 3.11 or 3.12" in result.stderr
    assert "python3 is Python 3.13" in result.stderr
    assert "python3.11-venv" in result.stderr


def test_find_python_without_any(find):
    result = find()
    assert result.returncode == 1
    assert "make PYTHON=" in result.stderr


class Checkout:
    """A copy of what `make` needs, and an interpreter that logs its calls and makes `.venv` of itself."""

    def __init__(self, folder: Path):
        self.folder = folder / "checkout"
        (self.folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", self.folder)
        shutil.copy(FIND_PYTHON, self.folder / "scripts")
        self.requirements = self.folder / "requirements.txt"
        for name in ("requirements.txt", "requirements-dev.txt"):
            (self.folder / name).write_text("")
            os.utime(self.folder / name, (1, 1))
        self.log = folder / "calls"
        self.python = executable(
            folder / "bin" / "python3",
            f"""case "$*" in
-c*) echo "works $0"; exit ;;
*pip*--version) exit ;;
esac
echo "$*" >> {self.log}
case "$*" in
*venv*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
*pip*install*) exit "${{PIP_EXIT:-0}}" ;;
*pytest*) exit "${{PYTEST_EXIT:-0}}" ;;
esac""",
        )

    def make(self, *arguments: str, **environment: str):
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "HOME": str(self.folder), **environment}
        return subprocess.run([MAKE, *arguments], cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)

    def calls(self) -> list[str]:
        """What the interpreter was asked for since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


CREATE = "-m venv --clear .venv"
INSTALL = "-m pip install --disable-pip-version-check --requirement requirements.txt"
INSTALL_DEV = "-m pip install --disable-pip-version-check --requirement requirements-dev.txt"


@needs_make
def test_make_demo_installs_once(checkout):
    assert checkout.make("demo", "ARGS=steps=2 out=x").returncode == 0
    assert checkout.calls() == [CREATE, INSTALL, "scripts/demo.py steps=2 out=x"]
    assert checkout.make("demo").returncode == 0
    assert checkout.calls() == ["scripts/demo.py"]


@needs_make
def test_make_test_and_demo_install_their_own_requirements(checkout):
    assert checkout.make("test", "ARGS=-k masking").returncode == 0
    assert checkout.calls() == [CREATE, INSTALL_DEV, f"{PYTEST} -m not slow -k masking"]
    assert checkout.make("demo").returncode == 0
    assert checkout.calls() == [INSTALL, "scripts/demo.py"]


@needs_make
def test_changed_requirements_are_installed_again(checkout):
    checkout.make("demo")
    stamp = checkout.folder / ".venv" / ".requirements.installed"
    os.utime(checkout.requirements, (stamp.stat().st_mtime + 10,) * 2)
    checkout.calls()
    checkout.make("demo")
    assert checkout.calls() == [INSTALL, "scripts/demo.py"]


@needs_make
def test_failed_install_is_tried_again(checkout):
    assert checkout.make("demo", PIP_EXIT="1").returncode != 0
    assert checkout.calls() == [CREATE, INSTALL]
    assert checkout.make("demo").returncode == 0
    assert checkout.calls() == [INSTALL, "scripts/demo.py"]


@needs_make
def test_interrupted_creation_is_made_again(checkout):
    # What is left when the environment's making ended before its interpreter came.
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    assert checkout.make("demo").returncode == 0
    assert checkout.calls()[0] == CREATE


@needs_make
def test_environment_that_works_is_kept(checkout):
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout.python, checkout.folder / ".venv" / "bin" / "python")
    assert checkout.make("demo").returncode == 0
    assert checkout.calls() == [INSTALL, "scripts/demo.py"]


@needs_make
def test_chosen_interpreter_makes_the_environment(checkout, tmp_path):
    chosen = tmp_path / "other" / "mine"
    chosen.parent.mkdir()
    shutil.copy(checkout.python, chosen)
    result = checkout.make("demo", f"PYTHON={chosen}")
    assert result.returncode == 0
    assert f"making .venv with {chosen}\n" in result.stdout


@needs_make
def test_no_interpreter_ends_make_with_the_reason(checkout):
    result = checkout.make("demo", f"PYTHON={checkout.folder}/none")
    assert result.returncode != 0
    assert "3.10, 3.11 or 3.12" in result.stderr
    assert checkout.calls() == []


@needs_make
def test_failing_tests_fail_make(checkout):
    assert checkout.make("test", PYTEST_EXIT="1").returncode != 0


@needs_make
def test_clean_keeps_the_environment_and_results(checkout):
    for name in ("demo", ".venv", "runs", "bertchen/__pycache__", ".venv/__pycache__"):
        (checkout.folder / name).mkdir(parents=True, exist_ok=True)
    assert checkout.make("clean").returncode == 0
    left = {name for name in ("demo", "runs", "bertchen/__pycache__") if (checkout.folder / name).exists()}
    assert left == {"runs"}
    assert (checkout.folder / ".venv" / "__pycache__").exists()
    assert checkout.make("distclean").returncode == 0
    assert not (checkout.folder / ".venv").exists()


@needs_make
def test_help_names_every_command(checkout):
    result = checkout.make()
    for target in ("demo", "test", "lint", "format", "lock", "clean", "help"):
        assert f"make {target} " in result.stdout


@pytest.mark.parametrize(
    ("failing", "expected"), [("", ["lint", "test"]), ("lint", ["lint"]), ("test", ["lint", "test"])]
)
def test_ci_runs_lint_and_tests_and_keeps_the_exit_code(tmp_path, failing, expected):
    log = tmp_path / "log"
    record = f'echo "$1 $HF_HUB_OFFLINE $WANDB_MODE $OMP_NUM_THREADS" >> {log}'
    executable(tmp_path / "make", f'{record}\n[ "$1" != "{failing}" ] || exit 37')
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(tmp_path), "OMP_NUM_THREADS": "3"}
    result = subprocess.run(["bash", str(ROOT / ".ci" / "run")], env=env, capture_output=True, timeout=60)
    assert log.read_text().splitlines() == [f"{target} 1 offline 3" for target in expected]
    assert result.returncode == (37 if failing else 0)


def entries(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line for line in lines if line and not line.lstrip().startswith("#")}


def test_lock_files_agree():
    runtime, development = entries("requirements.txt"), entries("requirements-dev.txt")
    assert runtime
    assert runtime <= development


def test_every_requirement_is_pinned():
    assert all("==" in pin.split(";")[0] for pin in entries("requirements.txt") | entries("requirements-dev.txt"))


def test_image_leaves_out_what_git_ignores():
    ignored = entries(".gitignore")
    left_out = {line.removeprefix("**/").strip("/") for line in entries(".dockerignore")}
    assert {line.strip("/") for line in ignored} <= left_out
