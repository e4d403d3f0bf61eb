"""Language models on top of `perturb` and `search`: generation for N members at once, runs on tasks.

prompts.py and decoding.py say what is generated and how, generation.py does it, by transformers in
stretches.py, with tokens chosen by sampling.py and ended by stopping.py; limits.py is what it refuses.
models.py opens a model, run.py searches on a task.
"""

from .decoding import Decoding
from .generation import Generations, decode, generate
from .prompts import Prompts

__all__ = ["Decoding", "Generations", "Prompts", "decode", "generate"]
