"""Linear layers of a CPU that computes no gradients, by oneDNN.

PyTorch's own go to the BLAS that it was built with, which is slower on some processors. What PyTorch has for its
compiler is used here without it; there is no public way.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def serves(x: Tensor, layer: nn.Module) -> bool:
    """Whether this layer of `x` can be computed here: as it is, in float32 on a CPU, for evaluation alone."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _plain(layer)
        and why_unable() is None
    )


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x)."""
    return linear(x, layer.weight, layer.bias) if serves(x, layer) else layer(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weight' + bias, or gelu (by the error function) of it, (…, out), where `serves` says so."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")


def linear_times(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """(x weight') * factor, (…, out), where `serves` says so."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, factor, weight, None, "mul")


def _plain(layer: nn.Module) -> bool:
    """Whether it is nothing but a linear layer: not quantized, adapted or watched."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.dtype == torch.float32
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


@cache
def why_unable() -> str | None:
    """Why oneDNN can't serve, or None; found by trying it on small matrices."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, factor = (torch.randn(shape, generator=generator) for shape in ((3, 8), (16, 8), (16,), (3, 16)))
    try:
        with torch.no_grad():
            pairs = (
                (linear(x, weight, bias), F.linear(x, weight, bias)),
                (linear(x, weight, gelu=True), F.gelu(F.linear(x, weight))),
                (linear_times(x, weight, factor), F.linear(x, weight) * factor),
            )
    except Exception as error:
        return f"oneDNN's linear layers fail here: {type(error).__name__}: {error}"
    if not all(torch.allclose(got, expected, rtol=1e-4, atol=1e-5) for got, expected in pairs):
        return "oneDNN's linear layers give wrong numbers here"
    return None
