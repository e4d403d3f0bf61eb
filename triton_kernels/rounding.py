"""Float32 from and to the dtypes of tensors, rounded to nearest, ties to even, subnormals included.

A GPU converts so by itself. Triton's interpreter truncates to bfloat16 and flushes bfloat16's subnormals.
"""

import triton
import triton.language as tl

from .noise import INTERPRETED


@triton.jit
def widened(x):
    """x (float32, bfloat16 or float16) in float32, which holds every value of them."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """x (float32) rounded once to DTYPE; infinities stay, a NaN may become another NaN."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        near = tl.where(x == x, near, 0x7FC0)
        return near.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)
