"""Evaluate N randomly perturbed copies of a network without ever building them.

Public names load on first use (PEP 562): `import thickets` costs one `import torch` and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import torch as _torch  # noqa: F401  first of all: thickets._C must find torch's OpenMP run time already loaded

if TYPE_CHECKING:
    from thickets.functional import (
        accumulate_,
        grouped_linear,
        noise_linear_,
        perturb_,
        perturbed_embedding,
        perturbed_linear,
        perturbed_vector,
        sample_noise,
    )
    from thickets.noise import CONTRACT_VERSION, parameter_id
    from thickets.perturbed import PerturbedModule, perturb
    from thickets.randopt import SearchResult, sample_member, search
    from thickets.thicket import Thicket
    from thickets.votes import vote

__version__ = "0.1.0"

__all__ = [
    "CONTRACT_VERSION",
    "PerturbedModule",
    "SearchResult",
    "Thicket",
    "accumulate_",
    "grouped_linear",
    "noise_linear_",
    "parameter_id",
    "perturb",
    "perturb_",
    "perturbed_embedding",
    "perturbed_linear",
    "perturbed_vector",
    "sample_member",
    "sample_noise",
    "search",
    "vote",
]

_HOME = {  # public name -> the module that defines it
    "CONTRACT_VERSION": "noise",
    "PerturbedModule": "perturbed",
    "SearchResult": "randopt",
    "Thicket": "thicket",
    "accumulate_": "functional",
    "grouped_linear": "functional",
    "noise_linear_": "functional",
    "parameter_id": "noise",
    "perturb": "perturbed",
    "perturb_": "functional",
    "perturbed_embedding": "functional",
    "perturbed_linear": "functional",
    "perturbed_vector": "functional",
    "sample_member": "randopt",
    "sample_noise": "functional",
    "search": "randopt",
    "vote": "votes",
}


if not TYPE_CHECKING:  # a type checker would take every name for granted

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
