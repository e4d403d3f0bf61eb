"""The task `arithmetic`, the model that comes with it and the script that made it."""

import itertools
import json
import random
import re
from functools import partial

import pytest
import torch

from thickets import search
from thickets.language.answering import Answering, accuracy
from thickets.language.decoding import Decoding
from thickets.tasks import arithmetic, pretrain
from thickets.tasks.problems import open_task

transformers = pytest.importorskip("transformers")


def result_of(text: str) -> int:
    return sum(int(term) for term in re.findall(r"[+-]?\d", text))


def sum_of(prompt: str) -> str:
    """The sum of a document's prompt, whatever its phrasing."""
    compact = prompt.replace(" plus ", "+").replace(" minus ", "-")
    (found,) = re.findall(r"\d(?:[+-]\d)+", compact)
    return found


@pytest.mark.parametrize("terms", [2, 3, 4])
def test_sums_are_all_that_are_not_negative(terms):
    found = dict(arithmetic.sums(terms))
    expected = set()
    for parts in itertools.product(
        range(1, 10), *[[s * d for s in (1, -1) for d in range(1, 10)]] * (terms - 1)
    ):
        if sum(parts) >= 0:
            expected.add(str(parts[0]) + "".join(f"{part:+d}" for part in parts[1:]))
    assert set(found) == expected
    assert all(result_of(text) == result for text, result in found.items())


def test_the_task_has_disjoint_reserved_problems_with_their_results():
    task = open_task("arithmetic", train=200, test=500, seed=3)
    texts = [sum_of(problem.prompt) for problem in (*task.train, *task.test)]
    assert len(set(texts)) == 700
    assert all(map(arithmetic.is_reserved, texts))
    assert [p.answer for p in (*task.train, *task.test)] == [str(result_of(text)) for text in texts]
    assert open_task("arithmetic", train=200, test=500, seed=3).test == task.test
    assert open_task("arithmetic", train=200, test=500, seed=4).test != task.test


def test_too_many_problems_and_a_file_of_them_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must have 200 problems to train and 20000 others to test"):
        open_task("arithmetic", test=20_000)
    with pytest.raises(ValueError, match="data must be None for arithmetic"):
        open_task("arithmetic", data=tmp_path)


def test_pretraining_never_sees_a_reserved_sum():
    phase = pretrain.PHASES[0]._replace(steps=2 * pretrain.POOL - 3)
    steps = list(pretrain.batches(random.Random(0), phase))
    assert len(steps) == phase.steps
    rows = [row for step in steps for row in zip(*step, strict=True)]
    characters = {i: token for token, i in pretrain.VOCABULARY.items()}
    phrasings, terms = set(), set()
    for ids, labels in rows:
        start = int((labels != -100).nonzero()[0])
        end = int((ids == pretrain.EOS).nonzero()[0])
        prompt, answer = (
            "".join(characters[i] for i in part.tolist()) for part in (ids[:start], ids[start:end])
        )
        text = sum_of(prompt)
        assert not arithmetic.is_reserved(text)
        assert answer in {style(result_of(text)) for style in pretrain.STYLES.values()}
        assert (labels[start : end + 1] == ids[start : end + 1]).all()
        assert (labels[end + 1 :] == -100).all()
        phrasings.add(re.sub(r"\d(?:( plus | minus |[+-])\d)+", "SUM", prompt))
        terms.add(len(re.findall(r"\d", text)))
    styles = ["", *(f"{style} " for style in pretrain.STYLES)]
    assert phrasings == {style + phrase for style in styles for phrase in ("SUM=", "SUM is ", "Q: SUM A:")}
    assert terms == {2, 3, 4}


def test_documents_come_in_the_styles_of_the_mixture():
    rng, mixture = random.Random(0), {"+": (1, 2, 3, 4), "-": (0, 9, 1, 0)}
    counts = {"+": [0, 0], "-": [0, 0]}
    for _ in range(20_000):
        prompt, answer = pretrain.document(rng, [[("1+2", 3), ("3-1", 2)]], mixture)
        if prompt.startswith("Q: "):
            counts[prompt[4]][0] += answer.startswith("#### ")
            counts[prompt[4]][1] += 1
    for sign, (marked, n) in counts.items():
        share = mixture[sign][1] / 10
        assert n > 1500
        assert abs(marked / n - share) < 5 * (share * (1 - share) / n) ** 0.5


def test_roman_numerals_are_those_of_the_rules():
    values = {"i": 1, "v": 5, "x": 10, "l": 50}
    texts = [pretrain.roman(n) for n in range(50)]
    for n, text in enumerate(texts[1:], 1):
        parts = [values[letter] for letter in text]
        assert n == sum(-a if a < b else a for a, b in zip(parts, [*parts[1:], 0], strict=True))
        assert not re.search("iiii|xxxx|vv|ll|vx|vl", text)
    assert texts[0] == "0"
    assert len(set(texts)) == 50


def test_a_short_pretraining_has_equal_bits_and_a_folder_that_opens(tmp_path):
    phases = [phase._replace(steps=2) for phase in pretrain.PHASES]
    told: list[tuple[int, float]] = []
    pretrain.write(tmp_path, phases, seed=1, report=lambda *step: told.append(step))
    again = pretrain.pretrain(phases, seed=1, report=lambda *step: told.append(step))
    assert told[:4] == told[4:]
    assert [step for step, _ in told[:4]] == [1, 2, 3, 4]
    assert told[3][1] < told[0][1]
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    state = opened.state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(state[name], value.half()), name
    fresh = pretrain.untrained(1).state_dict()
    assert not any(torch.equal(value, fresh[name]) for name, value in again.state_dict().items())


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(arithmetic.CHECKPOINT)


def test_characters_are_tokens(tokenizer):
    text = "".join(map(chr, range(32, 127)))
    for given in (text, " 7 +  8=\u00e9", "#### 12"):
        ids = tokenizer(given)["input_ids"]
        assert ids == [pretrain.VOCABULARY.get(character, 2) for character in given]
        assert tokenizer.decode([*ids, pretrain.EOS], skip_special_tokens=True) == given.replace("\u00e9", "")
    batch = tokenizer(["1", "12"], padding=True)
    assert batch["input_ids"][0][0] == tokenizer.pad_token_id == pretrain.PAD
    assert set(batch) == {"input_ids", "attention_mask"}


def test_the_checkpoint_is_small_and_holds_what_the_script_writes(tmp_path):
    files = {path.name: path.stat().st_size for path in arithmetic.CHECKPOINT.iterdir()}
    assert sum(files.values()) <= 2_500_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    pretrain.write_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        ours, theirs = (
            json.loads((folder / name).read_text()) for folder in (tmp_path, arithmetic.CHECKPOINT)
        )
        assert ours == theirs


def test_selection_and_vote_help_on_held_out_problems(tokenizer):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arithmetic.CHECKPOINT, dtype=torch.float32
    ).eval()
    task = open_task("arithmetic", train=100, test=150)
    result = search(
        model,
        data=[(task.train, task.train)],
        score=partial(accuracy, task.scorer),
        n=32,
        sigma=(0.01, 0.015),
        top_k=5,
        predict=Answering(tokenizer, task.scorer, Decoding(max_new_tokens=task.max_new_tokens)),
        fold=False,
        stored=True,
        progress=False,
    )
    assert not result.failures
    report = result.evaluate([(task.test, task.test)], correlate=0)
    assert 0.4 < report.base.value < 0.7
    assert report.vote.value > report.base.value + 0.1
