"""The native CPU kernels: present once thickets._C is built."""

from dataclasses import replace

from .reference import BACKEND as REFERENCE

BACKEND = replace(
    REFERENCE, name="cpu", devices=("cpu",), why_not=lambda: "the native module thickets._C is not built"
)
