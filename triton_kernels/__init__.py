"""Triton kernels and their launch wrappers: the portable GPU backend, and the readable twin of csrc/."""
