"""Mends of Triton's interpreter (TRITON_INTERPRET=1), so that it computes what a GPU does.

Three of its operations do not: fma rounds twice, conversion to bfloat16 truncates and loses subnormals, and
products of bfloat16 multiply the bit patterns. With these mends the kernels themselves need no second way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a * b + c rounded once: the float64 sum rounded to odd first (Boldo and Melquiond 2008)."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    shadow = total - product
    error = (product - (total - shadow)) + (addend - shadow)
    bits = total.view(np.int64)
    step = np.where((total > 0) == (error > 0), 1, -1) * ((error != 0) & (bits & 1 == 0))
    return (bits + step).view(np.float64).astype(np.float32)


def _widened(patterns: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns as float32."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """tl.fma."""
    return TensorHandle(_fused(x.data, y.data, z.data), z.dtype.scalar)


def cast_impl(self: Any, source: Any, to: Any) -> Any:
    """Tensor.to between float32 and bfloat16; other casts as before."""
    pair = source.dtype.scalar, to.scalar
    if pair == (tl.bfloat16, tl.float32):
        return TensorHandle(_widened(source.data), to.scalar)
    if pair == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.array(source.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), to.scalar)
    return _cast(self, source, to)


def create_dot(self: Any, a: Any, b: Any, acc: Any, *rest: Any) -> Any:
    """tl.dot."""
    if a.dtype.scalar == tl.bfloat16:
        a, b = (TensorHandle(_widened(x.data), tl.float32) for x in (a, b))
    return _dot(self, a, b, acc, *rest)


def mend() -> None:
    """Put them in place."""
    InterpreterBuilder.create_fma = create_fma
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_dot = create_dot
