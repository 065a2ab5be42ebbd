"""torch.compile of the dense training path: one graph, the same numbers, no needless recompilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from alibi_reference import tiny_config
from torch import Tensor

from bertchen.model import MosaicBertForMaskedLM, why_unavailable

FLEX_HAS_NO_GRADIENT = why_unavailable("flex", torch.device("cpu"), torch.float32) is not None


class Graphs:
    """A backend for torch.compile that counts what it is asked to compile."""

    def __init__(self) -> None:
        self.count = 0
        self._compile = torch._dynamo.lookup_backend("aot_eager")

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.count += 1
        return self._compile(graph, inputs)


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.fixture
def model() -> MosaicBertForMaskedLM:
    torch.manual_seed(0)
    return MosaicBertForMaskedLM(tiny_config()).train()


def batch_of(rows: int, seq_len: int) -> dict[str, Tensor | int]:
    generator = torch.Generator().manual_seed(seq_len)
    ids = torch.randint(4, 96, (rows, seq_len), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.3, -100)
    number = (labels != -100).sum()
    return {
        "input_ids": ids,
        "labels": labels,
        "max_masked": rows * seq_len // 2,
        "num_items_in_batch": number,
    }


def step(forward: Callable, model: MosaicBertForMaskedLM, batch: dict) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = forward(**batch).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same_step(compiled: Callable, model: MosaicBertForMaskedLM, batch: dict) -> None:
    loss, gradients = step(compiled, model, batch)
    expected_loss, expected = step(model, model, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "backend",
    [
        "auto",
        "sdpa",
        pytest.param("flex", marks=pytest.mark.skipif(FLEX_HAS_NO_GRADIENT, reason="no gradient")),
    ],
)
def test_one_graph_with_the_same_loss_and_gradients(model: MosaicBertForMaskedLM, graphs: Graphs, backend: str) -> None:
    model.config.attention_backend = backend
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    assert_same_step(compiled, model, batch_of(4, 16))
    assert graphs.count == 1


@pytest.mark.parametrize("dynamic", [None, False])
def test_a_length_that_comes_back_does_not_recompile(
    model: MosaicBertForMaskedLM, graphs: Graphs, dynamic: bool | None
) -> None:
    """Tokens a batch are constant, as in a curriculum over sequence lengths."""
    compiled = torch.compile(model, backend=graphs, fullgraph=True, dynamic=dynamic)
    for seq_len in (16, 32, 64):
        assert_same_step(compiled, model, batch_of(256 // seq_len, seq_len))
    seen = graphs.count
    assert seen <= 3
    for seq_len in (32, 16, 64, 16):
        assert_same_step(compiled, model, batch_of(256 // seq_len, seq_len))
    assert graphs.count == seen


def test_other_labels_do_not_recompile(model: MosaicBertForMaskedLM, graphs: Graphs) -> None:
    """Neither the number of masked tokens nor their places are part of the graph."""
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    batch = batch_of(4, 16)
    compiled(**batch)
    for seed in range(5):
        keep = torch.rand((4, 16), generator=torch.Generator().manual_seed(seed)) < 0.1 * seed
        labels = batch["input_ids"].masked_fill(~keep, -100)
        number = (labels != -100).sum().clamp(min=1)
        assert_same_step(compiled, model, {**batch, "labels": labels, "num_items_in_batch": number})
    assert graphs.count == 1


def test_training_and_evaluation_are_a_graph_each(model: MosaicBertForMaskedLM, graphs: Graphs) -> None:
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    batch = batch_of(4, 16)
    for _ in range(3):
        model.train()
        assert_same_step(compiled, model, batch)
        model.eval()
        with torch.no_grad():
            got, expected = compiled(**batch), model(**batch)
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
        assert got.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert graphs.count == 2


def test_under_autocast(model: MosaicBertForMaskedLM, graphs: Graphs) -> None:
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    batch = batch_of(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = compiled(**batch), model(**batch)
    assert got.masked_logits.dtype == torch.bfloat16
    torch.testing.assert_close(got.masked_logits.float(), expected.masked_logits.float(), rtol=0.05, atol=0.05)
    assert graphs.count == 1


def test_dropout_is_part_of_the_graph(graphs: Graphs) -> None:
    model = MosaicBertForMaskedLM(tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.1)).train()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    batch = batch_of(4, 16)
    losses = {compiled(**batch).loss.item() for _ in range(4)}
    assert len(losses) == 4
    assert graphs.count == 1
