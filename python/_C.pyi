"""The native module, compiled from csrc/bindings.cpp."""

from collections.abc import Callable

def isas() -> dict[str, bool]: ...  # instruction set that was built -> whether this CPU has it
def isa() -> str: ...  # the one that is used by default
def cuda_why() -> str: ...  # why there are no CUDA kernels; empty where there are

# The kernels: integers and pointers, for backends/cpu.py alone.
def __getattr__(name: str) -> Callable[..., None]: ...
