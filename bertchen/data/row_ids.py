"""Which blocks a step is made of, on all processes together, in the order of the global batch.

A loader's batch has their numbers in `blocks`, a NumPy array: so they stay on the host, and nothing waits for the
device. Cutting and masking leave them as they are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from composer.utils import dist
from torch.distributed import ProcessGroup, get_backend, new_group

BLOCKS = "blocks"


@cache
def host_group() -> ProcessGroup | None:
    """Several processes as a group that exchanges tensors on the host; None where the default one does.

    All processes must call it for the first time at the same place.
    """
    if get_backend() == "gloo":
        return None
    return new_group(backend="gloo")


def global_row_ids(batch: dict[str, Any]) -> list[int]:
    """The numbers of the global batch's blocks in their order, the same on all processes, which must all call this.

    Each process has one stretch of the global batch (`bertchen.data.order`), so the order is that of one process alone.

    Args:
        batch: of this process, from a loader of training blocks; microbatches have all the blocks of their batch.
    """
    mine = torch.from_numpy(batch[BLOCKS])
    if dist.get_world_size() == 1:  # whose group, if a launcher made one, may be of GPUs alone
        return mine.tolist()
    return torch.cat(list(dist.all_gather(mine, group=host_group()))).tolist()
