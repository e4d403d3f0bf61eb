"""What is measured: linear layers of three language models, members, rows; and in which order.

Order matters because time is short: the default selection answers the targets first (targets.py), each on the
largest layer, then on others. What a run leaves out it names.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

FAMILIES = ("normal", "normal4", "rademacher", "hadamard", "lowrank-1")
PRECISIONS = ("exact", "storage")
DENSE = ("normal", "normal4", "rademacher")
MEMBERS = (16, 64, 256)
ROWS = (1, 8, 64, 512, 4096)
MODELS = {"0.5B": (896, 4864, 128), "3B": (2048, 11008, 256), "7B": (3584, 18944, 512)}  # Qwen2.5


@dataclass(frozen=True)
class Layer:
    """A weight [outputs, inputs], named by model and place."""

    name: str
    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        return self.outputs * self.inputs

    def __str__(self) -> str:
        return f"{self.name} {self.outputs}x{self.inputs}"


def _layers() -> dict[str, Layer]:
    named = {}
    for model, (hidden, wide, kv) in MODELS.items():
        shapes = {"gate": (wide, hidden), "down": (hidden, wide), "q": (hidden, hidden), "kv": (kv, hidden)}
        named |= {f"{model} {part}": Layer(f"{model} {part}", *shape) for part, shape in shapes.items()}
    return named


LAYERS = _layers()  # gate stands for up, q for the attention's output


@dataclass(frozen=True)
class Linear:
    """N members of a layer, each with `rows` rows of input."""

    layer: Layer
    members: int
    rows: int
    kind = "linear"

    def __str__(self) -> str:
        return f"{self.layer}, N={self.members}, M={self.rows}"

    @property
    def flops(self) -> int:
        """Of the products of all members, without any noise."""
        return 2 * self.layer.size * self.members * self.rows

    def memory(self, itemsize: int) -> int:
        """Bytes that the inputs and the hungriest contender need at least."""
        total = self.members * self.rows
        y = total * self.layer.outputs * (2 * itemsize + 8)  # the result, one before it, two float32 products
        return 4 * self.layer.size * itemsize + total * self.layer.inputs * itemsize + y

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Update:
    """`perturb_` or `accumulate_` (of `members` seeds) on the weight of a layer."""

    layer: Layer
    op: str
    members: int
    dtype: str = "bfloat16"
    kind = "update"

    def __str__(self) -> str:
        return f"{self.op} {self.layer} {self.dtype}, N={self.members}"

    @property
    def flops(self) -> int:
        return 2 * self.layer.size * self.members

    def memory(self, itemsize: int) -> int:
        return 16 * self.layer.size * itemsize

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


Case = Linear | Update


def _updates(layers: Iterable[str], members: Iterable[int], dtype: str = "bfloat16") -> Iterator[Update]:
    for name in layers:
        yield Update(LAYERS[name], "perturb_", 1, dtype)
        for count in members:
            yield Update(LAYERS[name], "accumulate_", count, dtype)


def _linears(layers: Iterable[str], members: Iterable[int], rows: Iterable[int]) -> Iterator[Linear]:
    for name, count, each in product(layers, members, rows):
        yield Linear(LAYERS[name], count, each)


def _chosen() -> Iterator[Case]:
    yield from _updates(["7B gate"], [1, 16])
    yield from _linears(["7B gate"], [64], [1, 8])  # decode; hadamard and low rank in the decode regime
    yield from _linears(["7B gate"], [16], [4096])  # scoring; hadamard and low rank in that regime
    yield from _linears(["0.5B gate", "3B gate"], [64], [8])
    yield from _linears(["7B gate"], [16], [64, 512])  # between the regimes: never below the loop
    yield from _linears(["7B down", "7B q"], [64], [8])
    yield from _linears(["3B gate", "7B down", "0.5B gate"], [16], [4096])
    yield from _linears(["0.5B q", "7B kv"], [16], [1, 8])  # small enough for launches to count
    yield from _linears(["7B gate"], [16, 256], [1, 8])
    yield from _updates(["0.5B gate"], [1, 16])
    yield from _updates(["7B gate"], [64])
    yield from _updates(["7B gate"], [1], "float32")
    yield from _linears(["3B gate", "0.5B gate"], [16], [64, 512])
    yield from _linears(["3B gate", "3B down", "0.5B down", "7B q"], [64], [1])
    yield from _linears(["3B down", "0.5B down"], [64], [8])
    yield from _linears(["7B q", "3B down", "0.5B q"], [16], [4096])
    yield from _linears(["0.5B kv", "3B kv", "3B q"], [16], [8, 512])
    yield from _linears(["7B down", "7B q", "0.5B q"], [16], [64, 512])
    yield from _linears(["0.5B gate", "3B gate"], [16, 256], [1, 8])
    yield from _linears(["0.5B kv", "7B kv"], [64, 256], [64, 4096])
    yield from _linears(["7B gate", "3B gate"], [64], [512])


def chosen() -> list[Case]:
    """The default selection, the most important first."""
    return list(dict.fromkeys(_chosen()))


def everything() -> list[Case]:
    """The full sweep: the default selection, then all that is left of the cross product."""
    updates = (case for dtype in ("bfloat16", "float32") for case in _updates(LAYERS, (1, *MEMBERS), dtype))
    return list(dict.fromkeys([*chosen(), *_linears(LAYERS, MEMBERS, ROWS), *updates]))


def tiny() -> list[Case]:
    """Two cases for a look at the tables, on any device."""
    layer = Layer("tiny", 96, 160)
    return [Linear(layer, 16, 8), Update(layer, "perturb_", 1), Update(layer, "accumulate_", 3)]


PLANS = {"chosen": chosen, "everything": everything, "tiny": tiny}
