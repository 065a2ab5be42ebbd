"""Batches: padding, order and size as properties; predictions against one input at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from composer.utils import dist
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FAMILIES, load, shared

from bertchen.data import together
from bertchen.tasks.batches import Collator, eval_loader, predict, train_loader
from bertchen.tasks.encoding import Features
from bertchen.tasks.heads import TaskModel

PAD = 9
KINDS = ("classification", "tagging", "question_answering")
lengths_of_inputs = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def inputs(
    lengths: list[int], kind: str = "classification", types: bool = False, vocabulary: int = 400
) -> list[Features]:
    numbers = np.random.default_rng(0)
    features = []
    for example, length in enumerate(lengths):
        more = {
            "classification": {"label": example % 3},
            "tagging": {
                "words": np.arange((length + 1) // 2, dtype=np.int32),
                "word_starts": np.arange(0, length, 2, dtype=np.int32),
                "tags": numbers.integers(0, 3, ((length + 1) // 2, 2)).astype(np.int32),
            },
            "question_answering": {"start": length // 2, "end": length - 1},
        }[kind]
        ids = numbers.integers(10, vocabulary, length).astype(np.int32)
        type_ids = (np.arange(length, dtype=np.int32) > 2).astype(np.int32) if types else None
        features.append(Features(example, ids, type_ids, **more))
    return features


# -- collating -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_inputs, kind=st.sampled_from(KINDS), types=st.booleans(), data=st.data())
def test_rows_are_the_inputs_and_padding(lengths: list[int], kind: str, types: bool, data: st.DataObject) -> None:
    features = inputs(lengths, kind, types)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    batch = Collator(features, PAD)([(index, features[index]) for index in chosen])
    width = batch["input_ids"].shape[1]
    longest = max(lengths[index] for index in chosen)
    assert longest <= width <= max(lengths)
    assert width % 8 == 0 or width == max(lengths)
    assert width - longest < 8
    assert batch["index"].tolist() == chosen
    for row, index in enumerate(chosen):
        feature, length = features[index], lengths[index]
        assert batch["input_ids"][row].tolist() == [*feature.input_ids.tolist(), *[PAD] * (width - length)]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (width - length)
        assert ("token_type_ids" in batch) == types
        if types:
            assert batch["token_type_ids"][row].tolist() == feature.token_type_ids.tolist() + [0] * (width - length)
        if kind == "classification":
            assert batch["labels"][row] == feature.label
        elif kind == "question_answering":
            assert (batch["start_positions"][row], batch["end_positions"][row]) == (feature.start, feature.end)
        else:
            expected = torch.full((width, 2), -100)
            for token, tags in zip(feature.word_starts.tolist(), feature.tags.tolist(), strict=True):
                expected[token] = torch.tensor(tags)
            assert torch.equal(batch["tags"][row], expected)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_fixed_width() -> None:
    features = inputs([3, 5])
    batch = Collator(features, PAD, width=12)(list(enumerate(features)))
    assert batch["input_ids"].shape == (2, 12)


def test_inputs_without_labels_have_none() -> None:
    features = [Features(0, np.array([1, 2], np.int32)), Features(1, np.array([3], np.int32), label=1)]
    assert "labels" not in Collator(features, PAD)(list(enumerate(features)))


# -- order ---------------------------------------------------------------------------------------------------


def order(seed: int, epoch: int, lengths: list[int], size: int = 4) -> list[list[int]]:
    loader = train_loader(inputs(lengths), PAD, size, seed)
    loader.sampler.set_epoch(epoch)
    return [batch["index"].tolist() for batch in loader]


def test_training_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = list(range(1, 24))
    once = order(7, 3, lengths)
    torch.manual_seed(1)
    assert order(7, 3, lengths) == once
    assert sorted(index for batch in once for index in batch) == list(range(23))
    assert [len(batch) for batch in once] == [4] * 5 + [3]
    assert len({str(other) for other in (once, order(7, 4, lengths), order(8, 3, lengths))}) == 3


def test_training_order_over_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(together, "highest", list)  # what the other process says of its batches
    seen = []
    for rank in range(2):
        monkeypatch.setattr(dist, "get_global_rank", lambda rank=rank: rank)
        seen += [index for batch in order(7, 0, [5] * 22) for index in batch]
    assert sorted(seen) == list(range(22))


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_inputs, max_tokens=st.integers(1, 200))
def test_evaluation_batches(lengths: list[int], max_tokens: int) -> None:
    batches = list(eval_loader(inputs(lengths), PAD, max_tokens))
    indexes = [index for batch in batches for index in batch["index"].tolist()]
    assert sorted(indexes) == list(range(len(lengths)))
    assert [lengths[index] for index in indexes] == sorted(lengths, reverse=True)
    for batch in batches:
        assert batch["input_ids"].numel() <= max_tokens or len(batch["input_ids"]) == 1


# -- predictions ---------------------------------------------------------------------------------------------


def model_of(family: str, kind: str) -> TaskModel:
    torch.manual_seed(0)
    return TaskModel(load(family).model, kind, 3, levels=2 if kind == "tagging" else 1)  # type: ignore[arg-type]


def features_for(family: str, kind: str) -> list[Features]:
    encoder = shared(family)
    lengths = [5, 30, 1, 17, 8, 30, 2]
    return inputs(lengths, kind, encoder.token_types, len(encoder.tokenizer))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["mosaicbert", "bert", "roberta", "modernbert"])
def test_predictions_are_those_of_one_input_at_a_time(family: str, kind: str) -> None:
    model, features = model_of(family, kind).train(), features_for(family, kind)
    found = predict(model, eval_loader(features, shared(family).pad_id, 64), "cpu")
    assert model.training
    model.eval()
    for feature, prediction in zip(features, found, strict=True):
        batch = {"input_ids": torch.tensor(feature.input_ids[None]).long()}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if feature.token_type_ids is not None:
            batch["token_type_ids"] = torch.tensor(feature.token_type_ids[None]).long()
        with torch.no_grad():
            expected = list(model(batch).values())
        parts = prediction if isinstance(prediction, tuple) else (prediction,)
        assert len(parts) == len(expected)
        for part, logits in zip(parts, expected, strict=True):
            assert part.dtype == np.float32
            assert part.base is None
            np.testing.assert_allclose(part, logits[0].numpy(), rtol=1e-4, atol=1e-4)


def test_predictions_over_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes every other batch; together they have each input once, in order."""
    model, features = model_of("bert", "classification"), features_for("bert", "classification")
    alone = predict(model, eval_loader(features, 0, 32), "cpu")
    parts: list[dict] = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda part: [*parts, part])
    monkeypatch.setattr(dist, "get_global_rank", lambda: 1)
    second = {index: alone[index] for batch in eval_loader(features, 0, 32).batch_sampler for index in batch}
    assert 0 < len(second) < len(features)
    parts.append(second)
    monkeypatch.setattr(dist, "get_global_rank", lambda: 0)
    loader = eval_loader(features, 0, 32)
    assert not second.keys() & {index for batch in loader.batch_sampler for index in batch}
    np.testing.assert_array_equal(np.stack(predict(model, loader, "cpu")), np.stack(alone))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_on_after_a_prediction(family: str) -> None:
    """Nothing that inference mode made is left in the model."""
    model, features = model_of(family, "classification").train(), features_for(family, "classification")
    predict(model, eval_loader(features, shared(family).pad_id, 64), "cpu")
    [batch] = train_loader(features, shared(family).pad_id, len(features), seed=1)
    model(batch)["loss"].backward()
    assert model.head.weight.grad.isfinite().all()


def test_loaders_leave_the_random_numbers_of_training() -> None:
    model, features = model_of("bert", "classification"), features_for("bert", "classification")
    before = torch.random.get_rng_state()
    predict(model, eval_loader(features, 0, 64), "cpu")
    list(train_loader(features, 0, 4, 1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_on_a_gpu(kind: str) -> None:
    model, features = model_of("mosaicbert", kind), features_for("mosaicbert", kind)
    expected = predict(model, eval_loader(features, 0, 64), "cpu")
    model.to("cuda")
    for dtype, tolerance in ((torch.float32, 1e-2), (torch.bfloat16, 0.5)):
        found = predict(model, eval_loader(features, 0, 64), "cuda", dtype)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.stack(one), np.stack(other), rtol=0, atol=tolerance)


def test_autocast_is_for_cuda_alone() -> None:
    model, features = model_of("mosaicbert", "classification"), features_for("mosaicbert", "classification")
    loader = eval_loader(features, 0, 64)
    one, other = predict(model, loader, "cpu", torch.bfloat16), predict(model, loader, torch.device("cpu"))
    np.testing.assert_array_equal(np.stack(one), np.stack(other))


def test_a_failed_prediction_leaves_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = model_of("bert", "classification").train(), features_for("bert", "classification")
    loader = eval_loader(features, 0, 64)
    monkeypatch.setattr(model, "head", None)
    with pytest.raises(TypeError):
        predict(model, loader, "cpu")
    assert model.training
