"""Hadamard noise in plain PyTorch for rows that no kernel holds, here of small orders, against the oracle."""

from __future__ import annotations

from types import SimpleNamespace

import oracle
import pytest
import torch
from torch import Tensor

from thickets import long_rows
from thickets.backends.cuda import Kernels
from thickets.noise import Stream, family
from thickets.operands import Members, Noise

SCALE = 0.7
STREAM = Stream("w", family("hadamard"), 250, 40, 200, SCALE)  # rows in two row blocks of order 256
NOISE = Noise("hadamard", 0, STREAM.id, 250, 40, 200)
GROUPS = {"members": (3, 2, 6), "shared": (3, 2, 6), "ragged": (4, 1, 6)}  # members, rows of each, all rows
every_form = pytest.mark.parametrize("form", GROUPS)


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_rows, "ENTRIES", 4 * 256)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def members(form: str) -> Members:
    count, rows, total = GROUPS[form]
    seeds, sigmas = torch.tensor([7, -1, 7, 2**62])[:count], torch.tensor([0.3, -0.1, -0.3, 1.5])[:count]
    offsets = torch.tensor([0, 0, 4, 5, 6]) if form == "ragged" else None
    return Members(seeds, sigmas, SCALE, offsets, rows, total)


@every_form
@pytest.mark.parametrize("bias", ["none", "one", "each"])
@pytest.mark.parametrize("outputs", [3, 20])
def test_product(outputs: int, bias: str, form: str) -> None:
    who = members(form)
    count, rows, total = GROUPS[form]
    lines = rows if form == "shared" else total
    x, base = randn(lines, 130), randn(lines, outputs)
    b = {"none": None, "one": randn(outputs), "each": randn(count, outputs)}[bias]
    y = torch.full((total, outputs), torch.nan)
    long_rows.long_hadamard_product(y, x, base, b, who, NOISE, entries=4 * 256)
    if form != "ragged":
        x, base = (t.view(-1, rows, t.shape[1]) for t in (x, base))
        x, base = x[0] if form == "shared" else x, base.expand(count, -1, -1)
    expected = oracle.oracle_noise_linear(base, x, who.seeds, who.sigmas, who.offsets, STREAM)
    if b is not None:
        added = b.double().expand(count, -1)
        added = added.repeat_interleave(who.offsets.diff(), 0) if form == "ragged" else added[:, None]
        expected = oracle.Expected(expected.value + added, expected.magnitude + added.abs(), expected.noise)
    oracle.assert_close(y.view(expected.value.shape), expected, form)


@every_form
def test_looked_up_rows(form: str) -> None:
    who, weight = members(form), randn(20, 130)
    ids = torch.tensor([19, 0, 3, 3, 8, 11][: 2 if form == "shared" else None])
    out = torch.full((6, 130), torch.nan)
    long_rows.perturbed_long_rows(out, weight, who, NOISE, ids)
    lines = ids.view(3, 2) if form == "members" else ids
    expected = oracle.oracle_embedding(lines, weight, who.seeds, who.sigmas, who.offsets, STREAM, "exact")
    assert torch.equal(out, expected.view(6, 130))


def test_all_rows_and_their_sum() -> None:
    who, weight = members("members"), randn(20, 130).bfloat16()
    out = torch.full((3, 20, 130), torch.nan)
    long_rows.perturbed_long_rows(out, weight, who, NOISE, None)
    assert torch.equal(out, oracle.member_weights(weight, who.seeds, who.sigmas, STREAM, "exact"))
    expected = oracle.oracle_accumulate(weight, who.seeds, who.sigmas, STREAM)
    long_rows.accumulate_long_rows(weight, who, NOISE)
    assert torch.equal(weight, expected)


def test_the_cuda_backend_leaves_them_to_pytorch() -> None:
    kernels = Kernels(SimpleNamespace(longest_transform=lambda device: 128))  # has no kernel at all
    who, x, weight = members("members"), randn(6, 130), randn(20, 130)
    expected = torch.full((6, 20), torch.nan)
    long_rows.long_hadamard_product(expected, x, None, None, who, NOISE)
    kernels.hadamard_product(y := torch.full_like(expected, torch.nan), x, None, None, who, NOISE)
    assert torch.equal(y, expected)
    kernels.perturbed_rows(out := torch.full((3, 20, 130), torch.nan), weight, who, NOISE)
    assert torch.equal(out, oracle.member_weights(weight, who.seeds, who.sigmas, STREAM, "exact"))
    total = oracle.oracle_accumulate(weight, who.seeds, who.sigmas, STREAM)
    kernels.accumulate(weight, who, NOISE)
    assert torch.equal(weight, total)
