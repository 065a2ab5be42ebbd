"""What main.py puts together: model, loaders, evaluators, loggers, callbacks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from composer.loggers import TensorboardLogger, WandBLogger
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bertchen.callbacks import MetricsFile, StepSeed, StopAfter, Throughput
from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.data.masking import mask_tokens
from bertchen.errors import UserError
from bertchen.train import builders
from bertchen.train.preflight import preflight

MakeConfig = Callable[..., Config[TrainConfig]]
BLOCK_SIZE, VAL_BLOCKS = 32, 7


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_seed_decides_the_first_weights(train_config: MakeConfig) -> None:
    config = train_config("seed=3")
    checked = preflight(config)
    first = weights(builders.build_model(config, checked))
    torch.rand(100)
    again = weights(builders.build_model(config, checked))
    other = weights(builders.build_model(train_config("seed=4"), checked))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_model_knows_its_run(train_config: MakeConfig) -> None:
    config = train_config()
    checked = preflight(config)
    model = builders.build_model(config, checked)
    said = model.get_metadata()
    assert said["bertchen"]["config"] == config.to_dict()
    assert said["bertchen"]["manifest"] == checked.manifest
    assert said["bertchen"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert {"model", "tokenizer"} <= said.keys(), "Composer's own"


def test_weights_to_start_from(train_config: MakeConfig, tmp_path: Path) -> None:
    config = train_config("seed=3")
    checked = preflight(config)
    source = builders.build_model(config, checked).model
    source.save_pretrained(tmp_path / "hf")
    config = train_config("seed=4", f"init_from={tmp_path / 'hf'}")
    loaded = builders.build_model(config, checked).model
    expected = weights(source)
    assert all(torch.equal(value, expected[name]) for name, value in weights(loaded).items())


def test_weights_that_are_none(train_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = train_config(f"init_from={tmp_path / 'empty'}")
    with pytest.raises(UserError, match=r"^init_from=.*empty \(from the command line\): can't be loaded as MosaicBERT"):
        builders.build_model(config, preflight(config))


def test_special_tokens_are_told_from_the_tokenizer(
    train_config: MakeConfig, loaded_tokenizer: PreTrainedTokenizerBase
) -> None:
    vocabulary = builders.masking_vocabulary(preflight(train_config()))
    special = {loaded_tokenizer.convert_tokens_to_ids(token) for token in ("[PAD]", "[UNK]", "[SEP]", "[MASK]")}
    assert set(vocabulary.special.nonzero().flatten().tolist()) == special
    assert vocabulary.mask_token_id == loaded_tokenizer.convert_tokens_to_ids("[MASK]")
    assert len(vocabulary.special) == 330, "no id of the padded vocabulary is put in a token's place"


@pytest.mark.parametrize(("seq_len", "microbatch_tokens"), [(32, 64), (8, 64), (8, 8), (16, 256)])
def test_training_counts_blocks_and_tokens(train_config: MakeConfig, seq_len: int, microbatch_tokens: int) -> None:
    """Samples are blocks, also in parts of a block, so that a restart finds its place in the stream."""
    config = train_config(f"sequence_length={seq_len}", f"microbatch_tokens={microbatch_tokens}")
    spec = builders.build_train_loader(config, preflight(config))
    batch = next(iter(spec.dataloader))
    assert batch["input_ids"].shape == (8 * BLOCK_SIZE // seq_len, seq_len)
    assert spec.get_num_samples_in_batch(batch) == 8
    assert isinstance(spec.get_num_samples_in_batch(batch), int)
    assert spec.get_num_tokens_in_batch(batch) == 8 * BLOCK_SIZE
    parts = spec.split_batch(batch, 999)
    assert [part["input_ids"].numel() for part in parts] == [microbatch_tokens] * (8 * BLOCK_SIZE // microbatch_tokens)
    assert sum(spec.get_num_samples_in_batch(part) for part in parts) == 8


def test_evaluators(train_config: MakeConfig) -> None:
    config = train_config("eval.interval=3ba", "eval.lengths=[8,16,32]")
    evaluators = builders.build_evaluators(config, preflight(config))
    assert [evaluator.label for evaluator in evaluators] == ["eval_8", "eval_16", "eval_32"]
    for evaluator in evaluators:
        assert evaluator.metric_names == ["MaskedCrossEntropy", "MaskedPerplexity", "MaskedAccuracy"]
        batch = next(iter(evaluator.dataloader.dataloader))
        assert evaluator.dataloader.split_batch(batch, 1) == [batch], "batches are whole microbatches already"


@pytest.mark.parametrize(
    ("overrides", "batches", "blocks_in_batch"),
    [
        (["eval.batch_tokens=64"], 4, 2),
        (["eval.batch_tokens=100000"], 1, VAL_BLOCKS),
        (["eval.batch_tokens=1"], VAL_BLOCKS, 1),
        (["eval.batch_tokens=100000", "eval.blocks=3"], 1, 3),
        (["microbatch_tokens=128"], 2, 4),
    ],
)
def test_evaluation_batches_are_no_larger_than_the_set(
    train_config: MakeConfig, overrides: list[str], batches: int, blocks_in_batch: int
) -> None:
    config = train_config(*overrides)
    for evaluator in builders.build_evaluators(config, preflight(config)):
        shapes = [tuple(batch["input_ids"].shape) for batch in evaluator.dataloader.dataloader]
        seq_len = shapes[0][1]
        assert shapes == [(blocks_in_batch * BLOCK_SIZE // seq_len, seq_len)] * batches


def directly(model: Any, config: Config[TrainConfig], seq_len: int) -> tuple[float, float, float]:
    """Loss, perplexity and accuracy over the whole validation set at once, from the logits of all positions."""
    checked = preflight(config)
    dataset = builders.build_dataset(config, "val", 1)
    blocks = dataset.read(range(VAL_BLOCKS)).astype(np.int64)
    rows = torch.from_numpy(blocks).reshape(-1, seq_len)
    vocabulary = builders.masking_vocabulary(checked)
    rate = config.value.masking.eval_mlm_probability
    input_ids, labels = mask_tokens(rows, torch.arange(len(rows)), vocabulary, rate, config.value.seed, 0)
    with torch.no_grad():
        logits = model.model.eval()(input_ids=input_ids, output_logits=True).logits.double()
    chosen = labels != -100
    loss = F.cross_entropy(logits[chosen], labels[chosen])
    accuracy = (logits[chosen].argmax(dim=-1) == labels[chosen]).double().mean()
    return loss.item(), loss.exp().item(), accuracy.item()


@pytest.mark.parametrize("batch_tokens", [32, 96, 100_000])
def test_evaluation_is_that_of_the_whole_set_at_once(train_config: MakeConfig, batch_tokens: int) -> None:
    """Whatever the batches; 7 blocks in batches of 3 leave a batch that is filled up."""
    config = train_config(f"eval.batch_tokens={batch_tokens}", "model.initializer_range=0.3")
    checked = preflight(config)
    model = builders.build_model(config, checked)
    trainer = Trainer(
        model=model, eval_dataloader=builders.build_evaluators(config, checked), device="cpu", precision="fp32"
    )
    for _ in range(2):
        trainer.eval()
        for length in (8, 32):
            found = [metric.compute().item() for metric in trainer.state.eval_metrics[f"eval_{length}"].values()]
            assert found == pytest.approx(directly(model, config, length), rel=1e-5)
    trainer.close()


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], 8),
        (["global_train_batch_size=12"], 4),
        (["data.shuffle=false"], 1),
        (["data.num_canonical_nodes=3"], 3),
        (["data.num_canonical_nodes=3", "data.shuffle=false"], 3),
    ],
)
def test_parts_of_the_data_depend_on_the_configuration_alone(
    train_config: MakeConfig, overrides: list[str], parts: int
) -> None:
    assert builders.build_dataset(train_config(*overrides), "train", 4).num_canonical_nodes == parts


def callbacks(config: Config[TrainConfig]) -> list[Any]:
    return builders.build_callbacks(config, preflight(config), parameters=1000)


def test_callbacks_are_those_of_the_yaml_and_the_seeding(train_config: MakeConfig) -> None:
    names = [type(callback).__name__ for callback in callbacks(train_config("callbacks.lr_monitor=null"))]
    assert names == ["StepSeed", "FiniteLoss", "Throughput", "PeakMemory", "OwedEvaluation"]
    guarded = callbacks(train_config("algorithms.loss_guard={}"))
    assert "FiniteLoss" not in [type(callback).__name__ for callback in guarded]
    (seeding, *_) = callbacks(train_config("seed=7"))
    assert isinstance(seeding, StepSeed)
    assert seeding.seed == 7


def test_a_limit_stops_the_run_and_tells_the_time_left(train_config: MakeConfig) -> None:
    found = callbacks(train_config("stop_after=90m", "callbacks.throughput.window=3", "peak_flops=1e12"))
    (stop,) = [callback for callback in found if isinstance(callback, StopAfter)]
    (throughput,) = [callback for callback in found if isinstance(callback, Throughput)]
    assert (stop.seconds, stop.written) == (5400, "90m")
    assert (throughput.parameters, throughput.peak_flops) == (1000, 1e12)
    assert throughput.seconds_left is not None
    assert throughput.seconds_left() == pytest.approx(5400, abs=60)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.thoughput={}", "did you mean throughput?"),
        ("callbacks.throughput.windows=3", "did you mean window?"),
        ("callbacks.throughput.window=0", "window=0 should be at least 1"),
        ("callbacks.throughput.window=many", "callbacks.throughput (from the command line): "),
    ],
)
def test_wrong_callbacks(train_config: MakeConfig, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        callbacks(train_config(override))
    assert message in str(caught.value)


def test_metrics_are_always_written_into_the_run_folder(train_config: MakeConfig) -> None:
    config = train_config()
    (file,) = builders.build_loggers(config, "name")
    assert isinstance(file, MetricsFile)
    assert file.path == Path(config.value.save_folder) / "metrics.jsonl"


def test_loggers_by_name(train_config: MakeConfig, no_account: Path) -> None:
    config = train_config("loggers.tensorboard={}", "loggers.wandb.project=bertchen")
    _, tensorboard, wandb = builders.build_loggers(config, "first")
    assert isinstance(tensorboard, TensorboardLogger)
    assert isinstance(wandb, WandBLogger)
    assert tensorboard.log_dir == f"{config.value.save_folder}/tensorboard"
    assert wandb._init_kwargs["dir"] == config.value.save_folder
    assert (wandb._init_kwargs["project"], wandb._init_kwargs["name"]) == ("bertchen", "first")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loggers.wandbb={}", "did you mean wandb?"),
        ("loggers.wandb.projekt=x", "loggers.wandb (from the command line): "),
        ("loggers.tensorboard.log_dirs=x", "did you mean log_dir?"),
        ("loggers.tensorboard=true", "should be a mapping of arguments"),
    ],
)
def test_wrong_loggers(train_config: MakeConfig, no_account: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        builders.build_loggers(train_config(override), "name")
    assert message in str(caught.value)


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home folder and an environment without anything of W&B; both as they were afterwards."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.setenv(name, "restored afterwards")
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def wandb_mode(train_config: MakeConfig) -> str | None:
    builders.build_loggers(train_config("loggers.wandb={}"), "name")
    return os.environ.get("WANDB_MODE")


def test_without_a_key_wandb_is_offline_and_never_asks(train_config: MakeConfig, no_account: Path) -> None:
    assert wandb_mode(train_config) == "offline"


def test_a_key_in_the_environment_is_used(
    train_config: MakeConfig, no_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_mode(train_config) is None


@pytest.mark.parametrize("mode", ["disabled", "online", "offline"])
def test_a_mode_that_was_set_stays(
    train_config: MakeConfig, no_account: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wandb_mode(train_config) == mode


ENTRY = "machine api.wandb.ai login user password 0000"


@pytest.mark.parametrize(
    ("content", "mode"),
    [(ENTRY, None), ("machine example.org login a password b", "offline"), ("garbage", "offline"), ("", "offline")],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_key_in_netrc_is_used(
    train_config: MakeConfig,
    no_account: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    mode: str | None,
    named: bool,
) -> None:
    """In the home folder or in the file that NETRC names, which W&B reads too."""
    path = no_account / ("elsewhere" if named else ".netrc")
    path.write_text(content)
    path.chmod(0o600)
    if named:
        monkeypatch.setenv("NETRC", str(path))
    assert wandb_mode(train_config) == mode


def test_without_the_logger_nothing_is_set(train_config: MakeConfig, no_account: Path) -> None:
    builders.build_loggers(train_config(), "name")
    assert "WANDB_MODE" not in os.environ
