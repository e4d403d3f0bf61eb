"""Whole language models: N members that generate or score, against the loop with transformers.

    python -m benchmarks.generation                    # small models on this CPU, peak memory against N
    python -m benchmarks.generation --plan gpu --device cuda --dtype bfloat16

- `loop`: for each member draw torch.randn for every parameter, add it in place, let the model generate
  (transformers' own `generate`) or score, subtract it; a few members per call.
- `FAMILY`, `FAMILY, stored`: `thickets.language.generate`, or one forward of all members.

Weights are random, so nothing is fetched, and no text ends early. Before anything is timed, the logits of the
last member are compared with those of a float32 model that has its weights. Contenders take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

import thickets
from thickets import info
from thickets.bench import SIGMA, measure
from thickets.perturbed.storing import stored_is_faster

from .gpu import tables

Facts = dict[str, Any]
FAMILIES = ("normal", "normal4", "rademacher", "hadamard", "lowrank-1")
FEW = 2  # members per call of the loop
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}  # relative; other noise gives 0.3
SHAPES: dict[str, dict[str, Any]] = {  # hidden size, its multiple, layers, heads, their keys, tokens
    "tiny": {"shape": (32, 64, 2, 4, 2, 96), "tied": True},
    "llama 512": {"shape": (512, 1408, 4, 8, 8, 4096), "tied": False},
    "Qwen2.5-0.5B": {"shape": (896, 4864, 24, 14, 2, 151936), "tied": True},
    "Qwen2.5-7B": {"shape": (3584, 18944, 28, 28, 4, 152064), "tied": False},
}


@dataclass(frozen=True)
class Case:
    """N members of a model that generate `tokens` tokens for `batch` prompts, or score them if it is 0."""

    model: str
    members: int
    batch: int
    prompt: int
    tokens: int

    def __str__(self) -> str:
        work = f"{self.prompt} + {self.tokens} tokens" if self.tokens else f"scoring {self.prompt} tokens"
        return f"{self.model}, N={self.members}, B={self.batch}, {work}"

    @property
    def made(self) -> int:
        """Tokens that a member makes or scores."""
        return self.batch * (self.tokens or self.prompt)


def small() -> Iterator[Case]:
    """For a CPU: one after another N, B and the length change."""
    for model in ("llama 512", "arithmetic"):
        yield Case(model, 16, 8, 16, 64)
        yield Case(model, 16, 8, 16, 8)
        yield Case(model, 16, 8, 32, 0)
    for members, batch in product((4, 64), (8,)):
        yield Case("llama 512", members, batch, 16, 16)
    for batch in (1, 32):
        yield Case("llama 512", 16, batch, 16, 16)
    yield Case("llama 512", 16, 8, 128, 0)


def gpu() -> Iterator[Case]:
    """Random weights in the shapes of Qwen2.5, the most important first."""
    yield Case("Qwen2.5-7B", 16, 8, 32, 32)
    yield Case("Qwen2.5-7B", 16, 8, 128, 0)
    yield Case("Qwen2.5-0.5B", 16, 8, 32, 32)
    yield Case("Qwen2.5-0.5B", 16, 8, 128, 0)
    for members, batch in ((64, 8), (16, 1), (16, 32)):
        yield Case("Qwen2.5-0.5B", members, batch, 32, 32)
    yield Case("Qwen2.5-7B", 64, 8, 32, 32)


def tiny() -> Iterator[Case]:
    """Two cases for a look at the table, on any device."""
    yield Case("tiny", 3, 2, 4, 3)
    yield Case("tiny", 3, 2, 4, 0)


PLANS = {"small": small, "gpu": gpu, "tiny": tiny}


@dataclass(frozen=True)
class Contender:
    """A call that serves so many members."""

    run: Callable[[], object]
    members: int


@lru_cache(maxsize=1)
def built(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model of transformers with random weights."""
    import transformers

    if name == "arithmetic":
        from thickets.tasks.arithmetic import CHECKPOINT

        config: Any = transformers.AutoConfig.from_pretrained(CHECKPOINT)
    else:
        hidden, inner, layers, heads, keys, vocabulary = SHAPES[name]["shape"]
        config = transformers.Qwen2Config(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            vocab_size=vocabulary,
            tie_word_embeddings=SHAPES[name]["tied"],
        )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # no text ends early
    model.generation_config.pad_token_id = 0
    return model


def contenders(
    case: Case, families: Iterable[str], device: torch.device, dtype: torch.dtype
) -> dict[str, Contender]:
    """The loop and the families, stored too where several tokens are made; RuntimeError if one is wrong."""
    from thickets.language import generate

    model, few = built(case.model, device, dtype), min(FEW, case.members)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (case.batch, case.prompt), generator=generator).to(device)
    prompts, seeds, sigmas = ids.tolist(), list(range(case.members)), [SIGMA] * case.members
    mask, parameters = torch.ones_like(ids), list(model.parameters())

    def alone() -> object:
        if not case.tokens:
            return model(input_ids=ids, use_cache=False).logits
        return model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=case.tokens)

    def loop() -> None:
        for seed in range(few):
            for sign in (1, -1):  # the noise of a whole model is drawn twice, not kept: as the scripts do
                torch.manual_seed(seed)
                for parameter in parameters:
                    parameter.add_(torch.randn_like(parameter), alpha=sign * SIGMA)
                if sign > 0:
                    alone()

    def score(pm: thickets.PerturbedModule) -> Tensor:
        with pm.members(seeds, sigmas):
            return pm(input_ids=ids, use_cache=False).logits

    def making(pm: thickets.PerturbedModule, stored: bool) -> object:
        made = generate(
            pm, prompts, seeds, sigmas, max_new_tokens=case.tokens, chunk=case.members, stored=stored
        )
        if made.count != case.members * case.made:
            raise RuntimeError(f"{made.count} tokens were made, not {case.members * case.made}")
        return made

    found = {"loop": Contender(loop, few)}
    for family in families:
        pm = thickets.perturb(model, noise=family, strict=True)
        check(pm, ids, score(pm)[-1], seeds[-1], dtype)
        if not case.tokens:
            found[family] = Contender(partial(score, pm), case.members)
            continue
        for stored in {False, stored_is_faster(family, case.tokens)}:
            name = f"{family}, stored" if stored else family
            found[name] = Contender(partial(making, pm, stored), case.members)
    return found


def check(pm: thickets.PerturbedModule, ids: Tensor, logits: Tensor, seed: int, dtype: torch.dtype) -> None:
    """RuntimeError unless a member's logits [B, L, V] are those of a float32 model with its weights."""
    state = {name: tensor.float() for name, tensor in pm.materialize(seed, SIGMA).items()}
    expected = functional_call(pm.base, state, (ids,), {"use_cache": False}).logits.double()
    error = float((logits.double() - expected).norm() / expected.norm())
    if not error < LIMITS[dtype]:
        raise RuntimeError(f"{pm.noise}: error {error:.1e}, expected below {LIMITS[dtype]:.0e}; not timed")


def run(
    cases: Iterable[Case],
    families: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    deadline: float,
    to: Path | None = None,
) -> Facts:
    """Every case until the deadline of time.monotonic(), written to the file `to` after each.

    results: seconds per member and peak bytes of CUDA memory by contender; failed and left_out: why, by case.
    """
    found: Facts = {"results": [], "failed": {}, "left_out": {}}
    for case in cases:
        if time.monotonic() > deadline:
            found["left_out"][str(case)] = "no time left"
        else:
            try:
                found["results"].append(_measured(case, list(families), device, dtype, seconds))
            except (RuntimeError, MemoryError) as error:  # the next cases still have something to tell
                found["failed"][str(case)] = f"{type(error).__name__}: {error}"[:300]
            print(f"{case}: done", file=sys.stderr, flush=True)
        if to:
            to.write_text(json.dumps(found, indent=1) + "\n")
        gc.collect()
    return found


def _measured(
    case: Case, families: list[str], device: torch.device, dtype: torch.dtype, seconds: float
) -> Facts:
    found = contenders(case, families, device, dtype)
    peaks = {name: peak(c.run, device) for name, c in found.items()}
    times = measure({name: c.run for name, c in found.items()}, 1, seconds, device)
    each = {
        name: {key: value / c.members for key, value in asdict(times[name]).items()} | {"peak": peaks[name]}
        for name, c in found.items()
    }
    return {"case": asdict(case), "name": str(case), "made": case.made, "contenders": each}


def peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes of CUDA memory that were in use at most during a call, the model's included."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated()


def resident(model: str, members: int, chunk: int) -> float:
    """MB of peak resident memory of a fresh process in which N members generate, `chunk` at once."""
    case = f"{model},{members},{chunk}"
    command = [sys.executable, "-m", "benchmarks.generation", "--resident", case]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _resident(model: str, members: int, chunk: int) -> float:
    from thickets.language import generate

    pm = thickets.perturb(built(model, torch.device("cpu"), torch.float32), noise="normal4")
    prompts = [[1 + i, 2, 3, 4] for i in range(8)]
    generate(pm, prompts, range(members), [SIGMA] * members, max_new_tokens=16, chunk=chunk)
    # ru_maxrss would count the process that this one was forked from.
    return float(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plan", choices=PLANS, default="small")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--seconds", type=float, default=600, help="for everything; later cases are left out")
    parser.add_argument("--each", type=float, default=5, help="seconds of timing for a case, three rounds")
    parser.add_argument("--to", type=Path, help="a JSON file for what was found")
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.resident:
        model, members, chunk = asked.resident.split(",")
        print(_resident(model, int(members), int(chunk)))
        return
    deadline, dtype = time.monotonic() + asked.seconds, getattr(torch, asked.dtype)
    with torch.no_grad():
        found = run(PLANS[asked.plan](), asked.families, asked.device, dtype, asked.each, deadline, asked.to)
    print(f"{info.header()}\n\n{tables.models(found)}", end="")
    if asked.plan == "small":
        print("\nPeak resident MB, llama 512, 8 prompts, 8 members at once:")
        for members in (8, 32, 128):
            print(f"N={members}: {resident('llama 512', members, 8):.0f}")


if __name__ == "__main__":
    main()
