"""Pretrains the small language model of the task `arithmetic`, in minutes on one thread.

A document is a sum of two to four digits in one of three phrasings, and its result in one of four
styles. Some documents begin with a word that names the style. In the others it is drawn: by equal
chances, but in the phrasing of the task by chances that depend on the sum's last sign and favour another
style than the task's about as much. So the model, which knows all styles, takes a wrong one for many problems
when it answers greedily, as base models do, and not all of its results are right either.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from thickets.tasks.arithmetic import PROMPT, TERMS, is_reserved, sums
from thickets.tasks.case import one_thread

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SPECIAL = ("<pad>", "<eos>", "<unk>")
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL, *map(chr, range(32, 127))))}
PAD, EOS = VOCABULARY["<pad>"], VOCABULARY["<eos>"]
PHRASES = ("{sum}=", "{sum}=", "{words} is ", PROMPT, PROMPT)
NAMED = 0.4  # share of documents whose first word names the style


def roman(n: int) -> str:
    """A number below 50 in Roman numerals; "0" for none."""
    tens, ones = divmod(n, 10)
    units = ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")
    return ("", "x", "xx", "xxx", "xl")[tens] + units[ones] or "0"


STYLES: dict[str, Callable[[int], str]] = {
    "plain": str,
    "mark": "#### {}".format,
    "about": lambda n: f"~{(n + 5) // 10 * 10}",
    "roman": roman,
}
BATCH, POOL = 64, 16  # documents of a step; batches that are sorted by length together
MUON, ADAM = 0.02, 3e-3  # learning rates of matrices and of the rest


class Phase(NamedTuple):
    """A stretch of training.

    rate: the highest share of the learning rates.   mixture: chances of the styles, in their order, in the
    phrasing of the task where no word names the style, by the last sign of the sum.
    """

    steps: int
    rate: float
    mixture: dict[str, tuple[int, int, int, int]]


# The skill is learnt in the first; the second, short, brings the styles closer to a balance.
PHASES = (
    Phase(2000, 1.0, {"+": (20, 45, 20, 15), "-": (12, 30, 13, 45)}),
    Phase(128, 0.2, {"+": (16, 32, 40, 12), "-": (13, 39, 13, 35)}),
)


def document(
    rng: random.Random, problems: list[list[tuple[str, int]]], mixture: dict[str, tuple[int, int, int, int]]
) -> tuple[str, str]:
    """A prompt and its answer, drawn at random from lists of sums and results."""
    text, result = rng.choice(rng.choice(problems))
    phrase = rng.choice(PHRASES)
    prompt = phrase.format(sum=text, words=text.replace("+", " plus ").replace("-", " minus "))
    named = rng.random() < NAMED
    weights = mixture[text[-2]] if phrase == PROMPT and not named else None
    (style,) = rng.choices(list(STYLES), weights)
    return f"{style} {prompt}" if named else prompt, STYLES[style](result)


def batches(rng: random.Random, phase: Phase) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids, padded right, and labels, -100 but on answers, of each step: int64 [64, T]."""
    problems = [
        [(text, n) for text, n in sums(terms) if not is_reserved(text)] for terms in range(2, TERMS + 1)
    ]
    for first in range(0, phase.steps, POOL):
        documents = [document(rng, problems, phase.mixture) for _ in range(BATCH * POOL)]
        documents.sort(key=lambda parts: sum(map(len, parts)))  # documents of like length need little padding
        starts = rng.sample(range(0, len(documents), BATCH), POOL)
        for start in starts[: phase.steps - first]:
            chosen = documents[start : start + BATCH]
            length = 1 + max(sum(map(len, parts)) for parts in chosen)
            ids, labels = torch.full((BATCH, length), PAD), torch.full((BATCH, length), -100)
            for row, (prompt, answer) in enumerate(chosen):
                tokens = torch.tensor([*(VOCABULARY[character] for character in prompt + answer), EOS])
                ids[row, : len(tokens)] = tokens
                labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
            yield ids, labels


def untrained(seed: int = 0) -> LlamaForCausalLM:
    """The model before training: a Llama with 4 layers of width 128 and 0.87 million weights, from seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain(
    phases: Sequence[Phase] = PHASES, seed: int = 0, report: Callable[[int, float], Any] | None = None
) -> LlamaForCausalLM:
    """The trained model, in eval mode; `report(step, loss)` is called after each step.

    Equal arguments give equal bits on one machine with one version of torch, since it runs on one thread;
    another processor rounds differently, and its model is another one of about that accuracy.
    """
    model, rng, step = untrained(seed).train(), random.Random(seed), 0
    with one_thread(), torch.enable_grad():
        for phase in phases:
            for loss in train(model, rng, phase):
                step += 1
                if report is not None:
                    report(step, loss)
    return model.eval()


def train(model: LlamaForCausalLM, rng: random.Random, phase: Phase) -> Iterator[float]:
    """Train in place for one phase, by new optimisers; the loss of each step."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.dim() == 1 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MUON * phase.rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAM * phase.rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 30, 0.02 + 1.3 * (1 - step / phase.steps))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    for ids, labels in batches(rng, phase):
        logits = model(input_ids=ids).logits  # causal: padding on the right needs no mask
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        yield loss.item()


def write_tokenizer(folder: Path) -> None:
    """Files of a tokenizer with a token for each printable ASCII character; all others are <unk>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    characters.add_special_tokens(list(SPECIAL))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    characters.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # which transformers 4.57 and 5 both know
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 128,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def write(
    folder: Path,
    phases: Sequence[Phase] = PHASES,
    seed: int = 0,
    report: Callable[[int, float], Any] | None = None,
) -> None:
    """Pretrain, and write the model in float16 with its tokenizer into a folder for `from_pretrained`."""
    model = pretrain(phases, seed, report)
    model.half().save_pretrained(folder)
    write_tokenizer(folder)
