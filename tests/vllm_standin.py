"""A stand-in for vLLM: its layers with the attributes by which they describe themselves, and its loading.

The loaders cut a checkpoint for a tensor-parallel rank as vLLM's do, written apart from what is tested: an
engine that loads a materialised member is the oracle of an engine that is perturbed.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

PADDING = 64


def parameter(*shape: int, dtype: torch.dtype, sharded: bool = False) -> nn.Parameter:
    tensor = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
    if sharded:
        tensor.weight_loader = lambda *_: None  # vLLM's mark of what is not loaded as it is
    return tensor


class Linear(nn.Module):
    """What all linear layers have; `outputs` are the full sizes of the matrices that are stacked."""

    def __init__(self, inputs: int, outputs: list[int], tp: tuple[int, int], bias: bool, dtype: torch.dtype):
        super().__init__()
        self.input_size, self.output_size = inputs, sum(outputs)
        self.tp_rank, self.tp_size = tp
        self.output_partition_sizes, columns = self.cut(outputs)
        rows = sum(self.output_partition_sizes)
        self.weight = parameter(rows, columns, dtype=dtype, sharded=True)
        self.bias = parameter(rows, dtype=dtype, sharded=True) if bias else None

    def cut(self, outputs: list[int]) -> tuple[list[int], int]:
        return outputs, self.input_size

    def begin(self, number: int) -> int:
        """The first row of this rank in matrix `number`."""
        return 0

    def load(self, own: str, saved: Tensor, number: int | None = None) -> None:
        tensor, rows = getattr(self, own), self.output_partition_sizes
        if number is None:  # fused in the checkpoint, too
            sizes = [self.full(index) for index in range(len(rows))]
            for index, part in enumerate(saved.split(sizes)):
                self.load(own, part, index)
            return
        start = sum(rows[:number])
        block = saved[self.begin(number) : self.begin(number) + rows[number]]
        tensor[start : start + rows[number]] = self.columns(block)

    def full(self, number: int) -> int:
        return self.output_partition_sizes[number]

    def columns(self, block: Tensor) -> Tensor:
        return block


class Replicated(Linear):
    pass


class Column(Linear):
    def cut(self, outputs: list[int]) -> tuple[list[int], int]:
        self.input_size_per_partition = self.input_size
        return [size // self.tp_size for size in outputs], self.input_size

    def begin(self, number: int) -> int:
        return self.tp_rank * self.output_partition_sizes[number]

    def full(self, number: int) -> int:
        return self.tp_size * self.output_partition_sizes[number]


class Qkv(Column):
    def __init__(self, hidden: int, head: int, heads: int, kv_heads: int, tp: tuple[int, int], **rest: Any):
        self.__dict__["num_kv_head_replicas"] = max(1, tp[1] // kv_heads)
        self.__dict__["kv_size"] = kv_heads * head
        kv = max(kv_heads, tp[1]) * head
        super().__init__(hidden, [heads * head, kv, kv], tp, **rest)

    def begin(self, number: int) -> int:
        rank = self.tp_rank if number == 0 else self.tp_rank // self.num_kv_head_replicas
        return rank * self.output_partition_sizes[number]

    def full(self, number: int) -> int:
        return super().full(0) if number == 0 else self.kv_size


class Row(Linear):
    def cut(self, outputs: list[int]) -> tuple[list[int], int]:
        self.input_size_per_partition = self.input_size // self.tp_size
        return outputs, self.input_size_per_partition

    def columns(self, block: Tensor) -> Tensor:
        if block.dim() == 1:
            return block
        count = self.input_size_per_partition
        return block[:, self.tp_rank * count : (self.tp_rank + 1) * count]


class Vocabulary(nn.Module):
    """An embedding or output head, padded to a multiple of 64 rows and cut by rows."""

    def __init__(self, size: int, dim: int, tp: tuple[int, int], bias: bool, dtype: torch.dtype):
        super().__init__()
        rows = -(-size // PADDING) * PADDING // tp[1]
        self.num_embeddings_per_partition, self.embedding_dim = rows, dim
        start, stop = (min(size, rank * rows) for rank in (tp[0], tp[0] + 1))
        self.shard_indices = SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=stop)
        self.weight = parameter(rows, dim, dtype=dtype, sharded=True)
        self.bias = parameter(rows, dtype=dtype, sharded=True) if bias else None

    def load(self, own: str, saved: Tensor) -> None:
        start, stop = self.shard_indices.org_vocab_start_index, self.shard_indices.org_vocab_end_index
        getattr(self, own)[: stop - start] = saved[start:stop]


class Norm(nn.Module):
    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(size, dtype=dtype)

    def load(self, own: str, saved: Tensor) -> None:
        getattr(self, own)[:] = saved


class FusedMoE(nn.Module):
    """Stacked experts, cut by columns of the inner size, or by experts where `parallel_experts` are set."""

    def __init__(
        self, experts: int, hidden: int, inner: int, tp: tuple[int, int], parallel: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.tp_rank, self.tp_size = (0, 1) if parallel else tp
        self.local_num_experts = experts // tp[1] if parallel else experts
        self.expert_map = None
        if parallel:
            self.expert_map = torch.full((experts,), -1)
            first = tp[0] * self.local_num_experts
            self.expert_map[first : first + self.local_num_experts] = torch.arange(self.local_num_experts)
        self.hidden_size, self.intermediate_size_per_partition = hidden, inner // self.tp_size
        count, inner = self.local_num_experts, self.intermediate_size_per_partition
        self.w13_weight = parameter(count, 2 * inner, hidden, dtype=dtype, sharded=True)
        self.w2_weight = parameter(count, hidden, inner, dtype=dtype, sharded=True)

    def load(self, saved: Tensor, expert: int, shard: str) -> None:
        index = expert if self.expert_map is None else int(self.expert_map[expert])
        if index < 0:
            return
        inner = self.intermediate_size_per_partition
        part = slice(self.tp_rank * inner, (self.tp_rank + 1) * inner)
        if shard == "w1":
            self.w13_weight[index, :inner] = saved[part]
        elif shard == "w3":
            self.w13_weight[index, inner:] = saved[part]
        else:
            self.w2_weight[index] = saved[:, part]


class Engine(nn.Module):
    """A decoder in bfloat16 as vLLM builds it from a configuration of transformers, for one rank."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(
        self, config: Any, tp: tuple[int, int] = (0, 1), fused: bool = False, parallel_experts: bool = False
    ) -> None:
        super().__init__()
        if fused:
            self.packed_modules_mapping = {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}
        self.experts = getattr(config, "num_local_experts", 0)
        hidden, inner, dtype = config.hidden_size, config.intermediate_size, torch.bfloat16
        head = hidden // config.num_attention_heads
        bias = config.model_type == "qwen2"

        def layer() -> nn.Module:
            block, attention, mlp = nn.Module(), nn.Module(), nn.Module()
            attention.qkv_proj = Qkv(
                hidden,
                head,
                config.num_attention_heads,
                config.num_key_value_heads,
                tp,
                bias=bias,
                dtype=dtype,
            )
            attention.o_proj = Row(hidden, [hidden], tp, False, dtype)
            block.self_attn = attention
            if self.experts:
                mlp.gate = Replicated(hidden, [self.experts], tp, False, dtype)
                mlp.experts = FusedMoE(self.experts, hidden, inner, tp, parallel_experts, dtype)
                block.block_sparse_moe = mlp
            else:
                mlp.gate_up_proj = Column(hidden, [inner, inner], tp, False, dtype)
                mlp.down_proj = Row(inner, [hidden], tp, False, dtype)
                block.mlp = mlp
            block.input_layernorm, block.post_attention_layernorm = Norm(hidden, dtype), Norm(hidden, dtype)
            return block

        self.model = nn.Module()
        self.model.embed_tokens = Vocabulary(config.vocab_size, hidden, tp, False, dtype)
        self.model.layers = nn.ModuleList(layer() for _ in range(config.num_hidden_layers))
        self.model.norm = Norm(hidden, dtype)
        if config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens
        else:
            self.lm_head = Vocabulary(config.vocab_size, hidden, tp, False, dtype)

    def get_expert_mapping(self) -> Iterable[tuple[str, str, int, str]]:
        return [
            ("experts.w2_" if shard == "w2" else "experts.w13_", f"experts.{expert}.{shard}.", expert, shard)
            for expert in range(self.experts)
            for shard in ("w1", "w2", "w3")
        ]

    @torch.no_grad()
    def load_weights(self, saved: dict[str, Tensor]) -> Engine:
        for name, tensor in saved.items():
            path, _, own = name.rpartition(".")
            parent, _, leaf = path.rpartition(".")
            expert = next((row for row in self.get_expert_mapping() if row[1] in name), None)
            fused = [(f, n) for f, n in self.packed_modules_mapping.items() if leaf in n and leaf != f]
            if expert is not None:
                self.get_submodule(name.split(expert[1])[0] + "experts").load(tensor, *expert[2:])
            elif fused:
                ((layer, names),) = fused
                self.get_submodule(f"{parent}.{layer}").load(own, tensor, names.index(leaf))
            else:
                self.get_submodule(path).load(own, tensor)
        return self


class WorkerBase:
    """What vLLM's worker has."""

    def __init__(self, model: nn.Module, rank: int = 0, world_size: int = 1) -> None:
        self.model_runner = SimpleNamespace(model=model)
        self.device = torch.device("cpu")
        self.rank = rank
        self.parallel_config = SimpleNamespace(world_size=world_size)


def extended(extension: type, model: nn.Module, **rest: Any) -> Any:
    """A worker whose class has taken the extension for one more base, as vLLM does it."""
    worker_class = type("Worker", (WorkerBase,), {})
    conflicts = [name for name in dir(extension) if name[:2] != "__" and hasattr(worker_class, name)]
    assert not conflicts
    worker_class.__bases__ += (extension,)
    worker = worker_class(model, **rest)
    assert not vars(worker).keys() & set(dir(extension))
    return worker
