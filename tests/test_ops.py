"""Every op on every backend against the float64 oracle: odd shapes, groupings, dtypes, families, shards."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from conftest import Place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import thickets
from thickets.noise import Stream, family

pytestmark = pytest.mark.usefixtures("poisoned_empty")

FAMILIES = ["normal", "normal4", "rademacher", "hadamard", "lowrank-1", "lowrank-3"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEEDS = [7, 2**64 - 1, 7, 0x123456789ABCDEF0, 2**63]  # a repeated one among them
SIGMAS = [0.3, -0.1, -0.3, 0.0, 1.5]  # the repeated one is mirrored


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_family = pytest.mark.parametrize("noise", FAMILIES)
every_precision = pytest.mark.parametrize("precision", ["exact", "storage"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
few_examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def randn(place: Place, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(place.device, dtype)


def members(place: Place, count: int) -> dict[str, Tensor]:
    """The first `count` of SEEDS and SIGMAS as arguments of an op; the oracle takes the values in order."""
    patterns = [seed - (seed >> 63 << 64) for seed in SEEDS[:count]]
    return {
        "seeds": torch.tensor(patterns, dtype=torch.int64, device=place.device),
        "sigmas": torch.tensor(SIGMAS[:count], device=place.device),
    }


def bounds(place: Place, *values: int) -> Tensor:
    return torch.tensor(values, device=place.device)


def linear_case(
    place: Place,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    count: int,
    offsets: Tensor | None = None,
    noise: str = "normal",
    precision: str = "exact",
    bias_name: str | None = "b",
    **position: Any,
) -> Tensor:
    """perturbed_linear checked against the oracle; `position`: row, col, full_cols of the weight."""
    bias_name = bias_name if bias is not None else None
    tail = members(place, count)
    origin = (position.get("row", 0), position.get("col", 0))
    actual = thickets.perturbed_linear(
        x, weight, bias, **tail, name="w", bias_name=bias_name, noise=noise, scale=0.7, bias_scale=1.3,
        origin=origin, full_cols=position.get("full_cols"), offsets=offsets, precision=precision,
        backend=place.backend,
    )  # fmt: skip
    kind = family(noise)
    stream = Stream("w", kind, scale=0.7, **position)
    bias_stream = Stream("b", kind.for_vector(), col=origin[0], scale=1.3) if bias_name else None
    expected = oracle.oracle_linear(
        x, weight, bias, *tail.values(), offsets, stream, bias_stream, precision, place.backend
    )
    rounding = oracle.eps_rounding(place.backend, noise, x.dtype, weight.dtype, precision)
    oracle.assert_close(actual, expected, f"perturbed_linear, {place}, {noise}, {precision}", rounding)
    assert actual.dtype == x.dtype
    return actual


# N, M, O, K: the smallest, sizes around powers of two, wide, tall, more rows than a tile.
SHAPES = [(1, 1, 1, 1), (3, 2, 63, 129), (2, 5, 129, 63), (5, 1, 17, 256), (2, 33, 2, 300), (4, 3, 300, 2)]


@every_family
@every_precision
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(place: Place, shape: tuple[int, int, int, int], precision: str, noise: str) -> None:
    n, m, o, k = shape
    x, weight, bias = randn(place, n, m, k), randn(place, o, k), randn(place, o)
    linear_case(place, x, weight, bias, n, noise=noise, precision=precision)


@every_family
@every_precision
@every_dtype
@pytest.mark.parametrize("x_dtype", DTYPES, ids=dtype_id)
def test_linear_dtypes(
    place: Place, dtype: torch.dtype, x_dtype: torch.dtype, precision: str, noise: str
) -> None:
    x = randn(place, 3, 4, 70, dtype=x_dtype)
    weight, bias = randn(place, 9, 70, dtype=dtype), randn(place, 9, dtype=dtype)
    linear_case(place, x, weight, bias, 3, noise=noise, precision=precision)


@every_family
@every_precision
@pytest.mark.parametrize("bias_name", ["none", "plain", "b"], ids=["no bias", "plain bias", "perturbed bias"])
@pytest.mark.parametrize("form", ["members", "shared", "ragged", "even", "one row"])
def test_linear_forms(place: Place, form: str, bias_name: str, precision: str, noise: str) -> None:
    x, weight = randn(place, 8, 40), randn(place, 33, 40)
    bias = None if bias_name == "none" else randn(place, 33)
    offsets = None
    if form == "members":
        x = x.view(4, 2, 40)
    elif form == "ragged":  # empty groups first, between and last
        offsets = bounds(place, 0, 0, 5, 5, 8)
    elif form == "even":
        offsets = bounds(place, 0, 2, 4, 6, 8)
    elif form == "one row":
        x, offsets = x[:1], bounds(place, 0, 0, 0, 1, 1)
    named = bias_name if bias_name == "b" else None
    linear_case(place, x, weight, bias, 4, offsets, noise=noise, precision=precision, bias_name=named)


@every_family
@given(data=st.data())
@few_examples
def test_linear_ragged_properties(place: Place, noise: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5), label="rows per member")
    o, k = data.draw(st.integers(1, 9), label="O"), data.draw(st.integers(1, 70), label="K")
    ends = torch.tensor([0, *sizes]).cumsum(0)
    x, weight = randn(place, int(ends[-1]), k), randn(place, o, k)
    linear_case(place, x, weight, None, len(sizes), bounds(place, *ends.tolist()), noise=noise)


@every_family
def test_linear_of_a_shard_uses_the_noise_of_the_whole(place: Place, noise: str) -> None:
    x, weight, bias = randn(place, 3, 2, 150), randn(place, 40, 150), randn(place, 40)
    for rows, cols in [
        (slice(0, 13), slice(0, 150)),
        (slice(13, 40), slice(0, 150)),
        (slice(5, 9), slice(33, 150)),
    ]:
        linear_case(
            place, x[..., cols], weight[rows, cols], bias[rows], 3, noise=noise,
            row=rows.start, col=cols.start, full_cols=150,
        )  # fmt: skip


@every_family
@every_precision
@every_dtype
def test_shards_are_slices(place: Place, dtype: torch.dtype, precision: str, noise: str) -> None:
    """Element for element, whatever is generated: matrices, embeddings and vectors."""
    weight = randn(place, 140, 131, dtype=dtype)
    tail = {**members(place, 2), "noise": noise, "backend": place.backend, "precision": precision}
    ids = torch.arange(140, device=place.device)
    whole = thickets.perturbed_embedding(ids, weight, **tail, name="w", full_cols=131)
    rows, cols = slice(77, 139), slice(5, 130)
    part = thickets.perturbed_embedding(
        ids[:62], weight[rows, cols], **tail, name="w", origin=(77, 5), full_cols=131
    )
    assert torch.equal(part, whole[:, rows, cols])
    vectors = thickets.perturbed_vector(weight[0], **tail, name="v")
    piece = thickets.perturbed_vector(weight[0, 5:130], **tail, name="v", origin=(0, 5), full_cols=131)
    assert torch.equal(piece, vectors[:, 5:130])
    base = weight.clone()
    tail = {"seed": SEEDS[1], "sigma": SIGMAS[1], "name": "w", "noise": noise, "backend": place.backend}
    thickets.perturb_(weight, weight, **tail)
    thickets.perturb_(base[rows, cols], base[rows, cols], **tail, origin=(77, 5), full_cols=131)
    assert torch.equal(base[rows, cols], weight[rows, cols])
    thickets.accumulate_(
        base[rows, cols], seeds=SEEDS[:2], coefficients=[1.0, 2.0], name="w", noise=noise,
        origin=(77, 5), full_cols=131, backend=place.backend,
    )  # fmt: skip
    thickets.accumulate_(
        weight, seeds=SEEDS[:2], coefficients=[1.0, 2.0], name="w", noise=noise, backend=place.backend
    )
    assert torch.equal(base[rows, cols], weight[rows, cols])


@every_family
@every_dtype
@pytest.mark.parametrize("form", ["members", "shared", "ragged"])
def test_noise_linear(place: Place, form: str, dtype: torch.dtype, noise: str) -> None:
    x, offsets = randn(place, 6, 129, dtype=dtype), None
    y = randn(place, 3, 2, 31, dtype=dtype)
    if form == "members":
        x = x.view(3, 2, 129)
    elif form == "shared":
        x = x[:2]
    else:
        y, offsets = y.view(6, 31), bounds(place, 0, 4, 4, 6)
    tail = members(place, 3)
    stream = Stream("w", family(noise), row=3, scale=0.5)
    expected = oracle.oracle_noise_linear(y, x, *tail.values(), offsets, stream, place.backend)
    result = thickets.noise_linear_(
        y, x, **tail, name="w", noise=noise, scale=0.5, origin=(3, 0), offsets=offsets, backend=place.backend
    )
    assert result is y
    rounding = oracle.eps_rounding(place.backend, noise, dtype, None, "exact")
    oracle.assert_close(y, expected, f"noise_linear_, {place}, {noise}", rounding)


@every_family
@every_precision
@every_dtype
@pytest.mark.parametrize("form", ["members", "shared", "ragged", "int32"])
def test_embedding(place: Place, form: str, dtype: torch.dtype, precision: str, noise: str) -> None:
    weight, offsets = randn(place, 19, 67, dtype=dtype), None
    ids = torch.tensor([0, 18, 7, 7, 3, 11], device=place.device)
    if form == "members":
        ids = ids.view(3, 2)
    elif form == "ragged":
        offsets = bounds(place, 0, 1, 1, 6)
    elif form == "int32":
        ids = ids.int()
    tail = members(place, 3)
    stream = Stream("w", family(noise), scale=0.5)
    actual = thickets.perturbed_embedding(
        ids, weight, **tail, name="w", noise=noise, scale=0.5, offsets=offsets, precision=precision,
        backend=place.backend,
    )  # fmt: skip
    expected = oracle.oracle_embedding(ids, weight, *tail.values(), offsets, stream, precision, place.backend)
    assert torch.equal(actual, expected)


@every_family
@every_precision
@every_dtype
@pytest.mark.parametrize("size", [1, 63, 129])
def test_vector(place: Place, size: int, dtype: torch.dtype, precision: str, noise: str) -> None:
    weight, tail = randn(place, size, dtype=dtype), members(place, 5)
    stream = Stream("v", family(noise), scale=0.5)
    actual = thickets.perturbed_vector(
        weight, **tail, name="v", noise=noise, scale=0.5, precision=precision, backend=place.backend
    )
    expected = oracle.oracle_vector(weight, *tail.values(), stream, precision, place.backend)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


@every_family
@every_dtype
@pytest.mark.parametrize("out_dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", [(5, 130), (131,), ()], ids=str)
def test_perturb(
    place: Place, shape: tuple[int, ...], dtype: torch.dtype, out_dtype: torch.dtype, noise: str
) -> None:
    weight = randn(place, *shape, dtype=dtype)
    kind = family(noise) if len(shape) == 2 else family(noise).for_vector()
    tail = {"name": "w", "noise": noise, "scale": 0.7, "backend": place.backend}
    seed, sigma = members(place, 2)["seeds"][1:], members(place, 2)["sigmas"][1:]
    view = weight if weight.dim() == 2 else weight.reshape(1, -1)
    stream = Stream("w", kind, scale=0.7)
    expected = oracle.oracle_perturb(view, seed, sigma, stream, out_dtype, place.backend).view(shape)
    out = torch.full(shape, torch.nan, dtype=out_dtype, device=place.device)
    assert thickets.perturb_(out, weight, seed=SEEDS[1], sigma=SIGMAS[1], **tail) is out
    assert torch.equal(out, expected)
    if dtype == out_dtype:  # over the weight itself, seed and sigma as tensors
        thickets.perturb_(weight, weight, seed=seed[0], sigma=sigma, **tail)
        assert torch.equal(weight, expected)


@every_family
@every_dtype
@pytest.mark.parametrize("shape", [(5, 130), (131,), ()], ids=str)
def test_accumulate(place: Place, shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    weight, tail = randn(place, *shape, dtype=dtype), members(place, 5)
    kind = family(noise) if len(shape) == 2 else family(noise).for_vector()
    view = weight if weight.dim() == 2 else weight.reshape(1, -1)
    stream = Stream("w", kind, scale=0.7)
    expected = oracle.oracle_accumulate(view, *tail.values(), stream, place.backend).view(shape)
    result = thickets.accumulate_(
        weight, seeds=tail["seeds"], coefficients=tail["sigmas"], name="w", noise=noise, scale=0.7,
        backend=place.backend,
    )  # fmt: skip
    assert result is weight
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1e-3])
def test_sigma_times_scale_is_rounded_once_in_float32(place: Place, scale: float) -> None:
    sigmas = randn(place, 200)
    sigma_float32 = torch.tensor(scale, dtype=torch.float32).double()
    s = (sigmas.cpu().double() * sigma_float32).float()  # exact in float64, then rounded once
    zero = torch.zeros(1, device=place.device)
    actual = thickets.perturbed_vector(
        zero,
        seeds=list(range(200)),
        sigmas=sigmas,
        name="v",
        noise="rademacher",
        scale=scale,
        backend=place.backend,
    )
    assert torch.equal(actual[:, 0].abs().cpu(), s.abs())


@every_family
def test_a_negative_sigma_mirrors_the_member(place: Place, noise: str) -> None:
    zero = torch.zeros(5, 130, device=place.device)
    tail = {"seed": 9, "name": "w", "noise": noise, "backend": place.backend}
    plus, minus = (
        thickets.perturb_(torch.empty_like(zero), zero, sigma=sigma, **tail) for sigma in (0.1, -0.1)
    )
    assert plus.abs().sum() > 0
    assert torch.equal(plus, -minus)


@every_family
def test_sample_noise(place: Place, noise: str) -> None:
    tail = {"seed": 2**64 - 1, "name": "w", "noise": noise, "device": place.device, "backend": place.backend}
    whole = thickets.sample_noise((140, 131), **tail)
    zero = torch.zeros(140, 131, device=place.device)
    perturbed = thickets.perturb_(
        zero, zero, seed=2**64 - 1, sigma=1.0, name="w", noise=noise, backend=place.backend
    )
    assert torch.equal(whole, perturbed)
    for rows, cols in [
        (slice(3, 9), slice(130, None)),
        (slice(-2, None), slice(1, -1)),
        (slice(6, 5), slice(None)),
    ]:
        part = thickets.sample_noise((140, 131), rows=rows, cols=cols, **tail)
        assert torch.equal(part, whole[rows, cols])
    vector = thickets.sample_noise((131,), **tail)
    expected = thickets.perturbed_vector(
        zero[0] * 0, seeds=[2**64 - 1], sigmas=[1.0], name="w", noise=noise, backend=place.backend
    )
    assert torch.equal(vector, expected[0])
    assert torch.equal(thickets.sample_noise((131,), cols=slice(7, 70), **tail), vector[7:70])


@pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher"])
@every_precision
@every_dtype
@pytest.mark.parametrize("form", ["members", "shared", "ragged"])
def test_stored_weights_give_the_same_product(
    place: Place, form: str, dtype: torch.dtype, precision: str, noise: str
) -> None:
    x, offsets = randn(place, 6, 100, dtype=dtype), None
    if form == "members":
        x = x.view(3, 2, 100)
    elif form == "ragged":
        offsets = bounds(place, 0, 1, 1, 6)
    weight, bias = randn(place, 37, 100, dtype=dtype), randn(place, 37, dtype=dtype)
    tail = {"noise": noise, "backend": place.backend}
    fused = thickets.perturbed_linear(
        x,
        weight,
        bias,
        **members(place, 3),
        name="w",
        bias_name="b",
        offsets=offsets,
        precision=precision,
        **tail,
    )
    stored_dtype = dtype if precision == "storage" else torch.float32
    weights = torch.empty(3, 37, 100, dtype=stored_dtype, device=place.device)
    for slot, seed, sigma in zip(weights, SEEDS, SIGMAS, strict=False):
        thickets.perturb_(slot, weight, seed=seed, sigma=sigma, name="w", **tail)
    biases = thickets.perturbed_vector(bias, **members(place, 3), name="b", precision=precision, **tail)
    stored = thickets.grouped_linear(x, weights, biases, offsets=offsets, backend=place.backend)
    if place.backend in ("cpu", "reference"):
        assert torch.equal(stored, fused)
    else:  # a GPU adds up in another order
        streams = Stream("w", family(noise)), Stream("b", family(noise))
        expected = oracle.oracle_linear(
            x, weight, bias, *members(place, 3).values(), offsets, *streams, precision, place.backend
        )
        oracle.assert_close(stored, expected, f"grouped_linear, {place}, {noise}, {precision}")


@every_family
@pytest.mark.parametrize("rows", [2, 500])  # few, and past every threshold of a backend
def test_autocast_changes_nothing(place: Place, rows: int, noise: str) -> None:
    x, weight = randn(place, 2, rows, 60), randn(place, 9, 60)
    tail = {**members(place, 2), "name": "w", "noise": noise, "backend": place.backend}
    for dtype in (torch.float32, torch.bfloat16):
        operands = x.to(dtype), weight.to(dtype)
        expected = thickets.perturbed_linear(*operands, **tail)
        with torch.autocast(place.device, torch.bfloat16):
            assert torch.equal(thickets.perturbed_linear(*operands, **tail), expected)
