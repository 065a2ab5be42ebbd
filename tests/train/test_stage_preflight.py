"""Data a stage: what is wrong with its keys or its folders is said before a run, and what is right is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bertchen.config import Config
from bertchen.config.schema_train import TrainConfig
from bertchen.data.stages import StagedBlocks
from bertchen.errors import UserError
from bertchen.train import builders
from bertchen.train.preflight import preflight

MakeConfig = Callable[..., Config[TrainConfig]]

SPLITS = ["train_8", "train_16", "train_32"]
STATIC = ("curriculum.static.lengths=[8,16,32]", "curriculum.static.begins=[0ba,4ba,8ba]")


@pytest.fixture(scope="module")
def staged_data(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of 32 tokens in three folders of training data, one larger than the other. Don't change it."""
    from bertchen.config import load_config
    from bertchen.config.schema_convert import ConvertConfig
    from bertchen.conversion.convert import convert

    folder = tmp_path_factory.mktemp("staged")
    texts = (f"der Satz {number} und noch ein Satz mit {number % 7} Worten " * (3 + number % 5) for number in range(60))
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")
    arguments = [
        f"source.path={folder / 'text.jsonl'}", f"tokenizer={tiny_tokenizer}", f"out={folder / 'mds'}", "block_size=32",
        "val_blocks=7", "split_by=block", "shard_size=2048", "workers=1", "stages={8: 0.1, 16: 0.3, 32: 0.6}",
    ]  # fmt: skip
    convert(load_config(ConvertConfig, arguments, "usage"))
    return folder / "mds"


@pytest.fixture
def staged_config(train_config: MakeConfig, staged_data: Path) -> MakeConfig:
    def make(*overrides: str) -> Config[TrainConfig]:
        splits = f"data.stage_splits=[{','.join(SPLITS)}]"
        return train_config(f"data.local={staged_data}", splits, *STATIC, *overrides)

    return make


def refused(config: Config[TrainConfig]) -> str:
    with pytest.raises(UserError) as caught:
        preflight(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_configuration_passes_and_needs_no_other_folder(staged_config: MakeConfig) -> None:
    splits = preflight(staged_config()).manifest["splits"]
    assert set(splits) == {*SPLITS, "val"}
    preflight(staged_config("data.when_stage_ends=restart"))


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("data.when_stage_ends=wait", "known: next, restart"),
        ("data.when_stage_ends=restrat", "did you mean restart?"),
        ("data.stage_splits=[train_8,train_16,train_8]", "names a folder twice"),
        ("data.stage_splits=[train_8,train_16,val]", "names the validation data, data.val_split=val"),
        ("data.stage_splits=[train_8,train_16,train_64]", "has: "),
        ("data.stage_splits=[train_16,train_32]", "static): 3"),
        ("data.stage_splits=[train_8]", "static): 3"),
        ("max_duration=1ep", "no epochs with data.stage_splits"),
        ("save_interval=1ep", "no epochs with data.stage_splits"),
        ("eval.interval=1ep", "no epochs with data.stage_splits"),
        ("console_log_interval=1ep", "no epochs with data.stage_splits"),
        ("scheduler.t_warmup=1ep", "no epochs with data.stage_splits"),
    ],
)
def test_wrong_values(staged_config: MakeConfig, override: str, remedy: str) -> None:
    message = refused(staged_config(override))
    assert message.startswith(f"{override.partition('=')[0]}="), message
    assert remedy in message


def test_stages_need_a_curriculum(train_config: MakeConfig, staged_data: Path) -> None:
    for splits in ("[train_8,train_16,train_32]", "[train_32]"):
        message = refused(train_config(f"data.local={staged_data}", f"data.stage_splits={splits}"))
        assert message.startswith("data.stage_splits=")
        assert "needs a curriculum" in message


def test_each_stage_has_a_batch_at_least(staged_config: MakeConfig, staged_data: Path) -> None:
    blocks = json.loads((staged_data / "manifest.json").read_text())["splits"]["train_8"]["blocks"]
    preflight(staged_config(f"global_train_batch_size={blocks}", "microbatch_tokens=32"))
    message = refused(staged_config(f"global_train_batch_size={blocks + 1}", "microbatch_tokens=32"))
    assert message.startswith("global_train_batch_size=")
    assert f"train_8 has {blocks} blocks only" in message


@pytest.mark.parametrize("split", SPLITS)
def test_damage_in_any_folder_is_found(
    staged_config: MakeConfig, staged_data: Path, tmp_path: Path, split: str
) -> None:
    own = Path(shutil.copytree(staged_data, tmp_path / "own"))
    config = staged_config(f"data.local={own}")
    preflight(config)
    shard = sorted((own / split).rglob("*.mds"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert str(shard) in refused(config)


def test_the_cache_of_a_remote_is_claimed_for_every_folder(
    staged_config: MakeConfig, staged_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("bertchen.train.preflight.claim_cache", lambda local, splits: claimed.append((local, splits)))
    cache = str(tmp_path / "cache")
    preflight(staged_config(f"data.remote={staged_data}", f"data.local={cache}"))
    assert claimed == [(cache, [*SPLITS, "val"])]


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_loader_has_the_folders_in_their_order(staged_config: MakeConfig, shuffle: bool) -> None:
    config = staged_config(f"data.shuffle={shuffle}")
    checked = preflight(config)
    loader = builders.build_train_loader(config, checked)
    blocks = loader.dataloader.dataset  # type: ignore[union-attr]
    assert isinstance(blocks, StagedBlocks)
    assert [stage.split for stage in blocks.stages] == SPLITS
    assert [stage.num_samples for stage in blocks.stages] == [checked.manifest["splits"][x]["blocks"] for x in SPLITS]
    assert [stage.shuffle for stage in blocks.stages] == [shuffle] * 3
    batch = next(iter(loader.dataloader))
    assert loader.get_num_samples_in_batch(batch) == 8
    assert loader.get_num_tokens_in_batch(batch) == 8 * 32
    numbers = (batch["row_ids"].reshape(8, -1)[:, 0] // (len(batch["row_ids"]) // 8)).tolist()
    assert (numbers == list(range(8))) is not shuffle
