"""Whose rows are whose: groups of rows, equal or given by offsets, found on the device.

Rows of activations come as N groups, one per member. Equal groups have `rows` rows each; ragged ones lie
between offsets[n] and offsets[n + 1] (int64 [N + 1] in device memory, clamped to the rows there are, so that
bad values stay memory-safe). No kernel needs them on the host.
"""

import triton
import triton.language as tl


@triton.jit
def _clamped(offsets, index, count, total):
    """offsets[index] within 0 .. total; beyond the last one, total."""
    return tl.minimum(tl.maximum(tl.load(offsets + index, mask=index <= count, other=total), 0), total)


@triton.jit
def member_of_row(row, offsets, count, rows, total, RAGGED: tl.constexpr, MEMBERS: tl.constexpr):
    """The member (int32 scalar) that has the row (scalar). MEMBERS: a power of two >= count."""
    if RAGGED:
        ends = _clamped(offsets, 1 + tl.arange(0, MEMBERS), count, total)
        return tl.minimum(tl.sum((ends <= row).to(tl.int32), axis=0), count - 1)
    else:
        return (row // rows).to(tl.int32)


@triton.jit
def group_of_tile(
    tile, offsets, count, rows, total, RAGGED: tl.constexpr, MEMBERS: tl.constexpr, TILE: tl.constexpr
):
    """(member, first row, end row) of a tile of at most TILE rows; an empty range where there is none.

    Tiles are numbered group by group; ragged groups have at most total // TILE + count of them.
    """
    if RAGGED:
        index = tl.arange(0, MEMBERS)
        begins = _clamped(offsets, index, count, total)
        ends = tl.maximum(_clamped(offsets, index + 1, count, total), begins)
        tiles = (ends - begins + TILE - 1) // TILE
        last = tl.cumsum(tiles, axis=0)
        member = tl.sum((last <= tile).to(tl.int32), axis=0)
        mine = index == member
        first = tl.sum(tl.where(mine, begins + (tile - (last - tiles)) * TILE, 0), axis=0)
        end = tl.minimum(first + TILE, tl.sum(tl.where(mine, ends, 0), axis=0))
        return tl.minimum(member, count - 1), first, end
    else:
        each = (rows + TILE - 1) // TILE
        member = tile // each
        first = member.to(tl.int64) * rows + (tile % each) * TILE
        end = tl.minimum(first + TILE, (member + 1).to(tl.int64) * rows)
        return member, first, end


def tiles(count: int, rows: int, total: int, ragged: bool, tile: int) -> int:
    """The number of tiles of `tile` rows that a launch needs."""
    return total // tile + count if ragged else count * -(-rows // tile)
