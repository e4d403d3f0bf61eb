"""Read a user's inputs from a file: .npy, .npz, .csv or .safetensors, never a pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy
import torch
from torch import Tensor

SUFFIXES = (".npy", ".npz", ".csv", ".safetensors")


def read_inputs(path: Path) -> tuple[Tensor, Tensor | None]:
    """Inputs, float32 [B, ...], and targets if the file holds them too.

    A file of several arrays (.npz, .safetensors) holds them as `inputs` and, if it likes, `targets`; a .csv
    has an example per line and no header. ValueError says what is wrong with the file, OSError that it cannot
    be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"inputs must be a file of {', '.join(SUFFIXES)}, got {path.name!r}")
    if not path.is_file():
        raise ValueError(f"inputs {str(path)!r} is not a file")
    try:
        arrays = _read(path, suffix)
    except OSError:
        raise
    except Exception as error:  # each format has its own kinds of error for a damaged file
        raise ValueError(f"inputs {str(path)!r} cannot be read as {suffix}: {error}") from None
    if "inputs" not in arrays:
        if len(arrays) != 1:
            raise ValueError(
                f"inputs {str(path)!r} must hold an array `inputs`, got {', '.join(arrays) or 'none'}"
            )
        arrays = {"inputs": next(iter(arrays.values()))}
    inputs, targets = arrays["inputs"], arrays.get("targets")
    if inputs.dtype.is_complex or inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(f"inputs must be numbers [B, ...], got {inputs.dtype} {tuple(inputs.shape)}")
    inputs = inputs.float()
    if not bool(inputs.isfinite().all()):
        raise ValueError(f"inputs must be finite, got NaN or infinity in {str(path)!r}")
    if targets is not None and (targets.dim() == 0 or len(targets) != len(inputs)):
        raise ValueError(f"targets must be [B={len(inputs)}, ...], got {tuple(targets.shape)}")
    return inputs, targets


def _read(path: Path, suffix: str) -> dict[str, Tensor]:
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if suffix == ".csv":
        return {"inputs": torch.from_numpy(numpy.loadtxt(path, delimiter=",", ndmin=2))}
    if suffix == ".npz" and not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip archive")
    content = numpy.load(path, allow_pickle=False)
    if suffix == ".npy":
        return {"inputs": torch.from_numpy(content)}
    with content:
        return {name: torch.from_numpy(content[name]) for name in content.files}
