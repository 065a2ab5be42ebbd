"""From text to a model folder by the commands of the README, as they stand there, and what each leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from running import COMPOSER, LENGTHS, PYTHON, Prepared, checkpoints, metrics, succeed, validation

STEPS = 200


@pytest.fixture(scope="module")
def first_run(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of `composer main.py yamls/pretrain.yaml …` on text that can be learnt."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    done = succeed(
        COMPOSER, "main.py", *prepared.overrides(folder), f"max_duration={STEPS}ba", "eval.interval=50ba",
        "eval.at_start=true", "save_interval=50ba", "optimizer.lr=1e-2", "model.hidden_dropout_prob=0", "export=true",
    )  # fmt: skip
    return folder, done.stdout


def test_tokenizer_and_shards_say_what_they_are(prepared: Prepared) -> None:
    manifest = prepared.manifest()
    assert manifest["documents"] == {"read": 130, "kept": 130}
    assert manifest["splits"]["train"]["blocks"] >= 200
    assert manifest["splits"]["val"]["blocks"] == 22
    assert manifest["tokenizer"]["name"] == str(prepared.tokenizer)
    assert {path.name for path in prepared.mds.iterdir()} == {"train", "val", "manifest.json"}
    assert (prepared.tokenizer / "tokenizer.json").exists()


def test_validation_loss_falls_below_the_entropy_of_the_tokens(first_run: tuple[Path, str], prepared: Prepared) -> None:
    entropy = prepared.manifest()["unigram_entropy_nats"]
    for length in LENGTHS:
        by_step = validation(first_run[0], length)
        assert sorted(by_step) == [0, 50, 100, 150, 200]
        assert by_step[0] > 1.5 * entropy  # knows nothing yet
        assert by_step[STEPS] < entropy - 0.2  # a model that only counts tokens reaches the entropy at best


def test_metrics_have_a_line_a_step(first_run: tuple[Path, str]) -> None:
    lines = metrics(first_run[0])
    assert [line["step"] for line in lines] == [*range(STEPS + 1), STEPS]
    assert lines[-1]["event"] == "end"
    assert "max_duration=200ba" in lines[-1]["reason"]
    for line in lines[:-2]:
        assert line["loss/train/total"] > 0
        assert line["time/batch"] == line["step"]
        assert line["time/token"] == line["step"] * 16 * 64
    for line in lines[2:-1]:
        assert line["throughput/tokens_per_sec"] > 0
        assert line["time/remaining_seconds"] >= 0
        assert 0 < line["lr-AdamW/group0"] <= 1e-2
    for name in ("MaskedCrossEntropy", "MaskedPerplexity", "MaskedAccuracy"):
        assert all(f"metrics/eval_{length}/{name}" in lines[50] for length in LENGTHS)


def test_learning_rate_follows_the_schedule(first_run: tuple[Path, str]) -> None:
    """Line n holds the rate with which step n (from 1) was made: warm-up over 6 %, then linear to 0."""
    warmup, peak = 12, 1e-2
    for line in metrics(first_run[0])[1:-1]:
        done = line["step"] - 1
        expected = peak * min(done / warmup, (STEPS - done) / (STEPS - warmup))
        assert line["lr-AdamW/group0"] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_run_folder_holds_configuration_and_the_last_checkpoints(
    first_run: tuple[Path, str], prepared: Prepared
) -> None:
    folder = first_run[0]
    assert {path.name for path in folder.iterdir()} == {
        "metrics.jsonl", "config.yaml", "hf", "latest-rank0.pt", *checkpoints(folder),
    }  # fmt: skip
    steps = [name.partition("-ba")[2] for name in checkpoints(folder)]
    assert steps == ["150-rank0.pt", "200-rank0.pt"]
    assert (folder / "latest-rank0.pt").resolve().name == checkpoints(folder)[-1]
    config = OmegaConf.load(folder / "config.yaml")
    assert config.data.local == str(prepared.mds)
    assert config.optimizer == {**config.optimizer, "lr": 1e-2, "betas": [0.9, 0.98], "weight_decay": 1e-5}


def test_summary_names_what_came_of_it(first_run: tuple[Path, str]) -> None:
    folder, output = first_run
    assert "max_duration=200ba reached, after 200 steps and 204,800 tokens" in output
    assert f"validation loss (eval_64): {validation(folder)[STEPS]:.4f}" in output
    assert str(folder / "hf") in output


def test_saved_configuration_starts_the_same_run(first_run: tuple[Path, str], in_process, tmp_path: Path) -> None:
    in_process(
        str(first_run[0] / "config.yaml"), f"save_folder={tmp_path / 'again'}", "max_duration=3ba", "export=false"
    )
    again, before = metrics(tmp_path / "again"), metrics(first_run[0])
    assert [line["loss/train/total"] for line in again[:1]] == [before[0]["loss/train/total"]]


def test_export_command_gives_the_checkpoint_s_weights(first_run: tuple[Path, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = first_run[0]
    succeed(PYTHON, "scripts/export_hf.py", str(folder / "latest-rank0.pt"), str(tmp_path / "model"))
    saved = torch.load(folder / "latest-rank0.pt", weights_only=False)["state"]["model"]
    for exported in (tmp_path / "model", folder / "hf"):
        weights = load_file(exported / "model.safetensors")
        assert weights
        for name, weight in weights.items():
            assert torch.equal(weight, saved[f"model.{name}"])
        assert {"config.json", "README.md", "tokenizer.json"} <= {path.name for path in exported.iterdir()}
