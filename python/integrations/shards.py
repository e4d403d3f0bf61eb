"""Which block of an engine's weights is which block of which checkpoint parameter.

vLLM fuses projections, shards them among tensor-parallel ranks, pads vocabularies and stacks experts. Its
layers say so themselves, by attributes that are read here without importing it: `output_partition_sizes`,
`tp_rank` and `shard_indices` of layers, `packed_modules_mapping`, `hf_to_vllm_mapper` and
`get_expert_mapping` of models. What they leave open is refused: wrong noise would look like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..checks import STORAGE
from ..perturbed.segments import Segment

Packed = Mapping[str, Sequence[str]]
Prefixes = Mapping[str, str]


def engine_segments(
    model: nn.Module,
    *,
    skip: Collection[str] = (),
    packed: Packed | None = None,
    prefixes: Prefixes | None = None,
) -> dict[str, tuple[Segment, ...]]:
    """The segments of every parameter of an engine's model, by the name that named_parameters() gives it.

    skip: names to leave out; packed: what fused layers hold, besides the model's `packed_modules_mapping`
    ({"qkv_proj": ["q_proj", "k_proj", "v_proj"]}; one name for a layer that is fused in the checkpoint too);
    prefixes: beginnings of the engine's names, each with the checkpoint's, in place of the inverse of
    `hf_to_vllm_mapper`. Rows of padding belong to no segment. ValueError naming a parameter of which the
    layer does not say what it is.
    """
    rename = _renamer(model, prefixes)
    mappings: dict[str, dict[str, Sequence[str]]] = {"": {}}
    found: dict[str, tuple[Segment, ...]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        outer = mappings[path.rpartition(".")[0]]
        mappings[path] = {**outer, **getattr(module, "packed_modules_mapping", {})}
        for own, tensor in module._parameters.items():
            name = f"{path}.{own}" if path else own
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if name not in skip:
                segments = _segments(name, tensor, module, model, {**mappings[path], **(packed or {})})
                found[name] = tuple(replace(segment, name=rename(segment.name)) for segment in segments)
    _refuse_repeated(found)
    return found


def _segments(name: str, tensor: Tensor, layer: Any, model: nn.Module, packed: Packed) -> list[Segment]:
    """The segments of one parameter, under names that still have the engine's prefix."""
    own = name.rpartition(".")[2]
    if tensor.dtype not in STORAGE:
        raise _unknown(name, f"{tensor.dtype} are no plain weights")
    if ".base_layer." in name:
        raise _unknown(name, "adapters wrap its layer; switch them off")
    if own in ("w13_weight", "w2_weight"):
        return _experts(name, tensor, layer, model)
    if own in ("weight", "bias"):
        if hasattr(layer, "shard_indices"):
            return _vocabulary(name, tensor, layer)
        if hasattr(layer, "output_partition_sizes"):
            if "kv_b_proj" in name and any(hasattr(module, "W_UV") for module in model.modules()):
                raise _unknown(name, "attention holds products of it that would not change")
            return _linear(name, tensor, layer, packed)
        if isinstance(layer, _ConvNd) and not layer.transposed:
            return [Segment(name, vector=tensor.dim() <= 1, convolution=tensor.dim() > 1)]
        whole = isinstance(layer, (nn.Linear, nn.Embedding)) or tensor.dim() <= 1
        if whole and not hasattr(tensor, "weight_loader"):  # which a shard has
            return [Segment(name, vector=tensor.dim() <= 1)]
    raise _unknown(name, f"{type(layer).__name__} is no layer whose layout is known")


def _linear(name: str, tensor: Tensor, layer: Any, packed: Packed) -> list[Segment]:
    """A linear layer: rows of one parameter or several; this rank may have some of each, or some columns."""
    path, _, own = name.rpartition(".")
    parent, _, leaf = path.rpartition(".")
    parts = list(layer.output_partition_sizes)
    inputs = getattr(layer, "input_size_per_partition", layer.input_size)
    _refuse_shape(name, tensor, (sum(parts), inputs)[: tensor.dim()])
    row_shards, col_shards = layer.output_size // sum(parts), layer.input_size // inputs
    rank = _rank(name, layer, row_shards * col_shards)
    if row_shards > 1 and col_shards > 1:
        raise _unknown(name, f"{row_shards} x {col_shards} shards are not known")
    replicas = getattr(layer, "num_kv_head_replicas", None)  # of keys and values, each among so many ranks
    if replicas is not None and len(parts) != 3:
        raise _unknown(name, f"attention has {len(parts)} parts where q, k and v were expected")
    names = packed.get(leaf, [leaf] if len(parts) == 1 else [])
    if len(names) not in (1, len(parts)):
        raise _unknown(
            name, f"packed names {list(names)} for {len(parts)} parts; give them as packed[{leaf!r}]"
        )
    segments = []
    start = fused_before = 0
    for number, part in enumerate(parts):
        copies = replicas if replicas and number and row_shards > 1 else 1
        row = part * (rank // copies) if row_shards > 1 else 0
        key = names[number if len(names) > 1 else 0]
        row += fused_before if len(names) < len(parts) else 0
        column = inputs * rank if col_shards > 1 else 0
        vector = tensor.dim() <= 1
        segments.append(
            Segment(
                f"{parent}.{key}.{own}" if parent else f"{key}.{own}",
                rows=(start, start + part),
                origin=(0, row) if vector else (row, column),
                full_cols=layer.input_size if col_shards > 1 and not vector else None,
                vector=vector,
            )
        )
        start += part
        fused_before += part * row_shards // copies
    return segments


def _vocabulary(name: str, tensor: Tensor, layer: Any) -> list[Segment]:
    """An embedding or output head: this rank's rows of the checkpoint, then padding and added tokens."""
    indices = layer.shard_indices
    start, stop = indices.org_vocab_start_index, indices.org_vocab_end_index
    _refuse_shape(name, tensor, (layer.num_embeddings_per_partition, layer.embedding_dim)[: tensor.dim()])
    vector = tensor.dim() <= 1
    origin = (0, start) if vector else (start, 0)
    return [Segment(name, rows=(0, stop - start), origin=origin, vector=vector)]


def _experts(name: str, tensor: Tensor, layer: Any, model: nn.Module) -> list[Segment]:
    """Stacked experts: w13 [E, 2 I, H], gate above up, and w2 [E, H, I]; ranks share experts or columns I."""
    if not hasattr(model, "get_expert_mapping"):
        raise _unknown(name, f"{type(model).__name__} has no get_expert_mapping")
    if getattr(layer, "enable_eplb", False):
        raise _unknown(name, "load balancing moves experts from rank to rank")
    inner, hidden = layer.intermediate_size_per_partition, layer.hidden_size
    rank = _rank(name, layer, layer.tp_size)
    if name.endswith("w13_weight"):
        shape, places = (2 * inner, hidden), {"w1": (0, inner), "w3": (inner, 2 * inner)}
        origin, full_cols = (inner * rank, 0), None
    else:
        shape, places = (hidden, inner), {"w2": (0, hidden)}
        origin, full_cols = (0, inner * rank), inner * layer.tp_size
    _refuse_shape(name, tensor, (layer.local_num_experts, *shape))
    local = getattr(layer, "expert_map", None)  # by expert: where this rank has it, -1 for elsewhere
    local = None if local is None else local.tolist()
    segments = []
    for parameter, key, expert, shard in model.get_expert_mapping():  # type: ignore[operator]
        index = expert if local is None else local[expert]
        if parameter in name and shard in places and index >= 0:
            own = name.replace(parameter, key, 1)
            segments.append(Segment(own, (index,), places[shard], origin, full_cols))
    if len({(s.index, s.rows) for s in segments}) != len(places) * layer.local_num_experts:
        raise _unknown(name, "get_expert_mapping does not name all of its experts")
    return segments


def _rank(name: str, layer: Any, shards: int) -> int:
    """The tensor-parallel rank of a layer with so many shards."""
    if shards == 1:
        return 0
    if getattr(layer, "tp_size", None) != shards or not hasattr(layer, "tp_rank"):
        raise _unknown(name, f"the layer has {shards} shards but no tp_rank among as many ranks")
    return layer.tp_rank


def _renamer(model: nn.Module, prefixes: Prefixes | None) -> Callable[[str], str]:
    """The function from the engine's names to the checkpoint's."""
    mapper = getattr(model, "hf_to_vllm_mapper", None) if prefixes is None else None
    olds: dict[str, list[str]] = {new: [old] for new, old in (prefixes or {}).items()}
    for old, new in getattr(mapper, "orig_to_new_prefix", {}).items():
        if new is not None:
            olds.setdefault(new, []).append(old)
    texts = [
        text
        for kind in ("substr", "suffix", "regex")
        for text in getattr(mapper, f"orig_to_new_{kind}", {}).values()
        if text is not None
    ]

    def rename(name: str) -> str:
        new = max((new for new in olds if name.startswith(new)), key=len, default="")
        candidates = [old + name.removeprefix(new) for old in olds.get(new, [new])]
        if len(candidates) > 1 or any(text in name for text in texts):
            raise _unknown(
                name, f"hf_to_vllm_mapper makes it of one of {candidates} or others; give prefixes"
            )
        return candidates[0]

    return rename


def _refuse_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise _unknown(name, f"its layer's shape is {expected}, its own {tuple(tensor.shape)}")


def _refuse_repeated(found: Mapping[str, Sequence[Segment]]) -> None:
    """No two blocks begin at one place of one parameter."""
    owners: dict[tuple[str, tuple[int, int]], str] = {}
    for name, segments in found.items():
        for segment in segments:
            place = segment.name, segment.origin
            if place in owners:
                raise _unknown(name, f"{segment.name!r} is {owners[place]!r} already")
            owners[place] = name


def _unknown(name: str, why: str) -> ValueError:
    return ValueError(f"cannot tell which parameter of the checkpoint {name!r} is: {why}, or exclude it")


def refuse_other_weights(
    tensors: Mapping[str, Tensor], segments: Mapping[str, Sequence[Segment]], folder: Path
) -> None:
    """ValueError unless every block has the values of the checkpoint's *.safetensors files in `folder`."""
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files.update(dict.fromkeys(opened.keys(), file))
    for name, parts in segments.items():
        for segment in parts:
            if segment.name not in files:
                raise ValueError(f"{folder} must hold {segment.name!r} for {name!r}, but does not")
            with safe_open(files[segment.name], "pt") as opened:
                saved = opened.get_tensor(segment.name)
            block = segment.of(tensors[name]).cpu()
            views = [saved, saved.mT] if saved.dim() == 2 else [saved if segment.vector else saved.flatten(1)]
            if not any(torch.equal(_cut(view, segment, block), block) for view in views):
                raise ValueError(f"{name!r} must hold {segment} of {folder}, but holds other values")


def _cut(view: Tensor, segment: Segment, block: Tensor) -> Tensor:
    """Of a whole parameter's matrix view, or of a vector, the part that a block is, in its dtype."""
    row, col = segment.origin
    if not segment.vector:
        view = view[row : row + block.shape[0]]
    return view[..., col : col + block.shape[-1]].to(block.dtype)
