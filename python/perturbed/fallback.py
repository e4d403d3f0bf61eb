"""The slow path: what no layer function serves runs member by member through torch.func.functional_call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .folding import leaves, map_tensors
from .groups import FoldError
from .guards import Guard
from .members import Members
from .quantised import QuantisedLayer

SEQUENCE_MODULES = (nn.MultiheadAttention, nn.RNNBase)  # those with an argument batch_first
SOMETIMES_SLOW = (
    *SEQUENCE_MODULES,
    nn.TransformerEncoder,
)  # its nested tensors bypass its modules, zero padding
HALVES = (torch.bfloat16, torch.float16)
Call = tuple[int, Sequence[Any], dict[str, Any]]  # a member, and its arguments


class ArgumentNames:
    """What a module's forward calls its arguments."""

    def __init__(self, module: nn.Module) -> None:
        forward = inspect.signature(module.forward).parameters.values()
        self.positional = [p.name for p in forward if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name, positional ones first."""
        names = [*self.positional, *(f"args[{i}]" for i in range(len(self.positional), len(args)))]
        return {**dict(zip(names, args, strict=False)), **kwargs}


class Slow:
    """Runs one module member by member, always or where it must; `perturbed` is by the module's own names.

    tokens: its outputs may be of the tokens of the rows, [T, ...] with T a multiple of R.
    """

    def __init__(self, module: nn.Module, members: Members, always: bool, tokens: bool = False) -> None:
        self.members = members
        self.always = always
        self.tokens = tokens
        self.names = ArgumentNames(module)
        layers = [part for part in module.modules() if isinstance(part, QuantisedLayer)]
        self.packed = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
        self.perturbed = {
            name: tensor.parameter
            for name, tensor in self._own(module.named_parameters())
            if isinstance(tensor, Guard)
        }
        dtypes = [p.tensor.dtype for p in self.perturbed.values() if members.precision == "exact"]
        self.half = next((dtype for dtype in dtypes if dtype in HALVES), None)

    def applies(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether this call needs it; ValueError if the module's batch is not its first dimension."""
        arguments = self.names.bind(args, kwargs)
        if isinstance(module, SEQUENCE_MODULES):
            sequence = next(iter(arguments.values()))
            batched = not isinstance(sequence, Tensor) or sequence.dim() == 3
            if batched and not module.batch_first:
                raise ValueError(
                    f"batch_first must be True for {type(module).__name__} to run N members, "
                    "got False and a batched input"
                )
            return self.always or not batched  # run at once, an unbatched sequence would mix the members
        if isinstance(module, nn.TransformerEncoder) and not self.always:
            return module.use_nested_tensor and arguments.get("src_key_padding_mask") is not None
        return self.always

    def each(self, module: nn.Module, calls: Iterable[Call]) -> Iterator[Any]:
        """The module's outputs of (member, args, kwargs), each from the module's present buffers.

        16-bit modules run in float32 where their `exact` weights are float32, and return 16 bits unless they
        are given float32. Layers with a packed weight in them add its noise themselves (quantised.py).
        """
        parameters = module.named_parameters() if self.half else ()
        fixed = [(name, t) for name, t in self._own(parameters) if name not in self.perturbed]
        for index, args, kwargs in calls:
            weights = self.members.weights_of(index, self.perturbed.values())
            state = dict(zip(self.perturbed, weights, strict=True))
            state.update((name, self._widened(tensor)) for name, tensor in fixed)
            buffers = [(name, b) for name, b in self._own(module.named_buffers()) if not isinstance(b, Guard)]
            state.update((name, self._widened(buffer).clone()) for name, buffer in buffers)
            half = None if _first_dtype(args, kwargs) == torch.float32 else self.half
            self.members.alone, self.members.turn, self.members.widened = True, index, half
            try:
                output = functional_call(module, state, tuple(map(self._widen, args)), self._widen(kwargs))
            finally:
                self.members.alone, self.members.widened = False, None
            yield output if half is None else map_tensors(_narrow(half), output, "output")

    def folded(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The output for folded arguments; FoldError if they cannot be split or the outputs joined."""
        counts = self.members.row_counts()
        given = [index for index, rows in enumerate(counts) if rows] or [0]
        calls: list[Call] = [(given[0], args, kwargs)]
        if len(given) > 1:
            calls = self._split(module, args, kwargs, given)

        def join(path: str, tensors: Sequence[Tensor]) -> Tensor:
            hidden = isinstance(module, nn.RNNBase) and path.startswith("output[1]") and tensors[0].dim() == 3
            for index, tensor in zip(given, tensors, strict=True):
                size = tensor.shape[hidden] if tensor.dim() > hidden else None
                each = size is not None and self.tokens and counts[index] and size % counts[index] == 0
                if size != counts[index] and not each:
                    raise FoldError(
                        f"its {path} {tuple(tensor.shape)} does not have the leading size {counts[index]} "
                        "of the batch"
                    )
            return torch.cat(list(tensors), dim=int(hidden))

        return joined(list(self.each(module, calls)), join)

    def _split(
        self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[int]
    ) -> list[Call]:
        """Folded arguments as a call for each member that has rows; RuntimeError if they hold a cache."""
        arguments = self.names.bind(args, kwargs)
        for name, value in arguments.items():
            for path, leaf in leaves(value, name):
                if is_cache(leaf):
                    raise RuntimeError(
                        f"{type(module).__name__} runs member by member and cannot share {path}, a cache, "
                        "among them: exclude its parameters, or run one member at a time (chunk=1)"
                    )
        parts: dict[str, Sequence[Tensor]] = {}  # of the members, by path
        calls: list[Call] = []
        for index in given:

            def part(path: str, tensor: Tensor, index: int = index) -> Tensor:
                if path not in parts:
                    dim = self._batch_dim(module, path, tensor)
                    parts[path] = () if dim is None else self.members.split(tensor, dim)
                return parts[path][index] if parts[path] else tensor

            own = {name: map_tensors(part, value, name) for name, value in arguments.items()}
            calls.append((index, list(own.values())[: len(args)], dict(list(own.items())[len(args) :])))
        if not any(parts.values()):
            raise FoldError("it is given no tensor of the batch")
        return calls

    def stacked(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The output for arguments that all members share: every tensor [N, ...]."""
        self.applies(module, args, kwargs)
        fresh = (
            (index, *map_tensors(lambda _, tensor: tensor.clone(), (args, kwargs), ""))
            for index in range(self.members.count)
        )
        return joined(list(self.each(module, fresh)), lambda _, tensors: torch.stack(list(tensors)))

    def _batch_dim(self, module: nn.Module, path: str, tensor: Tensor) -> int | None:
        """The dimension of a folded argument along which the members lie, None if they share it."""
        rows = self.members.rows
        if isinstance(module, nn.MultiheadAttention) and path == "attn_mask":
            if tensor.dim() == 2:
                return None
            rows *= module.num_heads
        if isinstance(module, nn.RNNBase) and path.startswith("hx") and tensor.dim() == 3:
            if tensor.shape[1] == rows:
                return 1
        elif tensor.dim() and tensor.shape[0] == rows:
            return 0
        elif tensor.dim() == 0 or (tensor.shape[0] == 1 and tensor.dim() > 1):
            return None
        got = tuple(tensor.shape)
        raise FoldError(f"its {path} {got} does not have the leading size {rows} of the batch")

    def _own(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Those that are not of a layer with a packed weight."""
        return ((name, tensor) for name, tensor in tensors if id(tensor) not in self.packed)

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor.float() if self.half and tensor.dtype in HALVES else tensor

    def _widen(self, value: Any) -> Any:
        return map_tensors(lambda _, tensor: self._widened(tensor), value, "")


def _first_dtype(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype of the first floating-point tensor among arguments."""
    tensors = (leaf for _, leaf in leaves((args, kwargs), "") if isinstance(leaf, Tensor))
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def _narrow(half: torch.dtype) -> Callable[[str, Tensor], Tensor]:
    return lambda _, tensor: tensor.to(half) if tensor.dtype == torch.float32 else tensor


def is_cache(value: Any) -> bool:
    """Whether a value is a cache of transformers, which a module writes to."""
    return callable(getattr(value, "get_seq_length", None))


def joined(outputs: Sequence[Any], join: Callable[[str, Sequence[Tensor]], Tensor]) -> Any:
    """Equal containers of tensors as one, join(path, tensors) in place of each tensor."""
    tensors = [[leaf for _, leaf in leaves(output, "") if isinstance(leaf, Tensor)] for output in outputs]
    columns = zip(*tensors, strict=True)
    return map_tensors(lambda path, _: join(path, next(columns)), outputs[0], "output")


class MemberByMember(nn.Module):
    """Put in front of a module's class: its calls run member by member."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        slow: Slow = self.__dict__["thickets_slow"]
        if slow.members.alone or not slow.applies(self, args, kwargs):
            return super().__call__(*args, **kwargs)
        return slow.folded(self, args, kwargs)
