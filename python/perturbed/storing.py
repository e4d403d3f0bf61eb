"""Whether to write the members' weights down once, or to make their noise anew in every forward."""

from __future__ import annotations

# Forwards of the same members from which on the stored mode is faster. Reading a written normal takes a third
# of generating it. The other families take as long to generate as to read back, or less: a tenth at most
# is won, not worth the memory. AMD EPYC (Zen 4), 8 rows a member, microseconds of one thread per member:
#
#     layer      normal: fused, stored, writing   normal4: fused, stored   hadamard: fused, stored
#     512x512       237         75       505          88          75          62          75
#     4096x4096   13300       4180     21500        4570        4180        2860        4180
STORE_FROM = {"normal": 4}


def stored_is_faster(noise: str, forwards: int) -> bool:
    """Whether members that make so many forwards should be stored, by measurement; `noise` is the family."""
    return forwards >= STORE_FROM.get(noise, forwards + 1)
