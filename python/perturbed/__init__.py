"""Any torch.nn.Module as one that evaluates N perturbed members in one forward.

module.py holds `perturb` and folds batches; twin.py copies the module tree and puts guards.py in place of
its parameters; layers.py runs the known layers for all members at once (members.py), fallback.py the others
one by one.
"""

from .module import PerturbedModule, SlowPathWarning, perturb

__all__ = ["PerturbedModule", "SlowPathWarning", "perturb"]
