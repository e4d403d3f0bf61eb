"""Exactly rounded float32 arithmetic and the Box-Muller transform built on it (docs/noise.md, section 4).

Every step is an integer operation, an int-to-float conversion, or a float32 multiply, add, fma or square root
that is rounded once, so that any backend following the same sequence yields the same bits.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor


def round32(value: float) -> float:
    """The float32 nearest to `value`, as a Python float."""
    return struct.unpack("f", struct.pack("f", value))[0]


def _constants(*values: float) -> tuple[float, ...]:
    return tuple(round32(value) for value in values)


# -2 ln(1 + t) = t P(t); sine and cosine of an eighth of a turn times F: S = F s(F * F), C = c(F * F).
_LOG = _constants(
    -2.0, 0.99999976, -0.66668373, 0.5000415, -0.39913666, 0.33124804, -0.29904565, 0.28733575, -0.17444487
)
_SINE = _constants(0.7853982, -0.080745436, 0.002490007, -3.595451e-05)
_COSINE = _constants(1.0, -0.30842426, 0.015849914, -0.0003188805)
_MINUS_TWO_LN2 = round32(-1.3862944)
_SQRT_HALF_BITS = 0x3F3504F3  # float32 bits of sqrt(1/2): splits x into 2^e (1 + t) with 1 + t in [0.7, 1.4]


def _double(value: Tensor | float) -> Tensor | float:
    return value.double() if isinstance(value, Tensor) else value


def fma32(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """float32(a * b + c), rounded once as by a hardware fma; tensors are float32, floats float32-valued.

    The product of two float32 is exact in float64. Knuth's TwoSum gives the rounding error of the float64
    sum; where it is not zero the sum moves to its neighbour with an odd last bit (round-to-odd), and rounding
    that to float32 equals rounding the exact value (Boldo and Melquiond 2008).
    """
    product, addend = a.double() * _double(b), _double(c)
    total = product + addend
    shadow = total - product
    error = (product - (total - shadow)) + (addend - shadow)
    bits = total.view(torch.int64)
    even_and_inexact = (error.abs() > 0) & (bits & 1 == 0)
    outward = (total > 0) == (error > 0)
    odd = bits + torch.where(outward, 1, -1) * even_and_inexact
    return odd.view(torch.float64).float()


def _horner(coefficients: tuple[float, ...], q: Tensor) -> Tensor:
    value = fma32(q, coefficients[-1], coefficients[-2])
    for coefficient in coefficients[-3::-1]:
        value = fma32(value, q, coefficient)
    return value


def sqrt32(x: Tensor) -> Tensor:
    """The correctly rounded float32 square root; torch's own is off by a bit in one of six on CPUs (MKL).

    The root of a float32 lies at least four float64 units from the middle between two float32, so rounding
    a float64 root to float32 is exact even if that root errs by a unit.
    """
    return x.double().sqrt().float()


def radius(w_a: Tensor) -> Tensor:
    """sqrt(-2 ln u) for u = ((w_a >> 1) | 1) 2^-31, float32."""
    x = ((w_a >> 1) | 1).float()
    bits = x.view(torch.int32)
    e = (bits - _SQRT_HALF_BITS) >> 23
    t = (bits - (e << 23)).view(torch.float32) - 1
    t2 = t * t
    t4 = t2 * t2
    c = _LOG
    high = fma32(fma32(t, c[7], c[6]), t2, fma32(t, c[5], c[4]))
    low = fma32(fma32(t, c[3], c[2]), t2, fma32(t, c[1], c[0]))
    p = fma32(fma32(t4, c[8], high), t4, low)
    return sqrt32(fma32((e - 31).float(), _MINUS_TWO_LN2, p * t))


def sine_cosine(w_b: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of 2 pi w_b 2^-32, float32: octant by the top bits, the rest by polynomials."""
    v = w_b + 0x20000000
    rest = (w_b << 2) & 0xFFFFFFFF
    f = ((rest ^ 0x80000000) - 0x80000000).float() * 2.0**-31
    q = f * f
    sine = _horner(_SINE, q) * f
    cosine = _horner(_COSINE, q)
    swap = (v & 0x40000000) != 0
    sine, cosine = torch.where(swap, cosine, sine), torch.where(swap, sine, cosine)
    sine = torch.where((v & 0x80000000) != 0, -sine, sine)
    cosine = torch.where(((v ^ (v << 1)) & 0x80000000) != 0, -cosine, cosine)
    return sine, cosine


def box_muller(w_a: Tensor, w_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals, float32, of two random words (32-bit values in int64)."""
    r = radius(w_a)
    sine, cosine = sine_cosine(w_b)
    return r * cosine, r * sine
