"""Times each kernel of this project, forward and backward, beside PyTorch's operations; prints one JSON object a pass.

python scripts/benchmark_kernels.py
python scripts/benchmark_kernels.py kernels=[attention] backends=[flex,flash] length=128

`gb_per_second` counts what a pass must read and write, once; beside the rate of a copy it says what is left to gain.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from bertchen.config import Config, load_config
from bertchen.config.load import nearest
from bertchen.config.schema_benchmark_kernels import BenchmarkKernelsConfig
from bertchen.errors import user_errors
from bertchen.model import BackendUnavailable, MosaicBertConfig, float8, kernels, norm_kernels
from bertchen.model.alibi import alibi_slopes
from bertchen.model.attention import attend, prepare_attention
from bertchen.model.attention_kernels import attention_backward, attention_forward, can_narrow
from bertchen.model.embedding_kernels import EmbeddingWeights, fused_embeddings
from bertchen.model.modeling_mosaicbert import IGNORE_INDEX
from bertchen.model.padding import pack
from bertchen.train.checks import check_not_negative, check_positive
from bertchen.train.devices import device_name

USAGE = "python scripts/benchmark_kernels.py [file.yaml …] key.sub=value …"


class Pass(NamedTuple):
    """What is timed: `by` whom, forward or backward, the work, and the bytes it must move (None: not counted)."""

    by: str
    direction: str
    work: Callable[[], Any]
    bytes: int | None


class Bench:
    """Numbers of the model's widths on the device, and the passes over them."""

    def __init__(self, cfg: BenchmarkKernelsConfig) -> None:
        self.cfg = cfg
        self.model = MosaicBertConfig(**cfg.model)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.generator = torch.Generator(self.device).manual_seed(cfg.seed)
        self.compile = cfg.compile if cfg.compile is not None else self.device.type == "cuda"

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(dtype or self.dtype)

    def torch_passes(self, function: Callable[..., Tensor], leaves: list[Tensor], moved: tuple[int, int]) -> list[Pass]:
        """PyTorch's operations, forward without a graph, and backward."""
        if self.compile:
            torch._dynamo.reset()
            function = torch.compile(function, dynamic=False)
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = function(*leaves)
        upper = torch.ones_like(out)

        def forward() -> None:
            with torch.no_grad():
                function(*leaves)

        by = "torch.compile" if self.compile else "torch"
        return [
            Pass(by, "forward", forward, moved[0]),
            Pass(by, "backward", lambda: torch.autograd.grad(out, leaves, upper, retain_graph=True), moved[1]),
        ]

    def attention(self) -> Iterator[Pass]:
        heads, tokens = self.model.num_attention_heads, self.cfg.tokens
        packing = pack(tokens // self.cfg.length, self.cfg.length, None, self.device)
        qkv = self.random(tokens, 3, heads, self.model.hidden_size // heads).requires_grad_()
        for backend in ("triton", *self.cfg.backends):
            context = prepare_attention(
                backend, packing, heads, self.device, self.dtype, 0.0, True, qkv.shape[-1], backend == "triton"
            )
            out = attend(qkv, context)
            upper = torch.ones_like(out)

            def forward(context: Any = context) -> None:
                with torch.no_grad():
                    attend(qkv, context)

            def backward(out: Tensor = out, upper: Tensor = upper) -> None:
                torch.autograd.grad(out, qkv, upper, retain_graph=True)

            yield Pass(backend, "forward", forward, None)
            yield Pass(backend, "backward", backward, None)

    def attention_float8(self) -> Iterator[Pass]:
        tokens, heads, length = self.cfg.tokens, self.model.num_attention_heads, self.cfg.length
        qkv = self.random(tokens, 3, heads, self.model.hidden_size // heads)
        starts = torch.arange(0, tokens + 1, length, device=self.device, dtype=torch.int32)
        out, kept = attention_forward(qkv, starts, length, alibi_slopes(heads, self.device), True)
        upper, unit = torch.ones_like(out), torch.tensor(1.0, device=self.device)
        if not can_narrow(kept):
            raise BackendUnavailable(f"gradients of rows of {length} tokens can't be written in 8 bits")
        yield Pass("triton", "backward", lambda: attention_backward(kept, upper, unit), None)

    def embeddings(self) -> Iterator[Pass]:
        """As many tokens are the mask as masking leaves."""
        tokens, width, p = self.cfg.tokens, self.model.hidden_size, self.cfg.dropout
        eps, padding, vocabulary = self.model.layer_norm_eps, 0, self.model.vocab_size
        words, of_type, norm, shift = (
            self.random(*shape, dtype=torch.float32) for shape in ((vocabulary, width), (width,), (width,), (width,))
        )
        ids = torch.randint(1, vocabulary, (tokens,), generator=self.generator, device=self.device)
        ids[torch.rand(tokens, generator=self.generator, device=self.device) < 0.8 * self.cfg.mlm_probability] = 1
        weights = EmbeddingWeights(*(weight.requires_grad_() for weight in (words, of_type, norm, shift)))
        # A row of float32 and one of the result; going backward, the same and a row of float32 to add to.
        one = tokens * width
        moved = one * (4 + self.dtype.itemsize)
        out = fused_embeddings(ids, weights, padding, eps, p, self.dtype)
        upper = torch.ones_like(out)

        def forward() -> None:
            with torch.no_grad():
                fused_embeddings(ids, weights, padding, eps, p, self.dtype)

        yield Pass("triton", "forward", forward, moved)
        yield Pass(
            "triton", "backward", lambda: torch.autograd.grad(out, weights, upper, retain_graph=True), moved + 4 * one
        )

        def function(words: Tensor, of_type: Tensor, norm: Tensor, shift: Tensor) -> Tensor:
            rows = F.embedding(ids, words, padding_idx=padding) + of_type
            return F.dropout(F.layer_norm(rows, (width,), norm, shift, eps).to(self.dtype), p)

        yield from self.torch_passes(function, [weight.detach() for weight in weights], (moved, moved + 4 * one))

    def glu(self) -> Iterator[Pass]:
        tokens, width, p = self.cfg.tokens, self.model.intermediate_size, self.cfg.dropout
        gated, upper, seed = self.random(tokens, 2 * width), self.random(tokens, width), self.seed()
        moved = tokens * width * gated.element_size()
        yield Pass("triton", "forward", lambda: kernels.glu(gated, p, seed), 3 * moved)
        yield Pass("triton", "backward", lambda: kernels.glu_backward(upper, gated, p, seed), 5 * moved)

        def function(gated: Tensor) -> Tensor:
            gate, value = gated.chunk(2, dim=-1)
            return F.dropout(F.gelu(gate) * value, p)

        yield from self.torch_passes(function, [gated], (3 * moved, 5 * moved))

    def add_norm(self) -> Iterator[Pass]:
        tokens, width, p = self.cfg.tokens, self.model.hidden_size, self.cfg.dropout
        x, residual, upper = (self.random(tokens, width) for _ in range(3))
        bias, weight, shift = (self.random(width, dtype=torch.float32) for _ in range(3))
        seed, eps = self.seed(), self.model.layer_norm_eps
        _, moments = norm_kernels.add_norm(x, bias, residual, weight, shift, eps, p, seed)
        moved = tokens * width * x.element_size()
        back = (5 if p else 4) * moved
        given = (x, bias, residual, weight)
        yield Pass("triton", "forward", lambda: norm_kernels.add_norm(*given, shift, eps, p, seed), 3 * moved)
        yield Pass("triton", "backward", lambda: norm_kernels.add_norm_backward(upper, *given, moments, p, seed), back)

        def function(x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
            added = F.dropout(x + bias.to(x.dtype), p) + residual
            return F.layer_norm(added.float(), (width,), weight, shift, eps).to(x.dtype)

        yield from self.torch_passes(function, [*given, shift], (3 * moved, back))

    def cross_entropy(self) -> Iterator[Pass]:
        rows, classes = max(1, round(self.cfg.mlm_probability * self.cfg.tokens)), self.model.vocab_size
        logits = self.random(rows, classes)
        labels = torch.randint(classes, (rows,), generator=self.generator, device=self.device)
        moved = logits.numel() * logits.element_size()
        # Of gradients that were logits: the work is the same.
        yield Pass("triton", "both", lambda: kernels.cross_entropy_(logits, labels, IGNORE_INDEX), 2 * moved)
        yield from self.torch_passes(
            lambda logits: F.cross_entropy(logits.float(), labels, reduction="sum"), [logits], (moved, 2 * moved)
        )

    def quantize(self) -> Iterator[Pass]:
        x = self.random(self.cfg.tokens, self.model.hidden_size)
        unit = torch.tensor(float8.NORM_UNIT, device=self.device)
        moved = x.numel() * (x.element_size() + 2)
        yield Pass("triton", "forward", lambda: float8.quantize(x, unit, torch.float8_e4m3fn), moved)

    def glu_float8(self) -> Iterator[Pass]:
        tokens, width, p = self.cfg.tokens, self.model.intermediate_size, self.cfg.dropout
        gated, upper, seed = self.random(tokens, 2 * width), self.random(tokens, width), self.seed()
        unit = torch.tensor(float8.GLU_UNIT, device=self.device)
        one, size = tokens * width, gated.element_size()
        yield Pass("triton", "forward", lambda: float8.glu(gated, unit, p, seed), one * (2 * size + 2))
        yield Pass("triton", "backward", lambda: float8.glu_backward(upper, gated, unit, p, seed), one * (3 * size + 4))

    def seed(self) -> Tensor | None:
        return torch.tensor([self.cfg.seed], device=self.device) if self.cfg.dropout else None

    def microseconds(self, work: Callable[[], Any]) -> list[float]:
        """Of each timed turn: by the GPU's clock, else by the wall's."""
        turns = self.cfg.warmup + self.cfg.repetitions
        if self.device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(turns + 1)]
            marks[0].record()
            for mark in marks[1:]:
                work()
                mark.record()
            torch.cuda.synchronize()
            each = [1e3 * before.elapsed_time(after) for before, after in pairwise(marks)]
        else:
            each = []
            for _ in range(turns):
                started = time.perf_counter()
                work()
                each.append(1e6 * (time.perf_counter() - started))
        return each[self.cfg.warmup :]


KERNELS = {
    "attention": Bench.attention,
    "attention_float8": Bench.attention_float8,
    "embeddings": Bench.embeddings,
    "glu": Bench.glu,
    "add_norm": Bench.add_norm,
    "cross_entropy": Bench.cross_entropy,
    "quantize": Bench.quantize,
    "glu_float8": Bench.glu_float8,
}


def check(config: Config[BenchmarkKernelsConfig]) -> None:
    """Raises a UserError for values that can't be, and where the kernels can't run."""
    check_positive(config, ("tokens", "length", "repetitions"))
    check_not_negative(config, ("warmup",))
    cfg = config.value
    for name in cfg.kernels:
        if name not in KERNELS:
            config.fail("kernels", f"{name!r} is unknown; {nearest(name, KERNELS)}")
    if not 0 <= cfg.dropout < 1:
        config.fail("dropout", "should be from 0 to below 1")
    if cfg.tokens % cfg.length or cfg.tokens % float8.ROWS_MULTIPLE:
        config.fail("tokens", f"should be a multiple of length and of {float8.ROWS_MULTIPLE}")
    reason = kernels.why_unable(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if reason:
        config.fail("kernels", f"can't be timed here: {reason}")


def main(argv: list[str]) -> None:
    """Times every pass and prints a line for each; what can't run says why."""
    config = load_config(BenchmarkKernelsConfig, argv, USAGE)
    check(config)
    cfg = config.value
    facts = {
        "device": device_name(),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    for name in cfg.kernels:
        bench = Bench(cfg)
        line: dict[str, Any] = {"what": "kernel", "kernel": name, "tokens": cfg.tokens}
        try:
            for timed in KERNELS[name](bench):
                each = bench.microseconds(timed.work)
                median = statistics.median(each)
                measured = {
                    "by": timed.by,
                    "pass": timed.direction,
                    "microseconds": round(median, 1),
                    "fastest_slowest": [round(min(each), 1), round(max(each), 1)],
                    "gb_per_second": None if timed.bytes is None else round(timed.bytes / median / 1e3, 1),
                    "dtype": str(bench.dtype).removeprefix("torch."),
                }
                print(json.dumps({**line, **measured, **facts}), flush=True)
        except (BackendUnavailable, torch.cuda.OutOfMemoryError) as error:
            print(json.dumps({**line, "error": str(error).splitlines()[0], **facts}), flush=True)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
