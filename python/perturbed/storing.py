"""Whether to write the members' weights down once, or to make their noise anew in every forward."""

from __future__ import annotations

# Forwards of the same members from which on the stored mode is faster. Writing a normal costs what generating
# it two to five times does, reading it back half of generating it once. The other families cost less to
# generate than to read back. AMD EPYC (Zen 4), 8 rows a member, microseconds of one thread per member:
#
#     layer      normal: fused, stored, writing   normal4: fused, stored   hadamard: fused, stored
#     512x512       233        123       562          87         123          60         123
#     4096x4096   13500       4590     21700        4670        4590        2900        4590
STORE_FROM = {"normal": 6}


def stored_is_faster(noise: str, forwards: int) -> bool:
    """Whether members that make so many forwards should be stored, by measurement; `noise` is the family."""
    return forwards >= STORE_FROM.get(noise, forwards + 1)
