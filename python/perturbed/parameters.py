"""A model's parameters as the noise contract sees them: canonical names, matrix views, filters, fingerprint.

The canonical name (docs/noise.md, section 2) is the key in the checkpoint for a model of transformers
(checkpoint.py), else the name of `named_parameters()` without the prefixes of wrappers such as
`torch.compile`; a tied parameter has the first of its names.
"""

from __future__ import annotations

import ctypes
import fnmatch
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from ..checks import INDEX_LIMIT, STORAGE
from ..noise import parameter_id
from .checkpoint import checkpoint_segments, conv1d
from .packed import contents, logical_weight, packed_linears, packed_parameters
from .segments import Segment

Filter = str | re.Pattern[str]
Filters = Filter | Sequence[Filter] | None

REGEX = "re:"  # marks a regular expression where a filter must be a string
INNER_ATTRIBUTES = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)  # of wrappers, by any class
DATA_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # wrappers, by the attribute `module`


@dataclass(frozen=True, eq=False)
class NamedParameter:
    """A parameter: a name, the base's own tensor (an alias without grad), and what of the checkpoint it is.

    name: the canonical name, or the model's own where it is several segments; chosen: the names of the
    segments that are perturbed. packed: the base's linear layer, if it holds its weight packed; the tensor
    has the weight's logical shape then, and no values.
    """

    name: str
    tensor: Tensor
    segments: tuple[Segment, ...]
    chosen: frozenset[str]
    packed: nn.Module | None = None

    @property
    def perturbed(self) -> bool:
        """Whether any of it is perturbed."""
        return bool(self.chosen)

    @property
    def vector(self) -> bool:
        """Whether the contract counts it as a vector: a stored dimension of at most 1."""
        return self.tensor.dim() <= 1

    @property
    def transposed(self) -> bool:
        """Whether it is stored as the transpose of its matrix view."""
        return self.segments[0].transposed

    @property
    def view(self) -> tuple[int, int]:
        """(rows, columns) of the matrix view of a parameter of one segment."""
        return self.segments[0].view(self.tensor.shape)

    def shaped(self, tensor: Tensor) -> Tensor:
        """A tensor of the shape of a parameter of one segment in its matrix view; a vector stays one."""
        return self.segments[0].of(tensor.contiguous())

    def copies(self, count: int, dtype: torch.dtype) -> Tensor:
        """Memory for copies of it, [count, *shape], each contiguous in its matrix view."""
        shape = self.tensor.mT.shape if self.transposed else self.tensor.shape
        memory = torch.empty((count, *shape), dtype=dtype, device=self.tensor.device)
        return memory.mT if self.transposed else memory


def inner_module(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps, None for a module that is no wrapper."""
    for attribute in INNER_ATTRIBUTES:
        if attribute in module._modules:
            return module._modules[attribute]
    return module.module if isinstance(module, DATA_PARALLEL) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """What the outermost wrappers of a model wrap, the model itself if it has none."""
    inner = inner_module(model)
    return model if inner is None else unwrapped(inner)


def canonical_name(model: nn.Module, name: str) -> str:
    """A name of `model`'s own (of a parameter, buffer or module) without the parts that wrappers add."""
    parts, module = [], model
    for part in name.split("."):
        child = module._modules.get(part)
        if child is None or child is not inner_module(module):
            parts.append(part)
        module = child if child is not None else module
    return ".".join(parts)


def collect(
    model: nn.Module, include: Filters = None, exclude: Filters = None, names: Mapping[str, str] | None = None
) -> dict[int, NamedParameter]:
    """Every parameter of the model by the id() of its tensor, in the order of named_parameters().

    Behind them are the packed weights of linear layers, by the id() of their module (packed.py); the
    parameters that hold those have no segments.

    include, exclude: filters of the canonical names, a str being a glob, a re.Pattern searched in the name;
    names: other canonical names for some parameters. ValueError if a filter or a key of `names` matches
    nothing, nothing is left to perturb, two parameters have one id or one does not fit the noise's 32-bit
    counters; TypeError if a perturbed one is not a plain float32, bfloat16 or float16 tensor, or a module is
    scripted.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"model must have no scripted modules, got {name or 'one as the whole'}")
    found: dict[str, Tensor] = {canonical_name(model, name): p for name, p in model.named_parameters()}
    for name, tensor in found.items():
        if is_lazy(tensor):
            raise ValueError(
                f"parameter {name!r} must be initialised, got a lazy module's: run the model once first"
            )
    linears: dict[str, nn.Module] = {}
    collected: dict[int, NamedParameter] = {}
    for name, module in packed_linears(model).items():
        for tensor in packed_parameters(module).values():
            collected[id(tensor)] = NamedParameter(name, tensor, (), frozenset())
        linears[canonical_name(model, f"{name}.weight" if name else "weight")] = module
    found = {name: tensor for name, tensor in found.items() if id(tensor) not in collected}
    found |= {name: logical_weight(module) for name, module in linears.items()}
    segments = checkpoint_segments(unwrapped(model), found)
    keys = [segment.name for parts in segments.values() for segment in parts]
    names = dict(names or {})
    if unknown := names.keys() - set(keys):
        raise ValueError(f"names must have parameters of the model as keys, got {sorted(unknown)}")
    renamed = [names.get(key, key) for key in keys]
    _refuse_equal_ids(keys, renamed)
    chosen = set(renamed) if include is None else matching("include", include, renamed)
    chosen -= matching("exclude", exclude, renamed)
    if not chosen:
        raise ValueError("include and exclude must leave a parameter to perturb, got none")
    convolutions, transposes = _stored_otherwise(model)
    for own, tensor in found.items():
        convolution, transposed = id(tensor) in convolutions, id(tensor) in transposes
        parts = tuple(
            replace(p, name=names.get(p.name, p.name), convolution=convolution, transposed=transposed)
            for p in segments[own]
        )
        name = parts[0].name if len(parts) == 1 else own
        perturbed = frozenset(chosen.intersection(part.name for part in parts))
        if perturbed:
            _refuse_unusual(name, tensor)
            for part in parts:
                _refuse_large(part.name, *part.view(part.block(tensor).shape))
        packed = linears.get(own)
        key = id(tensor if packed is None else packed)
        collected[key] = NamedParameter(name, tensor.detach(), parts, perturbed, packed)
    return collected


def _stored_otherwise(model: nn.Module) -> tuple[set[int], set[int]]:
    """The id() of the weights of convolutions, and of those that are stored as transposes."""
    library = conv1d()
    modules = list(model.modules())
    convolutions = {id(m.weight) for m in modules if isinstance(m, _ConvNd) and not m.transposed}
    transposes = {id(m.weight) for m in modules if library is not None and isinstance(m, library)}
    return convolutions, transposes


def _refuse_large(name: str, rows: int, cols: int) -> None:
    """ValueError if a matrix view does not fit the noise's counters."""
    if rows > INDEX_LIMIT or cols > INDEX_LIMIT:
        raise ValueError(f"parameter {name!r} must have at most 2**32 rows and columns, got {rows} x {cols}")


def matching(argument: str, filters: Filters, names: Sequence[str]) -> set[str]:
    """The names that any of the filters matches; ValueError naming a filter that matches none."""
    matched: set[str] = set()
    for text in filter_texts(argument, filters) or ():
        test = _test(text)
        hits = {name for name in names if test(name)}
        if not hits:
            some = ", ".join(names[:3])
            raise ValueError(f"{argument} must match a parameter ({some}, ...), got {text!r}, matching none")
        matched |= hits
    return matched


def filter_texts(argument: str, filters: Filters) -> list[str] | None:
    """Filters as strings that mean the same: globs as they are, regular expressions behind "re:"."""
    if filters is None:
        return None
    texts = []
    for one in filters if isinstance(filters, (list, tuple)) else [filters]:
        if isinstance(one, re.Pattern) and isinstance(one.pattern, str):
            flags = "".join(letter for letter in "aimsx" if one.flags & getattr(re, letter.upper()))
            texts.append(REGEX + (f"(?{flags})" if flags else "") + one.pattern)
        elif isinstance(one, str):
            texts.append(one)
        else:
            raise TypeError(f"{argument} must be globs (str) or re.Pattern, or a list of them, got {one!r}")
    return texts


def _test(text: str) -> Callable[[str], object]:
    if text.startswith(REGEX):
        return re.compile(text.removeprefix(REGEX)).search
    return lambda name: fnmatch.fnmatchcase(name, text)


def _refuse_equal_ids(own_names: Sequence[str], names: Sequence[str]) -> None:
    """ValueError naming two parameters that would share their noise."""
    seen: dict[int, str] = {}
    for own, name in zip(own_names, names, strict=True):
        other = seen.setdefault(parameter_id(name), own)
        if other != own:
            raise ValueError(
                f"parameters must have different ids, got one for {other!r} and {own!r}: "
                "their noise would be the same; give one of them another name with names={...}"
            )


def _refuse_unusual(name: str, tensor: Tensor) -> None:
    plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided
    if not plain or tensor.dtype not in STORAGE:
        raise TypeError(
            f"parameter {name!r} must be a plain float32, bfloat16 or float16 tensor, got a "
            f"{type(tensor).__name__} of {tensor.dtype}; leave it unperturbed with exclude={name!r}"
        )


def fingerprint(model: nn.Module, parameters: Mapping[int, NamedParameter]) -> str:
    """A hex digest of names, views, shapes, dtypes and bytes of all parameters and persistent buffers.

    Of a layer that holds its weight packed it is the state dict that counts.
    """
    digest = hashlib.blake2b(digest_size=32)
    linears = [p for p in parameters.values() if p.packed is not None]
    held = {id(buffer) for p in linears if p.packed is not None for buffer in p.packed.buffers()}
    entries = [(name, "buffer", t) for name, t in persistent_buffers(model) if id(t) not in held]
    for parameter in parameters.values():
        if parameter.packed is not None:
            packed = contents(parameter.packed)
            entries += [(f"{parameter.name}{path}", "packed", tensor) for path, tensor in packed]
            continue
        for part in parameter.segments:
            block = part.block(parameter.tensor)
            entries.append((part.name, f"parameter {part.view(block.shape)}", block))
    for name, kind, tensor in sorted(entries, key=lambda entry: entry[0]):
        digest.update(f"{name}\0{kind}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        host = tensor.detach().cpu().contiguous()
        if host.numel():
            digest.update(
                (ctypes.c_char * (host.numel() * host.element_size())).from_address(host.data_ptr())
            )
    return digest.hexdigest()


def persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Canonical name and tensor of every buffer that a state dict holds."""
    buffers = {
        canonical_name(model, f"{prefix}.{name}" if prefix else name): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }
    segments = checkpoint_segments(unwrapped(model), buffers)
    return [(part.name, part.block(buffers[own])) for own, parts in segments.items() for part in parts]
