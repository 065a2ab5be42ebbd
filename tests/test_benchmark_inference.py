"""The benchmark of inference: what it measures, and what it refuses."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
from script_modules import load_script

from bertchen.errors import UserError

MODEL = (
    "model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.intermediate_size=48",
    "model.vocab_size=128",
)  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmark_inference")


@pytest.mark.parametrize("padded", [False, True])
def test_a_line_for_each_model_and_shape(
    benchmark: ModuleType, padded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main(
        [*MODEL, "batch_sizes=[1,3]", "lengths=[4,8]", "repetitions=2", "warmup=0", f"padded={padded}", "threads=1"]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    models = ["exported", "bert, same width", "bert, same parameters"]
    shapes = [(length, rows) for length in (4, 8) for rows in (1, 3)]
    assert [(x["length"], x["rows"], x["model"]) for x in lines] == [(*shape, m) for shape in shapes for m in models]
    assert all(line["exported_is_times_as_fast"] == 1 for line in lines if line["model"] == "exported")
    assert all(0 < line["fastest_slowest"][0] <= line["seconds"] <= line["fastest_slowest"][1] for line in lines)
    parameters = {line["model"]: line["parameters"] for line in lines}
    # A layer of one has a gate's matrix more, the other's a bias of the same width more.
    assert parameters["bert, same width"] < parameters["bert, same parameters"]


def test_layers_have_the_same_parameters(benchmark: ModuleType) -> None:
    from bertchen.model import MosaicBertConfig, MosaicBertModel

    ours = MosaicBertModel(MosaicBertConfig(num_hidden_layers=1))
    bert = benchmark.reference("parameters", ours.config, 512)
    ours_layer, theirs = (
        sum(parameter.numel() for parameter in model.encoder.layer[0].parameters()) for model in (ours, bert)
    )
    assert theirs == pytest.approx(ours_layer, rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("references=[depth]", "references.*'depth' is unknown"),
        ("precision=fp16", "precision.*unknown"),
        ("lengths=[0]", "should name numbers from 1 on"),
        ("repetitions=0", "repetitions"),
    ],
)
def test_refuses(benchmark: ModuleType, wrong: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main([wrong])
