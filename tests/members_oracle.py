"""The oracle of `perturb`: each member materialised, loaded into a fresh model and run by its own forward."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thickets.perturbed import PerturbedModule, SlowPathWarning, perturb
from thickets.perturbed.folding import leaves

SEEDS = [7, 2**64 - 1, 7]
SIGMAS = [0.06, -0.04, -0.06]  # the third member mirrors the first

# Allowed |actual - expected| relative to the largest |expected| of a small network, by the dtype of its
# activations: some ten roundings to that dtype, or a few float32 sums in another order.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}

Make = Callable[[], nn.Module]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ids(*shape: int, below: int = 11) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


X = randn(4, 6)  # an input of mlp


def seeded(make: Make, dtype: torch.dtype = torch.float32) -> Make:
    """The factory as one that makes equal models in eval mode, with non-trivial norms and statistics."""

    def equal() -> nn.Module:
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.dim() <= 1 and tensor.is_floating_point():
                    tensor.add_(torch.rand(tensor.shape) * 0.3)
                assert "num_batches" in name or tensor.is_floating_point()
        return model.to(dtype)

    return equal


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """What must not change in a base: tensors by identity and bytes, flags, classes, attributes."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    facts: list[tuple[Any, ...]] = [
        (name, id(tensor), tensor.requires_grad, tensor.detach().reshape(-1).view(torch.uint8).tolist())
        for name, tensor in tensors
    ]
    for name, module in model.named_modules():
        attributes = {
            key: len(value) if isinstance(value, (dict, list)) else 0 for key, value in vars(module).items()
        }
        facts.append((name, type(module), module.training, attributes))
    return facts


def one_by_one(
    pm: PerturbedModule, make: Make, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any
) -> list[Any]:
    """The members' outputs from ordinary forwards; in `dtype` where given, so that float32 W' fit."""
    outputs = []
    for seed, sigma in zip(SEEDS, SIGMAS, strict=True):
        model = make()
        if dtype is not None:
            model = model.to(dtype)
        model.load_state_dict(pm.materialize(seed, sigma))
        with torch.no_grad():
            outputs.append(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    return outputs


def assert_members(actual: Any, expected: list[Any], tolerance: float = TOLERANCE[torch.float32]) -> None:
    """Every tensor of `actual`, [N, ...], equals those of the members' own outputs within the tolerance."""
    ours = [leaf for _, leaf in leaves(actual, "output") if isinstance(leaf, Tensor)]
    columns = [[leaf for _, leaf in leaves(output, "") if isinstance(leaf, Tensor)] for output in expected]
    assert ours
    assert all(len(column) == len(ours) for column in columns)
    for tensor, *members in zip(ours, *columns, strict=True):
        stacked = torch.stack(members)
        assert tensor.shape == stacked.shape
        difference = (tensor.double() - stacked.double()).abs().max()
        assert difference <= tolerance * stacked.double().abs().max(), f"differs by {difference}"


def evaluate(pm: PerturbedModule, *args: Any, **kwargs: Any) -> Any:
    """The outputs of the three members."""
    with pm.members(SEEDS, SIGMAS):
        return pm(*args, **kwargs)


def check(
    make: Make,
    *args: Any,
    slow: list[str] | None = None,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> PerturbedModule:
    """Members of a float32 model against the oracle; `slow`: the modules that must run member by member."""
    make = seeded(make)
    model = make()
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", SlowPathWarning)
        warnings.filterwarnings("ignore", ".*nested tensors is in prototype")
        pm = perturb(model, **(options or {}))
        actual = evaluate(pm, *args, **kwargs)
        again = evaluate(pm, *args, **kwargs)
        with pm.members(SEEDS, SIGMAS, stored=True):
            stored = pm(*args, **kwargs)
    expected = one_by_one(pm, make, *args, **kwargs)
    assert_members(actual, expected)
    assert_members(stored, expected)
    for (_, one), (_, two) in zip(leaves(actual, ""), leaves(again, ""), strict=True):
        assert torch.equal(one, two) if isinstance(one, Tensor) else one == two
    assert state(model) == before
    assert [text.split(" (")[0] for text in pm.slow_modules] == (slow or [])
    return pm


def check_compiled(make: Make, x: Tensor) -> None:
    """Compiled code equals eager code for two sets of members, after an eager call, without recompiling."""
    torch._dynamo.reset()
    pm = perturb(seeded(make)())
    evaluate(pm, x)  # modules move to the slow path in eager calls only
    compiled = torch.compile(pm, backend="eager")
    for seeds in ([1, 2, 3], [4, 5, 6]):
        with pm.members(seeds, SIGMAS), torch._dynamo.config.patch(error_on_recompile=True):
            torch.testing.assert_close(compiled(x), pm(x))
