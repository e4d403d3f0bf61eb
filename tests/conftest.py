"""Fixtures of the whole suite: every backend on every device it can use here, and poisoned allocations.

Without a GPU the Triton kernels run in Triton's interpreter and the CUDA kernels in the tests' emulator
(emulated.py), both on CPU tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is loaded: without a GPU its kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

import emulated

from thickets.backends import REGISTRY, cuda, refusal

if not torch.cuda.is_available() and emulated.why_not() is None:
    REGISTRY["cuda"] = cuda.backend(emulated.module(), devices=("cpu",))

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


class Place(NamedTuple):
    """Where an op runs: a registered backend and a device."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"


PLACES = [
    Place(name, device)
    for name, backend in REGISTRY.items()
    for device in DEVICES
    if refusal(backend, torch.device(device)) is None
]


@pytest.fixture(params=PLACES, ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    """A backend and a device that it can use here."""
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `gpu` needs a CUDA device: without one it is skipped, and says so."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def poisoned_empty() -> Iterator[None]:
    """Fresh tensors are full of NaN (integers: the largest value), so that nothing unwritten looks right."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # implies torch.utils.deterministic's filling
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small work on one thread: on a busy machine several would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
