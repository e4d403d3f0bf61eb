"""Philox4x32-10, the counter-based generator under all noise (docs/noise.md, section 2)."""

from __future__ import annotations

from torch import Tensor

MASK32 = 0xFFFFFFFF
ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product, by 16-bit halves so that no int64 overflows."""
    low = (multiplier & 0xFFFF) * word
    high = (multiplier >> 16) * word + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32_10(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words of the counter (c0, c1, c2, c3) under the key (k0, k1).

    Words are unsigned 32-bit values held in int64 tensors; all arguments broadcast. Equal to Random123's
    `philox4x32_R(10, counter, key)` (Salmon et al., SC'11).
    """
    for _ in range(ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & MASK32, (k1 + _KEY_STEPS[1]) & MASK32
    return c0, c1, c2, c3
