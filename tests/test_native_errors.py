"""What thickets._C refuses: no memory, unknown instruction sets, noise out of bounds, too much of it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_cases import ISAS, STORAGE, every_isa, members, normals, stream
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

import thickets
from thickets.backends import Backend, refusal
from thickets.backends.cpu import BACKEND, backend

_C = pytest.importorskip("thickets._C", reason="the native module is not built")
HERE = torch.zeros(64)
AT = HERE.data_ptr()  # memory that no refused call may touch
MEMBERS = (AT, AT, AT, 1, False)
MATRIX = (AT, 0, 4)
NORMAL, HADAMARD, LOWRANK = (1, 0, 7, 0, 0, 4), (4, 0, 7, 0, 0, 4), (5, 2, 7, 0, 0, 4)

LINEAR = {"isa": "portable", "noise": NORMAL, "members": MEMBERS, "x": AT, "ldx": 4, "weight": MATRIX,
          "member_stride": 0, "bias": 0, "bias_stride": 0, "y": AT, "ldy": 4, "out": 4, "in": 4,
          "storage": False}  # fmt: skip
PRODUCT = {"isa": "portable", "noise": LOWRANK, "members": MEMBERS, "x": AT, "ldx": 4, "y": AT, "ldy": 4,
           "out": 4, "in": 4}  # fmt: skip
ROWS = {"isa": "portable", "noise": NORMAL, "seeds": AT, "scales": AT, "rows": AT, "count": 1, "cols": 4,
        "weight": MATRIX, "out": MATRIX}  # fmt: skip
ACCUMULATE = {"isa": "portable", "noise": NORMAL, "seeds": AT, "coefficients": AT, "count": 1, "rows": 1,
              "cols": 4, "weight": MATRIX}  # fmt: skip
CALLS: dict[str, dict[str, Any]] = {
    "linear": LINEAR, "noise_product": PRODUCT, "rows": ROWS, "accumulate": ACCUMULATE}  # fmt: skip
FAMILY = "noise must be a family that this kernel takes"

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *[(call, {"isa": "sse9"}, "isa must be one that was built, got sse9") for call in CALLS],
    *[(call, {name: 0}, f"{name} has no memory") for call in ("linear", "noise_product") for name in "xy"],
    ("linear", {"members": (0, AT, AT, 1, False)}, "seeds has no memory"),
    ("linear", {"members": (AT, 0, AT, 1, False)}, "sigmas has no memory"),
    ("noise_product", {"members": (AT, AT, 0, 1, False)}, "offsets has no memory"),
    *[("rows", {name: 0}, "(seeds|sigmas|rows) has no memory") for name in ("seeds", "scales", "rows")],
    *[("accumulate", {name: 0}, f"{name} has no memory") for name in ("seeds", "coefficients")],
    *[(call, {"weight": (0, 0, 4)}, "weight has no memory") for call in CALLS if call != "noise_product"],
    ("rows", {"out": (0, 0, 4)}, "out has no memory"),
    *[
        ("rows", {name: (AT, 3, 4)}, f"{name} must have a known dtype, got number 3")
        for name in ("weight", "out")
    ],
    ("linear", {"noise": HADAMARD}, f"{FAMILY}, got number 4"),
    ("noise_product", {"noise": NORMAL}, f"{FAMILY}, got number 1"),
    ("rows", {"noise": (0, 0, 0, 0, 0, 0)}, f"{FAMILY}, got number 0"),
    ("accumulate", {"noise": (6, 0, 7, 0, 0, 4)}, f"{FAMILY}, got number 6"),
    *[("noise_product", {"noise": (5, rank, 7, 0, 0, 4)}, f"rank >= 1, got {rank}") for rank in (0, -1)],
    ("rows", {"noise": (4, 0, 7, -1, 0, 4)}, r"got 4 columns from \(-1, 0\)"),
]
for call, family in (
    ("linear", 1),
    ("noise_product", 4),
    ("noise_product", 5),
    ("rows", 4),
    ("accumulate", 4),
):
    for col, full_cols in ((0, 3), (-1, 4), (1, 4), (0, 1 << 62), (0, -1)):
        outside = {"noise": (family, 1, 7, 0, col, full_cols)}
        REFUSED.append((call, outside, f"noise must lie within full_cols = {full_cols}, got 4 columns"))


@pytest.mark.parametrize(("call", "change", "message"), REFUSED)
def test_the_module_refuses(call: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(_C, call)(*(CALLS[call] | change).values())
    assert (HERE == 0).all()


def test_the_calls_above_are_valid_without_the_change() -> None:
    """Else any error would do. One member of one row, and nothing of it but a sum that stays zero."""
    offsets, rows, zeros = torch.tensor([0, 1]), torch.tensor([0]), torch.zeros(16)
    matrix, group = (zeros.data_ptr(), 0, 4), (AT, AT, offsets.data_ptr(), 1, False)
    _C.linear(*(LINEAR | {"members": group, "weight": matrix, "y": zeros.data_ptr()}).values())
    _C.noise_product(*(PRODUCT | {"members": group, "y": zeros.data_ptr()}).values())
    _C.rows(*(ROWS | {"rows": rows.data_ptr(), "weight": matrix, "out": matrix}).values())
    _C.accumulate(*(ACCUMULATE | {"weight": matrix}).values())
    assert (zeros == 0).all()


def test_scratch_that_cannot_be_had_is_a_memory_error() -> None:
    offsets = torch.tensor([0, 1])
    change = {"members": (AT, AT, offsets.data_ptr(), 1, False), "out": 1 << 45}
    with pytest.raises(MemoryError, match=r"out of memory: a kernel needs scratch for [0-9]+ floats"):
        _C.noise_product(*(PRODUCT | change).values())


@pytest.mark.parametrize("isa", ISAS)
def test_an_instruction_set_that_is_missing_says_so(isa: str) -> None:
    """A build for another processor has no AVX; this one may lack it."""
    able = _C.isas().get(isa)
    record = backend(isa, isa)
    if able:
        assert record.why_not() is None
        assert refusal(record, torch.device("cpu")) is None
        return
    assert record.why_not() == f"this CPU or this build has no {isa}"
    with pytest.raises(
        ValueError, match=f"this CPU cannot run {isa}|isa must be one that was built, got {isa}"
    ):
        _C.rows(*(ROWS | {"isa": isa}).values())


def test_the_default_is_the_widest_that_is_able() -> None:
    sets = _C.isas()
    assert sets["portable"]
    assert (len(sets) == 3) == (platform.machine().lower() in ("x86_64", "amd64"))
    assert _C.isa() == [isa for isa in ISAS if sets.get(isa)][-1]
    assert BACKEND.name == "cpu"


OPS: dict[str, Callable[[Backend, dict[str, Any]], object]] = {
    "linear": lambda b, t: b.linear(t["x"], t["w"], None, *t["m"], None, stream("normal"), None, "exact"),
    "structured": lambda b, t: b.linear(
        t["x"], t["w"], None, *t["m"], None, stream("hadamard"), None, "exact"
    ),
    "noise_linear_": lambda b, t: b.noise_linear_(t["y"], t["x"], *t["m"], None, stream("lowrank-2")),
    "vector": lambda b, t: b.vector(t["w"][0], *t["m"], stream("normal"), "exact"),
    "perturb_": lambda b, t: b.perturb_(t["w"], t["w"], t["m"][0][:1], t["m"][1][:1], stream("normal")),
    "accumulate_": lambda b, t: b.accumulate_(t["w"], *t["m"], stream("normal")),
    "noise": lambda b, t: b.noise(t["w"], t["m"][0][:1], stream("normal")),
    "grouped_linear": lambda b, t: b.grouped_linear(t["x"], t["w"].repeat(2, 1, 1), None, None),
}


def tensors() -> dict[str, Any]:
    return {"x": normals(2, 3, 4), "y": normals(2, 3, 4), "w": normals(4, 4), "m": members(2)}


@every_isa
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_tensors_without_memory(native: Backend, op: str) -> None:
    """A fake tensor's address is zero and reading it does not raise: the module must."""
    OPS[op](native, tensors())
    with FakeTensorMode() as mode:
        fake = {name: tree_map(mode.from_tensor, value) for name, value in tensors().items()}
        with pytest.raises((ValueError, RuntimeError), match=r"has no memory|FakeTensor"):
            OPS[op](native, fake)


@pytest.mark.parametrize("dtype", STORAGE)
def test_ids_out_of_range(dtype: torch.dtype) -> None:
    weight = normals(5, 4, dtype=dtype)
    for ids in ([[0, 5]], [[-1, 2]], [[1 << 40, 0]]):
        with pytest.raises(IndexError, match=r"ids must be in \[0, V=5\)"):
            thickets.perturbed_embedding(
                torch.tensor(ids), weight, seeds=[1], sigmas=[0.1], name="w", backend="cpu"
            )


def test_any_rank_takes_bounded_memory() -> None:
    """Factors go by 64 ranks at a time: all of these would need gigabytes, and once overflowed an int."""
    rank = 20_000_000 if _C.isa() == "avx512" else 1_000_000
    out, y = torch.full((2, 3), torch.nan), torch.zeros(1, 1, 2)
    where = stream(f"lowrank-{rank}")
    BACKEND.noise(out, torch.tensor([1]), where)
    assert (out.abs() < 6).all()
    BACKEND.noise_linear_(y, torch.eye(3)[:1, None], torch.tensor([1]), torch.ones(1), None, where)
    torch.testing.assert_close(
        y[0, 0], out[:, 0], rtol=0, atol=0.02
    )  # sums of 20 million terms, in two orders
