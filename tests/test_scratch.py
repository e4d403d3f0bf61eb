"""Many rows per member on backends for GPUs: noise or W' goes through scratch memory, a tile at a time."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from threading import Event, Thread

import oracle
import pytest
import torch
from conftest import PLACES, Place
from torch import Tensor

import thickets
from thickets.backends import REGISTRY, scratch
from thickets.noise import Stream, family

COUNT, ROWS, OUTPUTS, INPUTS = 5, 3, 40, 50
SEEDS, SIGMAS = [1, 2, 2**64 - 3, 4, 5], [0.1, 0.2, -0.3, 0.0, 0.5]

MEMBERS, TILES = 2 * OUTPUTS * INPUTS, 20 * INPUTS  # entries of scratch memory, see `large`
every_family = pytest.mark.parametrize(
    ("noise", "size"), [("normal", MEMBERS), ("normal4", TILES), ("rademacher", TILES)]
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
every_form = pytest.mark.parametrize("shared", [False, True], ids=["members", "shared"])


@pytest.fixture(params=[place for place in PLACES if place.backend in ("cuda", "triton")], ids=str)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A backend for GPUs to which two rows are many."""
    thresholds = import_module(f"thickets.backends.{request.param.backend}").SCRATCH_FROM
    for name in thresholds:
        monkeypatch.setitem(thresholds, name, 2)
    return request.param


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Scratch memory for two members' W, so that the last chunk is smaller; or for a part of its rows."""
    monkeypatch.setattr(scratch, "SCRATCH", size)


def randn(place: Place, *shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(place.device, dtype)


def members(place: Place) -> tuple[Tensor, Tensor]:
    seeds = torch.tensor([seed - (seed >> 63 << 64) for seed in SEEDS], device=place.device)
    return seeds, torch.tensor(SIGMAS, device=place.device)


def rows(place: Place, shared: bool, dtype: torch.dtype) -> Tensor:
    return randn(place, *(() if shared else (COUNT,)), ROWS, INPUTS, dtype=dtype)


@every_family
@every_dtype
@pytest.mark.parametrize("precision", ["exact", "storage"])
@every_form
@pytest.mark.parametrize("bias_name", ["none", "plain", "b"])
@pytest.mark.usefixtures("large", "poisoned_empty")
def test_linear(
    place: Place, bias_name: str, shared: bool, precision: str, dtype: torch.dtype, noise: str
) -> None:
    x, weight = rows(place, shared, dtype), randn(place, OUTPUTS, INPUTS, dtype=dtype)
    bias = None if bias_name == "none" else randn(place, OUTPUTS, dtype=dtype)
    named = bias_name if bias_name == "b" else None
    kind, (seeds, sigmas) = family(noise), members(place)
    actual = thickets.perturbed_linear(
        x, weight, bias, seeds=seeds, sigmas=sigmas, name="w", bias_name=named, noise=noise,
        precision=precision, origin=(7, 5), full_cols=60, backend=place.backend,
    )  # fmt: skip
    stream, bias_stream = Stream("w", kind, 7, 5, 60), Stream("b", kind, col=7) if named else None
    expected = oracle.oracle_linear(
        x, weight, bias, seeds, sigmas, None, stream, bias_stream, precision, place.backend
    )
    rounding = oracle.eps_rounding(place.backend, noise, dtype, dtype, precision, many=True)
    oracle.assert_close(actual, expected, f"{place}, {noise}, {precision}", rounding)


@every_dtype
@pytest.mark.parametrize("size", [2 * 60 * 112])
@pytest.mark.usefixtures("large", "poisoned_empty")
def test_activations_of_a_few_members_at_a_time(place: Place, dtype: torch.dtype) -> None:
    x, weight = randn(place, COUNT, 60, INPUTS, dtype=dtype), randn(place, 8, INPUTS, dtype=dtype)
    bias, (seeds, sigmas) = randn(place, 8, dtype=dtype), members(place)
    actual = thickets.perturbed_linear(
        x, weight, bias, seeds=seeds, sigmas=sigmas, name="w", bias_name="b", noise="normal4",
        backend=place.backend,
    )  # fmt: skip
    streams = (Stream(name, family("normal4")) for name in "wb")
    expected = oracle.oracle_linear(x, weight, bias, seeds, sigmas, None, *streams, "exact", place.backend)
    rounding = oracle.eps_rounding(place.backend, "normal4", dtype, dtype, "exact", many=True)
    oracle.assert_close(actual, expected, str(place), rounding)


@pytest.mark.parametrize("noise", ["hadamard", "lowrank-2"])
@pytest.mark.parametrize("ragged", [False, True])
@every_form
@pytest.mark.parametrize("size", [MEMBERS, TILES])
@pytest.mark.usefixtures("large", "poisoned_empty")
def test_rounded_weights_of_structured_noise(place: Place, shared: bool, ragged: bool, noise: str) -> None:
    x, offsets = rows(place, shared, torch.bfloat16), None
    if ragged:
        x, offsets = x.view(-1, INPUTS), torch.tensor([0, 0, 1, 1, 2, 0], device=place.device)
        offsets[-1] = len(x)
    weight, bias = (randn(place, OUTPUTS, *size, dtype=torch.bfloat16) for size in ((INPUTS,), ()))
    kind, (seeds, sigmas) = family(noise), members(place)
    actual = thickets.perturbed_linear(
        x, weight, bias, seeds=seeds, sigmas=sigmas, offsets=offsets, name="w", bias_name="b", noise=noise,
        precision="storage", backend=place.backend,
    )  # fmt: skip
    streams = Stream("w", kind), Stream("b", kind.for_vector())
    expected = oracle.oracle_linear(
        x, weight, bias, seeds, sigmas, offsets, *streams, "storage", place.backend
    )
    oracle.assert_close(actual, expected, f"{place}, {noise}")


@every_family
@every_dtype
@every_form
@pytest.mark.usefixtures("large", "poisoned_empty")
def test_noise_linear(place: Place, shared: bool, dtype: torch.dtype, noise: str) -> None:
    x, (seeds, sigmas) = rows(place, shared, dtype), members(place)
    for y_dtype in (dtype, torch.float32):
        y = randn(place, COUNT, ROWS, OUTPUTS, dtype=y_dtype)
        expected = oracle.oracle_noise_linear(
            y, x, seeds, sigmas, None, Stream("w", family(noise)), place.backend
        )
        thickets.noise_linear_(y, x, seeds=seeds, sigmas=sigmas, name="w", noise=noise, backend=place.backend)
        rounding = oracle.eps_rounding(place.backend, noise, dtype, None, "exact", many=True)
        oracle.assert_close(y, expected, f"{place}, {noise}", rounding)


@every_dtype
@pytest.mark.parametrize("with_bias", [False, True])
def test_stored_weights(place: Place, with_bias: bool, dtype: torch.dtype) -> None:
    x, weights = rows(place, False, dtype), randn(place, COUNT, OUTPUTS, INPUTS, dtype=dtype)
    bias = randn(place, COUNT, OUTPUTS, dtype=dtype) if with_bias else None
    actual = thickets.grouped_linear(x, weights, bias, backend=place.backend)
    value, magnitude = x.double() @ weights.double().mT, x.double().abs() @ weights.double().mT.abs()
    if bias is not None:
        value, magnitude = value + bias.double()[:, None], magnitude + bias.double().abs()[:, None]
    oracle.assert_close(actual, oracle.Expected(value, magnitude))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinite_and_missing_biases_and_weights_stay(place: Place, value: float) -> None:
    """Masked outputs have a bias of minus infinity; nothing else may be lost to them, or to the padding."""
    x, weight = (torch.ones(rows, 9, dtype=torch.bfloat16, device=place.device) for rows in (ROWS, 4))
    bias = torch.zeros(4, dtype=torch.bfloat16, device=place.device)
    bias[1], weight[2, 3] = value, value
    tail = {"seeds": [1, 2], "sigmas": [0.5, 0.0], "name": "w", "backend": place.backend}
    y = thickets.perturbed_linear(x, weight, bias, noise="rademacher", **tail)
    assert y[..., ::3].isfinite().all()
    assert torch.equal(y[..., 1:3].nan_to_num(0.5), y.new_full((2, ROWS, 2), value).nan_to_num(0.5))


def test_a_bias_survives_in_three_bfloat16_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(2, 500, generator=generator) * 2.0 ** torch.randint(
        -90, 90, (2, 500), generator=generator
    )
    parts = scratch._in_three(bias)
    assert parts.dtype == torch.bfloat16
    assert torch.equal(parts.double().sum(-1), bias.double())


class Watched:
    """Kernels that note the largest scratch memory they were given, in entries."""

    def __init__(self, kernels: object) -> None:
        self.kernels, self.most = kernels, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.kernels, name)

    def perturbed_rows(self, out: Tensor, *rest: object) -> None:
        self.most = max(self.most, out.untyped_storage().nbytes() // out.element_size())
        self.kernels.perturbed_rows(out, *rest)


@every_dtype
@pytest.mark.parametrize("precision", ["exact", "storage"])
@pytest.mark.parametrize("size", [2000, 7000])
def test_scratch_memory_is_bounded(
    place: Place, precision: str, dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = REGISTRY[place.backend]
    ops = backend.linear.__self__
    watched = Watched(ops.kernels())
    ops = replace(ops, kernels=lambda: watched)
    monkeypatch.setitem(REGISTRY, place.backend, replace(backend, linear=ops.linear))
    monkeypatch.setattr(scratch, "SCRATCH", size)
    x, weight = rows(place, True, dtype), randn(place, OUTPUTS, INPUTS, dtype=dtype)
    thickets.perturbed_linear(
        x, weight, seeds=SEEDS, sigmas=SIGMAS, name="w", noise="rademacher", precision=precision,
        backend=place.backend,
    )  # fmt: skip
    assert size / 2 < watched.most <= size


def test_vendor_products_keep_float32_sums(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lets partial sums of 16-bit products be rounded: not in ours, and as before behind them."""
    matmul, seen = torch.backends.cuda.matmul, []
    names = [f"allow_{dtype}_reduced_precision_reduction" for dtype in ("bf16", "fp16")]
    before = [(getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in names]
    vendor = torch.bmm

    def bmm(*args: Tensor, **kwargs: Tensor) -> Tensor:
        seen.append([getattr(matmul, name) for name in names])
        return vendor(*args, **kwargs)

    monkeypatch.setattr(torch, "bmm", bmm)
    seeds, sigmas = members(place)
    x, weight = rows(place, False, torch.bfloat16), randn(place, OUTPUTS, INPUTS, dtype=torch.bfloat16)
    for precision in ("exact", "storage"):
        thickets.perturbed_linear(
            x, weight, seeds=seeds, sigmas=sigmas, name="w", noise="normal4", precision=precision,
            backend=place.backend,
        )  # fmt: skip
    assert seen == [[False, False]] * 2
    assert before == [(getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in names]


def test_threads_leave_the_flags_as_they_were() -> None:
    matmul, entered = torch.backends.cuda.matmul, Event()
    before = matmul.allow_bf16_reduced_precision_reduction

    def enter() -> None:
        with scratch.float32_sums():
            entered.set()
            left.wait(10)

    left, other = Event(), Thread(target=enter)
    with scratch.float32_sums():
        other.start()
        entered.wait(0.2)  # in vain: it waits for its turn
    left.set()
    other.join()
    assert entered.is_set()
    assert matmul.allow_bf16_reduced_precision_reduction == before
