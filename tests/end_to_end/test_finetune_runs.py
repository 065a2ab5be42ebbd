"""Fine-tuning as a user starts it: records and predictions of every split, exact restarts, two processes, sweeps."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from omegaconf import OmegaConf
from running import (
    COMPOSER,
    LATEST,
    PYTHON,
    Prepared,
    assert_same_state,
    checkpoints,
    environment,
    exact,
    losses,
    metrics,
    started,
    succeed,
    tree,
)
from task_files import SPLITS, TASKS, classification, tiny_encoder

from bertchen.callbacks import StepSeed
from bertchen.tasks.results import read_predictions, read_results

EPOCHS, STEPS = 3, 6  # of 8 examples: the last step of an epoch has 4
KIND = "classification"
InProcess = Callable[..., None]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("model") / "encoder", tiny_tokenizer)


def arguments(kind: str, encoder: str, folder: Path, *more: str) -> list[str]:
    """Of main.py; data, run folder and results lie in `folder`."""
    return [
        *TASKS[kind](folder.parent / f"{kind}-data", model=encoder),
        f"save_folder={folder / 'run'}", f"results={folder / 'results.jsonl'}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module", params=list(TASKS))
def ended(
    request: pytest.FixtureRequest, encoder: str, tmp_path_factory: pytest.TempPathFactory, in_process: InProcess
) -> tuple[str, Path]:
    """A run of each kind of task that nothing disturbed: the kind and the folder."""
    folder = tmp_path_factory.mktemp(request.param) / "ended"
    in_process(*arguments(request.param, encoder, folder, "early_stopping.patience=9"))
    return request.param, folder


def records(folder: Path) -> list[dict[str, Any]]:
    return read_results(folder / "results.jsonl")


def figures(folder: Path) -> dict[str, Any]:
    """What a restart must give again: each split's metrics and predictions."""
    return {
        record["split"]: (record["metrics"], read_predictions(folder / record["predictions"]))
        for record in records(folder)
    }


class TestRecords:
    """One of each split, of the whole of it."""

    def test_every_split_has_one(self, ended: tuple[str, Path]) -> None:
        kind, folder = ended
        assert [record["split"] for record in records(folder)] == ["train", "dev", "test"]
        for record in records(folder):
            assert (record["kind"], record["protocol"], record["seed"]) == (kind, "held_out", 42)
            assert record["examples"] == SPLITS[record["split"]]
            assert len(record["model_fingerprint"]) == 16
            assert record["config"]["task"] == kind
            assert bool(record["baselines"]) == (kind == "classification")
            ids = [row["id"] for row in read_predictions(folder / record["predictions"])]
            assert len(ids) == len(set(ids)) == SPLITS[record["split"]]

    def test_figures_follow_from_the_predictions(self, ended: tuple[str, Path]) -> None:
        """Computed here in another way, from what stands in the files alone."""
        kind, folder = ended
        for reached, rows in figures(folder).values():
            accepted = [row["gold"] if kind == "question_answering" else [row["gold"]] for row in rows]
            right = [row["predicted"] in gold for row, gold in zip(rows, accepted, strict=True)]
            if kind == "classification":
                assert reached["accuracy"] == pytest.approx(sum(right) / len(rows))
            if kind == "question_answering":
                assert reached["exact_match"] == pytest.approx(100 * sum(right) / len(rows))
            if kind == "tagging":
                assert (reached["f1"] == 1) == all(right)

    def test_training_is_evaluated_on_dev_each_epoch(self, ended: tuple[str, Path]) -> None:
        kind, folder = ended
        name = "eval/dev/accuracy" if kind == "classification" else "eval/dev/f1"
        values = {line["step"]: line[name] for line in metrics(folder / "run") if name in line}
        assert list(values) == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
        (dev,) = (record for record in records(folder) if record["split"] == "dev")
        assert dev["best_step"] == max(values, key=lambda step: (values[step], -step))
        assert dev["metrics"][name.rpartition("/")[2]] == pytest.approx(max(values.values()))

    def test_it_learns(self, ended: tuple[str, Path]) -> None:
        _, folder = ended
        assert len(losses(folder / "run")) == EPOCHS * STEPS
        assert sum(losses(folder / "run")[-STEPS:]) < 0.9 * sum(losses(folder / "run")[:STEPS])

    def test_a_second_start_does_nothing(
        self, ended: tuple[str, Path], encoder: str, in_process: InProcess, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kind, folder = ended
        before = tree(folder)
        in_process(*arguments(kind, encoder, folder, "early_stopping.patience=9"))
        assert tree(folder) == before
        assert "nothing to do" in capsys.readouterr().out


class _Killed(Exception):
    """What stands for a kill in this process."""


@pytest.mark.parametrize("step", [3, 8, 13])
def test_broken_off_and_started_again_a_run_is_the_same(
    ended: tuple[str, Path], encoder: str, in_process: InProcess, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Before the first checkpoint, and in the second and third epoch; dropout and order come out alike."""
    kind, whole = ended
    folder = whole.parent / f"broken-{step}"
    given = arguments(kind, encoder, folder, "early_stopping.patience=9", "autoresume=true")
    with monkeypatch.context() as patch:
        seed = StepSeed.batch_start

        def break_off(self: StepSeed, state: Any, logger: Any) -> None:
            if state.timestamp.batch.value == step:
                raise _Killed
            seed(self, state, logger)

        patch.setattr(StepSeed, "batch_start", break_off)
        with pytest.raises(_Killed):
            in_process(*given)
    assert not (folder / "results.jsonl").exists()
    in_process(*given)
    assert exact(folder / "run") == exact(whole / "run")
    assert_same_state(folder / "run" / LATEST, whole / "run" / LATEST)
    assert figures(folder) == figures(whole)


def test_killed_again_and_again_a_run_is_the_same(encoder: str, tmp_path: Path, in_process: InProcess) -> None:
    """By SIGKILL to all of it, with half a checkpoint left behind."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    in_process(*arguments(KIND, encoder, whole, "max_duration=20ep", "early_stopping.patience=20"))
    given = arguments(
        KIND, encoder, folder, "max_duration=20ep", "early_stopping.patience=20", "autoresume=true", "model=" + encoder
    )
    for step in (2, 31, 75):
        with started(given, tmp_path / "log") as process:
            process.wait_for_step(step)
            process.kill_all()
        found = checkpoints(folder / "run")
        content = (folder / "run" / found[-1]).read_bytes() if found else b"PK"
        (folder / "run" / "ep9-ba999-rank0.pt").write_bytes(content[: len(content) // 2])
    with started(given, tmp_path / "log") as process:
        process.succeed()
    assert exact(folder / "run") == exact(whole / "run")
    assert checkpoints(folder / "run") == checkpoints(whole / "run")
    assert_same_state(folder / "run" / LATEST, whole / "run" / LATEST)
    assert figures(folder) == figures(whole)


def test_killed_among_the_evaluations_it_writes_what_is_missing(
    ended: tuple[str, Path], encoder: str, tmp_path: Path, in_process: InProcess
) -> None:
    kind, whole = ended
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder, symlinks=True)
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    # The data's place is part of the configuration, so that it has to be the same.
    given = arguments(kind, encoder, whole, "early_stopping.patience=9", "autoresume=true")
    given += [f"save_folder={folder / 'run'}", f"results={folder / 'results.jsonl'}"]
    (folder / "results.jsonl").write_text("".join(lines[:1]) + lines[1][:40])
    cut_off = (folder / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)[:-2]
    (folder / "run" / "metrics.jsonl").write_text("".join(cut_off))
    in_process(*given)
    assert [record["split"] for record in records(folder)] == ["train", "dev", "test"]
    assert figures(folder) == figures(whole)
    assert exact(folder / "run") == exact(whole / "run")


def test_early_stopping(encoder: str, tmp_path: Path, in_process: InProcess) -> None:
    """Without learning the first evaluation stays the best; a restart makes no further step and changes nothing."""
    folder = tmp_path / "stopped"
    given = arguments(
        KIND, encoder, folder, "optimizer.lr=1e-12", "early_stopping={patience: 2, metric: macro_f1}",
        "max_duration=9ep", "autoresume=true",
    )  # fmt: skip
    in_process(*given)
    assert {record["best_step"] for record in records(folder)} == {STEPS}
    assert checkpoints(folder / "run") == ["ep3-ba18-rank0.pt"]
    assert "was no better in 2 evaluations" in metrics(folder / "run")[-1]["reason"]
    lines, reached = exact(folder / "run"), figures(folder)
    (folder / "results.jsonl").unlink()
    in_process(*given)
    assert exact(folder / "run") == lines
    assert figures(folder) == reached
    assert checkpoints(folder / "run") == ["ep3-ba18-rank0.pt"]


def test_the_papers_protocol_is_told_from_ours(
    encoder: str, tmp_path: Path, in_process: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "paper"
    given = arguments("question_answering", encoder, folder, "protocol=paper", "max_duration=1ep")
    in_process(*given, "encoding.max_length=60", "encoding.long_inputs=windows")
    (record,) = records(folder)
    assert (record["split"], record["protocol"], record["examples"]) == ("train", "paper", SPLITS["train"])
    assert "training set, the paper's protocol: f1" in capsys.readouterr().out
    assert {name for line in metrics(folder / "run") for name in line if name.startswith("eval/")} == {
        f"eval/train_paper_protocol/{name}" for name in record["metrics"]
    }
    assert set(record["metrics"]) >= {"f1", "exact_match"}


@pytest.mark.usefixtures("remote_code")
def test_exported_model_predicts_the_same(encoder: str, tmp_path: Path, in_process: InProcess) -> None:
    """Through Transformers' own pipeline, from the folder alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = tmp_path / "exported"
    in_process(*arguments(KIND, encoder, folder, "export=true"))
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "run" / "hf", trust_remote_code=True)
    classify = pipeline(
        "text-classification", loaded, tokenizer=AutoTokenizer.from_pretrained(folder / "run" / "hf"), device="cpu"
    )
    texts = [json.loads(line)["text"] for line in (tmp_path / f"{KIND}-data" / "test.jsonl").open()]
    rows = figures(folder)["test"][1]
    for row, found in zip(rows, classify(texts), strict=True):
        assert found["label"] == row["predicted"]
        assert found["score"] == pytest.approx(max(row["probabilities"].values()), abs=1e-4)


def test_a_foreign_encoder_with_learned_positions(tiny_tokenizer: str, tmp_path: Path, in_process: InProcess) -> None:
    """Hugging Face's BERT reads long contexts in windows; what would be exported isn't of our architecture."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    config = BertConfig(len(tokenizer), 32, 2, 2, 48, max_position_embeddings=64)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    folder = tmp_path / "foreign"
    given = ("encoding.stride=16", "export=true", "max_duration=1ep", "answers.max_answer_tokens=10")
    in_process(*arguments("question_answering", str(tmp_path / "bert"), folder, *given))
    assert [record["split"] for record in records(folder)] == ["train", "dev", "test"]
    assert not (folder / "run" / "hf").exists()
    documents = json.loads((tmp_path / "question_answering-data" / "test.json").read_text())["data"]
    contexts = {question["id"]: part["context"] for part in documents[0]["paragraphs"] for question in part["qas"]}
    for row in figures(folder)["test"][1]:
        assert row["predicted"] in contexts[row["id"]]


def test_two_processes_make_the_run_of_one(tiny_tokenizer: str, tmp_path: Path, in_process: InProcess) -> None:
    """The same examples in each step, and each example evaluated once, by one process or the other."""
    model = tiny_encoder(tmp_path / "model", tiny_tokenizer, dropout=0.0)
    given = ("dropout=0", "early_stopping.patience=9", "data.splits.dev=null", "data.dev_size=12")
    one, two = tmp_path / "one", tmp_path / "two"
    in_process(*arguments(KIND, model, one, *given))
    succeed(COMPOSER, "-n", "2", "main.py", *arguments(KIND, model, two, *given))
    assert losses(two / "run") == pytest.approx(losses(one / "run"), rel=1e-4)
    assert [record["split"] for record in records(two)] == ["train", "dev", "test"]
    for split, (reached, rows) in figures(two).items():
        first, expected = figures(one)[split]
        assert reached == pytest.approx(first, rel=1e-3)
        assert [row["id"] for row in rows] == [row["id"] for row in expected]
        assert [row["predicted"] for row in rows] == [row["predicted"] for row in expected]
    assert {path.name for path in (two / "run").iterdir()} == {path.name for path in (one / "run").iterdir()}


def test_dry_run_leaves_nothing(
    encoder: str, tmp_path: Path, in_process: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(KIND, encoder, tmp_path / "dry", "dry_run=true")
    before = tree(tmp_path)
    in_process(*given)
    assert tree(tmp_path) == before
    printed = capsys.readouterr().out
    for fragment in ("dev: 10 examples", "an epoch: 6 steps", "to be written: train, dev, test", "nothing written"):
        assert fragment in printed


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("task=clasification", ("task=clasification (from the command line): unknown", "did you mean classification?")),
        ("model={tmp}/no", ("model={tmp}/no", "no such file or folder")),
        ("max_duraton=1ep", ("max_duraton", "did you mean max_duration?")),
        ("mlm_probability=0.3", ("mlm_probability", "unknown key")),
        ("data.folder={tmp}/no", ("{tmp}/no/train.jsonl", "no such file")),
    ],
)
def test_what_a_user_can_mend_is_one_message(
    encoder: str, tmp_path: Path, in_process: InProcess, capsys: pytest.CaptureFixture[str], override: str,
    fragments: tuple[str, ...],
) -> None:  # fmt: skip
    given = arguments(KIND, encoder, tmp_path / "wrong", override.replace("{tmp}", str(tmp_path)))
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        in_process(*given)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for fragment in fragments:
        assert fragment.replace("{tmp}", str(tmp_path)) in message
    assert tree(tmp_path) == before


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A YAML of a task."""
    folder = tmp_path_factory.mktemp("task")
    path = folder / "words.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.from_dotlist(classification(folder / "data", max_duration="1ep"))))
    return str(path)


class TestFinetuneAfter:
    """Tasks that a pretraining YAML names."""

    def test_run_when_pretraining_has_ended_and_once(
        self, prepared: Prepared, task: str, tmp_path: Path, in_process: InProcess
    ) -> None:
        given = prepared.overrides(tmp_path / "run", f"finetune_after=[{task}]", "autoresume=true")
        in_process(*given)
        folder = tmp_path / "run" / "finetune"
        assert [record["split"] for record in records(folder)] == ["train", "dev", "test"]
        assert {record["model"] for record in records(folder)} == {str(tmp_path / "run" / "ep0-ba6-rank0.pt")}
        before = (folder / "results.jsonl").read_bytes()
        in_process(*given)
        assert (folder / "results.jsonl").read_bytes() == before
        in_process(*given, "max_duration=9ba")
        assert len(records(folder)) == 6, "a pretraining that went on has results of its own"

    @pytest.mark.parametrize(
        ("name", "fragment"), [("germeval71", "did you mean germeval17?"), ("{tmp}/broken.yaml", "data.folder")]
    )
    def test_checked_before_pretraining(
        self, prepared: Prepared, task: str, tmp_path: Path, in_process: InProcess,
        capsys: pytest.CaptureFixture[str], name: str, fragment: str,
    ) -> None:  # fmt: skip
        text = Path(task).read_text()
        (tmp_path / "broken.yaml").write_text(text.replace("folder: ", "folder: /nowhere"))
        before = tree(tmp_path)
        name = name.replace("{tmp}", str(tmp_path))
        with pytest.raises(SystemExit, match="2"):
            in_process(*prepared.overrides(tmp_path / "run", f"finetune_after=[{name}]"))
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert fragment in message
        assert tree(tmp_path) == before


class TestSweep:
    """scripts/evaluate.py."""

    @pytest.fixture
    def given(self, encoder: str, task: str, tmp_path: Path) -> list[str]:
        models = f"{encoder},{{model: {encoder}, random_weights: true}}"
        return [
            "scripts/evaluate.py", "yamls/evaluate.yaml", f"models=[{models}]",
            f"tasks=[{task}]", "seeds=1", f"results={tmp_path / 'results.jsonl'}", f"save_folder={tmp_path / 'runs'}",
            "set={max_duration: 2ep}",
        ]  # fmt: skip

    def test_stopped_and_started_again_it_runs_nothing_twice(self, given: list[str], tmp_path: Path) -> None:
        results = tmp_path / "results.jsonl"
        process = subprocess.Popen([PYTHON, *given], env=environment(), start_new_session=True)
        children: list[psutil.Process] = []
        while not list((tmp_path / "runs").rglob("*random*.log")):  # the second run has begun
            assert process.poll() is None
            children = psutil.Process(process.pid).children(recursive=True) or children
            time.sleep(0.01)
        assert len(read_results(results)) == 3
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not psutil.wait_procs(children, timeout=60)[1], "a run ends with the sweep"
        done = succeed(PYTHON, *given)
        assert "1/2 words" in done.stdout
        assert "done before" in done.stdout
        found = read_results(results)
        assert len(found) == len({(record["config_hash"], record["split"]) for record in found}) == 6
        assert {record["config"]["max_duration"] for record in found} == {"2ep"}
        assert [record["random_weights"] for record in found] == [False] * 3 + [True] * 3
        assert "| model" in done.stdout
        assert not list((tmp_path / "runs").rglob("*.pt")), "finished runs leave no weights"
        again = succeed(PYTHON, *given)
        assert again.stdout.count("done before") == 2
        assert read_results(results) == found

    def test_two_processes_a_run_make_the_same_records(
        self, given: list[str], tiny_tokenizer: str, task: str, tmp_path: Path
    ) -> None:
        model = tiny_encoder(tmp_path / "model", tiny_tokenizer, dropout=0.0)
        found = {}
        for processes in (1, 2):
            results = tmp_path / str(processes) / "results.jsonl"
            own = (f"models=[{model}]", f"results={results}", f"save_folder={results.parent / 'runs'}")
            done = succeed(PYTHON, *given, *own, "set={max_duration: 2ep, dropout: 0}", f"processes={processes}")
            assert "1/1 words" in done.stdout
            found[processes] = read_results(results)
        one, two = found[1], found[2]
        assert [record["split"] for record in two] == [record["split"] for record in one]
        for ours, expected in zip(two, one, strict=True):
            assert ours["config_hash"] == expected["config_hash"]
            assert ours["metrics"] == pytest.approx(expected["metrics"], rel=1e-3)

    def test_dry_run_lists_what_is_to_do(self, given: list[str], tmp_path: Path) -> None:
        before = tree(tmp_path)
        done = succeed(PYTHON, *given, "seeds=2", "dry_run=true")
        assert "4 of 4 runs to do; none was started" in done.stdout
        assert tree(tmp_path) == before


def test_random_weights_are_the_seeds_own(encoder: str, tmp_path: Path, in_process: InProcess) -> None:
    """Another seed, other weights; the same seed, the same: the first loss says so."""
    first = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = tmp_path / name
        in_process(*arguments(KIND, encoder, folder, "random_weights=true", f"seed={seed}", "max_duration=1ba"))
        first.append(torch.load(folder / "run" / LATEST, weights_only=False)["state"]["model"])
    same = [torch.equal(first[0][name], first[1][name]) for name in first[0]]
    other = [torch.equal(first[0][name], first[2][name]) for name in first[0] if first[0][name].ndim > 1]
    assert all(same)
    assert not any(other)
