"""Members with different counts of folded rows, against ordinary forwards of each member's own rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Place
from hypothesis import given, settings
from hypothesis import strategies as st
from members_oracle import SEEDS, SIGMAS, TOLERANCE, Make, mlp, randn, seeded
from test_perturb_fallback import FunctionalTied
from test_perturb_layers import CASES, FAMILIES, to, transformer_like
from test_perturb_norms import GemmaNorm, LlamaNorm
from torch import Tensor, nn

import thickets
from thickets.perturbed import PerturbedModule
from thickets.perturbed.groups import Groups

pytestmark = pytest.mark.filterwarnings(
    "ignore:running member by member", "ignore:Using padding=.same.", "ignore:.*deprecated"
)

COUNTS = [2, 0, 3]


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Another batch [rows, ...] of the same kind."""
    shape, generator = (rows, *tensor.shape[1:]), torch.Generator().manual_seed(3)
    if tensor.is_floating_point():
        return torch.randn(shape, generator=generator).to(tensor.dtype)
    return torch.randint(0, 11, shape, generator=generator).to(tensor.dtype)


def own_rows(pm: PerturbedModule, make: Make, counts: list[int], *args: Tensor) -> list[Tensor]:
    """The first output of each member that has rows, from an ordinary forward of its own rows."""
    outputs = []
    rows = [torch.split(arg, counts) for arg in args]
    for n, (seed, sigma) in enumerate(zip(SEEDS, SIGMAS, strict=True)):
        model = make()
        model.load_state_dict(pm.materialize(seed, sigma))
        with torch.no_grad():
            outputs += [_first(model(*(part[n] for part in rows)))] if counts[n] else []
    return outputs


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def check_rows(
    make: Make, *args: Tensor, counts: list[int] = COUNTS, tolerance: float = 1e-5, **options: Any
) -> PerturbedModule:
    """A ragged batch equals each member's rows alone, fused and stored, called directly too."""
    make = seeded(make)
    args = tuple(with_rows(arg, sum(counts)) for arg in args)
    pm = thickets.perturb(make(), **options)
    expected = torch.cat(own_rows(pm, make, counts, *args))
    for stored in (False, True):
        with pm.members(SEEDS, SIGMAS, fold=False, stored=stored, rows=counts):
            actual = _first(pm(*args))
            with torch.no_grad():
                assert torch.equal(actual, _first(pm.module(*args)))
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
    return pm


@pytest.mark.parametrize("name", CASES)
def test_every_layer(name: str) -> None:
    make, args = CASES[name]
    check_rows(make, *args, strict=True)


@pytest.mark.parametrize("form", [LlamaNorm, GemmaNorm])
def test_norms_of_libraries(form: type) -> None:
    check_rows(lambda: form(6), randn(1, 3, 6), strict=True)


@pytest.mark.parametrize("noise", FAMILIES)
def test_every_family_and_backend(noise: str, place: Place) -> None:
    make, args = CASES["tied"]
    check_rows(make, *args, noise=noise, backend=place.backend, strict=True)


@pytest.mark.parametrize("exclude", ["*weight", "*bias"])
@pytest.mark.parametrize("name", ["mlp", "layer-norm", "conv2d", "positions"])
def test_layers_with_one_perturbed_parameter(name: str, exclude: str) -> None:
    make, args = CASES[name]
    check_rows(make, *args, exclude=exclude, strict=True)


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (FunctionalTied, CASES["tied"][1]),
        (lambda: nn.Sequential(FunctionalTied(), nn.Linear(11, 2)), CASES["tied"][1]),
        (lambda: nn.GRU(5, 4, batch_first=True), (randn(1, 3, 5),)),
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (randn(1, 3, 8),) * 3),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (randn(1, 3, 8),)),
    ],
    ids=["root", "inside", "gru", "attention", "encoder"],
)
def test_what_runs_member_by_member(make: Any, args: tuple[Tensor, ...]) -> None:
    check_rows(make, *args)


def test_what_runs_member_by_member_splits_each_tensor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pm = thickets.perturb(nn.Sequential(FunctionalTied(), nn.Linear(11, 2)))
    (tokens,), split, sizes = CASES["tied"][1], Groups.split, []
    tokens = with_rows(tokens, 5)
    with pm.members(SEEDS, SIGMAS, fold=False, rows=COUNTS):
        pm(tokens)  # checks first
        monkeypatch.setattr(Groups, "split", lambda *args: sizes.append(len(args[1])) or split(*args))
        pm(tokens)
    assert sizes == [5]


def test_masks_with_a_row_per_head_are_split_with_their_members() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = x.mean(-1)[:, None, :].repeat_interleave(2, 0).expand(-1, x.shape[1], -1)
            return self.attention(x, x, x, attn_mask=mask)[0]

    check_rows(Masked, randn(1, 3, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["exact", "storage"])
def test_half_models(dtype: torch.dtype, precision: str) -> None:
    make = seeded(transformer_like, dtype)
    (x,) = to(dtype, CASES["embedding"][1])
    x, reference = with_rows(x, sum(COUNTS)), make if precision == "storage" else lambda: make().float()
    pm = thickets.perturb(make(), precision=precision, strict=True)
    with pm.members(SEEDS, SIGMAS, fold=False, rows=COUNTS):
        actual = pm(x)
    expected = torch.cat(own_rows(pm, reference, COUNTS, x))
    assert actual.dtype == dtype
    assert (actual.float() - expected.float()).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any), stored=st.booleans())
def test_any_counts(counts: list[int], stored: bool) -> None:
    make = seeded(lambda: nn.Sequential(transformer_like(), nn.Linear(4, 3)))
    tokens = with_rows(CASES["embedding"][1][0], sum(counts))
    pm = thickets.perturb(make(), strict=True)
    expected = torch.cat(own_rows(pm, make, counts, tokens))
    with pm.members(SEEDS, SIGMAS, fold=False, stored=stored, rows=counts):
        torch.testing.assert_close(pm(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "tied", "positions", "group-norm", "conv1d"])
def test_no_rows_at_all(name: str) -> None:
    make, args = CASES[name]
    pm = thickets.perturb(seeded(make)(), strict=True)
    with pm.members(SEEDS, SIGMAS, fold=False, rows=[0, 0, 0]):
        y = pm(with_rows(args[0], 0))
    with pm.members(SEEDS, SIGMAS, fold=False):
        assert y.shape == (0, *pm(with_rows(args[0], 3)).shape[1:])


def test_equal_counts_have_the_bits_of_equal_groups() -> None:
    pm, x = thickets.perturb(seeded(mlp)()), randn(6, 6)
    with pm.members(SEEDS, SIGMAS, fold=False):
        expected = pm(x)
    with pm.members(SEEDS, SIGMAS, fold=False, rows=[2, 2, 2]):
        assert torch.equal(pm(x), expected)
    with pm.members(SEEDS, SIGMAS, fold=False, rows=[1, 3, 2]):
        pm.regroup([2, 2, 2])
        assert torch.equal(pm(x), expected)


def test_a_row_does_not_depend_on_the_counts() -> None:
    """The same bits whatever leaves the batch: an answer is a function of (seed, sigma, prompt)."""
    pm, x = thickets.perturb(seeded(mlp)()), randn(6, 6)
    with pm.members(SEEDS, SIGMAS, fold=False, rows=[2, 2, 2]):
        together = pm(x)
        for keep, counts in (([0, 1, 4, 5], [2, 0, 2]), ([1, 2, 3], [1, 2, 0]), ([5], [0, 0, 1])):
            pm.regroup(counts)
            assert torch.equal(pm(x[keep]), together[keep])


@pytest.mark.parametrize("stored", [False, True])
def test_rows_leave_a_loop(stored: bool) -> None:
    """Steps of a recurrence with a state per row; row r of the batch leaves after LAST[r] steps."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer, self.norm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.RMSNorm(8)

        def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
            return torch.tanh(self.norm(self.layer(hidden)) + self.embedding(tokens))

    make, last, owner = seeded(Step), [3, 1, 5, 2, 2, 4], [0, 0, 1, 1, 2, 2]
    tokens = torch.arange(30).view(6, 5) % 11
    pm = thickets.perturb(make(), strict=True)
    finals: dict[int, Tensor] = {}
    with pm.members(SEEDS, SIGMAS, fold=False, stored=stored, rows=[2, 2, 2]):
        live, hidden = list(range(6)), torch.zeros(6, 8)
        for step in range(5):
            hidden = pm(tokens[live, step], hidden)
            finals.update(zip(live, hidden, strict=True))
            kept = [place for place, row in enumerate(live) if last[row] > step + 1]
            live, hidden = [live[place] for place in kept], hidden[kept]
            pm.regroup([sum(owner[row] == n for row in live) for n in range(3)])
    for row, n in enumerate(owner):
        model, state = make(), torch.zeros(1, 8)
        model.load_state_dict(pm.materialize(SEEDS[n], SIGMAS[n]))
        with torch.no_grad():
            for step in range(last[row]):
                state = model(tokens[row : row + 1, step], state)
        torch.testing.assert_close(finals[row], state[0], rtol=1e-5, atol=1e-5)


def test_the_check_of_a_first_call_takes_the_first_member_with_rows() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x - x.mean(0))

    pm = check_rows(Centred, randn(1, 6), counts=[0, 2, 3])
    assert "mix the rows of its batch" in pm.slow_modules[0]
    assert check_rows(lambda: nn.Linear(6, 4), randn(1, 6), counts=[0, 2, 3]).slow_modules == []


@pytest.mark.parametrize(
    ("rows", "fold", "error", "message"),
    [
        ([1, 1], False, ValueError, r"rows must be N=3 counts >= 0, got \[1, 1\]"),
        ([1, -1, 1], False, ValueError, r"rows must be N=3 counts >= 0, got \[1, -1, 1\]"),
        ([1, 1.5, 1], False, TypeError, "float"),
        ([1, 1, 1], True, ValueError, r"rows must be None unless fold=False, got \[1, 1, 1\]"),
    ],
)
def test_bad_rows(rows: Any, fold: bool, error: type[Exception], message: str) -> None:
    pm = thickets.perturb(mlp())
    with pytest.raises(error, match=message), pm.members(SEEDS, SIGMAS, fold=fold, rows=rows):
        pass
    with pm.members(SEEDS, SIGMAS, fold=False, rows=[1, 2, 3]):
        if not fold:
            with pytest.raises(error, match=message):
                pm.regroup(rows)
        assert pm(randn(6, 6)).shape == (6, 3)


def test_tensors_of_other_rows_are_refused() -> None:
    pm = thickets.perturb(mlp())
    with pm.members(SEEDS, SIGMAS, fold=False, rows=COUNTS):
        for rows in (4, 6, 0):
            with pytest.raises(
                ValueError, match=rf"input must be \[sum\(rows\)=5, \.\.\.\], got \({rows}, 6\)"
            ):
                pm(randn(rows, 6))
        with pytest.raises(RuntimeError, match="does not have the leading size 5 rows of the batch"):
            pm.module(randn(6, 6))


def test_what_needs_folded_members() -> None:
    pm = thickets.perturb(mlp())
    message = r"regroup\(\) must be used inside of members\(\.\.\., fold=False\)"
    with pytest.raises(RuntimeError, match=message):
        pm.regroup([1, 1, 1])
    with pm.members(SEEDS, SIGMAS), pytest.raises(RuntimeError, match=message):
        pm.regroup([1, 1, 1])
    message = r"module must be used inside of members\(\.\.\., fold=False, rows=\.\.\.\)"
    with pm.members(SEEDS, SIGMAS, fold=False), pytest.raises(RuntimeError, match=message):
        pm.module  # noqa: B018
    with pm.members(SEEDS, SIGMAS, fold=False, rows=COUNTS):
        module = pm.module
    with pytest.raises(RuntimeError, match=message):
        pm.module  # noqa: B018
    with pytest.raises(RuntimeError, match=r"the members must be given: use it inside of members\(\)"):
        module(randn(6, 6))
