"""Runs that end early, by the clock, and those that only look: `stop_after` and `dry_run`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from running import LATEST, LENGTHS, PYTHON, Prepared, checkpoints, metrics, succeed, tree, validation


@pytest.fixture(scope="module")
def stopped(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a run whose limit is over when the first step ends."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    done = succeed(
        PYTHON, "main.py", *prepared.overrides(folder), "max_duration=2500ba", "stop_after=0.001s", "export=true"
    )
    return folder, done.stdout


class TestStopAfter:
    def test_evaluates_saves_and_exports(self, stopped: tuple[Path, str]) -> None:
        folder, _ = stopped
        assert checkpoints(folder) == ["ep0-ba1-rank0.pt"]
        assert (folder / LATEST).resolve() == folder / "ep0-ba1-rank0.pt"
        assert (folder / "hf" / "model.safetensors").exists()
        for length in LENGTHS:
            assert list(validation(folder, length)) == [1]

    def test_says_why(self, stopped: tuple[Path, str]) -> None:
        folder, output = stopped
        end = metrics(folder)[-1]
        assert (end["step"], end["event"]) == (1, "end")
        assert "stop_after=0.001s reached" in end["reason"]
        assert end["reason"] in output
        assert f"{validation(folder)[1]:.4f}" in output

    def test_schedule_stays_that_of_max_duration(
        self, stopped: tuple[Path, str], prepared: Prepared, tmp_path: Path, in_process: Callable
    ) -> None:
        """Step n of 2,500, of which 150 are the warm-up, has the rate 5e-4 n / 150, with a limit as without."""
        folder = tmp_path / "run"
        limited = ("max_duration=2500ba", "stop_after=3s", "eval.interval=1000ba")
        in_process(*prepared.overrides(folder, *limited))
        rates = {line["step"]: line["lr-AdamW/group0"] for line in metrics(folder) if "lr-AdamW/group0" in line}
        assert 2 < max(rates) < 2500
        for step, rate in rates.items():
            assert rate == pytest.approx(5e-4 * (step - 1) / 150)

    def test_restart_with_more_time_goes_on(
        self, stopped: tuple[Path, str], prepared: Prepared, tmp_path: Path, in_process: Callable
    ) -> None:
        folder = shutil.copytree(stopped[0], tmp_path / "run", symlinks=True)
        in_process(*prepared.overrides(folder, "max_duration=8ba", "stop_after=1h", "autoresume=true"))
        assert [line["step"] for line in metrics(folder)] == [*range(9), 8]
        assert "max_duration=8ba reached" in metrics(folder)[-1]["reason"]


class TestDryRun:
    def test_prints_what_would_be_trained_and_leaves_nothing(
        self, prepared: Prepared, tmp_path: Path, in_process: Callable, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = tree(prepared.mds.parent)
        in_process(*prepared.overrides(tmp_path / "run", "dry_run=true", "sequence_length=32", "seed=11"))
        output = capsys.readouterr().out
        assert tree(tmp_path) == {}
        assert tree(prepared.mds.parent) == before

        resolved = OmegaConf.create(output.partition("\ndevice: ")[0])
        assert resolved.seed == 11
        assert resolved.data.local == str(prepared.mds)
        assert resolved.optimizer.betas == [0.9, 0.98]
        assert "32 rows x 32 = 1,024 tokens" in output
        assert f"an epoch: {prepared.steps_an_epoch()} steps" in output
        assert "max_duration 6ba" in output
        assert re.search(r"a checkpoint: about \d+ kB, 2 kept; the export: \d+ kB", output)

    def test_figures_are_those_of_the_model(
        self, prepared: Prepared, stopped: tuple[Path, str], tmp_path: Path, in_process: Callable,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        in_process(*prepared.overrides(tmp_path / "run", "dry_run=true"))
        output = capsys.readouterr().out
        saved = torch.load(stopped[0] / LATEST, weights_only=False)["state"]["model"]
        # The output layer is the word embedding once more.
        weights = {tensor.data_ptr(): tensor.numel() for tensor in saved.values()}
        parameters = sum(weights.values())
        assert f"parameters: {parameters:,}" in output
        by_hand = _flops_by_hand(vocab=_vocabulary(saved), hidden=32, layers=2, wide=64, rows=64, rate=0.3)
        printed = float(re.search(r"training FLOPs a token: ([\d.e+]+)", output)[1])
        assert printed == pytest.approx(by_hand, rel=0.05)  # biases and norms, which in so small a model are 4 %

    def test_in_a_run_s_folder_touches_nothing(
        self, prepared: Prepared, stopped: tuple[Path, str], in_process: Callable
    ) -> None:
        before = tree(stopped[0])
        in_process(*prepared.overrides(stopped[0], "dry_run=true", "overwrite=true"))
        in_process(*prepared.overrides(stopped[0], "dry_run=true", "autoresume=true"))
        assert tree(stopped[0]) == before

    def test_wrong_value_is_refused_too(
        self, prepared: Prepared, tmp_path: Path, in_process: Callable, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            in_process(*prepared.overrides(tmp_path / "run", "dry_run=true", "sequence_length=48"))
        assert ended.value.code == 2
        assert "sequence_length" in capsys.readouterr().err


def _vocabulary(saved: dict[str, torch.Tensor]) -> int:
    return next(len(tensor) for name, tensor in saved.items() if name.endswith("word_embeddings.weight"))


def _flops_by_hand(vocab: int, hidden: int, layers: int, wide: int, rows: int, rate: float) -> float:
    """Two FLOPs a multiplication and addition, three times the forward pass: matrices, attention, and the head.

    Of the last layer only masked tokens, as of the head, pass what follows attention.
    """
    after_attention = hidden * hidden + 3 * hidden * wide
    matrices = layers * 3 * hidden * hidden + (layers - 1 + rate) * after_attention
    attention = layers * 2 * rows * hidden
    head = rate * (hidden * hidden + hidden * vocab)
    return 6 * (matrices + attention + head)
