"""Where the fused CUDA product puts noise and x for the tensor cores: every map, without a GPU."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from thickets.backends.native import FAMILIES

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "tests" / "native"
OUTPUTS, COLUMNS, ROWS = 32, 128, 8  # of a warp's tile, and of x
every_layout = pytest.mark.parametrize("family", ["none", "normal", "normal4", "rademacher"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """fragments(what, family, input=b"") -> what the program prints."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler: neither g++ nor c++ on PATH, nor CXX")
    program = tmp_path_factory.mktemp("fragments") / "fragments"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    flags += [f"-I{ROOT / 'csrc'}", f"-I{NATIVE / 'emulator'}"]
    sources = [NATIVE / "fragments.cpp", NATIVE / "emulator" / "emulator.cpp"]
    command = [*shlex.split(compiler), *flags, *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def fragments(what: str, family: str = "none", input: bytes = b"") -> bytes:
        command = [str(program), what, str(FAMILIES[family])]
        return subprocess.run(command, input=input, capture_output=True, check=True).stdout

    return fragments


def raw(tensor: Tensor) -> bytes:
    return tensor.bfloat16().view(torch.int16).numpy().tobytes()


@every_layout
def test_the_fragments_multiply_to_the_product(run: Callable[..., bytes], family: str) -> None:
    """Whole numbers, so that float32 sums in any order are exact: one column in another's place shows."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randint(-100, 101, (OUTPUTS, COLUMNS), generator=generator)
    x = torch.randint(-100, 101, (ROWS, COLUMNS), generator=generator)
    found = torch.frombuffer(bytearray(run("multiply", family, raw(w) + raw(x))), dtype=torch.float32)
    assert torch.equal(found.view(ROWS, OUTPUTS).double(), x.double() @ w.double().T)


@every_layout
def test_every_place_occurs_once(run: Callable[..., bytes], family: str) -> None:
    places = torch.frombuffer(bytearray(run("places", family)), dtype=torch.int32).view(-1, 2)
    expected = torch.cartesian_prod(torch.arange(OUTPUTS), torch.arange(COLUMNS))
    assert sorted(map(tuple, places.tolist())) == list(map(tuple, expected.tolist()))


def test_words_decode_as_the_contract_says(run: Callable[..., bytes]) -> None:
    """All low and all high halves of normal4 and rademacher words, to bfloat16 and float16 pairs."""
    assert int(run("decode")) == 0
