"""Conversion by datatrove's executors: the same bytes, whoever does the work and however often it is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from running import PATIENCE, PYTHON, ROOT, Prepared, environment, german_documents

FILES, DOCUMENTS = 5, 2600  # over 1 MiB a file: each is a part of the work
LOCAL_TASKS = ("engine.name=datatrove_local", "engine.tasks=4", "engine.options.workers=2")
SLURM = ("engine.name=slurm", "engine.tasks=2", "engine.options.partition=cpu", "engine.options.time=1-00")
RAY = ("engine.name=ray", "engine.tasks=4", "engine.options.workers=2", "engine.options.mem_per_cpu_gb=0.5")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(FILES):
        lines = [json.dumps({"text": text}) + "\n" for text in german_documents(DOCUMENTS, seed=number)]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return folder


def command(corpus: Path, prepared: Prepared, out: Path, *more: str) -> list[str]:
    return [
        PYTHON, str(ROOT / "scripts/convert_dataset.py"), f"source.path={corpus}/*.jsonl",
        f"tokenizer={prepared.tokenizer}", f"out={out}", "block_size=64", "val_blocks=20", "shard_size=65536",
        "workers=1", *more,
    ]  # fmt: skip


def convert(
    corpus: Path, prepared: Prepared, out: Path, *more: str, code: int = 0, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Converts; with `path` as where a user has that as PATH and doesn't stand in the project's folder."""
    done = subprocess.run(
        command(corpus, prepared, out, *more), cwd=out.parent, env=environment(**({"PATH": path} if path else {})),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


@pytest.fixture(scope="module")
def expected(corpus: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engine of this machine makes."""
    out = tmp_path_factory.mktemp("expected") / "mds"
    convert(corpus, prepared, out)
    return out


def content(folder: Path) -> dict[str, object]:
    """All files but what the manifest says of the run itself."""
    files: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    return {**files, "manifest.json": {**manifest, "seconds": 0, "created": "", "config": {}}}


def start_and_kill(arguments: list[str], is_time: Callable[[], bool]) -> None:
    """SIGKILL to a command and all that it started, as soon as it is time."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + PATIENCE
    while not is_time():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_datatrove_on_this_machine(corpus: Path, prepared: Prepared, expected: Path, tmp_path: Path) -> None:
    done = convert(corpus, prepared, tmp_path / "mds", *LOCAL_TASKS)
    assert content(tmp_path / "mds") == content(expected)
    assert os.listdir(tmp_path) == ["mds"], "nothing else is left"
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert {line.partition(":")[0] for line in lines} == {"tokenizing", "arranging", "writing"}


@pytest.mark.parametrize(
    ("sign", "second"),
    [
        ("segments/*.json", LOCAL_TASKS),
        ("segments/*.json", ("workers=2",)),
        ("groups/*.npz", ("engine.name=datatrove_local", "engine.tasks=9", "engine.options.workers=1")),
    ],
)  # fmt: skip
def test_killed_and_begun_again(
    corpus: Path, prepared: Prepared, expected: Path, tmp_path: Path, sign: str, second: tuple[str, ...]
) -> None:
    out, work = tmp_path / "mds", tmp_path / "mds.partial"
    start_and_kill(command(corpus, prepared, out, *LOCAL_TASKS), lambda: any(work.glob(sign)))
    assert work.exists()
    assert not out.exists()
    convert(corpus, prepared, out, *second)
    assert content(out) == content(expected)
    assert os.listdir(tmp_path) == ["mds"]


def test_killed_on_this_machine_and_ended_by_tasks(
    corpus: Path, prepared: Prepared, expected: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mds"
    start_and_kill(
        command(corpus, prepared, out, "workers=2"), lambda: any((tmp_path / "mds.partial").glob("segments/*.json"))
    )
    convert(corpus, prepared, out, *LOCAL_TASKS)
    assert content(out) == content(expected)


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> FakeSlurm:
    return FakeSlurm(tmp_path_factory.mktemp("slurm"))


def test_slurm(corpus: Path, prepared: Prepared, expected: Path, tmp_path: Path, slurm: FakeSlurm) -> None:
    out = tmp_path / "mds"
    done = convert(corpus, prepared, out, *SLURM, path=slurm.path)
    assert "101 (tokenize), 102 (arrange), 103 (write), 104 (finish)" in done.stdout
    assert str(out) in done.stdout
    assert slurm.states() == ["PENDING"] * 4

    done = convert(corpus, prepared, out, *SLURM, "restart=true", path=slurm.path, code=2)
    assert "jobs of this conversion wait or run: 101 102 103 104" in done.stderr
    done = convert(corpus, prepared, out, path="/usr/bin:/bin", code=2)
    assert "101 102 103 104" in done.stderr
    assert "whether they have ended can't be told" in done.stderr
    assert (tmp_path / "mds.partial/plan.json").exists()

    slurm.run_jobs()
    assert slurm.states() == ["COMPLETED"] * 4
    assert content(out) == content(expected)
    assert os.listdir(tmp_path) == ["mds"]
    done = convert(corpus, prepared, out, *SLURM, path=slurm.path)
    assert "20 blocks of 64" in done.stdout
    assert len(slurm.states()) == 4, "what is complete isn't submitted again"


def test_slurm_refuses_the_second_job(corpus: Path, prepared: Prepared, tmp_path: Path, slurm: FakeSlurm) -> None:
    slurm.limit_to_one_job()
    done = convert(corpus, prepared, tmp_path / "mds", *SLURM, path=slurm.path, code=2)
    assert "violates accounting/QOS policy" in done.stderr
    assert "refused the job of the phase arrange" in done.stderr
    assert slurm.states() == ["CANCELLED"]
    assert not os.listdir(tmp_path)


def test_bad_row(corpus: Path, prepared: Prepared, expected: Path, tmp_path: Path, slurm: FakeSlurm) -> None:
    """Ends the chain, whatever becomes of the dependencies; mended, the rest is done by another engine."""
    broken, out, work = tmp_path / "broken", tmp_path / "mds", tmp_path / "mds.partial"
    broken.mkdir()
    for path in corpus.iterdir():
        os.link(path, broken / path.name)
    lines = (broken / "3.jsonl").read_text().splitlines()
    (broken / "3.jsonl").unlink()
    (broken / "3.jsonl").write_text("\n".join([*lines[:1000], '{"text": 3}', *lines[1000:]]))

    message = f"{broken}/3.jsonl, line 1001: text is"
    convert(broken, prepared, out, *SLURM, path=slurm.path)
    slurm.run_jobs()
    assert slurm.states() == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    logs = {path.name: path.read_text() for path in (work / "logs/tokenize/slurm_logs").iterdir()}
    assert f"error: {message}" in logs["101_1.out"]
    assert "error:" not in logs["101_0.out"]
    assert "Traceback" not in logs["101_1.out"]

    convert(broken, prepared, out, *SLURM, path=slurm.path)
    slurm.run_jobs(heeds_dependencies=False)
    assert slurm.states()[4:] == ["FAILED"] * 4
    for phase, number, missing in (
        ("arrange", 106, rf"of 5 parts of the input, from {broken}/[13]\.jsonl on: missing after the phase tokenize"),
        ("write", 107, "missing after the phase arrange"),
        ("finish", 108, "missing after the phase arrange"),
    ):
        assert re.search(missing, (work / f"logs/{phase}/slurm_logs/{number}_0.out").read_text())
    assert not out.exists()

    done = convert(broken, prepared, out, *LOCAL_TASKS, path=slurm.path, code=2)
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    convert(broken, prepared, out, *SLURM, "on_bad_rows=skip", path=slurm.path)
    slurm.run_jobs()
    assert slurm.states()[8:] == ["COMPLETED"] * 4
    assert {name: raw for name, raw in content(out).items() if name.endswith(".mds")} == {
        name: raw for name, raw in content(expected).items() if name.endswith(".mds")
    }
    assert json.loads((out / "manifest.json").read_text())["bad_rows"] == {"not a string": 1}


def test_ray(corpus: Path, prepared: Prepared, expected: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[default]'")
    convert(corpus, prepared, tmp_path / "mds", *RAY)
    assert content(tmp_path / "mds") == content(expected)
