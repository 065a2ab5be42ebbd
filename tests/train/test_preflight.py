"""Every complaint before a run is one message: the key, its value, where it was set, and what would be right."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composer.utils import dist
from transformers import PreTrainedTokenizerBase

from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.errors import UserError
from bertchen.model import MosaicBertConfig
from bertchen.train import preflight as preflight_file
from bertchen.train.architectures import build_model_config, count_parameters
from bertchen.train.checks import CHECKPOINT_BYTES_PER_PARAMETER
from bertchen.train.preflight import preflight

MakeConfig = Callable[..., Config[TrainConfig]]


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may spoil."""
    return Path(shutil.copytree(tiny_data, tmp_path / "own"))


def refused(config: Config[TrainConfig]) -> str:
    with pytest.raises(UserError) as caught:
        preflight(config)
    assert not Path(config.value.save_folder).exists(), "nothing is written"
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_sound_configuration_passes(train_config: MakeConfig, tiny_tokenizer: str) -> None:
    config = train_config("stop_after=1h30m", "peak_flops=1e12")
    checked = preflight(config)
    assert len(checked.tokenizer) == 330
    assert checked.model_config.vocab_size == 384, "the next multiple of 64"
    assert checked.model_config.hidden_size == 32
    assert checked.manifest["splits"]["val"]["blocks"] == 7
    assert checked.blocks_per_device == 8
    assert checked.precision == ("amp_bf16" if torch.cuda.is_available() else "fp32")
    assert (checked.peak_flops, checked.stop_after, checked.load_path) == (1e12, 5400, None)
    assert not Path(config.value.save_folder).exists()


WRONG_VALUES = [
    ("masking.mlm_probability=0", "between 0 and 1"),
    ("masking.mlm_probability=1.1", "between 0 and 1"),
    ("masking.mlm_probability=nan", "between 0 and 1"),
    ("masking.eval_mlm_probability=0", "between 0 and 1"),
    ("masking.mask_share=-0.1", "between 0 and 1"),
    ("masking.random_share=0.3", "mask_share=0.8"),
    ("sequence_length=0", "positive"),
    ("sequence_length=-8", "positive"),
    ("sequence_length=7", "doesn't divide the data's blocks of 32"),
    ("sequence_length=64", "doesn't divide the data's blocks of 32"),
    ("eval.lengths=[8,5]", "5 doesn't divide"),
    ("eval.lengths=[0]", "0 doesn't divide"),
    ("eval.lengths=[]", "at least one"),
    ("eval.lengths=[8,8]", "twice"),
    ("eval.blocks=0", "positive"),
    ("eval.batch_tokens=0", "positive"),
    ("eval.batch_tokens=-1", "positive"),
    ("eval.interval=100", "100ba"),
    ("eval.interval=0ba", "more than 0"),
    ("eval.interval=1.5ba", "100ba"),
    ("global_train_batch_size=0", "positive"),
    ("global_train_batch_size=100000", "blocks only"),
    ("data.num_canonical_nodes=100000", "blocks only"),
    ("data.num_canonical_nodes=0", "positive"),
    ("microbatch_tokens=0", "positive"),
    ("microbatch_tokens=16", "at least one row"),
    ("microbatch_tokens=96", "256 tokens isn't divisible"),
    ("save_num_checkpoints_to_keep=0", "positive"),
    ("save_patience=0", "positive"),
    ("save_folder=s3://bucket/run", "save_remote takes one in a store"),
    ("save_remote=nosuch://bucket/run", "no store that can be written"),
    ("save_interval=soon", "100ba"),
    ("console_log_interval=1000tok", "100ba"),
    ("max_duration=2500", "100ba"),
    ("max_duration=2500steps", "100ba"),
    ("max_duration=1.5ba", "100ba"),
    ("max_duration=infba", "100ba"),
    ("max_duration=-1ba", "more than 0"),
    ("max_duration=0ep", "more than 0"),
    ("max_duration=4h", "stop_after"),
    ("max_duration=0.5dur", "100ba"),
    ("stop_after=abc", "not a duration"),
    ("stop_after=0h", "not a positive duration"),
    ("precision=fp16", "known: auto, fp32, amp_bf16"),
    ("optimizer.lr=0", "positive"),
    ("optimizer.lr=-1", "positive"),
    ("optimizer.betas=[0.9]", "two numbers"),
    ("optimizer.betas=[0.9,1.0]", "two numbers"),
    ("optimizer.weight_decay=-0.1", "0 or more"),
    ("optimizer.eps=-1", "0 or more"),
    ("scheduler.t_warmup=soon", "0.06dur"),
    ("scheduler.t_warmup=6%", "0.06dur"),
    ("scheduler.t_warmup=1.5ba", "0.06dur"),
    ("scheduler.t_warmup=1h", "0.06dur"),
    ("scheduler.t_warmup=-1ba", "0.06dur"),
    ("scheduler.t_warmup=1000tok", "max_duration=10ba"),
    ("seed=-1", "2^32"),
    ("seed=4294967296", "2^32"),
    ("data.num_workers=-1", "0 or more"),
    ("data.prefetch_factor=0", "positive"),
    ("peak_flops=0", "positive"),
]


@pytest.mark.parametrize(("override", "remedy"), WRONG_VALUES, ids=[override for override, _ in WRONG_VALUES])
def test_wrong_values(train_config: MakeConfig, override: str, remedy: str) -> None:
    key, _, value = override.partition("=")
    message = refused(train_config(override))
    assert message.startswith(f"{key}="), message
    assert "(from the command line)" in message
    assert remedy in message
    assert value.strip("[]").split(",")[0] in message


@pytest.mark.parametrize(
    "override",
    [
        "max_duration=1ep",
        "max_duration=1e3tok",
        "max_duration=20sp",
        "save_interval=1ep",
        "save_interval=30m",
        "eval.interval=1000tok",
        "eval.interval=0.1dur",
        "scheduler.t_warmup=0ba",
        "scheduler.t_warmup=1ep",
        "optimizer.weight_decay=0",
        "masking.mlm_probability=1",
        "masking.random_share=0.2",
        "data.num_workers=3",
        "seed=0",
        "microbatch_tokens=100000",
        "microbatch_tokens=32",
        "global_train_batch_size=3",
        "eval.blocks=1000",
    ],
)
def test_other_values_that_are_right(train_config: MakeConfig, override: str) -> None:
    preflight(train_config(override))


def test_processes_wait_longer_for_one_another_than_for_the_store(train_config: MakeConfig) -> None:
    message = refused(train_config("data.remote=s3://bucket/mds", "dist_timeout=300"))
    assert message.startswith("dist_timeout=300")
    assert "data.download_patience=300" in message


@pytest.mark.parametrize("t_warmup", ["1ba", "1ep", "0.1dur"])
@pytest.mark.parametrize("max_duration", ["10ba", "2ep"])
def test_warm_up_in_steps_and_epochs_goes_with_both(train_config: MakeConfig, t_warmup: str, max_duration: str) -> None:
    preflight(train_config(f"scheduler.t_warmup={t_warmup}", f"max_duration={max_duration}"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which has bfloat16")
def test_bfloat16_on_a_cpu(train_config: MakeConfig) -> None:
    message = refused(train_config("precision=amp_bf16"))
    assert message.startswith("precision=amp_bf16 (from the command line): cpu can't run it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which may serve it")
@pytest.mark.parametrize(("backend", "dropout"), [("flash", 0.0), ("flex", 0.1)])
def test_a_backend_that_cannot_serve_is_an_error_and_says_why(
    train_config: MakeConfig, backend: str, dropout: float
) -> None:
    """flash needs a GPU; flex has no dropout."""
    message = refused(
        train_config(f"model.attention_backend={backend}", f"model.attention_probs_dropout_prob={dropout}")
    )
    assert message.startswith(f"model.attention_backend={backend} (from the command line): ")
    assert "take auto or sdpa" in message
    for served in ("auto", "sdpa"):
        preflight(train_config(f"model.attention_backend={served}"))


def test_kernels_that_cant_serve_are_refused(train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_file, "why_unfused", lambda device, activation, width: "no kernels here")
    message = refused(train_config("model.kernels=triton"))
    assert message == "model.kernels=triton (from the command line): no kernels here; take auto or torch"
    preflight(train_config("model.kernels=auto"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs may have 8-bit products")
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.float8=true"], "8-bit matrix products need a GPU of compute capability 8.9 or newer"),
        (["model.float8=true", "model.kernels=torch"], "needs model.kernels=triton or auto"),
    ],
)
def test_8_bits_that_cant_serve_are_refused(
    train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, overrides: list[str], reason: str
) -> None:
    monkeypatch.setattr(preflight_file, "why_unfused", lambda device, activation, width: None)
    message = refused(train_config(*overrides))
    assert message.startswith("model.float8=True (from the command line): ")
    assert reason in message


def test_data_of_another_tokenizer(train_config: MakeConfig, other_tokenizer: str, tiny_tokenizer: str) -> None:
    message = refused(train_config(f"tokenizer={other_tokenizer}"))
    assert "was made with another tokenizer" in message
    assert tiny_tokenizer in message
    assert other_tokenizer in message


def test_a_tokenizer_that_is_not_there(train_config: MakeConfig) -> None:
    assert "no such folder" in refused(train_config("tokenizer=/no/such/folder"))


def test_data_that_is_not_there(train_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("notes")
    for name, problem in [
        ("missing", "no such folder"),
        ("empty", "is empty"),
        ("foreign", "is no converted data set"),
    ]:
        message = refused(train_config(f"data.local={tmp_path / name}"))
        assert str(tmp_path / name) in message
        assert problem in message
        assert "scripts/convert_dataset.py" in message


def first_shard(folder: Path, split: str) -> Path:
    return sorted((folder / split).rglob("*.mds"))[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_that_are_missing_cut_or_damaged(train_config: MakeConfig, own_data: Path, split: str) -> None:
    shard = first_shard(own_data, split)
    content = shard.read_bytes()
    config = train_config(f"data.local={own_data}")
    preflight(config)
    shard.write_bytes(content[:-1])
    assert f"{shard} has {len(content) - 1} bytes, should have {len(content)}" in refused(config)
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{shard} is damaged" in refused(config)
    preflight(train_config(f"data.local={own_data}", "data.check_hashes=false"))
    shard.unlink()
    assert f"{shard} is missing" in refused(config)


def test_a_manifest_of_another_version(train_config: MakeConfig, own_data: Path) -> None:
    manifest = json.loads((own_data / "manifest.json").read_text())
    (own_data / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    assert "is of version 99" in refused(train_config(f"data.local={own_data}"))


def pretend(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """This process is the first of so many on one node, which all say the same."""
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    monkeypatch.setattr(dist, "all_gather_object", lambda mine: [mine, *[(mine[0], 1, mine[2])] * (processes - 1)])


@pytest.mark.parametrize(("processes", "blocks"), [(2, 4), (4, 2), (8, 1)])
def test_the_batch_is_divided_among_processes(
    train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, processes: int, blocks: int
) -> None:
    pretend(monkeypatch, processes)
    assert preflight(train_config()).blocks_per_device == blocks


def test_a_batch_that_processes_cannot_divide(train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 3)
    message = refused(train_config())
    assert message.startswith("global_train_batch_size=8 ")
    assert "divisible by the number of processes, 3" in message


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk(train_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config("save_num_checkpoints_to_keep=3")
    one = count_parameters(preflight(config).model_config) * CHECKPOINT_BYTES_PER_PARAMETER
    asked: list[Path] = []

    def free(count: int) -> None:
        def usage(path: Path) -> Usage:
            asked.append(Path(path))
            return Usage(10 * count, 9 * count, count)

        monkeypatch.setattr("bertchen.train.checks.shutil.disk_usage", usage)

    free(5 * one)
    preflight(config)
    free(4 * one)
    message = refused(config)
    assert message.startswith("save_folder=")
    assert "no space left" in message
    assert "4 checkpoints" in message
    assert all(path.exists() for path in asked), "the folder isn't there yet: the nearest above it counts"


def test_a_folder_in_use(train_config: MakeConfig) -> None:
    config = train_config()
    folder = Path(config.value.save_folder)
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match=r"isn't empty"):
        preflight(config)
    preflight(train_config("overwrite=true"))
    preflight(train_config("dry_run=true"))
    checked = preflight(train_config("autoresume=true"))
    assert checked.load_path is None
    torch.save({}, folder / "ep0-ba7-rank0.pt")
    checked = preflight(train_config("autoresume=true"))
    assert checked.load_path == str(folder / "ep0-ba7-rank0.pt")


WRONG_MODELS = [
    (
        "model.hiden_size=32",
        "model.hiden_size (from the command line): unknown field of MosaicBERT; did you mean hidden_size?",
    ),
    ("model.hidden_size=big", "model.hidden_size=big (from the command line): should be a whole number"),
    ("model.hidden_size=32.5", "model.hidden_size=32.5 (from the command line): should be a whole number"),
    ("model.hidden_size=true", "model.hidden_size=True (from the command line): should be a whole number"),
    ("model.hidden_size=null", "model.hidden_size=None (from the command line): should be a whole number"),
    ("model.hidden_size=-32", "model.hidden_size=-32 (from the command line): should be positive"),
    ("model.num_attention_heads=0", "model.num_attention_heads=0 (from the command line): should be positive"),
    ("model.hidden_dropout_prob=much", "model.hidden_dropout_prob=much (from the command line): should be a number"),
    ("model.hidden_dropout_prob=-0.1", "model.hidden_dropout_prob=-0.1 (from the command line): should be"),
    ("model.hidden_dropout_prob=1.5", "model.hidden_dropout_prob=1.5 (from the command line): should be"),
    ("model.attention_probs_dropout_prob=2", "model.attention_probs_dropout_prob=2 (from the command line): should be"),
    ("model.hidden_act=5", "model.hidden_act=5 (from the command line): should be text"),
    ("model.hidden_act=gelo", "model.hidden_act=gelo (from the command line): unknown; did you mean gelu?"),
    ("model.num_attention_heads=5", "hidden_size=32 is not divisible by num_attention_heads=5"),
    ("model.attention_backend=flesh", "attention_backend='flesh' is unknown; known: auto, triton, flash, flex, sdpa"),
    ("model.vocab_size=329", "model.vocab_size=329 (from the command line): the tokenizer"),
    ("model.vocab_size=-64", "model.vocab_size=-64 (from the command line): should be positive"),
    ("model.pad_token_id=5000", "model.pad_token_id=5000 (from the command line): should be below"),
]


@pytest.mark.parametrize(("override", "start"), WRONG_MODELS, ids=[override for override, _ in WRONG_MODELS])
def test_wrong_models(train_config: MakeConfig, override: str, start: str) -> None:
    message = refused(train_config(override))
    assert start in message
    assert "from" in message


def test_model_configuration(train_config: MakeConfig, loaded_tokenizer: PreTrainedTokenizerBase) -> None:
    built = build_model_config(train_config("model.layer_norm_eps=1e-12"), loaded_tokenizer, 32)
    assert isinstance(built, MosaicBertConfig)
    assert (built.vocab_size, built.pad_token_id) == (384, loaded_tokenizer.pad_token_id)
    assert (built.hidden_size, built.num_hidden_layers, built.intermediate_size) == (32, 2, 48)
    assert (built.hidden_dropout_prob, built.layer_norm_eps) == (0.1, 1e-12)


@pytest.mark.parametrize(("vocab_size", "built"), [("null", 384), ("330", 330), ("1024", 1024)])
def test_vocabulary(
    train_config: MakeConfig, loaded_tokenizer: PreTrainedTokenizerBase, vocab_size: str, built: int
) -> None:
    config = train_config(f"model.vocab_size={vocab_size}")
    assert build_model_config(config, loaded_tokenizer, 32).vocab_size == built


def test_numbers_of_either_kind_are_numbers(
    train_config: MakeConfig, loaded_tokenizer: PreTrainedTokenizerBase
) -> None:
    config = train_config("model.hidden_dropout_prob=0", "model.pad_token_id=0", "model.classifier_dropout=0.2")
    assert build_model_config(config, loaded_tokenizer, 32).hidden_dropout_prob == 0
