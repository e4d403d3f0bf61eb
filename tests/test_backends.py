"""The registry: order of choice, refusals with their reason, and what the records promise."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, replace
from types import SimpleNamespace

import pytest
import torch

import thickets
from thickets import backends
from thickets.backends import AUTO, REGISTRY, Backend, choose, cuda, refusal, register
from thickets.backends.reference import BACKEND as REFERENCE

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Backend]:
    """An empty registry in place of the real one."""
    empty: dict[str, Backend] = {}
    monkeypatch.setattr(backends, "REGISTRY", empty)
    return empty


def record(name: str, *devices: str, why_not: str | None = None) -> Backend:
    return replace(REFERENCE, name=name, devices=devices, why_not=lambda: why_not)


def test_what_is_registered() -> None:
    assert {"cpu", "triton", "reference"} <= REGISTRY.keys() == set().union(*AUTO.values())
    for name, backend in REGISTRY.items():
        assert backend.name == name
        assert all(callable(getattr(backend, field.name)) for field in fields(Backend)[2:])


def test_the_reference_runs_everywhere() -> None:
    for device in (CPU, CUDA):
        assert choose("reference", device) is REFERENCE
        assert refusal(REFERENCE, device) is None


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        REFERENCE.name = "other"  # type: ignore[misc]


def test_auto_takes_the_first_that_can_run(registry: dict[str, Backend]) -> None:
    register(record("reference", "cpu", "cuda"))
    assert choose("auto", CPU).name == choose("auto", CUDA).name == "reference"
    register(record("cpu", "cpu"))
    register(record("triton", "cpu", "cuda"))  # as in its interpreter
    register(record("cuda", "cuda", why_not="the driver is too old"))
    register(record("mine", "cpu", "cuda"))  # not in the automatic order
    assert choose("auto", CPU).name == "cpu"
    assert choose("auto", CUDA).name == "triton"
    assert choose("mine", CUDA).name == "mine"
    assert list(registry) == ["reference", "cpu", "triton", "cuda", "mine"]


def test_auto_says_why_nothing_can_run(registry: dict[str, Backend]) -> None:
    register(record("cpu", "cpu", why_not="it is not built"))
    register(record("triton", "cuda"))
    message = r"no backend can run on cpu \(cpu: it is not built; triton: it serves cuda, not cpu\)"
    with pytest.raises(RuntimeError, match=message):
        choose("auto", CPU)


def test_an_explicit_choice_is_honoured_or_refused_with_the_reason(registry: dict[str, Backend]) -> None:
    register(record("reference", "cpu", "cuda"))
    register(record("cpu", "cpu", why_not="it is not built"))
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot run: it is not built .*cpu, reference\)"):
        choose("cpu", CPU)
    elsewhere = r"backend 'cpu' cannot run: it serves cpu, not cuda, and it is not built"
    with pytest.raises(RuntimeError, match=elsewhere):
        choose("cpu", CUDA)
    with pytest.raises(ValueError, match=r"backend must be 'auto' or one of cpu, reference, got 'rocm'"):
        choose("rocm", CPU)


@pytest.mark.parametrize(
    ("not_built", "native", "reason"),
    [
        ("it is not built", None, "it is not built"),
        (None, "the driver is too old", "the driver is too old"),
        (None, None, None if torch.cuda.is_available() else "torch sees no GPU"),
    ],
)
def test_cuda_says_why_it_cannot_run(
    not_built: str | None, native: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "NOT_BUILT", not_built)
    monkeypatch.setattr(cuda, "NATIVE", SimpleNamespace(why_not=lambda: native))
    assert cuda.why_not.__wrapped__() == reason  # it is cached


def test_cuda_is_refused_with_the_reason(registry: dict[str, Backend]) -> None:
    reason = cuda.why_not()
    if reason is None:
        pytest.skip("it can run here")
    register(cuda.BACKEND)
    for device in (CPU, CUDA):
        with pytest.raises(RuntimeError, match=rf"backend 'cuda' cannot run: .*{re.escape(reason)}"):
            choose("cuda", device)


def test_names_are_unique(registry: dict[str, Backend]) -> None:
    register(record("mine", "cpu"))
    for name in ("mine", "auto"):
        with pytest.raises(ValueError, match=f"backend name '{name}' is taken"):
            register(record(name, "cpu"))
    assert list(registry) == ["mine"]


def test_ops_use_the_backend_that_was_asked_for(registry: dict[str, Backend]) -> None:
    called = []

    def noise(out: torch.Tensor, seed: torch.Tensor, stream: object) -> None:
        called.append(stream)
        out.fill_(7)

    register(replace(REFERENCE, noise=noise))
    assert (thickets.sample_noise((2, 3), seed=1, name="w", backend="reference") == 7).all()
    assert len(called) == 1


def test_ops_refuse_a_device_that_nothing_serves(registry: dict[str, Backend]) -> None:
    register(record("cpu", "cuda"))
    with pytest.raises(RuntimeError, match="no backend can run on cpu"):
        thickets.sample_noise((2, 3), seed=1, name="w")
