"""Experiments, `signals` (the paper's 1-D one) and `digits`, and tasks of language models (problems.py)."""
