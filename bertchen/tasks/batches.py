"""Batches of inputs: in random order for training, by length for evaluation; and predictions for all of them.

Notable: padding is cheap here. Training batches are padded to their longest input, evaluation batches hold inputs of
about one length, and our model drops padding before its first layer. Rows are filled by one scatter a batch. Loaders
have a generator of their own: how often a model is evaluated changes nothing of the random numbers in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from composer.utils import dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bertchen.data.together import LoaderInStep
from bertchen.model.modeling_mosaicbert import IGNORE_INDEX
from bertchen.tasks.encoding import Features
from bertchen.tasks.heads import TaskModel

MULTIPLE = 8
Logits = NDArray[np.float32]
# What a head returns for an input: its logits, or those of start and end.
Prediction = Logits | tuple[Logits, Logits]


class FeatureDataset(Dataset[tuple[int, Features]]):
    """Inputs and their places in the list."""

    def __init__(self, features: Sequence[Features]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[int, Features]:
        return index, self.features[index]


class Collator:
    """Inputs to a batch, padded at the right to the longest, rounded up to a multiple.

    Args:
        features: all that there are: rounding up goes no further than the longest of them, which a model with learned
            positions has been made to fit.
        pad_id: fills `input_ids` up.
        multiple: of the length, for the matrix units.
        width: pads to this length instead.
    """

    def __init__(
        self, features: Sequence[Features], pad_id: int, multiple: int = MULTIPLE, width: int | None = None
    ) -> None:
        self.pad_id, self.multiple, self.width = pad_id, multiple, width
        self.longest = max(map(len, features), default=0)

    def padded_length(self, length: int) -> int:
        """The length of a batch whose longest input has `length` tokens."""
        if self.width is not None:
            return self.width
        return max(length, min(-(-length // self.multiple) * self.multiple, self.longest))

    def __call__(self, rows: Sequence[tuple[int, Features]]) -> dict[str, Tensor]:
        """`index` (rows,), `input_ids`, `attention_mask`, `token_type_ids` (rows, length), and what the loss takes."""
        indexes, features = zip(*rows, strict=True)
        lengths = np.array([len(feature) for feature in features])
        attended = np.arange(self.padded_length(int(lengths.max()))) < lengths[:, None]
        batch = {
            "index": torch.tensor(indexes),
            "input_ids": _filled(attended, [feature.input_ids for feature in features], self.pad_id),
            "attention_mask": torch.from_numpy(attended.astype(np.int64)),
        }
        if features[0].token_type_ids is not None:
            batch["token_type_ids"] = _filled(attended, [feature.token_type_ids for feature in features], 0)
        if all(feature.label is not None for feature in features):
            batch["labels"] = torch.tensor([feature.label for feature in features])
        if features[0].tags is not None:
            batch["tags"] = _placed_tags(features, attended.shape[1])
        if features[0].start is not None:
            batch["start_positions"] = torch.tensor([feature.start for feature in features])
            batch["end_positions"] = torch.tensor([feature.end for feature in features])
        return batch


def _filled(attended: NDArray[np.bool_], rows: Sequence[Any], fill: int) -> Tensor:
    """(rows, length): the rows' numbers where `attended`, `fill` elsewhere."""
    padded = np.full(attended.shape, fill, np.int64)
    padded[attended] = np.concatenate(rows)
    return torch.from_numpy(padded)


def _placed_tags(features: Sequence[Features], length: int) -> Tensor:
    """(rows, length, levels): tags where words begin, -100 elsewhere."""
    tags = np.full((len(features), length, features[0].tags.shape[1]), IGNORE_INDEX, np.int64)
    row = np.repeat(np.arange(len(features)), [len(feature.word_starts) for feature in features])
    tags[row, np.concatenate([feature.word_starts for feature in features])] = np.concatenate(
        [feature.tags for feature in features]
    )
    return torch.from_numpy(tags)


def train_loader(
    features: Sequence[Features],
    pad_id: int,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    drop_last: bool = False,
    width: int | None = None,
) -> DataLoader:
    """Batches in an order that is a function of `seed` and the epoch, which the sampler's `set_epoch` sets.

    Args:
        features: the inputs; each comes once an epoch, over all processes (a few twice where they don't divide evenly).
        pad_id: see `Collator`.
        batch_size: inputs a batch on this process.
        seed: of the order.
        num_workers: processes that collate; 0 does so in this one.
        drop_last: leave out the last batch where it is smaller.
        width: see `Collator`.
    """
    dataset = FeatureDataset(features)
    # The sampler adds the epoch to its seed: of seeds that are neighbours one run would follow the other's orders.
    far_apart = int(np.random.SeedSequence(seed).generate_state(1)[0])
    sampler = DistributedSampler(
        dataset, num_replicas=dist.get_world_size(), rank=dist.get_global_rank(), shuffle=True, seed=far_apart
    )
    return LoaderInStep(
        dataset, batch_size=batch_size, sampler=sampler, collate_fn=Collator(features, pad_id, width=width),
        num_workers=num_workers, drop_last=drop_last, pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0, generator=torch.Generator(),
    )  # fmt: skip


class LengthBatches:
    """Indexes of inputs, the longest first, in batches of at most `max_tokens` with padding; at least one input each.

    Each process gets every n-th batch.
    """

    def __init__(self, features: Sequence[Features], collator: Collator, max_tokens: int) -> None:
        lengths = np.array([len(feature) for feature in features])
        order = np.argsort(-lengths, kind="stable")
        batches, start = [], 0
        while start < len(order):
            rows = max(1, max_tokens // collator.padded_length(int(lengths[order[start]])))
            batches.append(order[start : start + rows].tolist())
            start += rows
        self.batches = batches[dist.get_global_rank() :: dist.get_world_size()]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def eval_loader(features: Sequence[Features], pad_id: int, max_tokens: int, num_workers: int = 0) -> DataLoader:
    """Batches of inputs of about one length, each with at most `max_tokens` tokens, padding counted.

    `index` in a batch says which input each row is.
    """
    collator = Collator(features, pad_id)
    return DataLoader(
        FeatureDataset(features), batch_sampler=LengthBatches(features, collator, max_tokens), collate_fn=collator,
        num_workers=num_workers, pin_memory=torch.cuda.is_available(), generator=torch.Generator(),
    )  # type: ignore[arg-type]  # fmt: skip


def predict(
    model: TaskModel, loader: DataLoader, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> list[Prediction]:
    """What the model says of each input of the loader's dataset, in its order, the same on every process.

    Args:
        model: on `device`; left in the mode it was in.
        loader: from `eval_loader`.
        device: where it runs.
        dtype: of matrix products under autocast, on CUDA only; float32 has no autocast.

    Returns:
        classification: logits (labels,); tagging: (length, levels, tags); question answering: those of start and of
        end, (length,) each. Float32; `length` is the input's own, without padding.
    """
    device = torch.device(device)
    mixed = device.type == "cuda" and dtype != torch.float32
    was_training = model.training
    model.eval()
    found: dict[int, Prediction] = {}
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype) if mixed else nullcontext():
            for batch in loader:
                moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
                found.update(_rows(model(moved), batch))
    finally:
        model.train(was_training)
    if dist.get_world_size() > 1:
        found = {index: row for part in dist.all_gather_object(found) for index, row in part.items()}
    return [found[index] for index in range(len(loader.dataset))]  # type: ignore[arg-type]


def _rows(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Iterator[tuple[int, Prediction]]:
    """Index and prediction of each row. Copies, because a view would keep the whole batch's memory."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
    arrays = [outputs[name].float().cpu().numpy() for name in names]
    per_token = arrays[0].ndim > 2 or len(arrays) > 1
    for row, (index, length) in enumerate(zip(batch["index"].tolist(), lengths, strict=True)):
        parts = tuple(array[row, :length].copy() if per_token else array[row].copy() for array in arrays)
        yield index, parts[0] if len(parts) == 1 else parts  # type: ignore[misc]
