"""Matrices of 8 bits: each written as it is and transposed, as GPUs multiply them in one layout alone.

What is transposed holds four rows' numbers as one of 32 bits. Kernels that end in such a matrix take `rows_in_fours`
and `store_fours` from here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import interpreted, triton_error

if triton_error() is None:
    import triton
    import triton.language as tl

TILE_ROWS, TILE_COLUMNS = 32, 128


def quantize(x: Tensor, unit: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x / unit, saturating, in `dtype`, as (rows, columns) and as (columns, rows).

    Args:
        x: (rows, columns), contiguous; a number of rows divisible by 4.
        unit: what 1 stands for, a scalar, float32.
    """
    rows, columns = x.shape
    out, turned = room(rows, columns, x.device)
    _quantize[(triton.cdiv(rows, TILE_ROWS), triton.cdiv(columns, TILE_COLUMNS))](
        x,
        out,
        turned,
        unit,
        rows // 4,
        columns,
        dtype == torch.float8_e4m3fn,
        TILE_ROWS // 4,
        TILE_COLUMNS,
        num_warps=4,
    )
    return out.view(dtype), turned.view(dtype)


def room(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for a matrix of 8 bits, and for its transpose, four rows' numbers to one of 32 bits."""
    matrix = torch.empty(rows, columns, device=device, dtype=torch.int8)
    return matrix, torch.empty(columns, rows // 4, device=device, dtype=torch.int32)


if triton_error() is None:

    @triton.jit
    def _narrow(value, E4M3: tl.constexpr):
        """The 8 bits of a number, as an integer, rounded to even, saturating: what a GPU's own instruction gives.

        Plain arithmetic on a float16, which is an e5m2 with 8 more bits of mantissa; of 2^-8 times the value, which
        shifts one exponent's bias to the other's, it is an e4m3 with 7 more.
        """
        LIMIT: tl.constexpr = 448.0 if E4M3 else 57344.0
        SCALE: tl.constexpr = 0.00390625 if E4M3 else 1.0
        MORE: tl.constexpr = 7 if E4M3 else 8
        half = (tl.minimum(tl.maximum(value, -LIMIT), LIMIT) * SCALE).to(tl.float16)
        bits = half.to(tl.int16, bitcast=True).to(tl.int32)
        size = bits & 0x7FFF
        size = (size + ((1 << (MORE - 1)) - 1) + ((size >> MORE) & 1)) >> MORE
        return size | ((bits >> 8) & 0x80)

    def _pack_assembly(cast: str) -> tl.constexpr:
        """Four numbers of each of four tiles to bytes, and the four by four bytes transposed, as 32 bits each.

        Casts of Triton's own gave wrong bytes: ptxas 12.8 lost some of the halves that it had joined.
        """
        casts = "".join(
            f"{cast} low, ${first + 1}, ${first}; {cast} high, ${first + 3}, ${first + 2};"
            f"mov.b32 ${row}, {{low, high}};"
            for row, first in enumerate(range(8, 24, 4))
        )
        pairs = "".join(
            f"prmt.b32 {name}{half}, ${row}, ${row + 1}, {order};"
            for name, row in (("ab", 0), ("cd", 2))
            for half, order in ((0, "0x5140"), (1, "0x7362"))
        )
        fours = "".join(
            f"prmt.b32 ${4 + column}, ab{column // 2}, cd{column // 2}, {'0x7632' if column % 2 else '0x5410'};"
            for column in range(4)
        )
        return tl.constexpr(f"{{.reg .b16 low, high; .reg .b32 ab0, ab1, cd0, cd1; {casts} {pairs} {fours}}}")

    _PACK_E4M3 = _pack_assembly("cvt.rn.satfinite.e4m3x2.f32")
    _PACK_E5M2 = _pack_assembly("cvt.rn.satfinite.e5m2x2.f32")
    _PACK_REGISTERS = tl.constexpr(",".join(["=r"] * 8 + ["r"] * 16))
    _ASSEMBLY = tl.constexpr(not interpreted())  # which has none

    @triton.jit
    def _pack(a, b, c, d, E4M3: tl.constexpr):
        """The 8 bits of each number of four tiles, and those of all four tiles side by side, in one of 32 bits."""
        if _ASSEMBLY:
            a, b, c, d, all_four = tl.inline_asm_elementwise(
                _PACK_E4M3 if E4M3 else _PACK_E5M2, _PACK_REGISTERS, [a, b, c, d],
                dtype=(tl.int8, tl.int8, tl.int8, tl.int8, tl.int32), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            a = _narrow(a, E4M3)
            b = _narrow(b, E4M3)
            c = _narrow(c, E4M3)
            d = _narrow(d, E4M3)
            all_four = a | (b << 8) | (c << 16) | (d << 24)
        return a.to(tl.int8), b.to(tl.int8), c.to(tl.int8), d.to(tl.int8), all_four

    @triton.jit
    def rows_in_fours(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """The rows 4 i of a tile, (ROWS, COLUMNS), then 4 i + 1, 4 i + 2, 4 i + 3: four tiles."""
        tile = tl.permute(tl.reshape(tile, [ROWS // 4, 2, 2, COLUMNS]), [0, 3, 1, 2])
        even, odd = tl.split(tile)
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return a, b, c, d

    @triton.jit
    def store_fours(a, b, c, d, out, turned, quarter, columns, quad, column, inside, E4M3: tl.constexpr):
        """Stores four tiles, of the rows 4 i, 4 i + 1, … of a matrix, and the same of its transpose.

        The four rows' numbers are neighbours in the transpose, where they are stored as one of 32 bits.
        """
        a, b, c, d, all_four = _pack(a, b, c, d, E4M3)
        place = out + (quad * 4)[:, None].to(tl.int64) * columns + column[None, :]
        tl.store(place, a, mask=inside)
        tl.store(place + columns, b, mask=inside)
        tl.store(place + 2 * columns, c, mask=inside)
        tl.store(place + 3 * columns, d, mask=inside)
        tl.store(turned + column[None, :].to(tl.int64) * quarter + quad[:, None], all_four, mask=inside)

    @triton.jit
    def _quantize(
        x, out, turned, unit, quarter, columns, E4M3: tl.constexpr, QUADS: tl.constexpr, WIDE: tl.constexpr,
    ):  # fmt: skip
        quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)
        column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        inside = (quad < quarter)[:, None] & (column < columns)[None, :]
        place = x + (quad * 4)[:, None].to(tl.int64) * columns + column[None, :]
        factor = 1.0 / tl.load(unit)
        a = tl.load(place, mask=inside, other=0.0).to(tl.float32) * factor
        b = tl.load(place + columns, mask=inside, other=0.0).to(tl.float32) * factor
        c = tl.load(place + 2 * columns, mask=inside, other=0.0).to(tl.float32) * factor
        d = tl.load(place + 3 * columns, mask=inside, other=0.0).to(tl.float32) * factor
        store_fours(a, b, c, d, out, turned, quarter, columns, quad, column, inside, E4M3)
