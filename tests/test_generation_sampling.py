"""Sampled tokens: from a stream of their own for every member and prompt, and from the right distribution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from language_case import PROMPTS, SEEDS, SIGMAS, flat, model

import thickets
from thickets.language import Decoding, Prompts, generate
from thickets.language.sampling import choose, stream_keys, uniforms

NEW = 12


@pytest.fixture(scope="module")
def pm():
    return thickets.perturb(model())


def sampled(pm, seeds=SEEDS, sigmas=SIGMAS, prompts=PROMPTS, **options):
    return generate(pm, prompts, seeds, sigmas, max_new_tokens=NEW, sample=True, temperature=2.0, **options)


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 3}, {"memory": 1}, {"stored": True}])
def test_no_draw_depends_on_chunks(pm, options):
    assert sampled(pm, **options) == sampled(pm, chunk=len(SEEDS))


def test_no_draw_depends_on_other_members_and_prompts(pm):
    whole = sampled(pm).tokens
    assert sampled(pm, prompts=PROMPTS[::-1]).tokens == [member[::-1] for member in whole]
    assert sampled(pm, prompts=PROMPTS[1:3]).tokens == [member[1:3] for member in whole]
    assert sampled(pm, SEEDS[::-1], SIGMAS[::-1]).tokens == whole[::-1]
    assert sampled(pm, SEEDS[1:2], SIGMAS[1:2]).tokens == whole[1:2]


def test_a_stream_is_of_sample_seed_member_and_prompt(pm):
    """All sequences have the same distribution here: only their numbers differ."""
    base = model()
    with torch.no_grad():
        base.lm_head.weight.zero_()
    same = thickets.perturb(base, include="model.norm.weight")
    base.generation_config.eos_token_id = None
    prompts = [[5, 6], [5, 6], [7, 8]]
    seeds, sigmas = [1, 1, 2], [0.1, 0.2, 0.1]
    one = sampled(same, seeds, sigmas, prompts).tokens
    assert len(set(map(tuple, flat(one)))) == 9
    assert sampled(same, seeds, sigmas, prompts).tokens == one
    other = sampled(same, seeds, sigmas, prompts, sample_seed=1).tokens
    assert len(set(map(tuple, flat(one) + flat(other)))) == 18
    counts = torch.bincount(torch.tensor(flat(flat(one))))
    assert counts.max() <= 12  # of 108 draws among 44 tokens


def test_a_low_temperature_and_a_top_one_are_greedy(pm):
    greedy = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW)
    for options in ({"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}):
        made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW, sample=True, **options)
        assert made == greedy


def drawn(logits, decoding, count=20001):
    """How often each token comes for numbers spread evenly over [0, 1)."""
    numbers = torch.arange(count, dtype=torch.float64) / count
    tokens = choose(torch.tensor(logits).expand(count, -1), numbers, decoding)
    return torch.bincount(tokens, minlength=len(logits)) / count


def filtered(logits, decoding):
    """The distribution by its definition, one token at a time."""
    shares = torch.softmax(torch.tensor(logits).double() / decoding.temperature, 0)
    order = sorted(range(len(logits)), key=lambda i: -shares[i])
    if decoding.top_k:
        order = order[: decoding.top_k]
    total, kept, held = sum(float(shares[i]) for i in order), [], 0.0
    for i in order:
        if held >= decoding.top_p * total:
            break
        kept.append(i)
        held += float(shares[i])
    result = torch.zeros(len(logits), dtype=torch.float64)
    result[kept] = shares[kept] / held
    return result


@settings(max_examples=60, deadline=None)
@given(
    eighths=st.lists(st.integers(-32, 32), min_size=1, max_size=9, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.05, 0.63, 0.91, 1.0]),
)
def test_draws_have_the_distribution_asked_for(eighths, temperature, top_k, top_p):
    logits = [value / 8 for value in eighths]
    decoding = Decoding(sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    difference = (drawn(logits, decoding) - filtered(logits, decoding)).abs().max()
    assert difference < 2e-3


def test_the_ends_of_the_range_draw_what_can_be_drawn():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).repeat(2, 1)
    numbers = torch.tensor([0.0, 1 - 2.0**-48], dtype=torch.float64)
    assert choose(logits, numbers, Decoding(sample=True)).tolist() == [0, 2]
    assert choose(logits, numbers, Decoding(sample=True, top_p=0.99)).tolist() == [2, 0]
    nothing = torch.full((2, 4), torch.nan)
    assert set(choose(nothing, numbers, Decoding(sample=True)).tolist()) <= {0, 1, 2, 3}


def test_numbers_are_uniform_and_pinned():
    keys = stream_keys(0, range(1000), [0.5] * 1000)
    assert ((keys >= 0) & (keys < 2**32)).all()
    prompts = Prompts.of([[1]] * 1000).words()
    numbers = torch.cat([uniforms(keys, prompts, step) for step in range(20)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert numbers.unique().numel() == numbers.numel()
    assert abs(float(numbers.mean()) - 0.5) < 4 * (1 / 12 / 20000) ** 0.5
    assert abs(float(numbers.var()) - 1 / 12) < 0.003
    some = uniforms(stream_keys(3, [7, 2**64 - 1], [0.5, -0.5]), Prompts.of([[5, 6], [5, 6]]).words(), 2)
    assert some.tolist() == [0.10197149562915442, 0.8569145748615128]
