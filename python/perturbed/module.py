"""`perturb`: any torch.nn.Module as one that evaluates N perturbed members in one forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import choose
from ..functional import Seeds, Sigmas, members_tensors
from ..noise import Family, family
from .calls import Calls, warn_slow
from .checkpoint import outside_of_language
from .folding import row_counts
from .members import Members
from .parameters import Filters, collect, filter_texts, fingerprint, unwrapped
from .twin import Twin


def perturb(
    model: nn.Module,
    *,
    noise: str | Family = "normal",
    precision: str = "exact",
    include: Filters = None,
    exclude: Filters = None,
    names: Mapping[str, str] | None = None,
    strict: bool = False,
    backend: str = "auto",
) -> PerturbedModule:
    """A module that evaluates N perturbed members of `model` in one forward; `model` itself is never written.

    noise: the family, "normal", "normal4", "rademacher", "hadamard" or "lowrank-R"; precision: "exact" never
    rounds W' = W + s eps to W's dtype, "storage" does. include, exclude: which parameters are perturbed, all
    by default (of a vision-language model of transformers its language part; exclude=[] perturbs all); a str
    is a glob of canonical names, a re.Pattern is searched in them, a list holds either. names: other
    canonical names for some parameters. strict: raise where a module would run member by member.

    Linear, Embedding, LayerNorm, RMSNorm, BatchNorm, GroupNorm, Conv1d and Conv2d run all members at once; so
    do linear layers of other libraries with quantised weights: their own forward, plus the noise product;
    any other module that uses a perturbed parameter runs member by member, which a SlowPathWarning says once.
    TypeError or ValueError on what cannot be perturbed.

    Equivalent, with eps(seed) = sample_noise(...) for each parameter (docs/noise.md, section 1)::

        torch.stack([functional_call(model, {k: W[k] + s * eps[k](seed) for k in W}, x) for seed, s in ...])
    """
    return PerturbedModule(
        model,
        noise=noise,
        precision=precision,
        include=include,
        exclude=exclude,
        names=names,
        strict=strict,
        backend=backend,
    )


class PerturbedModule(nn.Module):
    """What `perturb` returns; `with pm.members(seeds, sigmas): y = pm(x)` gives y [N, B, ...] for x [B, ...].

    base: the model as it was given; noise, precision, include, exclude, strict, backend: as given, or exclude
    as a vision-language model has it by default; parameter_names: the canonical names of the perturbed
    parameters. It has no parameters of its own, follows changes of the base's values, and is not thread-safe.
    """

    base: nn.Module

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or isinstance(model, PerturbedModule):
            raise TypeError(f"model must be an unperturbed torch.nn.Module, got {type(model).__name__}")
        options["noise"] = str(family(options["noise"]))
        self.noise: str = options["noise"]
        self.precision: str = options["precision"]
        self.include: Filters = options["include"]
        if options["include"] is None and options["exclude"] is None:
            options["exclude"] = outside_of_language(unwrapped(model))
        self.exclude: Filters = options["exclude"]
        self.strict: bool = options["strict"]
        self.backend: str = options["backend"]
        if self.precision not in ("exact", "storage"):
            raise ValueError(f"precision must be 'exact' or 'storage', got {self.precision!r}")
        self.training = False
        self._options = options
        self._parameters_by_id = collect(model, self.include, self.exclude, options["names"])
        self._perturbed = [p for p in self._parameters_by_id.values() if p.perturbed]
        parts = [(p, part) for p in self._perturbed for part in p.segments]
        self.parameter_names = [part.name for p, part in parts if part.name in p.chosen]
        self._packed = [p.name for p in self._perturbed if p.packed is not None]
        if self._packed and self.precision == "storage":
            raise ValueError(
                f"precision must be 'exact' where weights are packed, as {self._packed[0]!r} is: nothing is "
                "rounded to their storage, got 'storage'"
            )
        self._device = self._perturbed[0].tensor.device
        choose(self.backend, self._device)
        self._members = Members(self.noise, self.precision, self.backend)
        with torch.inference_mode(False):
            self._twin = Twin(model, self._parameters_by_id, self._members, self.strict)
        self.__dict__["base"] = (
            model  # not registered: nothing done to this module shall reach its parameters
        )
        perturbed = {key: p for key, p in self._parameters_by_id.items() if p.perturbed}
        self._calls = Calls(self._twin, self._members, perturbed)
        self._by_count: dict[int, tuple[Tensor, Tensor]] = {}  # seeds and sigmas by N, at fixed addresses
        self._stored: dict[str, Tensor] = {}
        slow = self._twin.slow_modules()
        if slow and self.strict:
            raise RuntimeError(f"strict=True, but modules must run member by member: {'; '.join(slow)}")
        if slow:
            warn_slow("; ".join(slow))

    @contextmanager
    def members(
        self,
        seeds: Seeds,
        sigmas: Sigmas,
        fold: bool = True,
        stored: bool = False,
        rows: Sequence[int] | None = None,
    ) -> Iterator[PerturbedModule]:
        """Within it, calls evaluate these N members.

        seeds: N integers 0 <= s < 2**64 or int64 [N]; sigmas: N finite numbers or float32 [N]. fold: tensors
        [B, ...] are given once and repeated, outputs come back as [N, B, ...]; without it tensors are taken
        and returned folded, [N * B, ...], row n * B + b being example b of member n. stored: the members'
        weights are written down once, for many calls with few members; the same bits for dense families.
        rows: with fold=False, N counts >= 0: tensors are [sum(rows), ...], the rows of member n follow those
        of member n - 1; `regroup` changes them.

        ValueError on bad members; RuntimeError inside of another members() of this module, if a module is in
        training mode and would be random or mix its batch, or if the base's parameters were replaced.
        """
        if self._members.count:
            raise RuntimeError("members() must not be used inside of members() of the same module")
        try:
            self._enter(*members_tensors(seeds, sigmas, self._device), fold, stored, rows)
            yield self
        finally:
            self._members.clear()
            self._calls.rows_given = False

    @torch.inference_mode(False)
    @torch.no_grad()
    def _enter(
        self, seeds: Tensor, sigmas: Tensor, fold: bool, stored: bool, rows: Sequence[int] | None
    ) -> None:
        if not seeds.numel():
            raise ValueError("seeds must be at least one, got none")
        if fold and rows is not None:
            raise ValueError(f"rows must be None unless fold=False, got {rows}")
        counts = None if rows is None else row_counts(rows, seeds.numel())
        self._twin.follow_base()
        if not stored:
            self._members.follow_base(self._perturbed)
        self._twin.refuse_training()
        empty = torch.empty_like(seeds), torch.empty_like(sigmas)
        fixed = self._by_count.setdefault(seeds.numel(), empty)
        fixed[0].copy_(seeds)
        fixed[1].copy_(sigmas)
        self._calls.fold, self._calls.rows_given = fold, counts is not None
        self._members.set(*fixed, {})
        self._members.regroup(counts or [])
        if stored:
            self._members.stored = self._written()

    def _written(self) -> dict[str, Tensor]:
        """W' of the current members by name, [N, *shape] each, in buffers that the next call reuses."""
        members = self._members
        for parameter in self._perturbed:
            if parameter.packed is not None:
                continue  # its layer adds noise at each call
            shape = (members.count, *parameter.tensor.shape)
            if parameter.name not in self._stored or self._stored[parameter.name].shape != shape:
                out = parameter.copies(members.count, members.dtype_of(parameter))
                self._stored[parameter.name] = out
            for out, seed, sigma in zip(
                self._stored[parameter.name], members.seeds, members.sigmas, strict=True
            ):
                members.write(out, parameter, seed, sigma)
        return self._stored

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's forward for N members: outputs [N, B, ...], or folded as the arguments are.

        B is the leading size of the first tensor argument. Every tensor [B, ...] is repeated for the members;
        one with leading size 1 and scalars are left alone, in nested containers too; ValueError naming any
        other. A model that runs member by member as a whole takes its arguments as they are. RuntimeError
        outside of members().

        The first call with several members runs the first one alone too, and moves what needs it to the slow
        path: a weight read past its layer, a layer off the batch, rows that are not independent. Compiled
        code has no such check, so call the module once before torch.compile.
        """
        if not self._members.count:
            raise RuntimeError(
                "the members must be given: call it inside of `with pm.members(seeds, sigmas):`"
            )
        return self._calls(args, kwargs)

    def regroup(self, rows: Sequence[int]) -> None:
        """Give the N members other counts of rows from now on, inside of members(fold=False).

        Sequences that are done leave the batch so: take their rows out of all tensors, then regroup.
        RuntimeError elsewhere, ValueError on bad counts.
        """
        if not self._members.count or self._calls.fold:
            raise RuntimeError("regroup() must be used inside of members(..., fold=False)")
        self._members.regroup(row_counts(rows, self._members.count))
        self._calls.rows_given = True

    @property
    def module(self) -> nn.Module:
        """The module that computes the members inside of members(fold=False, rows=...).

        It is of the base's class, so that methods of it, such as `generate`, run the members too; its tensors
        are folded, and nothing is checked as calls of the perturbed model are: make one of those first.
        RuntimeError elsewhere.
        """
        if not self._calls.rows_given:
            raise RuntimeError("module must be used inside of members(..., fold=False, rows=...)")
        return self._twin.module

    @property
    def active(self) -> tuple[Tensor, Tensor]:
        """Seeds int64 [N] and sigmas float32 [N] of the members() that it is in; RuntimeError elsewhere."""
        if not self._members.count:
            raise RuntimeError("active must be used inside of members()")
        return self._members.seeds, self._members.sigmas

    @property
    def checked(self) -> bool:
        """Whether a call with one member, or with several if there are now, was checked for slow modules."""
        return self._calls.checked(self._members.count)

    def generate(self, prompts: Any, seeds: Seeds, sigmas: Sigmas, **options: Any) -> Any:
        """Text of N members for B prompts: thickets.language.generate(self, prompts, seeds, sigmas, ...)."""
        from ..language.generation import generate

        return generate(self, prompts, seeds, sigmas, **options)

    def materialize(
        self, seed: int | Tensor, sigma: float | Tensor, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """One member as a plain state dict with the keys of `base.state_dict()`.

        Perturbed parameters are float32 W' for precision "exact"; for "storage" they have W's dtype and are,
        bit for bit, the weights that are evaluated; `dtype`, if given, is that of the result. The rest is
        copied as it is. RuntimeError if a perturbed weight is quantised: no W' fits its form.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating-point torch.dtype or None, got {dtype!r}")
        if self._packed:
            raise RuntimeError(
                f"materialize() must be used where no perturbed weight is packed, got {len(self._packed)}, "
                f"{self._packed[0]!r} for one: W' does not fit its form; exclude them or run the members"
            )
        written: dict[int, Tensor] = {}
        with torch.no_grad():
            self._twin.follow_base()
            state: dict[str, Any] = self.base.state_dict(keep_vars=True)  # with its modules' versions
            for key, value in state.items():
                parameter = self._parameters_by_id.get(id(value))
                if parameter is not None and parameter.perturbed:
                    if id(value) not in written:
                        written[id(value)] = self._members.materialized(parameter, seed, sigma)
                    state[key] = written[id(value)] if dtype is None else written[id(value)].to(dtype)
                else:
                    state[key] = value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        return state

    @property
    def fingerprint(self) -> str:
        """A hex digest of the base: names, views, shapes, dtypes and bytes of its parameters and buffers.

        It is computed anew at each access, at the speed of hashing all bytes.
        """
        return fingerprint(self.base, self._parameters_by_id)

    def filters(self) -> dict[str, list[str] | None]:
        """include and exclude as strings, regular expressions behind "re:"; `perturb` takes them back."""
        filters = {"include": self.include, "exclude": self.exclude}
        return {argument: filter_texts(argument, given) for argument, given in filters.items()}

    @property
    def slow_modules(self) -> list[str]:
        """What runs member by member, each with its reason."""
        return self._twin.slow_modules()

    def train(self, mode: bool = True) -> PerturbedModule:
        """Refused: members are evaluated only. `train(False)` and `eval()` change nothing."""
        if mode:
            raise RuntimeError("mode must be False: a perturbed model evaluates members; train its base")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> PerturbedModule:
        raise RuntimeError(
            "a perturbed model cannot be moved or converted: move its base, perturb() it again"
        )

    def extra_repr(self) -> str:
        counts = f"{len(self._perturbed)} of {len(self._parameters_by_id)} parameters perturbed"
        slow = "".join(f"\nmember by member: {module}" for module in self.slow_modules)
        return f"noise={self.noise!r}, precision={self.precision!r}, {counts}{slow}\n(base): {self.base}"

    def __deepcopy__(self, memo: dict[int, Any]) -> PerturbedModule:
        return PerturbedModule(copy.deepcopy(self.base, memo), **self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.base, self._options)


def _rebuilt(base: nn.Module, options: dict[str, Any]) -> PerturbedModule:
    return PerturbedModule(base, **options)
