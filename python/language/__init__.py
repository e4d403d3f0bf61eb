"""Language models on top of `perturb` and `search`: generation for N members at once, runs on tasks.

prompts.py and decoding.py say what is generated and how, generation.py does it, by transformers in
stretches.py, with tokens chosen by sampling.py and ended by stopping.py; limits.py is what it refuses.
models.py opens a model, run.py searches on a task. Names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decoding import Decoding
    from .generation import Generations, decode, generate
    from .prompts import Prompts

__all__ = ["Decoding", "Generations", "Prompts", "decode", "generate"]

_HOME = {
    "Decoding": "decoding",
    "Generations": "generation",
    "Prompts": "prompts",
    "decode": "generation",
    "generate": "generation",
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
