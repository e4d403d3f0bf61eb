"""The twin of a model: a copy that shares the base's weights and whose layers run N members at once.

The base's modules are never touched. In the copy, perturbed parameters are guards; a known layer gets a
subclass whose forward is a layer function, any other module that uses perturbed parameters one that runs
it member by member, and both behave as the plain module while one member runs alone. A module caught
reading a guard is moved to the slow path, and the forward can start again.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized

from .experts import StackedExperts
from .fallback import SOMETIMES_SLOW, MemberByMember, Slow
from .groups import FoldError
from .guards import Guard, ReadError
from .layers import Layer, known_layer, linear, token_linear
from .members import Members
from .parameters import NamedParameter, inner_module, unwrapped
from .quantised import QuantisedLayer, QuantisedLinear
from .sharing import memo_of, refuse_writers


class FastLayer(nn.Module):
    """Put in front of a known layer's class: its forward runs all members."""

    def forward(self, *inputs: Tensor) -> Any:
        layer, members, slots = self.__dict__["thickets_fast"]
        return super().forward(*inputs) if members.alone else layer(self, *inputs, members, slots)


CALLS = (nn.Module._call_impl.__code__, MemberByMember.__call__.__code__)  # frames of a running module


@functools.cache
def _subclass(mixin: type, kind: type) -> type:
    namespace = {"thickets_plain": kind, "__module__": kind.__module__}
    return type(kind)(kind.__name__, (mixin, kind), namespace)


def _plain(module: nn.Module) -> Any:
    return getattr(type(module), "thickets_plain", type(module))


class Twin:
    """The copy (`module`), the parameters by id(), and why modules run slowly, by name (`slow`)."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[int, NamedParameter], members: Members, strict: bool
    ) -> None:
        self.members = members
        self.strict = strict
        self.parameters = parameters
        refuse_writers(model, parameters)
        memo = memo_of(model, parameters)
        shared = {id(tensor) for tensor in memo.values()}
        try:
            self.module: nn.Module = copy.deepcopy(unwrapped(model), memo)
        except Exception as error:
            raise TypeError(f"model must allow copy.deepcopy, got {type(error).__name__}: {error}") from error
        if any(id(tensor) not in shared for tensor in self.module.parameters()):
            raise TypeError(
                "model must allow copy.deepcopy with a memo, got one that copies all its parameters"
            )
        modules = [module for module in model.modules() if inner_module(module) is None]
        self.pairs: list[tuple[nn.Module, nn.Module]] = [(module, memo[id(module)]) for module in modules]
        self.names = {id(module): name for name, module in self.module.named_modules()}
        self.slow: dict[str, str] = {}
        self.quantised = [self._quantised(p, memo) for p in parameters.values() if p.packed is not None]
        for module in self.module.modules():
            self._install(module)
        for module in self.module.modules():
            self._install_routing(module)

    def _install(self, module: nn.Module) -> None:
        """Decide how a module runs; one without a perturbed parameter of its own mostly runs as it is.

        A parameter is not its own that a module in it has too, as the tied bias of some heads.
        """
        if isinstance(module, QuantisedLayer):
            return
        own = [key for key, tensor in module._parameters.items() if isinstance(tensor, Guard)]
        if own and module._modules:
            below = {id(tensor) for child in module.children() for tensor in child.parameters()}
            own = [key for key in own if id(module._parameters[key]) not in below]
        if is_parametrized(module) and any(isinstance(tensor, Guard) for tensor in module.parameters()):
            self.run_slowly(module, "its parameters are parametrized")
        elif own:
            tensors = {key: tensor for key, tensor in module._parameters.items() if tensor is not None}
            slots = {key: _named(tensor, self.parameters) for key, tensor in tensors.items()}
            layer = known_layer(module, slots)
            if isinstance(layer, str):
                self.run_slowly(module, layer)
            else:
                module.__class__ = _subclass(FastLayer, _plain(module))
                vars(module)["thickets_fast"] = layer, self.members, slots
        elif isinstance(module, SOMETIMES_SLOW):
            self._swap(module, always=False)

    def _quantised(self, weight: NamedParameter, memo: Mapping[int, Any]) -> QuantisedLinear:
        """Let the stand-in of a layer with a packed weight run all members."""
        assert weight.packed is not None
        module, bias = memo[id(weight.packed)], weight.packed._parameters.get("bias")
        layer = QuantisedLinear(weight, None if bias is None else self.parameters[id(bias)], self.members)
        module.__class__ = _subclass(QuantisedLayer, _plain(module))
        vars(module)["thickets_quantised"] = layer
        return layer

    def _install_routing(self, module: nn.Module) -> None:
        """Let a block of experts of transformers give its layers tokens [T, K], or run it member by member.

        Experts that are modules are given the rows that chose them: no layer could tell whose they are, and
        their number may be that of the folded batch by chance.
        """
        experts = module._modules.get("experts")
        if experts is None or not _plain(module).__module__.startswith("transformers"):
            return
        perturbed = any(isinstance(tensor, Guard) for tensor in experts.parameters())
        packed = [module for module in experts.modules() if isinstance(module, QuantisedLayer)]
        perturbed = perturbed or any(vars(layer)["thickets_quantised"].perturbed for layer in packed)
        if perturbed and not isinstance(_layer(experts), StackedExperts):
            self.run_slowly(module, "it gives its experts rows of their own", tokens=True)
            return
        for child in module.modules():
            if _layer(child) is linear:
                _, *rest = vars(child)["thickets_fast"]
                vars(child)["thickets_fast"] = token_linear, *rest

    def run_slowly(self, module: nn.Module, reason: str, tokens: bool = False) -> None:
        """Run a module member by member from now on, or the one around it that has a forward.

        tokens: its outputs may be of the tokens of the rows.
        """
        name = self.names[id(module)]
        while name and type(module).forward is nn.Module.forward and "forward" not in vars(module):
            name = name.rpartition(".")[0]
            module = self.module.get_submodule(name)
            reason = "it uses the parameters of a container"
        self._swap(module, always=True, tokens=tokens)
        self.slow[name] = f"{name or 'the model'} ({_plain(module).__name__}): {reason}"

    def _swap(self, module: nn.Module, always: bool, tokens: bool = False) -> None:
        module.__class__ = _subclass(MemberByMember, _plain(module))
        vars(module)["thickets_slow"] = Slow(module, self.members, always, tokens)

    @property
    def slow_root(self) -> Slow | None:
        """What runs the whole model member by member, if it does."""
        return vars(self.module)["thickets_slow"] if _always_slow(self.module) else None

    def slow_modules(self) -> list[str]:
        """The outermost modules that run member by member, each with its reason."""
        outer = [name for name in self.slow if not any(_inside(name, other) for other in self.slow)]
        return [self.slow[name] for name in outer]

    def demote(self, error: ReadError | FoldError) -> str:
        """Move the module that this error stopped to the slow path; returns its name and why.

        For a read it is the innermost running module that has the parameter, for an input that cannot be
        split the one around the module that refused it. RuntimeError if there is none left, or if strict.
        """
        running = _running(error, self.names)
        if isinstance(error, FoldError):
            refusing, running = running[0], running[1:] or running
            reason = f"{self.names[id(refusing)] or 'the model'}: {error}"
        else:
            running = [module for module in running if _has(module, error.parameter)]
            reason = f"{error}: make it an attribute of a module or exclude it"
        for module in running:
            if not _always_slow(module):
                return self._demoted(module, reason)
        raise RuntimeError(f"the model cannot run as members: {reason}") from error

    def run_all_slowly(self, reason: str) -> str:
        """Run the whole model member by member from now on; returns its name and the reason."""
        return self._demoted(self.module, reason)

    def _demoted(self, module: nn.Module, reason: str) -> str:
        if self.strict:
            raise RuntimeError(f"strict=True, but a module must run member by member: {reason}")
        self.run_slowly(module, reason)
        return self.slow[self.names[id(module)]]

    def follow_base(self) -> None:
        """Take over the base's training flags and buffers; RuntimeError if its parameters were replaced."""
        for base, twin in self.pairs:
            if twin.training != base.training:
                twin.training = base.training
            if not all(self._is_known(tensor) for tensor in base._parameters.values() if tensor is not None):
                raise RuntimeError("the model's parameters were replaced or moved: perturb() it again")
            if isinstance(twin, QuantisedLayer) or twin is base:
                continue
            for name, buffer in base._buffers.items():
                mine = twin._buffers.get(name)
                if isinstance(mine, Guard):
                    continue
                if buffer is None or mine is None or (mine.shape, mine.dtype) != (buffer.shape, buffer.dtype):
                    twin._buffers[name] = None if buffer is None else buffer.detach().clone()
                else:
                    mine.copy_(buffer)

    def _is_known(self, tensor: Tensor) -> bool:
        known = self.parameters.get(id(tensor))
        if known is None or known.tensor is tensor:  # it may have no memory of its own
            return known is not None
        return known.tensor.data_ptr() == tensor.data_ptr() and known.tensor.dtype == tensor.dtype

    def refuse_training(self) -> None:
        """RuntimeError naming a module whose output is random or depends on the other rows of the batch."""
        for module in self.module.modules():
            name = f"{self.names[id(module)] or 'the model'} ({type(module).__name__})"
            if isinstance(module, _BatchNorm) and module.running_mean is None:
                raise RuntimeError(f"{name} must have running statistics, got one that uses the batch's")
            if module.training and _random(module):
                raise RuntimeError(
                    f"{name} must be in eval mode, got training mode: call eval() on the model"
                )


def _layer(module: nn.Module) -> Layer | None:
    """The layer function that runs a module."""
    layer: Layer | None = vars(module).get("thickets_fast", (None,))[0]
    return layer


def _random(module: nn.Module) -> bool:
    """Whether a module in training mode draws random numbers or mixes the batch."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return module.dropout > 0
    return isinstance(module, (_BatchNorm, nn.RReLU))


def _named(tensor: Tensor, parameters: Mapping[int, NamedParameter]) -> NamedParameter:
    return tensor.parameter if isinstance(tensor, Guard) else parameters[id(tensor)]


def _always_slow(module: nn.Module) -> bool:
    slow: Slow | None = vars(module).get("thickets_slow")
    return slow is not None and slow.always


def _inside(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(f"{other}."))


def _has(module: nn.Module, parameter: NamedParameter) -> bool:
    return any(isinstance(tensor, Guard) and tensor.parameter is parameter for tensor in module.parameters())


def _running(error: BaseException, names: Mapping[int, str]) -> list[nn.Module]:
    """The twin's modules that were running when the error was raised, innermost first."""
    running: list[nn.Module] = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in CALLS:
            module = trace.tb_frame.f_locals["self"]
            if id(module) in names and (not running or running[0] is not module):
                running.insert(0, module)
        trace = trace.tb_next
    return running
