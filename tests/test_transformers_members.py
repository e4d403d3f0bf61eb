"""Members of transformers models: logits of the materialised members, in one forward and with a cache."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from members_oracle import SEEDS, SIGMAS, TOLERANCE
from torch import Tensor
from transformers_models import CAUSAL, EXPERT_KINDS, IMAGE, KINDS, STACKED, inputs, maker

import thickets
from thickets.perturbed import PerturbedModule, SlowPathWarning

SLOW = [] if STACKED else list(EXPERT_KINDS)  # transformers 4 keeps experts as modules


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        if SLOW:
            warnings.simplefilter("ignore", SlowPathWarning)
        yield


def materialised(pm: PerturbedModule, make: Any, index: int) -> Any:
    """A fresh model of the class with the weights of a member."""
    model = make()
    model.load_state_dict(pm.materialize(SEEDS[index], SIGMAS[index]))
    return model


def assert_logits(actual: Tensor, expected: Tensor, mask: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest logit wherever the mask lets something be read."""
    if actual.dim() == 3:
        actual, expected = actual[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_the_bound_is_that_of_small_networks() -> None:
    assert TOLERANCE[torch.float32] == 1e-5


@pytest.mark.parametrize("stored", [False, True], ids=["fused", "stored"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_materialised_members(kind: str, stored: bool) -> None:
    make, x = maker(kind), inputs()
    pm = thickets.perturb(make())
    with pm.members(SEEDS, SIGMAS, stored=stored):
        logits = pm(**x).logits
    for index in range(len(SEEDS)):
        with torch.no_grad():
            expected = materialised(pm, make, index)(**x).logits
        assert_logits(logits[index], expected, x["attention_mask"])
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert bool(pm.slow_modules) == (kind in SLOW)


@pytest.mark.parametrize("kind", KINDS)
def test_members_in_a_batch_are_members_alone(kind: str) -> None:
    x = inputs()
    pm = thickets.perturb(maker(kind)())
    with pm.members(SEEDS, SIGMAS):
        together = pm(**x).logits
    for index, (seed, sigma) in enumerate(zip(SEEDS, SIGMAS, strict=True)):
        with pm.members([seed], [sigma]):
            assert_logits(together[index], pm(**x).logits[0], x["attention_mask"])


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL if kind not in SLOW])
@pytest.mark.parametrize("counts", [(3, 3, 3), (1, 0, 2)], ids=["equal", "ragged"])
def test_cached_steps_are_those_of_the_materialised_members(kind: str, counts: tuple[int, ...]) -> None:
    """Prefill of padded prompts, then two steps of a token each, by the model's own cache."""
    make, x = maker(kind), inputs()
    pm = thickets.perturb(make())
    steps = torch.randint(3, 90, (2, 3, 1), generator=torch.Generator().manual_seed(2))
    rows = torch.cat([torch.arange(count) for count in counts])

    def run(model: Any, rows: Tensor) -> list[Tensor]:
        mask, cache, logits = x["attention_mask"][rows], None, []
        for ids in (x["input_ids"], *steps):
            out = model(input_ids=ids[rows], attention_mask=mask, past_key_values=cache, use_cache=True)
            cache, mask = out.past_key_values, torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            logits.append(out.logits)
        return logits

    with torch.no_grad(), pm.members(SEEDS, SIGMAS, fold=False, rows=list(counts)):
        found = [part.split(list(counts)) for part in run(pm, rows)]
    for index, count in enumerate(counts):
        with torch.no_grad():
            expected = run(materialised(pm, make, index), torch.arange(count)) if count else []
        for part, logits in zip(found, expected, strict=False):
            mask = x["attention_mask"][:count] if logits.shape[1] > 1 else torch.ones(count, 1)
            assert_logits(part[index], logits, mask)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "olmoe"])
@pytest.mark.parametrize("noise", ["normal4", "rademacher", "hadamard", "lowrank-2"])
def test_families(kind: str, noise: str) -> None:
    make, x = maker(kind), inputs()
    pm = thickets.perturb(make(), noise=noise)
    with pm.members(SEEDS, SIGMAS):
        logits = pm(**x).logits
    with torch.no_grad():
        expected = materialised(pm, make, 1)(**x).logits
    assert_logits(logits[1], expected, x["attention_mask"])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "mixtral"])
@pytest.mark.parametrize("precision", ["exact", "storage"])
def test_half_precision(kind: str, precision: str) -> None:
    """bfloat16 activations over weights that are, for `exact`, not rounded: 4e-2 of the largest logit."""
    make, x = maker(kind, torch.bfloat16), inputs()
    pm = thickets.perturb(make(), precision=precision)
    with pm.members(SEEDS, SIGMAS):
        logits = pm(**x).logits
    model = make().to(torch.float32 if precision == "exact" else torch.bfloat16)
    model.load_state_dict(pm.materialize(SEEDS[0], SIGMAS[0]))
    with torch.no_grad():
        expected = model(**x).logits
    assert logits.dtype == torch.bfloat16
    difference = (logits[0].float() - expected.float())[x["attention_mask"].bool()].abs()
    bound = TOLERANCE[torch.bfloat16] * float(expected.abs().max())
    assert difference.mean() < bound / 4
    if kind != "mixtral":  # its choice of experts may differ where two are as good
        assert difference.max() < bound


def test_changes_of_a_base_with_transposed_weights_are_followed() -> None:
    make, x = maker("gpt2"), inputs()
    base = make()
    pm = thickets.perturb(base)
    with pm.members(SEEDS, SIGMAS):
        before = pm(**x).logits
    with torch.no_grad():
        base.transformer.h[0].mlp.c_fc.weight.mul_(2)
    with pm.members(SEEDS, SIGMAS):
        after = pm(**x).logits
    with torch.no_grad():
        expected = materialised(pm, make, 0)(**x).logits
    assert_logits(after[0], expected, x["attention_mask"])
    assert (after - before).abs().max() > 0.1


def seen(pm: PerturbedModule, x: dict[str, Tensor]) -> Tensor:
    """The members' logits for folded inputs: the model also returns what it made of the images, per image."""
    folded = {name: tensor.repeat(len(SEEDS), *[1] * (tensor.dim() - 1)) for name, tensor in x.items()}
    with pm.members(SEEDS, SIGMAS, fold=False):
        return pm(**folded).logits.unflatten(0, (len(SEEDS), -1))


@pytest.mark.parametrize("exclude", [None, []], ids=["language", "all"])
def test_images(exclude: list[str] | None) -> None:
    """By default the vision tower and the projector are the base's, with exclude=[] they are perturbed."""
    make, x = maker("llava"), inputs()
    x["input_ids"][:, 2:6] = IMAGE
    x["pixel_values"] = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if exclude == [] else "error", SlowPathWarning)
        pm = thickets.perturb(make(), exclude=exclude)
        logits = seen(pm, x)
    for index in range(len(SEEDS)):
        member = materialised(pm, make, index)
        with torch.no_grad():
            expected = member(**x).logits
            blind = member(**{**x, "pixel_values": 0 * x["pixel_values"]}).logits
        assert_logits(logits[index], expected, x["attention_mask"])
        assert (expected - blind).abs().max() > 0.1
