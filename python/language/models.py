"""Open a language model of `transformers` with its tokenizer: a folder, a hub's id, or the small one here."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from thickets.randopt.chunks import free_memory, out_of_memory
from thickets.tasks.arithmetic import CHECKPOINT

EMBEDDED = "arithmetic"  # the model that comes with the package
DTYPES = ("float32", "bfloat16", "float16")


class Opened(NamedTuple):
    """A model in eval mode on its device, its tokenizer, and what both are, as JSON values."""

    model: nn.Module
    tokenizer: Any
    identity: dict[str, Any]


def open_model(spec: str, dtype: str = "auto", device: str = "auto") -> Opened:
    """The causal language model of a folder or a hub's id, frozen; "arithmetic" is our own small one.

    dtype: float32, bfloat16, float16, or "auto": the checkpoint's own on a GPU, float32 on a CPU. device: a
    torch device, or "auto". No code of a checkpoint is ever run. ValueError for what is not such a model or
    has no tokenizer, MemoryError for one that does not fit, RuntimeError without the package transformers.
    """
    if find_spec("transformers") is None:
        raise RuntimeError("language models need transformers: pip install 'thickets[language]'")
    import transformers

    place = _device(device)
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    source = _source(spec)
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model {spec!r} cannot be opened: {_first_line(error)}") from None
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model must be a causal language model, got the encoder-decoder {config.model_type!r}"
        )
    seeing = getattr(config, "vision_config", None) is not None
    auto = transformers.AutoModelForImageTextToText if seeing else transformers.AutoModelForCausalLM
    kind = _dtype(dtype, config, place)
    tokenizer = _tokenizer(spec, source)
    packed = getattr(config, "quantization_config", None) is not None  # its loader puts it in its place
    if not packed:
        _check_memory(spec, auto, config, kind, place)
    try:
        placing = {"device_map": {"": place}} if packed else {}
        model = auto.from_pretrained(source, dtype=kind, trust_remote_code=False, **placing)
        model = model if packed else model.to(place)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model {spec!r} cannot be opened: {_first_line(error)}") from None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(f"model {spec!r} does not fit on {place}: try --dtype bfloat16") from None
    identity = {
        "model": spec if spec == EMBEDDED else source,
        "architecture": type(model).__name__,
        "dtype": str(kind).removeprefix("torch."),
    }
    return Opened(model.requires_grad_(False).eval(), tokenizer, identity)


def _source(spec: str) -> str:
    """What transformers opens; ValueError for a path that is not a model's folder."""
    if spec == EMBEDDED:
        return str(CHECKPOINT)
    path = Path(spec).expanduser()
    if spec.strip() and path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model {spec!r} is a folder without config.json")
        return str(path.resolve())
    if path.exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1 or not spec.strip():
        raise ValueError(
            f"model must be a folder, a hub's id or {EMBEDDED!r}, got {spec!r}, which is not a folder"
        )
    return spec


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be auto or cpu here, got {device!r}: torch finds no GPU")
    return place


def _dtype(dtype: str, config: Any, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        kind = getattr(torch, dtype)
    else:
        inner = getattr(config, "text_config", None)
        own = getattr(config, "dtype", None) or getattr(inner, "dtype", None)
        kind = torch.float32 if device.type == "cpu" or own is None else own
    assert isinstance(kind, torch.dtype)
    return kind


def _tokenizer(spec: str, source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # each kind has errors of its own for a missing or damaged file
        raise ValueError(
            f"model {spec!r} has no tokenizer that can be opened: {_first_line(error)}"
        ) from None


def _check_memory(spec: str, auto: Any, config: Any, dtype: torch.dtype, device: torch.device) -> None:
    """MemoryError before anything is loaded, from the architecture alone."""
    try:
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError) as error:
        raise ValueError(f"model {spec!r} is no language model: {_first_line(error)}") from None
    needed = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    free = free_memory(device)
    if needed > free:
        raise MemoryError(
            f"model {spec!r} takes {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}, and"
            f" {device} has {free / 2**30:.1f} GiB free: try a smaller dtype or another device"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def quiet() -> None:
    """Keep transformers' progress bars and remarks off the terminal; its errors still come as exceptions."""
    if find_spec("transformers") is not None:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
