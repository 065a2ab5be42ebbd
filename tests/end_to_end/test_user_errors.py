"""What a user can mend ends the command within seconds: one message that says how, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running import COMPOSER, LATEST, PYTHON, Prepared, checkpoints, run, tree

from bertchen.tokenizer import train_tokenizer

Refuse = Callable[..., str]


@pytest.fixture
def refuse(prepared: Prepared, tmp_path: Path, in_process: Callable, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Starts main.py, which must refuse; the message. The folder of the test must be left as it was."""

    def start(*arguments: str, save_folder: Path = tmp_path / "run") -> str:
        before = tree(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            in_process(*prepared.overrides(save_folder, *arguments))
        assert ended.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1, "one message, in one line"
        assert tree(tmp_path) == before
        return captured.err

    return start


# What is given, and what the message must name: key or file, the value, what would be right.
KEYS = {
    "unknown key": ("learning_rate=1", "learning_rate", "the command line", "unknown key", "known: "),
    "misspelt key": ("max_duraton=3ba", "max_duraton", "unknown key", "did you mean max_duration?"),
    "misspelt key in a section": ("optimizer.betass=[0,0]", "optimizer.betass", "did you mean optimizer.betas?"),
    "misspelt field of the model": ("model.hiden_size=32", "model.hiden_size", "did you mean hidden_size?"),
    "word for a number": ("global_train_batch_size=many", "global_train_batch_size=many", "should be int"),
    "word for a number in a list": ("eval.lengths=[32,long]", "eval.lengths", "should be list[int]"),
    "word for a field of the model": ("model.hidden_size=wide", "model.hidden_size=wide", "should be a whole number"),
    "value for a section": ("data=mds", "data=mds", "should be a mapping"),
    "negative learning rate": ("optimizer.lr=-1", "optimizer.lr=-1", "should be positive"),
    "share over 1": ("masking.mlm_probability=30", "masking.mlm_probability=30", "between 0 and 1"),
    "duration without a unit": ("max_duration=lots", "max_duration=lots", "100ba (steps)"),
    "wall-clock limit that is none": ("stop_after=tomorrow", "stop_after=tomorrow", "4h"),
    "interval of nothing": ("save_interval=0ba", "save_interval=0ba", "should be more than 0"),
    "unknown task": ("task=pretrian", "task=pretrian", "pretrain"),
    "unknown optimizer": ("optimizer.name=adamv", "optimizer.name=adamv", "did you mean adamw?"),
    "unknown scheduler": ("scheduler.name=linear", "scheduler.name=linear", "linear_with_warmup"),
    "unknown algorithm": ("algorithms.gradient_cliping={}", "algorithms.gradient_cliping", "gradient_clipping?"),
    "unknown argument of an algorithm": ("algorithms.ema.halflife=1ba", "algorithms.ema.halflife", "half_life?"),
    "unknown callback": ("callbacks.throughputs={}", "callbacks.throughputs", "did you mean throughput?"),
    "unknown logger": ("loggers.tensorbord={}", "loggers.tensorbord", "did you mean tensorboard?"),
    "unknown precision": ("precision=bf16", "precision=bf16", "amp_bf16"),
    "precision that the CPU doesn't have": ("precision=amp_bf16", "precision=amp_bf16", "use auto or fp32"),
    "backend that the CPU doesn't have": ("model.attention_backend=flash", "model.attention_backend=flash", "sdpa"),
    "unknown backend": ("model.attention_backend=flsh", "flsh", "sdpa"),
    "heads that don't divide": ("model.num_attention_heads=5", "num_attention_heads", "5", "32"),
    "vocabulary smaller than the tokenizer's": ("model.vocab_size=64", "model.vocab_size=64", "entries", "or null"),
    "rows longer than blocks": ("sequence_length=128", "sequence_length", "128", "blocks of 64"),
    "rows that don't divide blocks": ("eval.lengths=[48]", "eval.lengths", "48", "blocks of 64"),
    "microbatches that don't divide": ("microbatch_tokens=384", "microbatch_tokens=384", "isn't divisible"),
    "more blocks a step than there are": ("global_train_batch_size=4096", "size=4096", "blocks only"),
    "both to go on and to start anew": (("autoresume=true", "overwrite=true"), "autoresume=true", "overwrite=true"),
    "no data folder": ("data.local={tmp}/no", "data.local={tmp}/no", "no such folder", "convert_dataset.py"),
    "empty data folder": ("data.local={tmp}/empty", "data.local={tmp}/empty", "is empty", "convert_dataset.py"),
    "folder that holds no shards": ("data.local={tmp}", "{tmp}/manifest.json", "convert_dataset.py"),
    "remote that isn't there": (("data.remote={tmp}/no", "data.local={tmp}/cache"), "data.remote={tmp}/no"),
    "no tokenizer": ("tokenizer={tmp}/no", "tokenizer", "{tmp}/no"),
    "empty tokenizer folder": ("tokenizer={tmp}/empty", "{tmp}/empty"),
    "no weights to start from": ("init_from={tmp}/empty", "init_from={tmp}/empty", "can't be loaded"),
    "run folder that is a file": ("save_folder={tmp}/file", "save_folder={tmp}/file", "is a file"),
    "run folder below a file": ("save_folder={tmp}/file/run", "save_folder={tmp}/file/run", "is a file"),
    "override with a space": ("seed =3", "'seed =3'", "without spaces"),
    "option": ("--max-duration", "--max-duration", "max_duration=…"),
    "no such YAML": ("yamls/pretrane.yaml", "yamls/pretrane.yaml", "no such YAML file"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS.values(), ids=[name.replace(" ", "_") for name in KEYS])
def test_wrong_value(case: tuple, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("nothing of ours")
    given, *fragments = case
    given = [given] if isinstance(given, str) else given
    message = refuse(*(item.replace("{tmp}", str(tmp_path)) for item in given))
    for fragment in fragments:
        assert fragment.replace("{tmp}", str(tmp_path)) in message


def test_missing_key(in_process: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        in_process("yamls/pretrain.yaml", "save_folder=x", "tokenizer=y")
    assert capsys.readouterr().err.startswith("error: data.local is not set: give it")


def test_data_made_with_another_tokenizer(refuse: Refuse, prepared: Prepared, tmp_path: Path) -> None:
    train_tokenizer(["Ein ganz anderer Text."] * 3, 300, min_frequency=1).save_pretrained(tmp_path / "other")
    message = refuse(f"tokenizer={tmp_path / 'other'}")
    made_with = prepared.manifest()["tokenizer"]
    for fragment in (str(prepared.mds), made_with["name"], made_with["fingerprint"], str(tmp_path / "other")):
        assert fragment in message


def test_data_of_another_version(refuse: Refuse, prepared: Prepared, tmp_path: Path) -> None:
    mds = shutil.copytree(prepared.mds, tmp_path / "mds")
    (mds / "manifest.json").write_text(json.dumps({**prepared.manifest(), "version": 99}))
    assert "version 99" in refuse(f"data.local={mds}")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_shard(refuse: Refuse, prepared: Prepared, tmp_path: Path, split: str, damage: str) -> None:
    mds = shutil.copytree(prepared.mds, tmp_path / "mds")
    shard = sorted((mds / split).rglob("*.mds"))[-1]
    spoil(shard, damage)
    message = refuse(f"data.local={mds}")
    assert str(shard) in message
    assert "convert the data again" in message


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
        return
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: len(content) * 2 // 3] if damage == "cut" else content)


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, in_process: Callable) -> Path:
    """A run of 6 steps with checkpoints of the third and the last."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    in_process(*prepared.overrides(folder, "max_duration=6ba", "save_interval=3ba", "eval.interval=6ba"))
    return folder


class TestRunFolder:
    """What an earlier run left."""

    @pytest.fixture
    def folder(self, trained: Path, tmp_path: Path) -> Path:
        return shutil.copytree(trained, tmp_path / "run", symlinks=True)

    def test_is_not_touched_without_being_told(self, refuse: Refuse, folder: Path) -> None:
        message = refuse()
        for fragment in (f"save_folder={folder}", "autoresume=true", "overwrite=true"):
            assert fragment in message

    @pytest.mark.parametrize("damage", ["flip", "cut"])
    def test_damaged_checkpoint_is_left_for_the_one_before(
        self, prepared: Prepared, folder: Path, in_process: Callable, caplog: pytest.LogCaptureFixture, damage: str
    ) -> None:
        before, newest = checkpoints(folder)[-2:]
        spoil(folder / newest, damage)
        in_process(*prepared.overrides(folder, "autoresume=true", "max_duration=6ba", "eval.interval=6ba"))
        assert f"{folder / newest}: damaged checkpoint" in caplog.text
        assert f"going on from the one before, {folder / before}" in caplog.text
        assert (folder / LATEST).resolve().name == "ep0-ba6-rank0.pt"

    def test_all_checkpoints_damaged(self, refuse: Refuse, folder: Path) -> None:
        for name in checkpoints(folder):
            spoil(folder / name, "cut")
        assert "start anew with overwrite=true" in refuse("autoresume=true")

    def test_overwrite_spares_what_is_not_ours(self, prepared: Prepared, folder: Path, in_process: Callable) -> None:
        (folder / "notes.txt").write_text("mine")
        in_process(*prepared.overrides(folder, "overwrite=true", "max_duration=2ba"))
        assert checkpoints(folder) == ["ep0-ba2-rank0.pt"]
        assert (folder / "notes.txt").read_text() == "mine"


def test_foreign_folder_is_not_overwritten(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    message = refuse("overwrite=true")
    assert f"save_folder={tmp_path / 'run'}" in message
    assert "foreign" in message


def test_unwritable_folder(refuse: Refuse, tmp_path: Path, mounted: Callable[[int], Path]) -> None:
    if os.getuid():
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
    else:  # permissions don't bind root, but a read-only file system does
        folder = mounted(64)
        assert run("mount", "-o", "remount,ro", str(folder)).returncode == 0
    assert f"save_folder={folder / 'run'} can't be written" in refuse(save_folder=folder / "run")


class TestExitCodes:
    """As real processes: exit code 2 and the message on stderr, through the launcher too."""

    def test_main(self, prepared: Prepared, tmp_path: Path) -> None:
        done = run(PYTHON, "main.py", *prepared.overrides(tmp_path / "run", "data.local=nowhere"))
        assert done.returncode == 2
        assert done.stderr == "error: data.local=nowhere (from the command line): no such folder; make it with " \
            "scripts/convert_dataset.py\n"  # fmt: skip
        assert done.stdout == ""
        assert tree(tmp_path) == {}

    @pytest.mark.slow
    @pytest.mark.parametrize("processes", [1, 2])
    def test_composer(self, prepared: Prepared, tmp_path: Path, processes: int) -> None:
        """The launcher gives rank 0's stderr through as it is, and adds its own lines about who exited."""
        done = run(
            COMPOSER,
            "-n",
            str(processes),
            "main.py",
            *prepared.overrides(tmp_path / "run", "global_train_batch_size=15"),
        )
        key = "microbatch_tokens=512" if processes == 1 else "global_train_batch_size=15"
        assert done.returncode == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert key in errors[0]
        assert "divisible" in errors[0]
        assert "Traceback" not in done.stderr + done.stdout
        assert tree(tmp_path) == {}

    def test_scripts(self, prepared: Prepared, tmp_path: Path) -> None:
        for script, arguments, fragment in (
            ("train_tokenizer.py", ("yamls/tokenizer.yaml", "input=nowhere/*.txt"), "nowhere/*.txt"),
            ("convert_dataset.py", ("yamls/data/local.yaml", "source.path=nowhere", "tokenizer=no"), "nowhere"),
            ("export_hf.py", (f"checkpoint={tmp_path / 'no.pt'}",), "no.pt"),
        ):
            done = run(PYTHON, f"scripts/{script}", *arguments, f"out={tmp_path / 'out'}")
            assert done.returncode == 2, script
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1
            assert fragment in done.stderr
        assert tree(tmp_path) == {}
