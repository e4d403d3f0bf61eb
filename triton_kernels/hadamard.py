"""Hadamard noise (docs/noise.md, section 5): fast transforms in registers in place of rows x columns entries.

G is the unnormalised Walsh-Hadamard matrix of order n, so a row block is eps_b = G D1_b G D2_b G D3 / n. A
program holds whole padded rows; its threads add and subtract, and exchange elements through shared memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from thickets.noise import hadamard_order
from thickets.operands import Members, Noise

from .epilogue import add_and_store, result
from .groups import group_of_tile, tiles
from .launch import member_arguments, noise_arguments
from .long_products import long_hadamard_product
from .noise import STREAM_D1, STREAM_D2, STREAM_D3
from .transform import diagonal, diagonal_words, quarters, row_words, transform
from .tuning import Tuned, config


@cache
def processors(device: torch.device) -> int:
    """The number of multiprocessors of a device; 1 on the CPU, where programs run one by one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def longest(device: torch.device) -> int:
    """The largest n whose rows a program holds: four bytes an element pass through shared memory."""
    if device.type != "cuda":
        return 1 << 15
    index = torch.cuda.current_device() if device.index is None else device.index
    memory = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return min(1 << 15, 1 << (memory // 4).bit_length() - 1)


@triton.jit
def hadamard_tile(seed, id_low, id_high, row, N: tl.constexpr, ROWS: tl.constexpr):
    """Whole rows of eps, exact float32 [ROWS, N]; row: int64 [ROWS], N = n of the parameter."""
    block, zero = row // N, tl.zeros((1,), tl.int32)
    word = diagonal_words(seed, id_low, id_high, STREAM_D1, block, 0, N)
    word = word ^ row_words((row % N).to(tl.int32), 0, N)
    unit = tl.full((ROWS, N), 1.0, tl.float32)
    x = transform(diagonal(unit, word, N, ROWS), N, ROWS)
    x = diagonal(x, diagonal_words(seed, id_low, id_high, STREAM_D2, block, 0, N), N, ROWS)
    x = transform(x, N, ROWS) * (1.0 / N)
    return diagonal(x, diagonal_words(seed, id_low, id_high, STREAM_D3, zero, 0, N), N, ROWS)


@triton.jit(do_not_specialize=["id_low", "id_high", "block", "count", "rows", "total"])
def product_kernel(
    y,  # [T, O]
    x,  # [T, K], or [M, K] shared by all members
    base,  # [T, O], or [M, O] as x, or None
    bias,  # [O], or [N, O] one per member, or None
    seeds,
    sigmas,
    offsets,
    scale,
    id_low,
    id_high,
    block,  # row blocks before the first output's
    shift,  # rows of that block before the first output
    col,
    count,
    rows,
    total,
    outputs,
    inputs,
    y_stride,
    x_stride,
    base_stride,
    bias_member,
    N: tl.constexpr,  # n of the parameter
    SHARED: tl.constexpr,
    BASE_SHARED: tl.constexpr,
    MEMBERS: tl.constexpr,
    EACH: tl.constexpr,  # the most rows a program is given
    ONE: tl.constexpr,  # one row block for each program: z need not outlive its use
    TILE: tl.constexpr,
):
    ROWS: tl.constexpr = min(TILE, EACH)
    member, first, end = group_of_tile(
        tl.program_id(0), offsets, count, rows, total, offsets is not None, MEMBERS, ROWS
    )
    if first >= end:
        return
    member = member.to(tl.int64)
    seed = tl.load(seeds + member)
    s = tl.load(sigmas + member) * scale
    i_y = first + tl.arange(0, ROWS)
    m_y = i_y < end
    i_x = i_y - member * rows if SHARED else i_y
    i_n = tl.arange(0, N)
    i_k = i_n - col
    m_k = (i_k >= 0) & (i_k < inputs)
    b_x = tl.load(x + i_x[:, None] * x_stride + i_k[None, :], mask=m_y[:, None] & m_k[None, :], other=0.0)
    zero = tl.zeros((1,), tl.int32)
    word = diagonal_words(seed, id_low, id_high, STREAM_D3, zero, 0, N)
    b_z = transform(diagonal(b_x.to(tl.float32), word, N, ROWS), N, ROWS)
    own = 1 if ONE else (tl.cdiv(shift + outputs, N) - tl.program_id(1) - 1) // tl.num_programs(1) + 1
    for index in range(0, own):
        step = tl.program_id(1) + index * tl.num_programs(1)
        word = diagonal_words(seed, id_low, id_high, STREAM_D2, zero + block + step, 0, N)
        b_u = transform(diagonal(b_z, word, N, ROWS), N, ROWS)
        word = diagonal_words(seed, id_low, id_high, STREAM_D1, zero + block + step, 0, N)
        b_u = transform(diagonal(b_u, word, N, ROWS), N, ROWS) * (s * (1.0 / N))
        first_o = step * N - shift
        q0, q1, q2, q3 = quarters(b_u, N, ROWS)
        add_and_store(
            y, base, bias, q0, first_o, i_y, m_y, member, rows, outputs,
            y_stride, base_stride, bias_member, BASE_SHARED,
        )  # fmt: skip
        add_and_store(
            y, base, bias, q1, first_o + N // 4, i_y, m_y, member, rows, outputs,
            y_stride, base_stride, bias_member, BASE_SHARED,
        )  # fmt: skip
        add_and_store(
            y, base, bias, q2, first_o + 2 * (N // 4), i_y, m_y, member, rows, outputs,
            y_stride, base_stride, bias_member, BASE_SHARED,
        )  # fmt: skip
        add_and_store(
            y, base, bias, q3, first_o + 3 * (N // 4), i_y, m_y, member, rows, outputs,
            y_stride, base_stride, bias_member, BASE_SHARED,
        )  # fmt: skip


@cache
def tuned(n: int) -> Tuned:
    """The product kernel for one n: 64, 32 or 16 elements of z per thread.

    More than 8 warps have 128 registers a thread, which 32 elements of z with base and bias exceed.
    """
    shapes = [
        (tile, warps)
        for each in (64, 32, 16)
        for warps in ((1, 2, 4, 8) if n <= 16384 else (16,))
        if 1 <= (tile := 32 * warps * each // n) <= 16
    ]
    configs = [config(TILE=tile, warps=warps) for tile, warps in shapes]
    return Tuned(product_kernel, configs, key=["N", "EACH", "ONE", "outputs"], written=["y"])


def hadamard_product(
    y: Tensor, x: Tensor, base: Tensor | None, bias: Tensor | None, members: Members, noise: Noise
) -> None:
    """y = base + s (x eps^T) + bias for hadamard noise, in one launch unless rows are long.

    y [T, O]; x [T, K], or [M, K] shared by all members; base as y, or as x [M, O], or y itself; bias [O] or
    [N, O]. All float32, bfloat16 or float16 with a contiguous last dimension; sums are float32, rounded once.
    """
    n = hadamard_order(noise.full_cols)
    if n > longest(y.device):
        long_hadamard_product(y, x, base, bias, members, noise)
        return
    total, outputs = y.shape
    each = members.rows if members.offsets is None else total // len(members.seeds)
    blocks = triton.cdiv(noise.row % n + outputs, n)
    # Programs share out the row blocks only as far as the device needs that to be full: each computes G D3 x
    # anew. Rows of 2^15 elements leave no registers to keep it.
    spread = blocks if n > 16384 else min(blocks, triton.cdiv(4 * processors(y.device), total))
    arguments: dict[str, Any] = member_arguments(members) | noise_arguments(noise) | result(y, base, bias) | {
        "x": x, "block": noise.row // n, "shift": noise.row % n, "col": noise.col, "inputs": x.shape[1],
        "x_stride": x.stride(0), "N": n, "SHARED": len(x) != total,
        "EACH": min(triton.next_power_of_2(max(each, 1)), 16),
        "ONE": spread == blocks,
    }  # fmt: skip

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        ragged = members.offsets is not None
        groups = tiles(len(members.seeds), members.rows, total, ragged, min(meta["TILE"], meta["EACH"]))
        return groups, spread

    tuned(n)(grid, **arguments)
