"""Calls of a perturbed model: batches folded, first calls checked, unfit modules moved to the slow path."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .fallback import ArgumentNames
from .folding import PLAIN, first_tensor, folded, leaves, map_tensors, mixing, unfolded
from .groups import FoldError
from .guards import BaseReads, ReadError
from .members import Members
from .parameters import NamedParameter
from .twin import Twin


class SlowPathWarning(UserWarning):
    """Some modules of a perturbed model run member by member."""


def warn_slow(message: str) -> None:
    """Say once that something runs member by member."""
    warnings.warn(f"running member by member, which is slow: {message}", SlowPathWarning, stacklevel=4)


class Calls:
    """Evaluates the members that a perturbed model runs as, with its twin.

    fold: whether arguments are given once for all members; rows_given: whether Members knows the counts of
    folded rows already, or each call has N * B of them. perturbed: the perturbed parameters by id().
    """

    def __init__(self, twin: Twin, members: Members, perturbed: Mapping[int, NamedParameter]) -> None:
        self.twin = twin
        self.members = members
        self.perturbed = perturbed
        self.fold = True
        self.rows_given = False
        self._names = ArgumentNames(twin.module)
        self._checked = 0  # 1: a forward of one member was checked, 2: one of several

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs, [N, B, ...] or folded; the first calls are checked, unless they are compiled."""
        if torch.compiler.is_compiling():
            return self._evaluate(args, kwargs)
        members = self.members
        live = sum(map(bool, members.row_counts())) if self.rows_given else members.count
        if not self.checked(live) and _repeatable(args, kwargs):
            return self._checked_call(args, kwargs, live)
        return self._evaluate_or_demote(args, kwargs)

    def checked(self, live: int) -> bool:
        """Whether a call with that many members was checked."""
        return self._checked >= min(live, 2)

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        twin, members = self.twin, self.members
        arguments = self._names.bind(args, kwargs)
        first, tensor = first_tensor(arguments)
        if not self.fold:
            members.rows = self._folded_rows(first, tensor)
            return twin.module(*args, **kwargs)
        batch = tensor.shape[0]
        members.rows = members.count * batch
        if twin.slow_root is not None:
            return twin.slow_root.stacked(twin.module, args, kwargs)
        inputs = {name: folded(value, name, members.count, batch, first) for name, value in arguments.items()}
        values, names = list(inputs.values()), list(inputs)
        split = len(args)
        output = twin.module(*values[:split], **dict(zip(names[split:], values[split:], strict=True)))
        return unfolded(output, members.count, batch)

    def _folded_rows(self, first: str, tensor: Tensor) -> int:
        """The leading size of folded arguments; ValueError if it is not the members'."""
        rows, members = tensor.shape[0], self.members
        if self.rows_given and rows != members.rows:
            raise ValueError(f"{first} must be [sum(rows)={members.rows}, ...], got {tuple(tensor.shape)}")
        if not self.rows_given and rows % members.count:
            raise ValueError(f"{first} must be [N={members.count} * B, ...], got {tuple(tensor.shape)}")
        return rows

    def _evaluate_or_demote(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs; a module found unfit for the fast path is moved to the slow one first."""
        while True:
            try:
                return self._evaluate(args, kwargs)
            except (ReadError, FoldError) as error:
                slow = self.twin.demote(error)
                warn_slow(slow)
                if not _repeatable(args, kwargs):
                    raise RuntimeError(
                        f"{slow}; call again with fresh arguments: this call may have changed its own"
                    ) from error

    def _checked_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], live: int) -> Any:
        """The outputs, after the first member alone has shown what reads the base or must run slowly.

        live: how many members have rows; the first of those it is.
        """
        members = self.members
        first, tensor = first_tensor(self._names.bind(args, kwargs))
        rows = tensor.shape[0] if self.fold else self._folded_rows(first, tensor)
        counts = members.row_counts() if self.rows_given else [rows // members.count]
        index = next((n for n, count in enumerate(counts) if count), 0)
        own_rows = counts[index]  # the first of all

        def own(_: str, tensor: Tensor) -> Tensor:
            is_folded = not self.fold and tensor.dim() > 0 and tensor.shape[0] == rows
            return (tensor[:own_rows] if is_folded else tensor).clone()

        def first_alone() -> Any:
            with members.only(index):
                return self._evaluate_or_demote(*map_tensors(own, (args, kwargs), ""))

        direct = {id(layer.linear._parameters.get("bias")) for layer in self.twin.quantised}
        with BaseReads({key: p.name for key, p in self.perturbed.items() if key not in direct}):
            first_alone()
        together = self._evaluate_or_demote(args, kwargs)
        if live > 1 and self.twin.slow_root is None:
            compare = all(parameter.tensor.dtype == torch.float32 for parameter in self.perturbed.values())
            reason = mixing(first_alone(), together, members.count, compare)
            if reason is not None:
                warn_slow(self.twin.run_all_slowly(reason))
                together = self._evaluate_or_demote(args, kwargs)
        self._checked = min(live, 2)
        return together


def _repeatable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call with these arguments can be made again: none is an object that a forward may change."""
    return all(isinstance(leaf, PLAIN) for _, leaf in leaves((args, kwargs), ""))
