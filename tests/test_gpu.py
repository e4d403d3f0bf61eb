"""What only a GPU can show of its backends: graphs, no synchronisation, int64 addresses, real bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import oracle
import pytest
import torch
from torch import Tensor

import thickets
from thickets.backends import REGISTRY, refusal
from thickets.noise import Stream, family

pytestmark = pytest.mark.gpu

FAMILIES = ["normal", "normal4", "rademacher", "hadamard", "lowrank-2"]
OPS = ["linear", "storage", "noise_linear_", "embedding", "vector", "perturb_", "accumulate_"]
every_family = pytest.mark.parametrize("noise", FAMILIES)
every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that can run on the GPU."""
    if reason := refusal(REGISTRY[request.param], torch.device("cuda")):
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


def members(*seeds: int) -> dict[str, Tensor]:
    sigmas = torch.linspace(0.1, 0.3, len(seeds), device="cuda")
    return {"seeds": torch.tensor(seeds, device="cuda"), "sigmas": sigmas}


def ops(noise: str, backend: str) -> dict[str, Callable[[dict[str, Tensor], Tensor], Tensor]]:
    """Every op that takes members, as a function of (members, offsets)."""
    x = torch.randn(6, 200, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(300, 200, device="cuda", dtype=torch.bfloat16)
    ids = torch.tensor([1, 299, 7, 7, 0, 3], device="cuda")
    tail = {"name": "w", "noise": noise, "backend": backend}
    return {
        "linear": lambda who, bounds: thickets.perturbed_linear(x, weight, **who, offsets=bounds, **tail),
        "storage": lambda who, bounds: thickets.perturbed_linear(
            x, weight, **who, offsets=bounds, precision="storage", **tail
        ),
        "noise_linear_": lambda who, bounds: thickets.noise_linear_(
            x.new_zeros(6, 300, dtype=torch.float32), x, **who, offsets=bounds, **tail
        ),
        "embedding": lambda who, bounds: thickets.perturbed_embedding(
            ids, weight, **who, offsets=bounds, **tail
        ),
        "vector": lambda who, _: thickets.perturbed_vector(weight[0], **who, **tail),
        "perturb_": lambda who, _: thickets.perturb_(
            torch.empty_like(weight), weight, seed=who["seeds"][0], sigma=who["sigmas"][0], **tail
        ),
        "accumulate_": lambda who, _: thickets.accumulate_(
            weight.clone(), seeds=who["seeds"], coefficients=who["sigmas"], **tail
        ),
    }


@every_family
@every_op
def test_a_graph_replays_with_other_members(op: str, noise: str, backend: str) -> None:
    run = ops(noise, backend)[op]
    who, bounds = members(1, 2, 3), torch.tensor([0, 1, 5, 6], device="cuda")
    run(who, bounds)  # compiles and tunes
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(who, bounds)
    who["seeds"].copy_(torch.tensor([2**62, -5, 8], device="cuda"))
    who["sigmas"].copy_(torch.tensor([0.5, -1.0, 0.0], device="cuda"))
    bounds.copy_(torch.tensor([0, 2, 2, 6], device="cuda"))
    graph.replay()
    assert torch.equal(result, run(who, bounds))


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@every_family
@pytest.mark.usefixtures("no_synchronisation")
@every_op
def test_no_op_waits_for_the_gpu(op: str, noise: str, backend: str) -> None:
    run = ops(noise, backend)[op]
    who, bounds = members(1, 2, 3), torch.tensor([0, 1, 5, 6], device="cuda")
    run(who, bounds)
    torch.cuda.set_sync_debug_mode("error")
    run(who, bounds)


@every_family
@every_op
def test_ops_run_on_the_current_stream(op: str, noise: str, backend: str) -> None:
    """Members arrive late on a side stream: what runs on another one sees the zeros before them."""
    run = ops(noise, backend)[op]
    who, bounds = members(1, 2, 3), torch.tensor([0, 1, 5, 6], device="cuda")
    expected = run(who, bounds)
    late = {name: torch.zeros_like(value) for name, value in who.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # cycles
        for name, value in who.items():
            late[name].copy_(value)
        result = run(late, bounds)
    side.synchronize()
    assert torch.equal(result, expected)


@every_family
@every_op
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_ops_run_where_their_tensors_are(op: str, noise: str, backend: str) -> None:
    """On the second device, whether or not it is the current one."""
    with torch.cuda.device(1):
        run = ops(noise, backend)[op]
        who, bounds = members(1, 2, 3), torch.tensor([0, 1, 5, 6], device="cuda")
        expected = run(who, bounds)
    result = run(who, bounds)
    assert result.device == torch.device("cuda", 1)
    assert torch.equal(result, expected)
    assert torch.cuda.current_device() == 0


@every_family
def test_bad_offsets_stay_within_memory(noise: str, backend: str) -> None:
    run = ops(noise, backend)["linear"]
    for bad in ([0, 100, -7, 6], [5, 4, 3, 2], [-(2**62), 2**62, 0, 2**40]):
        run(members(1, 2, 3), torch.tensor(bad, device="cuda"))
    torch.cuda.synchronize()


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_perturbed_weight_has_the_bits_of_the_cpu(dtype: torch.dtype, noise: str, backend: str) -> None:
    weight, sigma = torch.randn(257, 515).to(dtype), 0.37
    if oracle.own_normals(backend, noise):  # they are compared as they are
        weight, sigma = torch.zeros(257, 515), 1.0
    tail = {"seed": 2**64 - 3, "sigma": sigma, "name": "w", "noise": noise}
    here = thickets.perturb_(torch.empty_like(weight), weight, **tail, backend="cpu")
    there = thickets.perturb_(torch.empty_like(weight, device="cuda"), weight.cuda(), **tail, backend=backend)
    oracle.assert_same_noise(there.cpu(), here, backend, noise, "W'")


@every_family
@pytest.mark.parametrize("precision", ["exact", "storage"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_many_rows_per_member(
    with_bias: bool, shared: bool, precision: str, noise: str, backend: str
) -> None:
    """Past every threshold, so that noise or W' goes through scratch memory."""
    x = torch.randn(1024, 384, device="cuda", dtype=torch.bfloat16)
    x = x if shared else x.expand(3, -1, -1).contiguous()
    weight = torch.randn(200, 384, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(200, device="cuda", dtype=torch.bfloat16) if with_bias else None
    who = members(1, 2, 3)
    actual = thickets.perturbed_linear(
        x, weight, bias, **who, name="w", bias_name="b" if with_bias else None, noise=noise,
        precision=precision, backend=backend,
    )  # fmt: skip
    kind = family(noise)
    bias_stream = Stream("b", kind.for_vector()) if with_bias else None
    expected = oracle.oracle_linear(
        x, weight, bias, *who.values(), None, Stream("w", kind), bias_stream, precision, backend
    )
    rounding = oracle.eps_rounding(backend, noise, x.dtype, weight.dtype, precision, many=True)
    oracle.assert_close(actual, expected, f"{noise}, {precision}", rounding)


@pytest.mark.parametrize("noise", ["normal4", "rademacher"])
def test_addresses_have_64_bits(noise: str, backend: str) -> None:
    rows, cols = 70_000, 1 << 15  # 2.3e9 entries
    weight = torch.zeros(rows, cols, device="cuda", dtype=torch.bfloat16)
    tail = {"name": "w", "noise": noise, "backend": backend}
    thickets.perturb_(weight, weight, seed=5, sigma=1.0, **tail)
    last = thickets.sample_noise((rows, cols), rows=slice(rows - 2, rows), seed=5, device="cuda", **tail)
    assert torch.equal(weight[-2:].float(), last)
    id = torch.tensor([rows - 1], dtype=torch.int32, device="cuda")
    found = thickets.perturbed_embedding(id, weight, seeds=[5], sigmas=[0.0], **tail)
    assert torch.equal(found[0, 0], weight[-1])
    x = torch.zeros(1, 1, cols, device="cuda", dtype=torch.bfloat16)
    x[..., -1] = 1
    y = thickets.perturbed_linear(x, weight, seeds=[5], sigmas=[0.0], **tail)
    assert torch.equal(y[0, 0, -2:].float(), last[:, -1])


class Block(torch.nn.Module):
    """A decoder block of plain layers: causal attention and a gated product, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width, bias=False)
        self.gate, self.up = (torch.nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))


@every_family
def test_a_decoder_in_a_graph_replays_with_other_members(noise: str, backend: str) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Embedding(100, 64), Block(64, 4), Block(64, 4), torch.nn.Linear(64, 100, bias=False)]
    model = torch.nn.Sequential(*layers).to("cuda", torch.bfloat16).eval()
    ids = torch.randint(100, (2, 7), device="cuda")
    pm = thickets.perturb(model, noise=noise, backend=backend)
    with pm.members([1, 2, 3], [0.05, -0.05, 0.02]):
        before = pm(ids).clone()  # compiles and tunes
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = pm(ids)
    with pm.members([4, 5, 2**64 - 1], [0.05, 0.0, 0.1]):
        graph.replay()
        assert torch.equal(result, pm(ids))
        assert not torch.equal(result, before)
