"""The registry of backends: peers that implement the same ops, chosen by an op's argument `backend`."""

from __future__ import annotations

import torch

from . import cpu, cuda, reference, triton
from .record import Backend

__all__ = ["REGISTRY", "Backend", "choose", "refusal", "register"]

# What backend="auto" tries on a device, in this order. Triton's interpreter on a CPU has to be asked for.
AUTO = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
REGISTRY: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Add a backend to the registry and return it; ValueError if the name is taken."""
    if backend.name == "auto" or backend.name in REGISTRY:
        raise ValueError(f"backend name {backend.name!r} is taken")
    REGISTRY[backend.name] = backend
    return backend


def refusal(backend: Backend, device: torch.device) -> str | None:
    """Why `backend` cannot serve tensors on `device`, or None if it can."""
    why_not = backend.why_not()
    if device.type in backend.devices:
        return why_not
    elsewhere = f"it serves {', '.join(backend.devices)}, not {device.type}"
    return f"{elsewhere}, and {why_not}" if why_not else elsewhere


def choose(name: str, device: torch.device) -> Backend:
    """The backend for tensors on `device`: the first of AUTO that can run, or the named one.

    ValueError if no backend has that name, RuntimeError with the reason if it cannot run.
    """
    if name == "auto":
        for candidate in AUTO.get(device.type, ()):
            backend = REGISTRY.get(candidate)
            if backend is not None and refusal(backend, device) is None:
                return backend
        reasons = "; ".join(f"{backend.name}: {refusal(backend, device)}" for backend in REGISTRY.values())
        raise RuntimeError(f"no backend can run on {device.type} ({reasons})")
    names = ", ".join(sorted(REGISTRY))
    if name not in REGISTRY:
        raise ValueError(f"backend must be 'auto' or one of {names}, got {name!r}")
    reason = refusal(REGISTRY[name], device)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run: {reason} (registered: {names})")
    return REGISTRY[name]


register(cpu.BACKEND)
register(cuda.BACKEND)
register(triton.BACKEND)
register(reference.BACKEND)
