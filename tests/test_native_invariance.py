"""What a native kernel's bits may not depend on: other members, other rows, threads, layout, sharding."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import (
    DENSE,
    STRUCTURED,
    assert_same_bits,
    chain,
    every_dense_family,
    every_dtype,
    every_family,
    every_isa,
    every_precision,
    every_structured_family,
    members,
    normals,
    ragged,
    stream,
    threads,
)
from oracle import assert_close, oracle_noise_linear
from torch import Tensor

from thickets.backends import Backend

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_empty")


class Layer(NamedTuple):
    """A linear layer with a perturbed bias on one instruction set; calling it runs members on x."""

    native: Backend
    noise: str
    weight: Tensor
    bias: Tensor
    precision: str = "exact"
    row: int = 100
    col: int = 3
    full_cols: int = 310

    def __call__(self, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor | None = None) -> Tensor:
        where = stream(self.noise, self.row, self.col, self.full_cols, 0.9)
        bias_where = stream("normal", 0, self.row, name="b")
        rest = (seeds, sigmas, offsets, where, bias_where, self.precision)
        return self.native.linear(x, self.weight, self.bias, *rest)


def layer(
    native: Backend, noise: str, outputs: int, inputs: int, dtype: torch.dtype = torch.float32, **more: object
) -> Layer:
    weight, bias = normals(outputs, inputs, dtype=dtype, seed=7), normals(outputs, dtype=dtype, seed=8)
    return Layer(native, noise, weight, bias, **more)  # type: ignore[arg-type]


def one_by_one(run: Layer, x: Tensor, seeds: Tensor, sigmas: Tensor, offsets: Tensor) -> Tensor:
    """Each row of x [T, K] alone, with its member alone."""
    rows = [
        run(x[row][None, None], seeds[n, None], sigmas[n, None])[0]
        for n, (begin, end) in enumerate(pairwise(offsets.tolist()))
        for row in range(begin, end)
    ]
    return torch.cat(rows)


@every_isa
@every_family
@every_precision
@every_dtype
def test_members_and_rows(native: Backend, noise: str, precision: str, dtype: torch.dtype) -> None:
    """Ragged groups of every height of a panel, one of them empty, against each row alone."""
    run = layer(native, noise, 37, 19, dtype, precision=precision)
    seeds, sigmas = members(6)
    offsets = ragged([1, 2, 0, 9, 4, 5])
    x = normals(21, 19, dtype=dtype)
    assert_same_bits(run(x, seeds, sigmas, offsets), one_by_one(run, x, seeds, sigmas, offsets))


@every_isa
@every_family
def test_order_and_duplicate_seeds(native: Backend, noise: str) -> None:
    """Mirrored members and several sigmas of one seed, which share a tile of noise, in any order."""
    run = layer(native, noise, 70, 150)
    seeds = torch.tensor([5, -9, 5, 7, 5, -9, 7, 7])
    sigmas = torch.tensor([0.1, 0.2, -0.1, 0.3, 0.1, -0.7, 0.0, 1.0])
    x = normals(8, 3, 150)
    alone = torch.cat([run(x[n, None], seeds[n, None], sigmas[n, None]) for n in range(8)])
    for seed in range(3):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        assert_same_bits(run(x[order], seeds[order], sigmas[order]), alone[order])


@every_isa
@every_family
def test_forms_of_groups(native: Backend, noise: str) -> None:
    """x [N, M, K], the same rows with offsets, and rows that all members share."""
    run = layer(native, noise, 33, 40)
    seeds, sigmas = members(3)
    x = normals(3, 5, 40)
    expected = run(x, seeds, sigmas)
    assert_same_bits(run(x.flatten(0, 1), seeds, sigmas, ragged([5, 5, 5])).view(3, 5, 33), expected)
    assert_same_bits(run(x[0], seeds, sigmas), run(x[0].expand(3, -1, -1), seeds, sigmas))


@every_isa
@every_family
def test_more_rows_than_stay_in_the_cache(native: Backend, noise: str) -> None:
    """Members whose rows, alone or together, are multiplied in several goes: the bits of a few rows alone."""
    run = layer(native, noise, 70, 20)
    seeds, sigmas = members(4)
    counts = [2500, 0, 700, 650]
    x = normals(sum(counts), 20)
    y = run(x, seeds, sigmas, ragged(counts)).split(counts)
    for n, own in enumerate(x.split(counts)):
        if not len(own):
            continue
        few = [run(rows[None], seeds[n : n + 1], sigmas[n : n + 1])[0] for rows in own.split(900)]
        assert_same_bits(y[n], torch.cat(few), f"member {n}")


THREADED = [(1, 703, 20, 40), (2, 299, 70, 130), (9, 2, 200, 33), (60, 1, 1, 290)]  # N, M, O, K


@every_isa
@every_family
@every_dtype
def test_threads(native: Backend, noise: str, dtype: torch.dtype) -> None:
    """One member whose rows are split, few with many rows, many with few, and one output."""
    for count, rows, outputs, inputs in THREADED if dtype == torch.float32 else THREADED[:1]:
        run = layer(native, noise, outputs, inputs, dtype)
        seeds, sigmas = members(count)
        seeds = seeds[torch.arange(count) // 3]  # equal ones lie in one task and in two
        x = normals(count, rows, inputs, dtype=dtype)
        with threads(1):
            expected = run(x, seeds, sigmas)
            shared = run(x[0], seeds, sigmas)
        for number in (2, 5):
            with threads(number):
                assert_same_bits(run(x, seeds, sigmas), expected, f"{number} threads")
                assert_same_bits(run(x[0], seeds, sigmas), shared, f"{number} threads, shared rows")


@every_isa
@every_family
def test_threads_of_the_other_ops(native: Backend, noise: str) -> None:
    """perturb_, embedding, accumulate_ and the noise, large enough to be shared among threads."""
    seeds, sigmas = members(3)
    where = stream(noise, 60, 2, 128)
    weight = normals(150, 120)

    def results() -> tuple[Tensor, ...]:
        out, eps, total = torch.empty(150, 120), torch.empty(150, 120), weight.clone()
        native.perturb_(out, weight, seeds[:1], sigmas[:1], where)
        native.noise(eps, seeds[:1], where)
        native.accumulate_(total, seeds, sigmas, where)
        ids = torch.arange(147).view(3, 49)
        return out, eps, total, native.embedding(ids, weight, seeds, sigmas, None, where, "exact")

    with threads(1):
        expected = results()
    with threads(5):
        for actual, same in zip(results(), expected, strict=True):
            assert_same_bits(actual, same)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in Linux' /proc")
@every_isa
def test_torch_sets_the_number_of_threads(native: Backend) -> None:
    """Without this, the tests above would compare one thread with itself."""
    count = {"portable": 7, "avx2": 9, "avx512": 11}[native.name]  # more than there are so far
    seeds, sigmas = members(32)
    run, x = layer(native, "normal", 64, 16), normals(32, 1, 16)
    with threads(count):
        run(x, seeds, sigmas)
        assert len(os.listdir("/proc/self/task")) >= count


@every_isa
@every_family
def test_concurrent_calls(native: Backend, noise: str) -> None:
    """Calls release the GIL and share nothing."""
    run = layer(native, noise, 70, 40)
    seeds, sigmas = members(24)
    x = normals(24, 2, 40)
    expected = run(x, seeds, sigmas)
    with ThreadPoolExecutor(4) as pool:
        halves = [slice(0, 12), slice(12, 24)] * 4
        results = pool.map(lambda part: run(x[part], seeds[part], sigmas[part]), halves)
        for part, actual in zip(halves, results, strict=True):
            assert_same_bits(actual, expected[part])


@every_isa
@every_dense_family
@every_dtype
@every_precision
def test_stored_mode(native: Backend, noise: str, dtype: torch.dtype, precision: str) -> None:
    """W' written down by perturb_, in float32 or in W's dtype, then a plain product: the fused bits."""
    run = layer(native, noise, 67, 141, dtype, precision=precision)
    seeds, sigmas = members(3)
    stored = dtype if precision == "storage" else torch.float32
    weights = torch.empty(3, 67, 141, dtype=stored)
    where = stream(noise, run.row, run.col, run.full_cols, 0.9)
    for n in range(3):
        native.perturb_(weights[n], run.weight, seeds[n, None], sigmas[n, None], where)
    bias = native.vector(run.bias, seeds, sigmas, stream("normal", 0, run.row, name="b"), precision)
    for x, offsets in (
        (normals(3, 7, 141, dtype=dtype), None),
        (normals(9, 141, dtype=dtype), ragged([8, 0, 1])),
    ):
        actual = native.grouped_linear(x, weights, bias, offsets)
        assert_same_bits(actual, run(x, seeds, sigmas, offsets))


@every_isa
@pytest.mark.parametrize("outputs", [1, 7, 8, 9, 65])
@pytest.mark.parametrize("inputs", [1, 15, 16, 130])
def test_stored_weights_and_few_rows(native: Backend, outputs: int, inputs: int) -> None:
    """Every count of rows around the width of a register, split among threads: the chains of the promise."""
    weights, bias = normals(3, outputs, inputs), normals(3, outputs)
    for rows in (1, 2, 7, 8, 9):
        x = normals(3, rows, inputs)
        expected = torch.stack([chain(x[n], weights[n], bias[n]) for n in range(3)])
        assert_same_bits(native.grouped_linear(x, weights, bias, None), expected)
        shared = torch.stack([chain(x[0], weights[n]) for n in range(3)])
        assert_same_bits(native.grouped_linear(x[0], weights, None, None), shared)
        with threads(4):
            assert_same_bits(native.grouped_linear(x[:1], weights[:1], bias[:1], None), expected[:1])


@every_isa
def test_stored_weights_and_few_rows_on_many_threads(native: Backend) -> None:
    """As many entries as threads are started for: fewer members than threads split the outputs."""
    weights, x = normals(2, 131, 517), normals(2, 5, 517)
    expected = torch.stack([chain(x[n], weights[n]) for n in range(2)])
    for count in (1, 3, 4):
        with threads(count):
            assert_same_bits(native.grouped_linear(x, weights, None, None), expected)


@every_isa
@every_structured_family
def test_stored_mode_of_a_structured_family(native: Backend, noise: str) -> None:
    """Under storage a 16-bit W' is materialised, so here too the bits are those of the stored weight."""
    run = layer(native, noise, 40, 50, torch.bfloat16, precision="storage")
    seeds, sigmas = members(2)
    weights = torch.empty(2, 40, 50, dtype=torch.bfloat16)
    where = stream(noise, run.row, run.col, run.full_cols, 0.9)
    for n in range(2):
        native.perturb_(weights[n], run.weight, seeds[n, None], sigmas[n, None], where)
    bias = native.vector(run.bias, seeds, sigmas, stream("normal", 0, run.row, name="b"), "storage")
    x = normals(2, 3, 50)
    assert_same_bits(native.grouped_linear(x, weights, bias, None), run(x, seeds, sigmas))


@every_isa
@every_family
def test_row_shards_are_slices(native: Backend, noise: str) -> None:
    """Shards that cut packs, tiles and (n = 128) a Hadamard block at rows 128 and 256."""
    run = layer(native, noise, 190, 30, full_cols=33)
    seeds, sigmas = members(2)
    x = normals(2, 3, 30)
    expected = run(x, seeds, sigmas)
    for begin, end in ((0, 1), (1, 28), (28, 29), (17, 101), (101, 190)):
        shard = run._replace(weight=run.weight[begin:end], bias=run.bias[begin:end], row=run.row + begin)
        assert_same_bits(shard(x, seeds, sigmas), expected[..., begin:end], f"rows {begin} to {end}")


@every_isa
@every_family
def test_column_shards_sum_up(native: Backend, noise: str) -> None:
    """One after the other they continue the chain of a dense family; a structured one sums up nearly."""
    seeds, sigmas = members(2)
    y, x, rows, col, full_cols = normals(2, 5, 45), normals(2, 5, 300), 120, 7, 310
    whole, parts = y.clone(), y.clone()
    native.noise_linear_(whole, x, seeds, sigmas, None, stream(noise, rows, col, full_cols))
    for begin, end in pairwise((0, 1, 63, 130, 300)):
        where = stream(noise, rows, col + begin, full_cols)
        native.noise_linear_(parts, x[..., begin:end], seeds, sigmas, None, where)
    if noise in DENSE:
        assert_same_bits(parts, whole)
    else:
        assert noise in STRUCTURED
        assert_close(
            parts, oracle_noise_linear(y, x, seeds, sigmas, None, stream(noise, rows, col, full_cols))
        )


@every_isa
@every_dense_family
def test_tails(native: Backend, noise: str) -> None:
    """Any number of outputs is a slice of more, and of inputs a product with zeros after them."""
    seeds, sigmas = members(2)
    run = layer(native, noise, 135, 130)
    x = normals(2, 7, 130)
    expected = run(x, seeds, sigmas)
    for outputs in (1, 15, 16, 17, 33, 47, 64, 65, 96, 113, 128, 129):
        part = run._replace(weight=run.weight[:outputs], bias=run.bias[:outputs])
        assert_same_bits(part(x, seeds, sigmas), expected[..., :outputs], f"{outputs} outputs")
    for inputs in (1, 3, 5, 15, 17, 61, 124, 125, 126, 129):
        part = run._replace(weight=run.weight[:, :inputs])
        padded = torch.where(torch.arange(130) < inputs, x, 0.0)
        assert_same_bits(part(x[..., :inputs], seeds, sigmas), run(padded, seeds, sigmas), f"{inputs} inputs")


@every_isa
@every_family
def test_strides(native: Backend, noise: str) -> None:
    """Columns of wider tensors and one row repeated, in and out; nothing beside the result is written."""
    seeds, sigmas = members(2)
    wide = layer(native, noise, 33, 48)
    sliced = wide._replace(weight=wide.weight[:, 5:-4])
    dense = wide._replace(weight=wide.weight[:, 5:-4].contiguous())
    x = normals(2, 3, 50)[..., 2:41]
    assert_same_bits(sliced(x, seeds, sigmas), dense(x.contiguous(), seeds, sigmas))
    row = x[0, :1].expand(3, -1)
    assert_same_bits(sliced(row, seeds, sigmas), dense(row.contiguous(), seeds, sigmas))
    y, where = torch.ones(2, 3, 40), stream(noise, 0, 0, 39)
    inner = y[..., 3:-4]
    expected = inner.contiguous()
    native.noise_linear_(inner, x, seeds, sigmas, None, where)
    native.noise_linear_(expected, x.contiguous(), seeds, sigmas, None, where)
    assert_same_bits(inner, expected)
    assert (y[..., :3] == 1).all()
    assert (y[..., -4:] == 1).all()


@every_isa
@every_precision
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    noise=st.sampled_from([*DENSE, *STRUCTURED]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    sizes=st.lists(st.integers(0, 8), min_size=1, max_size=5).filter(any),
    outputs=st.integers(1, 140),
    inputs=st.integers(1, 140),
    row=st.integers(0, 300),
    col=st.integers(0, 150),
    distinct=st.integers(1, 5),
)
def test_any_shape(
    native: Backend,
    precision: str,
    noise: str,
    dtype: torch.dtype,
    sizes: list[int],
    outputs: int,
    inputs: int,
    row: int,
    col: int,
    distinct: int,
) -> None:
    run = layer(native, noise, outputs, inputs, dtype, precision=precision, row=row, col=col)
    seeds, sigmas = members(len(sizes))
    seeds, offsets = seeds[torch.arange(len(sizes)) % distinct], ragged(sizes)
    x = normals(sum(sizes), inputs, dtype=dtype)
    assert_same_bits(run(x, seeds, sigmas, offsets), one_by_one(run, x, seeds, sigmas, offsets))
