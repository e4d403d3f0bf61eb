"""Every way to call an op wrongly: the error names the argument, what was expected and what came."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import thickets
from thickets.functional import members_tensors

NAN, INF = float("nan"), float("inf")
LIMIT = 2**32


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def arguments(op: str) -> dict[str, Any]:
    """A correct call of each op, with N=2, M=3, K=4, O=5, V=5, H=4."""
    members = {"seeds": torch.tensor([1, 2]), "sigmas": torch.tensor([0.1, 0.2])}
    coefficients = {"seeds": members["seeds"], "coefficients": members["sigmas"]}
    calls: dict[str, dict[str, Any]] = {
        "perturbed_linear": {"x": ones(2, 3, 4), "weight": ones(5, 4), "bias": ones(5), **members},
        "noise_linear_": {"y": ones(2, 3, 5), "x": ones(2, 3, 4), **members},
        "perturbed_embedding": {"ids": ones(2, 3, dtype=torch.int64), "weight": ones(5, 4), **members},
        "perturbed_vector": {"weight": ones(4), **members},
        "perturb_": {"out": ones(5, 4), "weight": ones(5, 4), "seed": torch.tensor([1]), "sigma": ones(1)},
        "accumulate_": {"weight": ones(5, 4), **coefficients},
        "grouped_linear": {"x": ones(2, 3, 4), "weights": ones(2, 5, 4), "bias": ones(2, 5)},
        "sample_noise": {"shape": (5, 4), "seed": torch.tensor([1])},
    }
    return calls[op] | ({} if op == "grouped_linear" else {"name": "w"})


OPS = [
    "perturbed_linear",
    "noise_linear_",
    "perturbed_embedding",
    "perturbed_vector",
    "perturb_",
    "accumulate_",
    "grouped_linear",
    "sample_noise",
]
TENSORS = [(op, key) for op in OPS for key, value in arguments(op).items() if isinstance(value, Tensor)]


def call(op: str, **changes: Any) -> Any:
    return getattr(thickets, op)(**{**arguments(op), **changes})


@pytest.fixture(params=["eager", "fake"])
def mode(request: pytest.FixtureRequest) -> Any:
    """Checks of shapes, dtypes and devices hold for real tensors and for the fakes of a compiler alike."""
    return nullcontext() if request.param == "eager" else FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("op", OPS)
def test_the_call_is_right_before_it_is_changed(op: str, mode: Any) -> None:
    with mode:
        call(op)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_dtypes(op: str, name: str, mode: Any) -> None:
    wrong = arguments(op)[name].to(torch.complex64)
    with mode, pytest.raises(TypeError, match=rf"^{name} must be (float32|int64).*, got torch.complex64"):
        call(op, **{name: wrong})


def test_a_weight_is_a_tensor() -> None:
    with pytest.raises(TypeError, match="weight must be a tensor, got None"):
        call("perturbed_linear", weight=None)


def test_a_bias_has_the_dtype_of_its_weight(mode: Any) -> None:
    with mode, pytest.raises(TypeError, match=r"bias must be float32, got torch.bfloat16"):
        call("perturbed_linear", bias=ones(5).bfloat16())
    with mode, pytest.raises(TypeError, match=r"bias must be bfloat16, got torch.float32"):
        call("grouped_linear", weights=ones(2, 5, 4).bfloat16())


FOLLOWERS = [(op, name) for op, name in TENSORS if name in ("weight", "weights", "y", "out", "bias")]
FOLLOWERS = [(op, name) for op, name in FOLLOWERS if arguments(op).keys() & {"x", "ids", "out"}]


@pytest.mark.parametrize(("op", "name"), FOLLOWERS)
def test_devices(op: str, name: str) -> None:
    wrong = arguments(op)[name].to("meta")
    named = "out" if op == "perturb_" else name  # there the weight says where the op runs
    with pytest.raises(ValueError, match=rf"^{named} must be on (cpu|meta) as the other tensors are"):
        call(op, **{name: wrong})


def test_devices_of_offsets() -> None:
    offsets = torch.zeros(3, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="offsets must be on cpu as the other tensors are, got meta"):
        call("grouped_linear", x=ones(6, 4), offsets=offsets)


def test_devices_of_members() -> None:
    x, weight, seeds = ones(2, 3, 4), ones(5, 4), torch.tensor([1, 2])
    call = torch.ops.thickets.perturbed_linear
    options = ("w", "normal", 1.0, (0, 0), None, None, 1.0, "exact", "auto")
    with pytest.raises(ValueError, match="seeds must be on cpu as the other tensors are, got meta"):
        call(x, weight, None, seeds.to("meta"), ones(2), None, *options)
    with pytest.raises(ValueError, match="sigmas must be on cpu as the other tensors are, got meta"):
        call(x, weight, None, seeds, ones(2).to("meta"), None, *options)


def test_the_size_of_a_noise_slice() -> None:
    with pytest.raises(ValueError, match=r"rows and cols must be >= 0, got \(-1, 2\)"):
        torch.ops.thickets.sample_noise(torch.tensor([1]), -1, 2, "w", "normal", (0, 0), None, "auto")


def test_layouts() -> None:
    with pytest.raises(ValueError, match=r"weight must be a strided tensor, got torch.sparse_coo"):
        call("perturbed_linear", weight=ones(5, 4).to_sparse())


T = torch.tensor
WRONG = [  # op, changes, message
    ("perturbed_linear", {"x": ones(4)}, r"x must be \[N, M, K\] or \[M, K\] without offsets, got \(4,\)"),
    ("perturbed_linear", {"x": ones(2, 1, 3, 4)}, r"x must be \[N, M, K\] or \[M, K\] without offsets, got"),
    ("perturbed_linear", {"x": ones(3, 3, 4)}, r"x must be \[N=2, M, K\], got \(3, 3, 4\)"),
    ("perturbed_linear", {"offsets": T([0, 3, 6])}, r"x must be \[T, K\] with offsets, got \(2, 3, 4\)"),
    ("perturbed_linear", {"weight": ones(4)}, r"weight must be \[O, K=4\], got \(4,\)"),
    ("perturbed_linear", {"weight": ones(4, 5)}, r"weight must be \[O, K=4\], got \(4, 5\)"),
    ("perturbed_linear", {"bias": ones(4)}, r"bias must be \[O=5\], got \(4,\)"),
    ("perturbed_linear", {"bias": ones(1, 5)}, r"bias must be \[O=5\], got \(1, 5\)"),
    ("perturbed_linear", {"bias": None, "bias_name": "b"}, r"bias must be given with bias_name 'b'"),
    ("perturbed_linear", {"bias_name": "w"}, r"bias_name must be another name than the weight's, got 'w'"),
    ("perturbed_linear", {"bias_name": "b", "bias_scale": INF}, r"bias_scale must be a finite float32"),
    ("perturbed_linear", {"seeds": T([[1, 2]])}, r"seeds must be \[N\], got \(1, 2\)"),
    ("perturbed_linear", {"sigmas": ones(1, 2)}, r"sigmas must be \[N=2\], got \(1, 2\)"),
    ("perturbed_linear", {"sigmas": ones(3)}, r"sigmas must be \[N=2\], got \(3,\)"),
    ("perturbed_linear", {"x": ones(6, 4), "offsets": T([0, 6])}, r"offsets must be \[N \+ 1 = 3\], got"),
    ("perturbed_linear", {"x": ones(6, 4), "offsets": T([[0, 3, 6]])}, r"offsets must be \[N \+ 1 = 3\]"),
    (
        "perturbed_linear",
        {"x": ones(6, 4), "offsets": T([0]), "seeds": [], "sigmas": []},
        r"x must be \[T=0, K\] without members, got \(6, 4\)",
    ),
    ("perturbed_linear", {"precision": "half"}, r"precision must be 'exact' or 'storage', got 'half'"),
    ("perturbed_linear", {"noise": "lowrank-0"}, r"noise must be 'normal', .*got 'lowrank-0'"),
    ("perturbed_linear", {"scale": NAN}, r"scale must be a finite float32, got nan"),
    ("perturbed_linear", {"scale": 1e39}, r"scale must be a finite float32, got 1e\+39"),
    ("perturbed_linear", {"origin": (-1, 0)}, r"origin must be \(row >= 0, column >= 0\), got \(-1, 0\)"),
    ("perturbed_linear", {"origin": (0, -1)}, r"origin must be \(row >= 0, column >= 0\), got \(0, -1\)"),
    ("perturbed_linear", {"origin": (LIMIT - 4, 0)}, r"origin must be \(row <= 2\*\*32 - 5, column\), got"),
    ("perturbed_linear", {"origin": (0, LIMIT - 3)}, r"origin must be \(row, column <= 2\*\*32 - 4\), got"),
    ("perturbed_linear", {"full_cols": 3}, r"full_cols must be between .* = 4 and 2\*\*32, got 3"),
    ("perturbed_linear", {"full_cols": LIMIT + 1}, r"full_cols must be between .*, got 4294967297"),
    (
        "perturbed_linear",
        {"noise": "hadamard", "origin": (0, 4)},
        r"full_cols must be given for noise 'hadamard' with origin \(0, 4\)",
    ),
    ("noise_linear_", {"y": ones(2, 3)}, r"y must be \[N=2, M=3, O\], got \(2, 3\)"),
    ("noise_linear_", {"y": ones(2, 4, 5)}, r"y must be \[N=2, M=3, O\], got \(2, 4, 5\)"),
    ("noise_linear_", {"x": ones(6, 4), "offsets": T([0, 3, 6])}, r"y must be \[T=6, O\], got \(2, 3, 5\)"),
    ("noise_linear_", {"y": ones(2, 3, 1).expand(2, 3, 5)}, r"y must be a tensor without overlapping"),
    ("perturbed_embedding", {"ids": T(1)}, r"ids must be \[N, M\] or \[M\] without offsets"),
    ("perturbed_embedding", {"ids": T([[1]])}, r"ids must be \[N=2, M\], got \(1, 1\)"),
    ("perturbed_embedding", {"offsets": T([0, 3, 6])}, r"ids must be \[T\] with offsets, got \(2, 3\)"),
    ("perturbed_embedding", {"weight": ones(4)}, r"weight must be \[V, D\], got \(4,\)"),
    ("perturbed_embedding", {"precision": ""}, r"precision must be 'exact' or 'storage', got ''"),
    ("perturbed_vector", {"weight": ones(1, 4)}, r"weight must be \[H\], got \(1, 4\)"),
    ("perturbed_vector", {"origin": (1, 0)}, r"origin must be \(0, column\) for a vector, got \(1, 0\)"),
    ("perturbed_vector", {"precision": "Exact"}, r"precision must be 'exact' or 'storage', got 'Exact'"),
    ("perturb_", {"out": ones(4, 5)}, r"out must be \[5, 4\] as weight is, got \(4, 5\)"),
    ("perturb_", {"out": ones(1).expand(5, 4)}, r"out must be a tensor .*, got strides \(0, 0\)"),
    ("perturb_", {"weight": ones(1, 5, 4)}, r"weight must be a matrix view .*, got \(1, 5, 4\)"),
    ("perturb_", {"seed": T([1, 2]), "sigma": ones(2)}, r"seed must be one seed \[1\], got \(2,\)"),
    ("perturb_", {"sigma": ones(2)}, r"sigma must be \[N=1\], got \(2,\)"),
    ("accumulate_", {"weight": ones(4).expand(5, 4)}, r"weight must be a tensor without overlapping"),
    ("accumulate_", {"coefficients": ones(3)}, r"coefficients must be \[N=2\], got \(3,\)"),
    ("grouped_linear", {"weights": ones(5, 4)}, r"weights must be \[N, O, K\], got \(5, 4\)"),
    ("grouped_linear", {"weights": ones(2, 5, 3)}, r"weights must be \[N, O, K=4\], got \(2, 5, 3\)"),
    ("grouped_linear", {"x": ones(3, 3, 4)}, r"x must be \[N=2, M, K\], got \(3, 3, 4\)"),
    ("grouped_linear", {"bias": ones(5)}, r"bias must be \[N=2, O=5\], got \(5,\)"),
    ("sample_noise", {"seed": T([1, 2])}, r"seed must be one seed \[1\], got \(2,\)"),
    ("sample_noise", {"shape": (LIMIT + 1, 1), "rows": slice(LIMIT, None)}, r"origin must be \(row <="),
]  # fmt: skip


@pytest.mark.parametrize(("op", "changes", "message"), WRONG, ids=[f"{op}: {m[:40]}" for op, _, m in WRONG])
def test_shapes_and_options(op: str, changes: dict[str, Any], message: str, mode: Any) -> None:
    with mode, pytest.raises(ValueError, match=f"^{message}"):
        call(op, **changes)


@pytest.mark.parametrize(
    "op", ["perturbed_linear", "noise_linear_", "perturbed_embedding", "perturbed_vector"]
)
@pytest.mark.parametrize("sigma", [NAN, INF, -INF])
def test_sigmas_are_finite(op: str, sigma: float) -> None:
    for sigmas in ([0.1, sigma], torch.tensor([0.1, sigma])):
        with pytest.raises(ValueError, match=r"^sigmas must be finite.*, got .*(nan|inf)"):
            call(op, sigmas=sigmas)
    with pytest.raises(ValueError, match=r"^sigmas must be finite, times scale 1e\+38 too, got"):
        call(op, sigmas=[0.1, 1e3], scale=1e38)


def test_sigmas_are_finite_times_the_scale_of_the_bias() -> None:
    with pytest.raises(ValueError, match=r"^sigmas must be finite, times scale 1e\+38 too, got"):
        call("perturbed_linear", sigmas=[0.1, 1e3], bias_name="b", bias_scale=1e38)


def test_one_sigma_and_coefficients_are_finite() -> None:
    for sigma in (NAN, torch.tensor([INF])):
        with pytest.raises(ValueError, match=r"^sigma must be finite.*, got .*(nan|inf)"):
            call("perturb_", sigma=sigma)
    for value in ([0.1, NAN], torch.tensor([0.1, NAN])):
        with pytest.raises(ValueError, match=r"^coefficients must be finite.*, got .*nan"):
            call("accumulate_", coefficients=value)


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("grouped_linear", "perturb_", "sample_noise")])
def test_seeds_are_unsigned_64_bit_integers(op: str) -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"^seeds must be in 0 <= seed < 2\*\*64, got {seed}"):
            call(op, seeds=[1, seed])
    for seeds in ([1, 0.5], 5, ["1", "2"]):
        with pytest.raises(TypeError, match=r"^seeds must be Python integers or an int64 tensor, got"):
            call(op, seeds=seeds)


def test_a_single_seed_and_sigma() -> None:
    for op in ("perturb_", "sample_noise"):
        with pytest.raises(ValueError, match=r"^seed must be in 0 <= seed < 2\*\*64, got -1"):
            call(op, seed=-1)
        with pytest.raises(TypeError, match=r"^seed must be Python integers or an int64 tensor, got \[1.5\]"):
            call(op, seed=1.5)
    with pytest.raises(TypeError, match=r"^sigma must be numbers or a float32 tensor, got \[None\]"):
        call("perturb_", sigma=None)


@pytest.mark.parametrize("bounds", [[1, 3, 6], [0, 3, 5], [0, 3, 7], [0, 7, 6], [0, -1, 6]], ids=str)
def test_offsets_are_monotone_from_0_to_the_number_of_rows(bounds: list[int]) -> None:
    message = r"^offsets must begin with 0, never decrease and end with T=6, got \["
    for op, rows in [
        ("perturbed_linear", {"x": ones(6, 4)}),
        ("noise_linear_", {"x": ones(6, 4), "y": ones(6, 5)}),
        ("perturbed_embedding", {"ids": ones(6, dtype=torch.int64)}),
        ("grouped_linear", {"x": ones(6, 4)}),
    ]:
        with pytest.raises(ValueError, match=message):
            call(op, offsets=torch.tensor(bounds), **rows)


@pytest.mark.parametrize("bad", [-1, 5])
def test_ids_are_rows_of_the_table(bad: int) -> None:
    with pytest.raises(IndexError, match=rf"^ids must be in \[0, V=5\), got {bad}"):
        call("perturbed_embedding", ids=torch.tensor([0, bad, 4]))


def test_what_is_written_shares_no_memory_with_what_is_read() -> None:
    memory = ones(2, 3, 5)
    with pytest.raises(ValueError, match=r"^y must not share memory with x"):
        call("noise_linear_", y=memory, x=memory)
    line = ones(24)
    with pytest.raises(ValueError, match=r"^out must not share memory with weight"):
        call("perturb_", out=line[4:].view(5, 4), weight=line[:20].view(5, 4))
    with pytest.raises(ValueError, match=r"^out must not share memory with weight"):
        call("perturb_", out=line[:20].view(torch.bfloat16)[:20].view(5, 4), weight=line[:20].view(5, 4))


def test_a_transposed_view_is_not_the_weight_itself() -> None:
    storage = ones(4, 4)
    with pytest.raises(ValueError, match=r"^out must not share memory with weight"):
        call("perturb_", out=storage.T, weight=storage)


@pytest.mark.parametrize(("column", "shares"), [(0, True), (3, True), (4, False), (8, False), (9, True)])
def test_columns_of_one_storage_are_told_apart(column: int, shares: bool) -> None:
    storage = ones(5, 12)
    weight, out = storage[:, :4], storage.view(-1)[column : column + 48].view(4, 12)[:, :4]
    weight = weight[:4]
    if shares and column:
        with pytest.raises(ValueError, match=r"^out must not share memory with weight"):
            call("perturb_", out=out, weight=weight)
    else:
        call("perturb_", out=out, weight=weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 3, 4)}, r"shape must be \(rows, cols\) or \(H,\), got \(2, 3, 4\)"),
        ({"shape": ()}, r"shape must be \(rows, cols\) or \(H,\), got \(\)"),
        ({"shape": (-2, 3)}, r"shape must be \(rows, cols\) or \(H,\), got \(-2, 3\)"),
        ({"shape": (4,), "rows": slice(0, 1)}, r"rows must be left out for a vector, which cols slices"),
        ({"rows": slice(0, 4, 2)}, r"rows and cols must be slices of step 1, got slice\(0, 4, 2\)"),
        ({"cols": slice(None, None, -1)}, r"rows and cols must be slices of step 1, got"),
        ({"noise": "gauss"}, r"noise must be 'normal', .*got 'gauss'"),
    ],
)
def test_noise_slices(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call("sample_noise", **changes)


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, name in TENSORS if arguments(op)[name].is_floating_point()]
)
def test_nothing_has_a_gradient(op: str, name: str, mode: Any) -> None:
    parameter = nn.Parameter(arguments(op)[name])
    with (
        mode,
        pytest.raises(
            RuntimeError, match=rf"{op} has no gradient, but {name} requires grad: use torch.no_grad"
        ),
    ):
        call(op, **{name: parameter})
    with mode, torch.no_grad():
        call(op, **{name: parameter})


@pytest.mark.parametrize("op", OPS)
def test_unknown_backends(op: str) -> None:
    with pytest.raises(ValueError, match=r"^backend must be 'auto' or one of .*reference.*, got 'gpu'"):
        call(op, backend="gpu")


def test_members_tensors() -> None:
    seeds, sigmas = members_tensors([0, 2**63, 2**64 - 1], [1.0, -2.0, 1e-45], "cpu")
    assert seeds.dtype == torch.int64
    assert seeds.tolist() == [0, -(2**63), -1]
    assert sigmas.dtype == torch.float32
    assert sigmas.tolist() == [1.0, -2.0, torch.tensor(1e-45).item()]
    assert members_tensors(seeds, sigmas, "cpu")[0] is seeds
    with pytest.raises(ValueError, match=r"sigmas must be finite, got \[nan\]"):
        members_tensors([1], torch.tensor([NAN]), "cpu")
    with pytest.raises(ValueError, match=r"sigmas must be finite in float32, got 1e\+39"):
        members_tensors([1], [1e39], "cpu")
    with pytest.raises(ValueError, match=r"sigmas must be \[N=2\], got \(1,\)"):
        members_tensors([1, 2], [0.1], "cpu")
    with pytest.raises(TypeError, match=r"seeds must be int64, got torch.int32"):
        members_tensors(seeds.int(), sigmas, "cpu")
    with pytest.raises(TypeError, match=r"sigmas must be float32, got torch.float64"):
        members_tensors(seeds, sigmas.double(), "cpu")
