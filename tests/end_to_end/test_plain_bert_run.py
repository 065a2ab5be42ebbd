"""A run of the plain BERT: killed and resumed it gives the same bits, and its export needs no code of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import LATEST, Prepared, assert_same_state, exact, losses, metrics, started, validation
from transformers import AutoTokenizer, pipeline

pytestmark = pytest.mark.slow

STEPS = 12


def test_killed_run_goes_on_as_if_nothing_had_happened(
    prepared: Prepared, tmp_path: Path, in_process: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Saved every 4 steps, evaluated every 5, killed after 6."""

    def arguments(folder: Path, *more: str) -> list[str]:
        return prepared.overrides(
            folder, "model.architecture=bert", f"max_duration={STEPS}ba", "optimizer.lr=5e-3", *more
        )

    in_process(*arguments(tmp_path / "dry", "dry_run=true"))
    printed = capsys.readouterr().out
    assert "architecture: bert" in printed
    folder, whole = tmp_path / "run", tmp_path / "whole"
    with started(arguments(folder), tmp_path / "log") as run:
        run.wait_for_step(6)
        run.kill_all()
    assert metrics(folder)[-1]["step"] < STEPS, "ended before it could be killed"
    in_process(*arguments(folder, "autoresume=true", "export=true"))
    in_process(*arguments(whole))
    assert exact(folder) == exact(whole)
    assert_same_state(folder / LATEST, whole / LATEST)
    assert len(set(losses(whole))) == STEPS
    assert sorted(validation(whole)) == [5, 10, STEPS]
    assert losses(whole)[-1] < losses(whole)[0]

    weights = torch.load(whole / LATEST, weights_only=False)["state"]["model"]
    fill_mask = pipeline("fill-mask", model=str(folder / "hf"), trust_remote_code=False)
    parameters = sum(parameter.numel() for parameter in fill_mask.model.parameters())
    assert f"parameters: {parameters:,}" in printed
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in fill_mask.model.state_dict().items())
    assert fill_mask(f"Der Hund sieht den {AutoTokenizer.from_pretrained(folder / 'hf').mask_token}.")
