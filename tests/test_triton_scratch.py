"""Large groups on the Triton backend: noise or W' goes through scratch memory, a few members at a time."""

from __future__ import annotations

import oracle
import pytest
import torch
from triton_place import DEVICE

import thickets
from thickets.backends import triton
from thickets.noise import Stream, family

COUNT, ROWS, OUTPUTS, INPUTS = 5, 3, 40, 50
SEEDS, SIGMAS = [1, 2, 2**64 - 3, 4, 5], [0.1, 0.2, -0.3, 0.0, 0.5]

every_family = pytest.mark.parametrize("noise", ["normal", "normal4", "rademacher"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members' matrices in scratch memory at a time, so that the last chunk is smaller."""
    monkeypatch.setattr(triton, "SCRATCH_FROM", dict.fromkeys(triton.SCRATCH_FROM, 2))
    monkeypatch.setattr(triton, "SCRATCH", 2 * OUTPUTS * INPUTS)


def randn(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def members() -> tuple[torch.Tensor, torch.Tensor]:
    seeds = torch.tensor([seed - (seed >> 63 << 64) for seed in SEEDS], device=DEVICE)
    return seeds, torch.tensor(SIGMAS, device=DEVICE)


@every_family
@every_dtype
@pytest.mark.parametrize("precision", ["exact", "storage"])
@pytest.mark.parametrize("shared", [False, True], ids=["members", "shared"])
@pytest.mark.parametrize("bias_name", ["none", "plain", "b"])
def test_linear(bias_name: str, shared: bool, precision: str, dtype: torch.dtype, noise: str) -> None:
    x = randn(ROWS, INPUTS, dtype=dtype) if shared else randn(COUNT, ROWS, INPUTS, dtype=dtype)
    weight = randn(OUTPUTS, INPUTS, dtype=dtype)
    bias = None if bias_name == "none" else randn(OUTPUTS, dtype=dtype)
    named = bias_name if bias_name == "b" else None
    kind, (seeds, sigmas) = family(noise), members()
    actual = thickets.perturbed_linear(
        x, weight, bias, seeds=seeds, sigmas=sigmas, name="w", bias_name=named, noise=noise,
        precision=precision, backend="triton",
    )  # fmt: skip
    bias_stream = Stream("b", kind) if named else None
    expected = oracle.oracle_linear(
        x, weight, bias, seeds, sigmas, None, Stream("w", kind), bias_stream, precision
    )
    rounding = oracle.eps_rounding("triton", noise, dtype, dtype, precision)
    oracle.assert_close(actual, expected, f"{noise}, {precision}", rounding)


@every_family
@every_dtype
@pytest.mark.parametrize("shared", [False, True], ids=["members", "shared"])
def test_noise_linear(shared: bool, dtype: torch.dtype, noise: str) -> None:
    x = randn(ROWS, INPUTS, dtype=dtype) if shared else randn(COUNT, ROWS, INPUTS, dtype=dtype)
    y, (seeds, sigmas) = randn(COUNT, ROWS, OUTPUTS, dtype=dtype), members()
    expected = oracle.oracle_noise_linear(y, x, seeds, sigmas, None, Stream("w", family(noise)))
    thickets.noise_linear_(y, x, seeds=seeds, sigmas=sigmas, name="w", noise=noise, backend="triton")
    rounding = oracle.eps_rounding("triton", noise, dtype, None, "exact")
    oracle.assert_close(y, expected, noise, rounding)


@every_dtype
@pytest.mark.parametrize("with_bias", [False, True])
def test_stored_weights(with_bias: bool, dtype: torch.dtype) -> None:
    x, weights = randn(COUNT, ROWS, INPUTS, dtype=dtype), randn(COUNT, OUTPUTS, INPUTS, dtype=dtype)
    bias = randn(COUNT, OUTPUTS, dtype=dtype) if with_bias else None
    actual = thickets.grouped_linear(x, weights, bias, backend="triton")
    value, magnitude = x.double() @ weights.double().mT, x.double().abs() @ weights.double().mT.abs()
    if bias is not None:
        value, magnitude = value + bias.double()[:, None], magnitude + bias.double().abs()[:, None]
    oracle.assert_close(actual, oracle.Expected(value, magnitude))
