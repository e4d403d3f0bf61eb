"""The noise and the members as the kernels take them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from thickets.operands import Members, Noise

from . import noise

FAMILIES = {
    "none": noise.NONE,
    "normal": noise.NORMAL,
    "normal4": noise.NORMAL4,
    "rademacher": noise.RADEMACHER,
    "hadamard": noise.HADAMARD,
    "lowrank": noise.LOWRANK,
}
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def noise_arguments(noise: Noise) -> dict[str, Any]:
    """id_low, id_high: counter word c2, and c3 without its stream number, as int32 bit patterns."""
    low, high = noise.id & 0xFFFFFFFF, 8 * ((noise.id >> 32) & 0x1FFFFFFF)
    return {"id_low": low - (low >> 31 << 32), "id_high": high - (high >> 31 << 32)}


def member_arguments(members: Members) -> dict[str, Any]:
    """What kernels take to find a row's member and its seed and strength."""
    count = len(members.seeds)
    return {
        "seeds": members.seeds,
        "sigmas": members.sigmas,
        "scale": members.scale,
        "offsets": members.offsets,
        "count": count,
        "rows": members.rows,
        "total": members.total,
        "MEMBERS": 1 if members.offsets is None else triton.next_power_of_2(count),
    }
