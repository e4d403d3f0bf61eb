"""Prompts: texts, tokens and messages of any length as one padded batch; what they and decodings refuse."""

import pytest
import torch
from language_case import PROMPTS, SEEDS, SIGMAS, model, tokenizer

import thickets
from thickets.language import Decoding, Prompts, generate
from thickets.randopt.batches import digest

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}.{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def chatty():
    words = tokenizer()
    words.chat_template = TEMPLATE
    return words


def test_padding_is_on_the_left_and_hidden():
    prompts = Prompts.of([[5, 6, 7], (9,)])
    assert prompts.ids.tolist() == [[5, 6, 7], [0, 0, 9]]
    assert prompts.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert prompts.ids.dtype == prompts.mask.dtype == torch.int64
    assert prompts.tokens() == [[5, 6, 7], [9]]
    assert len(prompts) == 2


@pytest.mark.parametrize("text", ["a", "what is 1 2?", "é漢", "♞ is not in it"])
def test_texts_are_what_the_tokenizer_makes_of_them(text):
    words = tokenizer()
    assert Prompts.of([text, "abc"], words).tokens() == [words(text)["input_ids"], words("abc")["input_ids"]]


@pytest.mark.parametrize("missing", ["pad_token", "pad_token eos_token"])
def test_a_tokenizer_without_padding_changes_nothing(missing):
    base = model()
    pm = thickets.perturb(base)
    texts = ["abc", "q", "what is 3?"]
    expected = generate(pm, texts, SEEDS, SIGMAS, tokenizer=tokenizer(), max_new_tokens=8)
    words = tokenizer(**dict.fromkeys(missing.split()))
    assert words.pad_token_id is None
    assert generate(pm, texts, SEEDS, SIGMAS, tokenizer=words, max_new_tokens=8) == expected


def test_a_padding_token_that_the_model_lacks_changes_nothing():
    """One that was added to the tokenizer alone, as scripts of training do."""
    pm = thickets.perturb(model())
    texts = ["abc", "q", "what is 3?"]
    expected = generate(pm, texts, SEEDS, SIGMAS, tokenizer=tokenizer(), max_new_tokens=8)
    words = tokenizer(pad_token="<added>")
    assert words.pad_token_id >= pm.base.config.vocab_size
    assert generate(pm, texts, SEEDS, SIGMAS, tokenizer=words, max_new_tokens=8) == expected


def test_messages_go_through_the_template_when_asked_to():
    words = chatty()
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1 2?"}]
    prompts = Prompts.of([said, "hi"], words, chat=True)
    assert [words.decode(tokens) for tokens in prompts.tokens()] == ["s be brief.u 1 2?.a ", "u hi.a "]
    assert Prompts.of(["hi"], words).tokens() == [words("hi")["input_ids"]]
    with pytest.raises(ValueError, match=r"prompt 1 is a list of messages, which needs chat=True"):
        Prompts.of(["hi", said], words)
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template"):
        Prompts.of([said], tokenizer(), chat=True)


def test_a_template_that_raises_is_named():
    words = chatty()
    words.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"prompt 0 cannot be tokenised: .*roles must alternate"):
        Prompts.of(["hi"], words, chat=True)


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        ([], ValueError, "at least one, got none"),
        ("abc", TypeError, "prompts must be a sequence of prompts, got str"),
        ({"role": "user"}, TypeError, "got dict"),
        ([[5], []], ValueError, "prompt 1 must have at least one token"),
        ([[5], ""], ValueError, "prompt 1 must have at least one token"),
        ([[5], 6], TypeError, "prompt 1 must be a text, token ids or messages, got int"),
        ([[5, -1]], TypeError, "prompt 0 must hold token ids >= 0"),
        ([[5, 1.5]], TypeError, "prompt 0 must hold token ids >= 0"),
        (["a", "\ud800"], ValueError, "prompt 1 cannot be tokenised"),
    ],
)
def test_what_is_no_prompt_is_named(prompts, error, words):
    with pytest.raises(error, match=words):
        Prompts.of(prompts, tokenizer())


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="prompt 1 is text, which needs a tokenizer"):
        Prompts.of([[5], "abc"])


def test_prompts_beyond_the_context_are_named():
    assert len(Prompts.of([[5] * 8, [5] * 3], context=10, max_new_tokens=2)) == 2
    with pytest.raises(ValueError, match=r"prompt 1 .*context of 10 tokens, got 9 \+ max_new_tokens=2"):
        Prompts.of([[5] * 8, [5] * 9], context=10, max_new_tokens=2)


def test_prompts_count_by_their_content():
    assert digest(Prompts.of(PROMPTS)) == digest(Prompts.of(list(PROMPTS)))
    assert digest(Prompts.of(PROMPTS)) != digest(Prompts.of(PROMPTS[::-1]))
    assert repr(Prompts.of(PROMPTS)).startswith("Prompts(4 of at most 5 tokens, ")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be an integer in"),
        ({"max_new_tokens": True}, ValueError, "max_new_tokens"),
        ({"max_new_tokens": 4.0}, ValueError, "max_new_tokens"),
        ({"sample": 1}, TypeError, "sample must be True or False, got 1"),
        ({"temperature": 0.0}, ValueError, "temperature must be a number > 0, got 0.0"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"temperature": float("inf")}, ValueError, "temperature"),
        ({"top_p": 1.5}, ValueError, "top_p must be a number > 0 and <= 1.0, got 1.5"),
        ({"top_k": -1}, ValueError, "top_k"),
        ({"sample_seed": 2**64}, ValueError, "sample_seed"),
        ({"stop": "END"}, ValueError, "stop must be a sequence of non-empty texts, got 'END'"),
        ({"stop": ("",)}, ValueError, "stop"),
    ],
)
def test_a_bad_decoding_is_named(fields, error, words):
    with pytest.raises(error, match=words):
        Decoding(**fields)


def test_decodings_are_values():
    assert Decoding(stop=["a", "b"]) == Decoding(stop=("a", "b"))
    assert hash(Decoding()) == hash(Decoding(max_new_tokens=256))
