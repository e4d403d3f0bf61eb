"""Whether to write the members' weights down once, or to make their noise anew in every forward."""

from __future__ import annotations

# Forwards of the same members from which on the stored mode is faster. Writing a normal costs what generating
# it four to six times does, reading it back less than generating it once. The other families cost less to
# generate than to read back. AMD EPYC (Zen 4), 8 rows a member, microseconds per member on one thread:
#
#     layer      normal: fused, stored, writing   normal4: fused, stored   hadamard: fused, stored
#     512x512       240        154       520          83         154          58         154
#     4096x4096   13200       7500     21200        4540        7500        2830        7500
STORE_FROM = {"normal": 8}


def stored_is_faster(noise: str, forwards: int) -> bool:
    """Whether members that make so many forwards should be stored, by measurement; `noise` is the family."""
    return forwards >= STORE_FROM.get(noise, forwards + 1)
