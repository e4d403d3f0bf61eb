"""`WorkerExtension` for vLLM: the methods that RandOpt and ES-at-scale scripts call on their workers.

    LLM(..., worker_extension_cls="thickets.integrations.vllm.WorkerExtension")

The scripts stay as they are. See docs/vllm.md for what differs from the extensions that they bring.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..perturbed.parameters import Filters, matching
from .shards import engine_segments, refuse_other_weights
from .weights import LiveWeights


class WorkerExtension:
    """Perturbs the weights of a vLLM worker in place; every method that scripts call returns True.

    A subclass sets the attributes below, and scripts name it instead. The worker has `model_runner.model`,
    `device` and `rank`. The seed of a member is an integer 0 <= s < 2**64, its sigma a finite float; bad ones
    raise ValueError before a weight is touched, as do parameters whose place in the checkpoint is not known.
    """

    noise: str = "normal"  # the family
    base_on: str = "device"  # where the copy of the base lies: "device", or "host" in pinned memory
    perturb_visual: bool = False  # also what lies outside of a multimodal model's language model
    exclude: Filters = None  # globs of the engine's own names of further parameters to leave alone
    packed_modules: Mapping[str, Sequence[str]] | None = None  # `packed` of engine_segments
    prefixes: Mapping[str, str] | None = None  # `prefixes` of engine_segments

    model_runner: Any
    device: torch.device
    inter_pg: Any

    @property
    def live_weights(self) -> LiveWeights:
        """The weights that are perturbed, as a base and the perturbations that are active now."""
        if "_live_weights" not in vars(self):
            model = self.model_runner.model
            segments = engine_segments(
                model, skip=self._left_alone(model), packed=self.packed_modules, prefixes=self.prefixes
            )
            self._live_weights = LiveWeights(
                self._tensors(), segments, noise=self.noise, base_on=self.base_on
            )
        return self._live_weights

    def perturb_self_weights(
        self, seed: int, noise_scale: float, coeff: bool | float = 1.0, negate: bool = False
    ) -> bool:
        """Add noise_scale * coeff * eps(seed) to the weights as they are, or subtract it with `negate`.

        A bool in the third place is `negate`. A coefficient other than 1 is an update of evolution
        strategies, which lasts: it changes the base, and `restore_self_weights` does not know it.
        """
        if isinstance(coeff, bool):
            negate, coeff = coeff, 1.0
        strength = float(noise_scale) * float(coeff) * (-1 if negate else 1)
        if coeff == 1:
            self.live_weights.add(_index(seed), strength)
        else:
            self.live_weights.update([_index(seed)], [strength])
        return True

    def restore_self_weights(self, seed: int, SIGMA: float, negate: bool = False) -> bool:
        """Undo `perturb_self_weights` with these arguments; RuntimeError if the seed is not active."""
        self.live_weights.remove(_index(seed), -float(SIGMA) if negate else float(SIGMA))
        return True

    def store_base_weights(self) -> bool:
        """Take the weights as they are for the base, and copy them."""
        self.live_weights.keep()
        return True

    def apply_perturbation(self, seed: int, sigma: float) -> bool:
        """Make the weights those of one member: the base plus sigma * eps(seed), whatever was active."""
        self.live_weights.set([_index(seed)], [float(sigma)])
        return True

    def reset_to_base_weights(self) -> bool:
        """Make the weights the base, bit for bit."""
        self.live_weights.reset()
        return True

    def clear_base_weights(self) -> bool:
        """Free the copy; what the weights are now is the base from now on."""
        self.live_weights.free()
        return True

    def apply_averaged_perturbations(
        self, seeds_sigmas: Iterable[tuple[int, float]], weights: Sequence[float] | None = None
    ) -> bool:
        """Make the weights base + sum_i w_i sigma_i eps(seed_i) / sum_i w_i, rounded once.

        ValueError without members, for other than one weight per member, or for weights that sum to 0.
        """
        members = [(_index(seed), float(sigma)) for seed, sigma in seeds_sigmas]
        shares = [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
        if not members or len(shares) != len(members):
            raise ValueError(f"weights must be one per member, got {len(shares)} for {len(members)} members")
        total = sum(shares)
        if total == 0:
            raise ValueError(f"weights must not sum to 0, got {shares}")
        self.live_weights.set(
            [seed for seed, _ in members],
            [share / total * sigma for share, (_, sigma) in zip(shares, members, strict=True)],
        )
        return True

    def update_weights_from_seeds(
        self, seeds: Sequence[int], coeffs: Sequence[float], alpha: float, population_size: int
    ) -> bool:
        """Change the base for good: W += alpha / population_size * sum_i coeffs[i] eps(seeds[i])."""
        if population_size < 1:
            raise ValueError(f"population_size must be at least 1, got {population_size}")
        rate = float(alpha) / population_size
        self.live_weights.update([_index(seed) for seed in seeds], [rate * float(c) for c in coeffs])
        return True

    def init_inter_engine_group(
        self, master_address: str, master_port: int, rank: int, world_size: int
    ) -> bool:
        """Join the engines for `broadcast_all_weights`: `rank` of `world_size` engines, as `self.inter_pg`.

        The tensor-parallel ranks of all engines make a group each, at master_port + their rank.
        """
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator  # type: ignore
        from vllm.distributed.utils import StatelessProcessGroup  # type: ignore

        group = StatelessProcessGroup.create(
            host=master_address,
            port=int(master_port) + getattr(self, "rank", 0),
            rank=int(rank),
            world_size=int(world_size),
        )
        self.inter_pg = PyNcclCommunicator(group, device=self.device)
        return True

    def broadcast_all_weights(self, src_rank: int) -> bool:
        """Give all engines the weights that engine `src_rank` has now; they are the base of all."""
        stream = torch.cuda.current_stream() if self.device.type == "cuda" else None
        for tensor in self._tensors().values():
            self.inter_pg.broadcast(tensor, src=int(src_rank), stream=stream)
        self.live_weights.settle()
        return True

    def save_self_weights_to_disk(self, filepath: str) -> bool:
        """Write the weights as they are, by the engine's names: safetensors if the name says so, else torch.

        With several ranks each writes its own file, NAME.rankR.SUFFIX.
        """
        path = self._own_file(filepath)
        host = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(host, path)
        else:
            torch.save(host, path)
        return True

    def load_weights_from_disk(self, filepath: str) -> bool:
        """Read what `save_self_weights_to_disk` wrote; it is the base from now on.

        ValueError, before a weight is touched, unless names and shapes are those of this engine.
        """
        path = self._own_file(filepath)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            saved = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        tensors = self._tensors()
        for name in tensors.keys() | saved.keys():
            got = tuple(saved[name].shape) if name in saved else None
            expected = tuple(tensors[name].shape) if name in tensors else None
            if got != expected:
                raise ValueError(f"{path} must hold {name!r} with shape {expected}, got {got}")
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
        self.live_weights.settle()
        return True

    def save_self_initial_weights(self) -> bool:
        """Copy the weights as they are to the host, apart from the base."""
        self._initial_weights = {name: tensor.cpu().clone() for name, tensor in self._tensors().items()}
        return True

    def restore_self_initial_weights(self) -> bool:
        """Go back to what `save_self_initial_weights` copied, and free it; it is the base from now on."""
        if "_initial_weights" not in vars(self):
            raise RuntimeError("save_self_initial_weights must be called before restore_self_initial_weights")
        for name, tensor in self._tensors().items():
            tensor.copy_(self._initial_weights[name])
        del self._initial_weights
        self.live_weights.settle()
        return True

    def check_names(self, folder: str) -> bool:
        """Compare the weights, while no perturbation is active, with the checkpoint in `folder`.

        ValueError naming a block of the engine's weights that is not what its noise is named after.
        """
        live = self.live_weights
        if live.active:
            raise RuntimeError(f"no perturbation must be active, active are {live.active}")
        refuse_other_weights(live.tensors, live.segments, Path(folder))
        return True

    def _tensors(self) -> dict[str, Tensor]:
        """All weights of this rank by the engine's names, as tensors that share their memory."""
        return {name: tensor.data for name, tensor in self.model_runner.model.named_parameters()}

    def _left_alone(self, model: Any) -> set[str]:
        """Names of the parameters that are never perturbed."""
        named = dict(model.named_parameters())
        left = matching("exclude", self.exclude, list(named))
        if not self.perturb_visual and hasattr(model, "get_language_model"):
            language = {id(tensor) for tensor in model.get_language_model().parameters()}
            left |= {name for name, tensor in named.items() if id(tensor) not in language}
        return left

    def _own_file(self, filepath: str) -> Path:
        """This rank's file."""
        path = Path(filepath)
        if getattr(getattr(self, "parallel_config", None), "world_size", 1) == 1:
            return path
        return path.with_name(f"{path.stem}.rank{self.rank}{path.suffix}")  # type: ignore[attr-defined]


def _index(seed: Any) -> int:
    """A seed of any integer type; TypeError for what only looks like one."""
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer, got {seed!r}") from None
