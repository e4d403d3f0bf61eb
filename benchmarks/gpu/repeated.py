"""Every op of a backend on small and odd shapes, each many times over: the same bits every time.

    python -m benchmarks.gpu.repeated                                          # on a GPU
    python -m benchmarks.gpu.repeated --backend cpu --device cpu --repeats 2   # a look at it, anywhere

sanitizer.py runs it with --repeats 1 under NVIDIA's checkers.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import thickets
from thickets.operands import Members, Noise

FAMILIES = ("normal", "normal4", "rademacher", "hadamard", "lowrank-1", "lowrank-7")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL = ((1, 1), (33, 40), (130, 264), (65, 515), (5, 20_000))  # outputs, inputs
LARGE = ((1000, 4096), (300, 2047))
COUNT = 3  # members
Calls = Iterator[tuple[str, Callable[[], Tensor]]]


def calls(backend: str, device: torch.device, shapes: tuple[tuple[int, int], ...]) -> Calls:
    """Every op for every family, dtype and shape, by name; each returns a result of its own."""
    generator = torch.Generator(device).manual_seed(0)
    for dtype in DTYPES:
        for outputs, inputs in shapes:
            weight = torch.randn(outputs, inputs, generator=generator, device=device).to(dtype)
            x = torch.randn(140, inputs, generator=generator, device=device).to(dtype)
            for family in FAMILIES:
                tail = {"name": "repeated", "noise": family, "backend": backend}
                for name, call in of_weight(weight, x, tail):
                    yield f"{family} {name} {outputs}x{inputs} {str(dtype).partition('.')[2]}", call


def of_weight(weight: Tensor, x: Tensor, tail: dict[str, str]) -> Calls:
    """Every op on a weight: members with 1, 9 and 140 rows, with rows in common, with groups of any size."""
    device = weight.device
    who = {
        "seeds": torch.tensor([1, -5, 2**62], device=device),
        "sigmas": torch.tensor([0.1, -0.3, 0.2], device=device),
    }
    one = {"seed": who["seeds"][:1], "sigma": who["sigmas"][:1]}
    offsets = torch.tensor([0, 1, 1, 12], device=device)
    ids = torch.arange(12, device=device) * 7 % len(weight)
    bias = weight[:, 0].contiguous()
    rows = {"1 row": x[:COUNT, None], "9 rows": x[: 9 * COUNT].view(COUNT, 9, -1), "140 rows": x}

    def linear(of: Tensor, precision: str, **more: Tensor) -> Tensor:
        return thickets.perturbed_linear(
            of, weight, bias, **who, bias_name="bias", precision=precision, **more, **tail
        )

    for precision in ("exact", "storage"):
        for name, of in rows.items():
            yield f"linear {precision} {name}", partial(linear, of, precision)
        yield f"linear {precision} ragged", partial(linear, x[:12], precision, offsets=offsets)
    zeros = partial(torch.zeros, 12, len(weight), device=device)
    yield "noise_linear_", lambda: thickets.noise_linear_(zeros(), x[:12], **who, offsets=offsets, **tail)
    embedding = partial(thickets.perturbed_embedding, ids, weight, **who, **tail)
    yield "embedding", embedding
    yield "embedding ragged", partial(embedding, offsets=offsets)
    yield "vector", partial(thickets.perturbed_vector, weight[0], **who, **tail)
    yield "perturb_", lambda: thickets.perturb_(torch.empty_like(weight), weight, **one, **tail)
    factors = {"seeds": who["seeds"], "coefficients": who["sigmas"]}
    yield "accumulate_", lambda: thickets.accumulate_(weight.clone(), **factors, **tail)
    yield "sample_noise", partial(thickets.sample_noise, weight.shape, seed=7, device=device, **tail)


def differing(backend: str, device: torch.device, repeats: int, small: bool) -> tuple[int, list[str]]:
    """How many calls there are, and the names of those that are not finite or differ from their first run."""
    count, bad = 0, []
    for name, call in calls(backend, device, SMALL if small else SMALL + LARGE):
        count += 1
        first = call()
        if not first.isfinite().all() or any(not torch.equal(call(), first) for _ in range(repeats - 1)):
            bad.append(name)
    return count, bad


def plant(device: torch.device) -> None:
    """Let a CUDA kernel read eight rows of 256 bytes that the weight does not have: a checker must notice."""
    from thickets.backends.cuda import NATIVE, Kernels

    one = Members(torch.ones(1, dtype=torch.int64, device=device), torch.ones(1, device=device), 1.0)
    out, weight = torch.empty(1, 16, 64, device=device), torch.zeros(8, 64, device=device)
    Kernels(NATIVE).perturbed_rows(out, weight, one, Noise("normal4", full_cols=64))
    torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a call differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--small", action="store_true", help="small shapes only")
    parser.add_argument("--plant", action="store_true", help="only read memory that is not there")
    asked = parser.parse_args(arguments)
    if asked.plant:
        plant(asked.device)
        return 0
    with torch.no_grad():
        count, bad = differing(asked.backend, asked.device, asked.repeats, asked.small)
    if bad:
        print(f"{len(bad)} of {count} calls differ or are not finite: {'; '.join(bad[:20])}")
    else:
        print(f"{count} calls, {asked.repeats} times each: the same bits")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
