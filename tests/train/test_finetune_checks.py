"""What a user can mend is told before a model is loaded: the key, its value, where it was set, what would be right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from task_files import TASKS, classification

from bertchen.config import Config, load_config
from bertchen.config.schema_finetune import FinetuneConfig
from bertchen.errors import UserError
from bertchen.train.finetune_checks import check_data, check_settings, default_folder

Make = Callable[..., Config[FinetuneConfig]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The configuration of a classification that passes all checks; no model is there."""
    arguments = classification(
        tmp_path / "data",
        model="owner/model",
        save_folder=str(tmp_path / "run"),
        results=str(tmp_path / "results.jsonl"),
    )
    return lambda *overrides: load_config(FinetuneConfig, [*arguments, *overrides], "usage")


def check_both(config: Config[FinetuneConfig]) -> None:
    check_settings(config)
    check_data(config)


def refused(config: Config[FinetuneConfig]) -> str:
    with pytest.raises(UserError) as caught:
        check_both(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_sound_configuration_passes(make: Make) -> None:
    config = make("early_stopping.patience=2")
    settings = check_settings(config)
    assert (settings.precision, settings.batch_per_device, settings.load_path) in [
        ("fp32", 8, None),
        ("amp_bf16", 8, None),
    ]
    assert settings.missing == ["train", "dev", "test"]
    assert list(check_data(config).splits) == settings.missing
    assert not Path(str(config.value.save_folder)).exists()


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_passes(tmp_path: Path, kind: str) -> None:
    config = load_config(FinetuneConfig, TASKS[kind](tmp_path, model="m", early_stopping={"patience": 1}), "usage")
    check_settings(config)
    assert check_data(config).kind == kind


WRONG = [
    ("max_duration=3", "100ba (steps), 1ep (epochs)"),
    ("max_duration=1000tok", "100ba (steps), 1ep (epochs)"),
    ("eval_interval=0ep", "more than 0"),
    ("scheduler.t_warmup=long", "share of the run"),
    ("scheduler.name=linear", "linear_with_warmup"),
    ("optimizer.name=adamv", "did you mean adamw?"),
    ("optimizer.lr=0", "positive"),
    ("optimizer.betas=[0.9]", "two numbers"),
    ("optimizer.weight_decay=-1", "0 or more"),
    ("seed=-1", "between 0"),
    ("dropout=1", "below 1"),
    ("pooling=max", "known: first, mean"),
    ("protocol=papers", "did you mean paper?"),
    ("precision=bf16", "amp_bf16"),
    ("encoding.long_inputs=cut", "truncate"),
    ("encoding.max_length=0", "positive"),
    ("encoding.stride=-1", "0 or more"),
    ("answers.n_best=0", "positive"),
    ("microbatch_size=0", "positive"),
    ("eval_batch_tokens=0", "positive"),
    ("early_stopping.patience=0", "positive"),
    ("early_stopping.metric=acuracy", "did you mean accuracy?"),
    ("algorithms.ema={half_life: 1ba}", "no place in fine-tuning"),
    ("callbacks.throughputs={}", "did you mean throughput?"),
    ("name=a b", "one word"),
    ("save_folder=s3://bucket/run", "local folder"),
    ("data.reader=tables", "did you mean table?"),
    ("data.folder=nowhere", "nowhere/train.jsonl"),
    ("labels=[gut,schlächt]", "schlecht"),
    ("task=tagging", "classification"),
]


@pytest.mark.parametrize(("override", "expected"), WRONG, ids=[override for override, _ in WRONG])
def test_wrong_value(make: Make, override: str, expected: str) -> None:
    message = refused(make(override))
    assert override.partition("=")[0].partition(".")[0] in message or expected in message
    assert expected in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("data.splits.train=null",), "train"),
        (("data.splits.dev=null", "data.splits.test=null"), "dev or test"),
        (("data.splits.dev=null", "early_stopping.patience=1"), "early_stopping"),
        (("protocol=paper", "early_stopping.patience=1"), "protocol=paper evaluates the training set alone"),
        (("autoresume=true", "overwrite=true"), "contradict"),
    ],
)
def test_values_that_do_not_go_together(make: Make, overrides: tuple[str, ...], expected: str) -> None:
    assert expected in refused(make(*overrides))


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        ((), "runs/words/owner-model-42"),
        (("model=runs/first/", "seed=1"), "runs/words/runs-first-1"),
        (("model=../x/ep1-ba2-rank0.pt",), "runs/words/x-ep1-ba2-rank0.pt-42"),
        (("random_weights=true",), "runs/words/owner-model-random-42"),
        (("protocol=paper",), "runs/words/owner-model-paper-42"),
    ],
)
def test_default_folder(make: Make, overrides: tuple[str, ...], folder: str) -> None:
    config = make("save_folder=null", *overrides)
    assert default_folder(config.value) == folder
    check_settings(config)
    assert config.value.save_folder == folder


class TestGoingOn:
    """A folder with a run in it, as `autoresume=true` finds it."""

    @pytest.fixture
    def folder(self, make: Make, tmp_path: Path) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(make().to_dict()))
        return folder

    def test_needs_to_be_told(self, make: Make, folder: Path) -> None:
        assert "autoresume=true" in refused(make())

    def test_of_the_same_run(self, make: Make, folder: Path) -> None:
        assert check_settings(make("autoresume=true")).load_path is None

    @pytest.mark.parametrize(
        ("override", "key"), [("model=other", "model"), ("optimizer.lr=0.5", "optimizer.lr"), ("seed=3", "seed")]
    )
    def test_another_run_is_told_by_its_first_difference(
        self, make: Make, folder: Path, override: str, key: str
    ) -> None:
        message = refused(make("autoresume=true", override))
        assert f"save_folder={folder} holds another run, which differs in {key}: " in message

    def test_a_model_written_anew_is_another_run(
        self, make: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tmp_path / "model.pt"
        model.touch()
        config = make("autoresume=true", f"model={model}")
        (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
        monkeypatch.setattr("bertchen.train.finetune_checks.find_checkpoint", lambda folder: str(model))
        os.utime(model, (4e9, 4e9))
        assert check_settings(config).load_path == str(model)
        checkpoint = tmp_path / "checkpoint.pt"
        checkpoint.touch()
        monkeypatch.setattr("bertchen.train.finetune_checks.find_checkpoint", lambda folder: str(checkpoint))
        assert "was written anew" in refused(config)
