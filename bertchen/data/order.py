"""The order of training blocks: the same global batches on any number of processes, however they lie on nodes.

StreamingDataset divides an epoch over `num_canonical_nodes` parts of the data, and those over the nodes that there are.
Its own partitions keep their order only where nodes and parts divide one another, and repeat blocks to make processes
equal. Here an epoch is one sequence, which depends on the number of blocks and parts alone. A step takes the next
`global_train_batch_size` of it, so that what was read is always a beginning of the sequence; processes have a stretch
each of the global batch, in the order of their ranks. What is too little for a batch is left out, as in one process.

A global batch has its blocks part by part. So a node's stretch comes from parts of its own, whose shards alone it
fetches, where nodes divide parts and parts divide the batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from streaming.base import partition

Numbers = npt.NDArray[np.int64]

PARTITION = "global_batches"
PARTS = 8


def default_parts(shuffle: bool, global_batch: int) -> int:
    """How many parts an epoch is read from at once, where nobody says.

    1 keeps the order of data that isn't shuffled. Up to 15 parts don't enlarge what is shuffled at once (4,000,000
    blocks in all, 4 GB of 512 tokens, which the caches should hold), and let as many nodes fetch their share only.
    """
    return int(np.gcd(PARTS, global_batch)) if shuffle else 1


def epoch_order(num_samples: int, parts: int) -> Numbers:
    """Places 0 … num_samples - 1, a block of each part in turn; parts are stretches of nearly the same length."""
    bounds = np.arange(parts + 1) * num_samples // parts
    turns = bounds[:-1] + np.arange(-(-num_samples // parts))[:, None]
    return turns[turns < bounds[1:]]


def deal(order: Numbers, parts: int, first: int, ranks: int, workers_per_rank: int, batch_size: int) -> Numbers:
    """Divides an epoch from its place `first` on: (ranks, workers_per_rank, batches of each, batch_size).

    Batches of a rank go to its workers in turns, as a DataLoader asks for them; -1 fills up the last turn.
    """
    global_batch = ranks * batch_size
    steps = max(0, len(order) - first) // global_batch
    batches = order[first : first + steps * global_batch].reshape(steps, global_batch)
    begins = (first + np.arange(steps) * global_batch) % parts  # the part of each batch's first block
    turns = -(-steps // workers_per_rank)
    dealt = np.full((turns * workers_per_rank, global_batch), -1, dtype=np.int64)
    for part in np.unique(begins):
        by_part = np.argsort((part + np.arange(global_batch)) % parts, kind="stable")
        alike = np.flatnonzero(begins == part)
        dealt[alike] = batches[np.ix_(alike, by_part)]
    return dealt.reshape(turns, workers_per_rank, ranks, batch_size).transpose(2, 1, 0, 3)


def _global_batches(
    num_samples: int,
    num_canonical_nodes: int,
    num_physical_nodes: int,
    ranks_per_node: int,
    workers_per_rank: int,
    batch_size: int,
    drop_first: int = 0,
    initial_physical_nodes: int | None = None,
) -> Numbers:
    """What StreamingDataset asks of a partition: (nodes, ranks, workers, batches, batch_size) from `drop_first` on."""
    order = epoch_order(num_samples, num_canonical_nodes)
    ranks = num_physical_nodes * ranks_per_node
    dealt = deal(order, num_canonical_nodes, drop_first, ranks, workers_per_rank, batch_size)
    return dealt.reshape(num_physical_nodes, ranks_per_node, *dealt.shape[1:])


partition.algos[PARTITION] = _global_batches
