"""`main.py` with FSDP on CPUs, where Composer would not put it: `torchrun … tests/end_to_end/main_fsdp_on_cpu.py …`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.distributed.fsdp import _optim_utils
from torch.distributed.fsdp._flat_param import FlatParamHandle

import main
from bertchen.errors import user_errors
from bertchen.train import parallelism

if __name__ == "__main__":
    torch.cuda.current_device = lambda: torch.device("cpu")
    # PyTorch copies what it saves by moving it to the CPU, and goes on to free and overwrite it; here that is no copy.
    FlatParamHandle.to_cpu = lambda handle: nullcontext()
    unflatten = _optim_utils._unflatten_orig_param_states
    _optim_utils._unflatten_orig_param_states = lambda *given: unflatten(*given[:-1], False)
    parallelism.has_gpu = lambda: True
    with user_errors():
        main.main(sys.argv[1:])
