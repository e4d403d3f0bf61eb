"""One member is one expert in transformers and in an engine's fused, sharded, padded and stacked weights.

vLLM does not run here: `vllm_standin` has its layers' attributes and its loading, one model per rank.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from vllm_standin import Column, Engine, FusedMoE, Linear, Norm, Qkv, Row, Vocabulary, extended, parameter

from thickets import perturb
from thickets.integrations.shards import engine_segments, refuse_other_weights
from thickets.integrations.vllm import WorkerExtension
from thickets.perturbed.segments import Segment

SEED, SIGMA = 2**63 + 5, 0.02
SIZES = {
    "vocab_size": 100,  # padded to 128: of two ranks the second has 36 rows of it and 28 of padding
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "one key head": transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),  # with biases of q, k and v
    "phi3": transformers.Phi3Config(**SIZES),  # fused in the checkpoint
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4),
}
RANKS = [(0, 1), (0, 2), (1, 2)]


def saved(model: Any) -> dict[str, Tensor]:
    """A model as a checkpoint."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {name: tensor.clone() for name, tensor in load_file(Path(folder, "model.safetensors")).items()}


@cache
def checkpoints(case: str, noise: str = "normal") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base and the member as transformers saves them."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[case]).to(torch.bfloat16)
    base = saved(model)
    model.load_state_dict(perturb(model, noise=noise, precision="storage").materialize(SEED, SIGMA))
    return base, saved(model)


def assert_same(engine: nn.Module, expected: nn.Module) -> None:
    for (name, actual), wanted in zip(engine.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(actual, wanted), name


def check(case: str, noise: str = "normal", **layout: Any) -> None:
    base, member = checkpoints(case, noise)
    config = CONFIGS[case]
    engine, expected = (Engine(config, **layout).load_weights(tensors) for tensors in (base, member))
    worker = extended(type("Extension", (WorkerExtension,), {"noise": noise}), engine)
    assert worker.perturb_self_weights(SEED, SIGMA)
    assert_same(engine, expected)
    assert worker.restore_self_weights(SEED, SIGMA)
    assert_same(engine, Engine(config, **layout).load_weights(base))


@pytest.mark.parametrize("tp", RANKS, ids=str)
@pytest.mark.parametrize("case", CONFIGS)
def test_a_member_is_the_expert_of_transformers(case: str, tp: tuple[int, int]) -> None:
    check(case, tp=tp, fused=case == "phi3")


@pytest.mark.parametrize("noise", ["normal4", "rademacher", "hadamard", "lowrank-2"])
def test_every_family_is_served_on_shards(noise: str) -> None:
    check("llama", noise, tp=(1, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_experts_may_be_shared_out_among_ranks(rank: int) -> None:
    check("mixtral", tp=(rank, 2), parallel_experts=True)


def test_two_ranks_hold_every_entry_that_is_saved_once() -> None:
    base, _ = checkpoints("mixtral")
    counts = {name: torch.zeros(tensor.shape) for name, tensor in base.items()}
    for tp in RANKS[1:]:
        engine = Engine(CONFIGS["mixtral"], tp=tp)
        tensors = dict(engine.named_parameters())
        for name, segments in engine_segments(engine).items():
            for segment in segments:
                row, col = segment.origin
                shape = segment.of(tensors[name]).shape
                if segment.vector:
                    counts[segment.name][col : col + shape[0]] += 1
                else:
                    counts[segment.name][row : row + shape[0], col : col + shape[1]] += 1
    replicated = {name for name in base if "norm" in name or name.endswith("gate.weight")}
    for name, count in counts.items():
        assert (count == (2 if name in replicated else 1)).all(), name


@pytest.mark.parametrize("case", CONFIGS)
def test_weights_are_those_that_their_names_say(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[case]).to(torch.bfloat16).save_pretrained(tmp_path)
    base, _ = checkpoints(case)
    for tp in RANKS:
        engine = Engine(CONFIGS[case], tp=tp, fused=case == "phi3").load_weights(base)
        tensors, segments = dict(engine.named_parameters()), engine_segments(engine)
        refuse_other_weights(tensors, segments, tmp_path)
        for name, parts in segments.items():  # one wrong entry anywhere is found
            entry = parts[-1].of(tensors[name]).view(-1)[:1]
            before = entry.clone()
            entry += 1
            with pytest.raises(ValueError, match=rf"'{name}' must hold Segment\(.*, but holds other values"):
                refuse_other_weights(tensors, segments, tmp_path)
            entry.copy_(before)


def model_of(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def refusal(model: nn.Module, **options: Any) -> str:
    with pytest.raises(
        ValueError, match=r"cannot tell which parameter of the checkpoint '.*' is: "
    ) as caught:
        engine_segments(model, **options)
    return str(caught.value)


F32 = torch.float32


def test_what_a_layer_does_not_say_is_refused() -> None:
    merged = model_of(mixed=Column(8, [6, 4], (0, 1), False, F32))
    assert "packed names [] for 2 parts; give them as packed['mixed']" in refusal(merged)
    assert [
        segment.name for segment in engine_segments(merged, packed={"mixed": ["a", "b"]})["mixed.weight"]
    ] == [
        "a.weight",
        "b.weight",
    ]
    assert "mixed.weight" in refusal(merged, packed={"mixed": ["a", "b", "c"]})

    no_rank = Row(8, [4], (1, 2), False, F32)
    del no_rank.tp_rank
    assert "has 2 shards but no tp_rank among as many ranks" in refusal(model_of(o=no_rank))

    own_tensor = Norm(4, F32)
    own_tensor.scale = parameter(4, dtype=F32)
    assert "Norm is no layer whose layout is known" in refusal(model_of(norm=own_tensor))
    sharded = model_of(norm=Norm(4, F32))
    sharded.norm.weight = parameter(4, dtype=F32, sharded=True)
    assert "'norm.weight'" in refusal(sharded)
    assert engine_segments(sharded, skip={"norm.weight"}) == {}

    packed = model_of(o=Row(8, [4], (0, 1), False, F32))
    packed.o.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    assert "torch.uint8 are no plain weights" in refusal(packed)
    packed.o.weight = parameter(2, 8, dtype=F32)
    assert "its layer's shape is (4, 8), its own (2, 8)" in refusal(packed)

    indexer = model_of(qkv=Qkv(8, 2, 4, 2, (0, 1), bias=False, dtype=F32))
    indexer.qkv.output_partition_sizes = [8, 4, 2, 2]
    assert "attention has 4 parts where q, k and v were expected" in refusal(indexer)

    absorbed = model_of(kv_b_proj=Column(8, [4], (0, 1), False, F32))
    absorbed.W_UV = torch.zeros(1)
    assert "attention holds products of it that would not change" in refusal(absorbed)

    adapted = model_of(o=model_of(base_layer=Row(8, [4], (0, 1), False, F32)))
    assert "adapters wrap its layer" in refusal(adapted)

    twice = model_of(a=Linear(8, [4], (0, 1), False, F32), b=Linear(8, [4], (0, 1), False, F32))
    assert "'a.weight' is 'a.weight' already" in refusal(twice, packed={"b": ["a"]})
    fused = model_of(qkv=Column(8, [4, 4], (0, 1), False, F32))
    assert "'q.weight' is 'qkv.weight' already" in refusal(fused, packed={"qkv": ["q", "q"]})


def test_what_experts_do_not_say_is_refused() -> None:
    def experts() -> nn.Module:
        return model_of(experts=FusedMoE(2, 8, 4, (0, 1), False, F32))

    model = experts()
    assert "Module has no get_expert_mapping" in refusal(model)
    model.get_expert_mapping = lambda: [("experts.w13_", "experts.0.w1.", 0, "w1")]
    assert "get_expert_mapping does not name all of its experts" in refusal(model)
    model.experts.enable_eplb = True
    assert "load balancing moves experts from rank to rank" in refusal(model)
    model = experts()
    model.get_expert_mapping = lambda: []
    model.experts.w13_weight = parameter(2, 4, 8, dtype=F32)  # no gate
    assert "its layer's shape is (2, 8, 8), its own (2, 4, 8)" in refusal(model)


def test_plain_modules_are_whole() -> None:
    model = model_of(
        patches=nn.Conv2d(3, 4, 2), linear=nn.Linear(2, 3), norm=nn.LayerNorm(3), words=nn.Embedding(5, 2)
    )
    for name, segments in engine_segments(model).items():
        (segment,) = segments
        tensor = model.get_parameter(name)
        assert (segment.name, segment.origin) == (name, (0, 0))
        assert torch.equal(segment.of(tensor), tensor.flatten(1) if tensor.dim() > 1 else tensor)


def test_names_go_back_to_the_checkpoints() -> None:
    model = model_of(language_model=model_of(model=model_of(norm=Norm(2, F32))), visual=Norm(2, F32))

    def names(**options: Any) -> list[str]:
        return [segment.name for (segment,) in engine_segments(model, **options).values()]

    assert names() == ["language_model.model.norm.weight", "visual.weight"]
    mapper = SimpleNamespace(orig_to_new_prefix={"model.": "language_model.model.", "old.": None})
    model.hf_to_vllm_mapper = mapper
    assert names() == ["model.norm.weight", "visual.weight"]
    mapper.orig_to_new_prefix["model.language_model."] = "language_model.model."
    assert "['model.norm.weight', 'model.language_model.norm.weight'] or others; give prefixes" in refusal(
        model
    )
    assert names(prefixes={"language_model.": "", "language_model.model.": "text."}) == [
        "text.norm.weight",
        "visual.weight",
    ]
    mapper.orig_to_new_prefix = {}
    mapper.orig_to_new_substr = {".layer_norm.": ".norm."}
    assert "'language_model.model.norm.weight'" in refusal(model)


def test_a_checkpoint_without_a_parameter_is_named(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"must hold 'b' for 'a', but does not"):
        refuse_other_weights(tensors, {"a": (Segment("b", vector=True),)}, tmp_path)


def test_a_vocabulary_may_have_a_bias() -> None:
    model = model_of(head=Vocabulary(100, 4, (1, 2), True, F32))
    (segment,) = engine_segments(model)["head.bias"]
    assert (segment.rows, segment.origin, segment.vector) == ((0, 36), (0, 64), True)
