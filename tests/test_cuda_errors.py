"""What thickets._C.cuda refuses: no memory, noise out of bounds, sizes that contradict each other."""

from __future__ import annotations

import itertools
from typing import Any

import emulated
import pytest
import torch

HERE = torch.zeros(64)
AT = HERE.data_ptr()  # memory that no refused call may touch
MATRIX, NONE = (AT, 0, 4), (0, 0, 0)
MEMBERS = (AT, AT, 1.0, 0, 1, 1, 1)  # seeds, sigmas, scale, offsets, count, rows, total
NORMAL, HADAMARD, LOWRANK = (1, 0, 7, 0, 0, 4), (4, 0, 7, 0, 0, 4), (5, 2, 7, 0, 0, 4)
TO, SIZES, PLACE = (MATRIX, NONE, False, NONE), {"out": 4, "in": 4}, (0, 0)

LINEAR = {"noise": NORMAL, "members": MEMBERS, "x": MATRIX, "x_shared": False, "weight": MATRIX,
          "weight_member": 0, "to": TO, **SIZES, "storage": False, "place": PLACE}  # fmt: skip
PRODUCT = {"noise": LOWRANK, "members": MEMBERS, "x": MATRIX, "x_shared": False, "to": TO}
ROWS = {"noise": NORMAL, "members": MEMBERS, "ids": AT, "ids_shared": False, "weight": MATRIX, "out": MATRIX,
        "out_member": 0, "rows": 1, "cols": 4, "place": PLACE}  # fmt: skip
ACCUMULATE = {"noise": NORMAL, "members": MEMBERS, "weight": MATRIX, "rows": 1, "cols": 4, "place": PLACE}
CALLS: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "linear_float32": LINEAR,
    "hadamard_product": {**PRODUCT, "noise": HADAMARD, **SIZES, "place": PLACE},
    "lowrank_scratch": {**PRODUCT, **SIZES, "place": PLACE},
    "lowrank_product": {**PRODUCT, "scratch": AT, **SIZES, "place": PLACE},
    "rows": ROWS,
    "accumulate": ACCUMULATE,
}
PRODUCTS = [call for call in CALLS if "x" in CALLS[call]]
FAMILY = "noise must be a family that this kernel takes, got number"


def members(**changed: int) -> dict[str, tuple[Any, ...]]:
    names = ("seeds", "sigmas", "scale", "offsets", "count", "rows", "total")
    return {"members": tuple((dict(zip(names, MEMBERS, strict=True)) | changed).values())}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *[(call, members(seeds=0), "seeds has no memory") for call in CALLS],
    *[(call, members(sigmas=0), "sigmas has no memory") for call in CALLS],
    *[(call, members(count=-1), "the number of members must be >= 0, got -1") for call in CALLS],
    *[(call, members(rows=2), "1 members of 2 rows must have that many .* got 1") for call in PRODUCTS],
    ("rows", members(rows=2), "1 members of 2 rows must have that many .* got 1"),
    *[(call, members(offsets=AT, count=0), "1 rows belong to no member") for call in PRODUCTS],
    *[(call, {"x": (0, 0, 4)}, "x has no memory") for call in PRODUCTS],
    *[(call, {"x": NONE}, "x has no memory") for call in PRODUCTS],
    *[(call, {"x": (AT, 3, 4)}, "x must have a known dtype, got number 3") for call in PRODUCTS],
    *[(call, {"to": (NONE, NONE, False, NONE)}, "y has no memory") for call in PRODUCTS],
    *[(call, {"to": (MATRIX, (0, 0, 4), False, NONE)}, "base has no memory") for call in PRODUCTS],
    *[(call, {"to": (MATRIX, NONE, False, (0, 0, 4))}, "bias has no memory") for call in PRODUCTS],
    *[(call, {"out": -1}, "out must be >= 0, got -1") for call in PRODUCTS],
    *[(call, {"weight": (0, 0, 4)}, "weight has no memory") for call in CALLS if "weight" in CALLS[call]],
    ("accumulate", {"weight": NONE}, "weight has no memory"),
    ("accumulate", {"rows": -1}, "rows must be >= 0, got -1"),
    ("rows", {"out": NONE}, "out has no memory"),
    ("rows", {"ids": 0, "rows": -1}, "rows must be >= 0, got -1"),
    ("lowrank_product", {"scratch": 0}, "scratch has no memory"),
    ("linear", {"noise": HADAMARD}, f"{FAMILY} 4"),
    ("linear_float32", {"noise": LOWRANK}, f"{FAMILY} 5"),
    ("hadamard_product", {"noise": LOWRANK}, f"{FAMILY} 5"),
    ("lowrank_product", {"noise": HADAMARD}, f"{FAMILY} 4"),
    ("lowrank_scratch", {"noise": NORMAL}, f"{FAMILY} 1"),
    ("rows", {"noise": (0, 0, 0, 0, 0, 0)}, f"{FAMILY} 0"),
    ("accumulate", {"noise": (6, 0, 7, 0, 0, 4)}, f"{FAMILY} 6"),
]
for call, arguments in CALLS.items():
    for col, full_cols in ((0, 3), (-1, 4), (1, 4), (0, 1 << 62)):
        outside = {"noise": (*arguments["noise"][:4], col, full_cols)}
        REFUSED.append((call, outside, f"noise must lie within full_cols = {full_cols}, got 4 columns"))


@pytest.fixture(scope="module")
def native() -> Any:
    """The emulated module: it has the same checks."""
    if emulated.why_not():
        pytest.skip(str(emulated.why_not()))
    return emulated.module()


@pytest.mark.parametrize(("call", "change", "message"), REFUSED)
def test_the_module_refuses(native: Any, call: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(native, call)(*(CALLS[call] | change).values())
    assert (HERE == 0).all()


@pytest.mark.parametrize("call", CALLS)
def test_the_calls_above_are_valid_without_the_change(native: Any, call: str) -> None:
    """Else any error would do. One member of one row, seed and sigma 0: the sums stay zero."""
    getattr(native, call)(*CALLS[call].values())
    assert (HERE == 0).all()


def test_nothing_to_do_needs_no_memory(native: Any) -> None:
    eights = {"noise": (*NORMAL[:5], 8), "in": 8, "weight": NONE}  # as the tensor cores take them
    calls = [*((call, CALLS[call]) for call in PRODUCTS), ("linear", LINEAR | eights)]
    for offsets, (call, arguments) in itertools.product((0, AT), calls):
        empty = members(seeds=0, sigmas=0, offsets=offsets, count=0, rows=0, total=0)
        getattr(native, call)(*(arguments | empty | {"x": NONE, "to": (NONE, NONE, False, NONE)}).values())
