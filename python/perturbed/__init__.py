"""Any torch.nn.Module as one that evaluates N perturbed members in one forward.

module.py holds `perturb`; parameters.py names what it perturbs, checkpoint.py in models of transformers;
calls.py folds batches and checks the first calls; twin.py copies the module tree and puts guards.py in place
of its parameters; layers.py runs the known layers for all members at once (members.py), norms.py,
continued.py and experts.py those that libraries wrote, fallback.py the others one by one.
"""

from .calls import SlowPathWarning
from .module import PerturbedModule, perturb

__all__ = ["PerturbedModule", "SlowPathWarning", "perturb"]
