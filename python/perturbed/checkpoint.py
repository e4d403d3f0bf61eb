"""Models of the library transformers: what their parameters are called in the published checkpoint.

The library stores some checkpoints in another form, experts stacked for one, and renames parameters between
its versions. It can convert a model's tensors back for saving; done with tensors without values whose views
are followed, that conversion says which block of which tensor each tensor of the checkpoint is.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .segments import Segment


class _Followed(Tensor):
    """A meta tensor whose parts stay views of it: `contiguous` makes no copy."""

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.contiguous:
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


def is_transformers(model: nn.Module) -> bool:
    """Whether the model is one of the library transformers."""
    library = sys.modules.get("transformers.modeling_utils")  # else nothing can be one
    return library is not None and isinstance(model, library.PreTrainedModel)


def conv1d() -> type[nn.Module] | None:
    """transformers' Conv1D, a linear layer whose weight is stored [K, O], if somebody has imported it."""
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)


def checkpoint_segments(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Segment, ...]]:
    """The checkpoint's tensors in each of a model's own, by own names and in the order of storage.

    A tensor that is no such row of blocks (one whose rows are interleaved), and any of another library, is
    one segment by its own name.
    """
    found: dict[str, list[tuple[int, int, Segment]]] = {name: [] for name in tensors}
    if is_transformers(model):
        followed: dict[str, Tensor] = {
            name: torch.empty(tensor.shape, device="meta").as_subclass(_Followed)
            for name, tensor in tensors.items()
        }
        owners = {tensor.untyped_storage()._cdata: name for name, tensor in followed.items()}
        for key, block in _as_saved(model, followed).items():
            owner = owners.get(block.untyped_storage()._cdata)
            segment = None if owner is None else _segment(key, block, followed[owner])
            if owner is not None and segment is not None:
                found[owner].append((int(block.storage_offset()), block.numel(), segment))
    segments = {}
    for name, blocks in found.items():
        whole = sum(size for _, size, _ in blocks) == tensors[name].numel() and bool(blocks)
        parts = [segment for _, _, segment in sorted(blocks, key=lambda block: block[0])]
        segments[name] = tuple(parts) if whole else (Segment(name, vector=tensors[name].dim() <= 1),)
    return segments


def _segment(key: str, block: Tensor, tensor: Tensor) -> Segment | None:
    """Where in `tensor` a view of its memory lies; None if it is no run of its rows."""
    vector = block.dim() <= 1
    if not block.is_contiguous():
        return None
    if block.numel() == tensor.numel():
        return Segment(key, vector=vector)
    index: tuple[int, ...] = ()
    shape, offset = tensor.shape, block.storage_offset()
    while len(shape) > block.dim():
        shape, size = shape[1:], math.prod(shape[1:])
        index, offset = (*index, offset // size), offset % size
    size = math.prod(shape[1:])
    if block.dim() == 0 or block.shape == shape:
        return Segment(key, index, vector=vector)
    if len(shape) < block.dim() or block.shape[1:] != shape[1:] or offset % size:
        return None
    return Segment(key, index, rows=(offset // size, offset // size + block.shape[0]), vector=vector)


def _as_saved(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors by the names, and in the parts, that `save_pretrained` gives them."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before 5.0 the library renamed parameters of some models, and did nothing else
        return {_renamed_as_saved(model, name): tensor for name, tensor in tensors.items()}
    return dict(revert_weight_conversion(model, tensors))


def _renamed_as_saved(model: Any, name: str) -> str:
    """What transformers 4 calls a parameter in a file: its patterns for loading, each read backwards."""
    from transformers.modeling_utils import VLMS

    kinds = [kind.__name__.lower() for kind in type(model).__mro__]
    if any(vlm in kind for kind in kinds for vlm in VLMS):
        backwards = {own: saved for saved, own in model._checkpoint_conversion_mapping.items()}
        for own, saved in backwards.items():
            renamed, count = re.subn(own, re.sub(r"\(.*\)", "", saved.lstrip("^")), name)
            if count:
                return renamed
    return name


def outside_of_language(model: nn.Module) -> list[str] | None:
    """Globs of the names outside of a vision-language model's language part; None for other models."""
    if not is_transformers(model) or getattr(model.config, "vision_config", None) is None:
        return None
    parts = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    language = {id(tensor) for part in parts if part is not None for tensor in part.parameters()}
    tensors = dict(model.named_parameters())
    inside: list[str] = []
    outside: list[str] = []
    for name, segments in checkpoint_segments(model, tensors).items():
        names = inside if id(tensors[name]) in language else outside
        names.extend(segment.name for segment in segments)
    return _globs(outside, inside) or None


def _globs(names: Iterable[str], others: Sequence[str]) -> list[str]:
    """Globs, as short as they can be, that match all the names and none of the others."""
    globs: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        starts = (".".join(parts[:length]) + "." for length in range(1, len(parts)))
        free = (start for start in starts if not any(other.startswith(start) for other in others))
        start = next(free, None)
        globs[name if start is None else start + "*"] = None
    return list(globs)
