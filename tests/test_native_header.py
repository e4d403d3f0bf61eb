"""csrc/noise.h alone: its scalar lanes, which no CPU kernel uses and every GPU kernel will."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from native_cases import assert_same_bits, every_dense_family, stream
from torch import Tensor

from thickets.noise import ELEMENTS, MASK32, entries, philox4x32_10

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "native" / "noise_scalar.cpp"
SEEDS = [0, 0x123456789ABCDEF0, (1 << 64) - 1]
NAME = "model.layers.0.mlp.up_proj.weight"


def compiled(command: list[str], out: Path) -> Path:
    """Compile SOURCE, without a warning, into `out`."""
    done = subprocess.run(
        [*command, f"-I{ROOT / 'csrc'}", SOURCE, "-o", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tensor]:
    """noise_scalar(kind, seed, id, row, rows, block, blocks) -> int32 bit patterns, one line per row."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler: neither g++ nor c++ on PATH, nor CXX")
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    program = compiled([*shlex.split(compiler), *flags], tmp_path_factory.mktemp("header") / "noise_scalar")

    def noise_scalar(*arguments: object) -> Tensor:
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, check=True)
        return torch.frombuffer(bytearray(done.stdout), dtype=torch.int32).view(int(str(arguments[4])), -1)

    return noise_scalar


@pytest.mark.parametrize("seed", SEEDS, ids=hex)
def test_words(run: Callable[..., Tensor], seed: int) -> None:
    """All eight streams, rows and blocks up to the last, a parameter id with its three top bits."""
    identity = 0xF45B65BAF420F1E5
    for number in range(8):
        for row, block in ((0, 0), (MASK32 - 2, MASK32 - 4)):
            rows, blocks = torch.arange(row, row + 3)[:, None], torch.arange(block, block + 5)
            c2, c3 = identity & MASK32, number + 8 * ((identity >> 32) & 0x1FFFFFFF)
            key = torch.tensor(seed & MASK32), torch.tensor(seed >> 32)
            words = philox4x32_10(blocks, rows, torch.tensor(c2), torch.tensor(c3), *key)
            expected = torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)
            actual = run(number, seed, identity, row, 3, block, 5)
            assert torch.equal(actual.long() & MASK32, expected), f"stream {number}, row {row}, block {block}"


@every_dense_family
@pytest.mark.parametrize("seed", SEEDS, ids=hex)
def test_entries(run: Callable[..., Tensor], noise: str, seed: int) -> None:
    """16 rows of 8192 entries: 131,072 of each seed and family, to the bit."""
    where = stream(noise, row=(1 << 32) - 16, name=NAME)
    expected = entries(torch.tensor([seed - (seed >> 63 << 64)]), where, 16, 8192)[0]
    actual = run(noise, seed, where.id, where.row, 16, 0, 8192 // ELEMENTS[noise])
    assert_same_bits(actual.view(torch.float32), expected)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler: nvcc is not on PATH")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_the_header_is_ready_for_nvcc(tmp_path: Path, architecture: str) -> None:
    """A kernel over the same functions compiles for the device, and the program for the host."""
    flags = ["-std=c++17", "-fmad=false", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
    out = compiled(["nvcc", "-x", "cu", f"-arch={architecture}", *flags, "-c"], tmp_path / "noise_scalar.o")
    assert b"calls" in out.read_bytes(), "the kernel was left out"
