"""scripts/docker_run.sh against a `docker` that records what it is given."""

import itertools
import netrc
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "docker_run.sh"
BASH = shutil.which("bash")
KEY = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

FAKE_DOCKER = """#!/bin/sh
printf '%s\\0' "$@" > "$RECORD/arguments"
printf '%s' "$WANDB_API_KEY" > "$RECORD/key"
cat /proc/$$/cmdline > "$RECORD/cmdline" 2>/dev/null
exit ${DOCKER_EXIT:-0}
"""


class Runner:
    """Calls the script with a fake `docker` on PATH and a home of its own."""

    def __init__(self, folder: Path):
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.record = folder / "record"
        for each in (self.home, self.bin, self.record):
            each.mkdir()
        for tool in ("awk", "cat", "dirname", "id", "mkdir", "sh"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.docker = self.bin / "docker"
        self.docker.write_text(FAKE_DOCKER)
        self.docker.chmod(0o755)

    def __call__(self, *arguments: str, bash: tuple[str, ...] = (), **environment: str):
        env = {"PATH": str(self.bin), "HOME": str(self.home), "RECORD": str(self.record), **environment}
        command = [BASH, *bash, str(SCRIPT), *arguments]
        return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    def arguments(self) -> list[str]:
        return (self.record / "arguments").read_text().split("\0")[:-1]

    def key(self) -> str:
        return (self.record / "key").read_text()


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path)


def after(arguments: list[str], option: str) -> list[str]:
    """The values that follow each occurrence of an option."""
    return [value for name, value in itertools.pairwise(arguments) if name == option]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["all"]),
        (("-g", "all"), ["all"]),
        (("-g", "0"), ['"device=0"']),
        (("-g", "0,2"), ['"device=0,2"']),
        (("-g", "GPU-8932f937-d72c"), ['"device=GPU-8932f937-d72c"']),
        (("-g", "none"), []),
    ],
)
def test_gpus(run, options, expected):
    assert run(*options, "nvidia-smi").returncode == 0
    assert after(run.arguments(), "--gpus") == expected


def test_command_comes_last_and_word_by_word(run):
    command = ["python", "main.py", "a b", "-g", "--dry-run", "x=$HOME", ""]
    assert run("-i", "some/image:1", "--", *command).returncode == 0
    arguments = run.arguments()
    assert arguments[0] == "run"
    assert arguments[-len(command) - 1 :] == ["some/image:1", *command]


def test_shell_by_default(run):
    assert run().returncode == 0
    assert run.arguments()[-2:] == ["bertchen", "bash"]


def test_mounts_user_and_shared_memory(run, tmp_path):
    data = tmp_path / "my data"
    data.mkdir()
    assert run("-d", str(data), "-s", "3g", "true", HF_HOME=str(tmp_path / "hf")).returncode == 0
    arguments = run.arguments()
    mounts = {
        fields["target"]: fields["source"]
        for value in after(arguments, "--mount")
        for fields in [dict(field.split("=", 1) for field in value.split(","))]
    }
    assert mounts == {
        "/bertchen": str(ROOT),
        "/cache": str(run.home / ".cache" / "bertchen"),
        "/cache/huggingface": str(tmp_path / "hf"),
        "/data": str(data),
    }
    assert all(Path(source).is_dir() for source in mounts.values())
    assert after(arguments, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert after(arguments, "--shm-size") == ["3g"]
    assert "--tty" not in arguments  # stdin is no terminal here


def test_relative_data_folder_is_made_absolute(run):
    assert run("-d", ".", "true").returncode == 0
    assert f"type=bind,source={Path.cwd()},target=/data" in after(run.arguments(), "--mount")


def test_exit_code_is_the_container_s(run):
    assert run("false", DOCKER_EXIT="37").returncode == 37


def assert_key_hidden(run, result):
    assert run.key() == KEY
    assert "WANDB_API_KEY" in after(run.arguments(), "--env")
    places = [result.stdout, result.stderr, *run.arguments()]
    cmdline = run.record / "cmdline"
    if cmdline.exists():
        places.append(cmdline.read_text())
    assert not [place for place in places if KEY in place]


@pytest.mark.parametrize("bash", [(), ("-x",)])
def test_key_from_environment_reaches_the_container_unseen(run, bash):
    (run.home / ".netrc").write_text("machine api.wandb.ai login user password from-netrc\n")
    assert_key_hidden(run, run("true", bash=bash, WANDB_API_KEY=KEY))


@pytest.mark.parametrize("bash", [(), ("-x",)])
@pytest.mark.parametrize(
    "text",
    [
        f"machine api.wandb.ai login user password {KEY}\n",
        f"machine api.wandb.ai\n  login user\n  password {KEY}\n",
        f"machine a login u password x\nmachine api.wandb.ai password {KEY} login u\nmachine b password y",
        f"machine a.org login password password machine\nmachine api.wandb.ai login u password {KEY}\n",
        f"machine api.wandb.ai login u password {KEY}\ndefault login anonymous password z\n",
    ],
)
def test_key_from_netrc_reaches_the_container_unseen(run, text, bash):
    file = run.home / ".netrc"
    file.write_text(text)
    file.chmod(0o600)
    assert netrc.netrc(file).authenticators("api.wandb.ai")[2] == KEY
    assert_key_hidden(run, run("true", bash=bash))


@pytest.mark.parametrize("text", ["", "machine a.org login u password p\n", "default login u password p\n"])
def test_no_key_is_no_error(run, text):
    (run.home / ".netrc").write_text(text)
    assert run("true").returncode == 0
    assert run.key() == ""
    assert "WANDB_API_KEY" not in after(run.arguments(), "--env")


def test_dry_run_prints_the_command_without_the_key(run):
    run.docker.unlink()
    result = run("-g", "0,2", "--dry-run", "echo", "two words", WANDB_API_KEY=KEY)
    assert result.returncode == 0
    assert KEY not in result.stdout + result.stderr
    assert not (run.home / ".cache").exists()
    run.docker.write_text(FAKE_DOCKER)
    run.docker.chmod(0o755)
    # The printed line is one that a shell takes: what it then starts is what the script itself would start.
    env = {"PATH": str(run.bin), "RECORD": str(run.record), "HOME": str(run.home)}
    subprocess.run([BASH, "-c", result.stdout], env=env, check=True, timeout=60)
    printed = run.arguments()
    assert run("-g", "0,2", "echo", "two words", WANDB_API_KEY=KEY).returncode == 0
    assert printed == run.arguments()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("-g", "0,"), "-g 0,"),
        (("-g", "0 2"), "-g 0 2"),
        (("-g", "any"), "-g any"),
        (("-g",), "-g"),
        (("-g", ""), "-g"),
        (("-d", "/nowhere/at/all"), "/nowhere/at/all"),
        (("-i", "--privileged"), "--privileged"),
        (("-s", "lots"), "-s lots"),
        (("-z",), "-z"),
        (("--gpus", "all"), "--gpus"),
    ],
)
def test_bad_arguments_end_with_one_message(run, arguments, named):
    result = run(*arguments)
    assert result.returncode == 2
    assert named in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (run.record / "arguments").exists()


def test_folder_with_a_comma_is_refused(run, tmp_path):
    folder = tmp_path / "a,b"
    folder.mkdir()
    result = run("-d", str(folder))
    assert result.returncode == 2
    assert "comma" in result.stderr


def test_missing_docker_is_named(run):
    run.docker.unlink()
    result = run("true")
    assert result.returncode == 2
    assert "docker not found" in result.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(run, option):
    result = run(option)
    assert result.returncode == 0
    assert "usage: scripts/docker_run.sh" in result.stdout
