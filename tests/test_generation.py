"""Generation of N members at once, held to transformers' own generation with each member's weights."""

import pytest
import torch
import transformers
from language_case import PROMPTS, SEEDS, SIGMAS, all_alone, flat, model, tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import thickets
from thickets.language import Decoding, Generations, Prompts, decode, generate, limits
from thickets.perturbed import SlowPathWarning
from thickets.randopt.chunks import memory_limit

NEW = 12
VARIED = ["normal", "normal4", "rademacher", "hadamard", "lowrank-2"]


@pytest.fixture(scope="module")
def pm():
    return thickets.perturb(model())


@pytest.fixture(scope="module")
def expected(pm):
    return all_alone(pm, model(), NEW)


@pytest.mark.parametrize("noise", VARIED)
def test_tokens_are_those_of_each_member_alone(noise):
    pm = thickets.perturb(model(), noise=noise)
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW)
    assert made.tokens == all_alone(pm, model(), NEW)
    assert made.texts is None


def test_the_case_is_varied(expected):
    lengths = {len(tokens) for member in expected for tokens in member}
    assert {1, NEW} < lengths
    assert len({tuple(map(tuple, member)) for member in expected}) == len(SEEDS)


@pytest.mark.parametrize(
    ("kind", "config", "fields"),
    [
        (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),
        (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    ],
    ids=["sliding window", "tied embeddings"],
)
def test_other_models(kind, config, fields):
    pm = thickets.perturb(model(kind, config, **fields))
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW)
    assert made.tokens == all_alone(pm, model(kind, config, **fields), NEW)


class SeeingConfig(Qwen2_5_VLConfig):
    """The configuration of a small model that sees, from the fields of one that does not."""

    def __init__(self, **fields):
        sections = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        sizes = {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
        }
        ropes = {"rope_parameters": sections, "rope_scaling": sections}
        super().__init__(text_config={**fields, **ropes}, vision_config=sizes, image_token_id=40)


def test_a_model_that_keeps_positions_of_its_batch():
    """None of its sequences leaves; without padding, which transformers 4.57 gives other positions."""
    prompts = [[5, 6, 7], [9, 8, 3], [10, 11, 12]]
    pm = thickets.perturb(model(Qwen2_5_VLForConditionalGeneration, SeeingConfig))
    fresh = model(Qwen2_5_VLForConditionalGeneration, SeeingConfig)
    made = generate(pm, prompts, SEEDS, SIGMAS, max_new_tokens=NEW)
    assert made.tokens == all_alone(pm, fresh, NEW, prompts)
    assert len({len(tokens) for tokens in flat(made.tokens)}) > 2


@pytest.mark.filterwarnings("ignore:running member by member")
def test_a_model_with_states_that_are_no_keys_and_values():
    """No sequence can leave its cache; without padding, after which transformers 4.57 has other states."""
    prompts = [[5, 6, 7], [9, 8, 3], [10, 11, 12]]
    pm = thickets.perturb(model(MambaForCausalLM, MambaConfig, state_size=4))
    made = generate(pm, prompts, SEEDS, SIGMAS, max_new_tokens=NEW)
    assert made.tokens == all_alone(pm, model(MambaForCausalLM, MambaConfig, state_size=4), NEW, prompts)
    assert len({len(tokens) for tokens in flat(made.tokens)}) > 2


@pytest.mark.parametrize("precision", ["exact", "storage"])
def test_sixteen_bits_are_the_same_but_where_rounding_decides(precision):
    pm = thickets.perturb(model().bfloat16(), precision=precision)
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW)
    own = all_alone(pm, model() if precision == "exact" else model().bfloat16(), NEW)
    same = sum(one == other for one, other in zip(flat(made.tokens), flat(own), strict=True))
    assert same >= 12  # of 16


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("chunking", [{"chunk": 1}, {"chunk": 3}, {"chunk": 100}, {"memory": 1}])
def test_no_result_depends_on_chunks(pm, expected, chunking, stored):
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW, stored=stored, **chunking)
    assert made.tokens == expected


def test_prompts_and_members_may_come_in_any_order(pm, expected):
    made = generate(pm, PROMPTS[::-1], torch.tensor([12, 7, -1]), [0.06, -0.05, -0.04], max_new_tokens=NEW)
    assert made.tokens == [expected[n][::-1] for n in (3, 2, 1)]


def test_sequences_end_by_themselves_or_at_the_longest(pm, expected):
    made = pm.generate(PROMPTS, SEEDS, SIGMAS, decoding=Decoding(max_new_tokens=NEW))
    ends = set(pm.base.generation_config.eos_token_id)
    for tokens, finished in zip(flat(made.tokens), flat(made.finished), strict=True):
        assert finished == (tokens[-1] in ends)
        assert finished or len(tokens) == NEW
        assert not ends & set(tokens[:-1])
    assert made.count == sum(len(tokens) for member in expected for tokens in member)
    short = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=1)
    assert short.tokens == [[tokens[:1] for tokens in member] for member in expected]


def test_sequences_that_are_done_leave_the_batch():
    rows = []
    seen = model()
    seen.model.register_forward_hook(lambda _, args, output: rows.append(len(output[0])))
    pm = thickets.perturb(seen)
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=40, chunk=len(SEEDS))
    rows.clear()
    generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=40, chunk=len(SEEDS))
    lengths = sorted(len(tokens) for tokens in flat(made.tokens))
    assert rows == sorted(rows, reverse=True)
    for step, count in enumerate(rows):
        running = sum(length > step for length in lengths)
        assert running <= count <= max(1, 2 * running - 1), step
    assert len(rows) == lengths[-1]


def test_a_member_whose_sequences_all_end_at_once_holds_none(pm):
    base = model()
    free = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=1)
    base.generation_config.eos_token_id = sorted({tokens[0] for tokens in free.tokens[1]})
    pm = thickets.perturb(base)
    fresh = model()
    fresh.generation_config.eos_token_id = base.generation_config.eos_token_id
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW)
    assert [len(tokens) for tokens in made.tokens[1]] == [1] * len(PROMPTS)
    assert max(len(tokens) for tokens in made.tokens[0] + made.tokens[2]) == NEW
    assert made.tokens == all_alone(pm, fresh, NEW)


def test_decode_runs_the_active_members(pm, expected):
    prompts, decoding = Prompts.of(PROMPTS), Decoding(max_new_tokens=NEW)
    with pm.members(SEEDS, SIGMAS, fold=False):
        first = decode(pm, prompts, decoding)
        pair = decode(pm, Prompts.of(PROMPTS[:2]), decoding)
        assert decode(pm, prompts, decoding) == first
    assert first.tokens == expected
    assert pair.tokens == [member[:2] for member in expected]
    with pytest.raises(RuntimeError, match="members"):
        decode(pm, prompts, decoding)
    with pm.members(SEEDS, SIGMAS), pytest.raises(RuntimeError, match="fold=False"):
        decode(pm, prompts, decoding)


def test_sigma_zero_is_the_base(pm):
    fresh = model()
    made = generate(pm, PROMPTS, [0], [0.0], max_new_tokens=NEW)
    for prompt, tokens in zip(PROMPTS, made.tokens[0], strict=True):
        own = fresh.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        assert tokens == own[0, len(prompt) :].tolist()


def test_of_the_models_own_configuration_only_the_ends_count(expected):
    base = model()
    fields = {"repetition_penalty": 3.0, "do_sample": True, "temperature": 0.1, "max_length": 3}
    ends = base.generation_config.eos_token_id
    base.generation_config = GenerationConfig(**fields, num_beams=2, eos_token_id=ends)
    before = base.generation_config.to_dict()
    pm = thickets.perturb(base)
    assert generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW).tokens == expected
    assert base.generation_config.to_dict() == before


def test_ends_of_the_tokenizer_where_the_model_names_none():
    base = model()
    base.generation_config = GenerationConfig()
    pm = thickets.perturb(base)
    free = flat(generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW).tokens)
    assert {len(tokens) for tokens in free} == {NEW}
    end = free[0][4]
    words = tokenizer(eos_token=tokenizer().convert_ids_to_tokens(end))
    made = flat(generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW, tokenizer=words).tokens)
    assert made == [own[: own.index(end) + 1] if end in own else own for own in free]
    assert len(made[0]) <= 5


def test_stop_texts_end_their_sequence_alone(pm):
    words = tokenizer()
    prompts = ["abc", "漢é 1?", "q"]
    free = generate(pm, prompts, SEEDS, SIGMAS, tokenizer=words, max_new_tokens=NEW)
    longest = max(flat(free.texts), key=len)
    stop = (longest[3:5], longest[-1:] + "zzz")
    made = generate(pm, prompts, SEEDS, SIGMAS, tokenizer=words, max_new_tokens=NEW, stop=stop)
    stopped = 0
    for tokens, text, own in zip(flat(made.tokens), flat(made.texts), flat(free.tokens), strict=True):
        whole = words.decode(own, skip_special_tokens=True)
        at = whole.find(stop[0])
        assert text == (whole if at < 0 else whole[: at + len(stop[0])])
        assert tokens == (own if at < 0 else own[: at + len(stop[0])])
        stopped += at >= 0
    assert 0 < stopped < len(SEEDS) * len(prompts)


class ReadsAWeight(nn.Module):
    """An attention whose query weight is used past its layer, so that it runs member by member."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: torch.Tensor, **options: object) -> object:
        return self.inner(hidden_states + 0 * F.linear(hidden_states, self.inner.q_proj.weight), **options)


def with_a_slow_attention():
    made = model()
    made.model.layers[1].self_attn = ReadsAWeight(made.model.layers[1].self_attn)
    return made


def test_a_cache_is_not_shared_by_members_that_run_one_by_one():
    pm = thickets.perturb(with_a_slow_attention())
    with (
        pytest.warns(SlowPathWarning),
        pytest.raises(RuntimeError, match=r"past_key_values, a cache.*chunk=1"),
        pm.members(SEEDS, SIGMAS, fold=False),
    ):
        decode(pm, Prompts.of(PROMPTS), Decoding(max_new_tokens=NEW))
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW)  # one member at a time then
    assert made.tokens == all_alone(pm, with_a_slow_attention(), NEW)


def test_a_base_that_was_changed_counts_as_it_is_now():
    base = model()
    pm = thickets.perturb(base)
    generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=2)
    with torch.no_grad():
        base.lm_head.weight.copy_(base.lm_head.weight.flip(0))
    fresh = model()
    fresh.load_state_dict(base.state_dict())
    made = generate(pm, PROMPTS, SEEDS, SIGMAS, max_new_tokens=NEW)
    assert made.tokens == all_alone(pm, fresh, NEW)


def test_too_long_or_foreign_prompts_are_named(pm):
    with pytest.raises(ValueError, match=r"prompt 1 .*context of 64 tokens, got 61 \+ max_new_tokens=4"):
        generate(pm, [[5] * 60, [5] * 61], [1], [0.1], max_new_tokens=4)
    with pytest.raises(ValueError, match=r"token ids below 44.*got 44"):
        generate(pm, [[5, 44]], [1], [0.1], max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stored": "yes"}, ValueError, "stored must be"),
        ({"chunk": 0}, ValueError, "chunk must be"),
        ({"memory": "lots"}, ValueError, "memory must be"),
        ({"prompts": Prompts.of(PROMPTS), "chat": True}, ValueError, "chat must be left out for Prompts"),
        ({"stop": ("a",)}, ValueError, "stop needs prompts with a tokenizer"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be"),
        ({"beams": 4}, TypeError, "beams"),
    ],
)
def test_bad_arguments_are_named(pm, options, error, words):
    with pytest.raises(error, match=words):
        generate(pm, **{"prompts": PROMPTS, "seeds": [1], "sigmas": [0.1], **options})


def test_members_are_checked_as_everywhere(pm):
    with pytest.raises(ValueError, match="sigmas must be"):
        generate(pm, PROMPTS, [1, 2], [0.1], max_new_tokens=4)
    with pytest.raises(ValueError, match="seeds must be at least one"):
        generate(pm, PROMPTS, [], [], max_new_tokens=4)


def test_what_cannot_generate_is_refused():
    with pytest.raises(TypeError, match="perturb"):
        generate(model(), PROMPTS, [1], [0.1])
    with pytest.raises(TypeError, match="causal language model of transformers, got Linear"):
        generate(thickets.perturb(nn.Linear(2, 2)), PROMPTS, [1], [0.1])
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_heads": 2, "num_layers": 1, "vocab_size": 50}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0)
    t5 = transformers.T5ForConditionalGeneration(config).eval()
    with pytest.raises(TypeError, match="encoder-decoder"):
        generate(thickets.perturb(t5), PROMPTS, [1], [0.1])


def test_prompts_that_cannot_fit_end_in_words(pm, monkeypatch):
    monkeypatch.setattr(limits, "_total_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"4 prompts of 5 tokens .* fewer prompts"):
        generate(pm, PROMPTS, [1], [0.1], max_new_tokens=4)


@pytest.mark.parametrize("options", [{}, {"sample": True, "top_p": 0.9}], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("batch", "length", "new"), [(20, 40, 4), (20, 4, 40), (2, 60, 4)])
def test_the_estimate_of_memory_is_near_to_what_a_member_takes(batch, length, new, options):
    base = model(vocab_size=1000)
    base.generation_config = GenerationConfig()
    pm = thickets.perturb(base)
    prompts = Prompts.of([[5] * (length - i % 3) for i in range(batch)])
    decoding = Decoding(max_new_tokens=new, **options)

    def one():
        with pm.members([1], [0.1], fold=False):
            decode(pm, prompts, decoding)

    one()
    measured = memory_limit(one, 2**30, torch.device("cpu"))
    assert 0.5 < limits.members_that_fit(pm, prompts, decoding, False, 2**30) / measured < 2


def test_weights_are_stored_where_that_is_faster_and_fits(monkeypatch):
    pm, cheap = thickets.perturb(model()), thickets.perturb(model(), noise="rademacher")
    assert limits.worth_storing(pm, 200)
    assert not limits.worth_storing(pm, 1)
    assert not limits.worth_storing(cheap, 200)
    enough = 4 * 4 * sum(p.numel() for p in pm.base.parameters())
    monkeypatch.setattr(limits, "free_memory", lambda device: enough)
    assert limits.worth_storing(pm, 200)
    half = thickets.perturb(model().bfloat16())
    assert limits.worth_storing(half, 200)  # W' of `exact` is float32
    monkeypatch.setattr(limits, "free_memory", lambda device: enough - 1)
    assert not limits.worth_storing(pm, 200)
    assert not limits.worth_storing(half, 200)
    assert limits.worth_storing(thickets.perturb(model().bfloat16(), precision="storage"), 200)


def test_generations_join():
    one = Generations([[[1, 2]]], [["ab"]], [[True]])
    two = Generations([[[3]]], [["c"]], [[False]])
    assert Generations.join([one, two]) == Generations([[[1, 2]], [[3]]], [["ab"], ["c"]], [[True], [False]])
    assert Generations.join([one, two]).count == 3
    assert Generations.join([one, Generations([[[3]]], None, [[False]])]).texts is None
