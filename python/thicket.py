"""The artefact: K experts of a base model as a few kilobytes of JSON, checked when it is loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)
from torch import Tensor, nn

from .noise import CONTRACT_VERSION, family
from .perturbed import PerturbedModule, perturb
from .randopt.evaluation import Evaluator, Predict, call, check_chunking
from .votes import Predictions, Votes, score_weights, vote

if TYPE_CHECKING:
    from .randopt import SearchResult
    from .randopt.store import Record

FORMAT: Literal["thickets.thicket/1"] = "thickets.thicket/1"


class ThicketError(ValueError):
    """A thicket file that is damaged, edited, of another version, or that belongs to another base model."""


def _from_decimal(value: Any, info: ValidationInfo) -> Any:
    if info.mode == "json":
        if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20):
            raise ValueError("a seed is a decimal string of an unsigned 64-bit integer")
        return int(value)
    return value


# JSON numbers lose integers above 2**53 in many readers, so a seed is written as a decimal string.
Seed = Annotated[
    int, Field(ge=0, lt=2**64), BeforeValidator(_from_decimal), PlainSerializer(str, when_used="json")
]
Hex = Annotated[str, Field(pattern="^[0-9a-f]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Expert(_Strict):
    """One member: its index in the run, seed, sigma and score."""

    index: int = Field(ge=0)
    seed: Seed
    sigma: float
    score: float


class Provenance(_Strict):
    """Where the members come from."""

    thickets: str
    created: str
    seed: Seed
    n: int = Field(ge=1)
    sigmas: tuple[float, ...]
    mirrored: bool
    data: Hex
    score: str
    base_score: float


class Filters(_Strict):
    """Which parameters are perturbed: the globs and "re:" expressions of `perturb`."""

    include: list[str] | None
    exclude: list[str] | None


def _noise_family(noise: str) -> str:
    return str(family(noise))


class Thicket(_Strict):
    """K experts around one base model, best first: what it takes to build them again."""

    format: Literal["thickets.thicket/1"] = FORMAT
    contract: int
    base: Hex
    noise: Annotated[str, AfterValidator(_noise_family)]
    precision: Literal["exact", "storage"]
    filters: Filters
    members: tuple[Expert, ...] = Field(min_length=1)
    provenance: Provenance

    @classmethod
    def of(cls, result: SearchResult, members: Sequence[Record]) -> Thicket:
        """The thicket of members of a search, best first."""
        from . import __version__

        run = result.run
        return cls(
            contract=run["contract"],
            base=run["base"],
            noise=run["noise"],
            precision=run["precision"],
            filters=Filters(**run["filters"]),
            members=tuple(Expert(index=r.index, seed=r.seed, sigma=r.sigma, score=r.value) for r in members),
            provenance=Provenance(
                thickets=__version__,
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                seed=run["seed"],
                n=result.n,
                sigmas=tuple(run["sigmas"]),
                mirrored=run["mirrored"],
                data=run["data"],
                score=run["score"],
                base_score=result.base.value,
            ),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, at once or not at all: a crash leaves the old file."""
        content = self.model_dump(mode="json")
        content["digest"] = _digest(content)
        text = json.dumps(content, indent=1) + "\n"
        _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Thicket:
        """Read and check a file that `save` wrote; ThicketError says what is wrong with any other."""
        name = f"thicket {os.fspath(path)!r}"
        try:
            content = json.loads(Path(path).read_bytes(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are ValueErrors
            raise ThicketError(f"{name} is not complete JSON: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise ThicketError(f"{name} must have format {FORMAT!r}, got {found!r}")
        if content.get("contract") != CONTRACT_VERSION:
            raise ThicketError(
                f"{name} was made with version {content.get('contract')!r} of the noise contract, this one"
                f" makes the noise of version {CONTRACT_VERSION}: its members would be other experts"
            )
        digest = content.pop("digest", None)
        try:
            thicket = cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ThicketError(f"{name} is not valid: {problems}") from None
        if digest != _digest(content):
            raise ThicketError(f"{name} was edited or damaged: its content does not match its digest")
        return thicket

    def perturbed(self, model: nn.Module, backend: str = "auto") -> PerturbedModule:
        """The base model, perturbed as the search perturbed it; ThicketError if it is another base."""
        if isinstance(model, PerturbedModule):
            pm = model
            for name, wanted, got in (
                ("noise", self.noise, str(pm.noise)),
                ("precision", self.precision, pm.precision),
                ("filters", self.filters.model_dump(), pm.filters()),
            ):
                if wanted != got:
                    raise ThicketError(f"model must be perturbed with {name} {wanted!r}, got {got!r}")
        else:
            pm = perturb(
                model,
                noise=self.noise,
                precision=self.precision,
                backend=backend,
                **self.filters.model_dump(),
            )
        if pm.fingerprint != self.base:
            raise ThicketError(f"model must be the base {self.base}, got another: {pm.fingerprint}")
        return pm

    def predictions(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        predict: Predict | None = None,
        chunk: int | None = None,
        memory: int | str = "auto",
        fold: bool = True,
        stored: bool = False,
        backend: str = "auto",
    ) -> Predictions:
        """Predictions of all members, best first: a tensor [K, B, ...] or K lists of B answers."""
        check_chunking(chunk, memory)
        evaluator = Evaluator(
            self.perturbed(model, backend), call if predict is None else predict, fold, stored
        )
        return evaluator.predictions(self.members, inputs, evaluator.size([inputs], chunk, memory))

    def vote(
        self,
        model: nn.Module,
        inputs: Any,
        how: str = "majority",
        *,
        weights: Sequence[float] | None = None,
        **run: Any,
    ) -> Votes:
        """The members' combined answer for each example, by a rule of `thickets.vote`.

        weights: for `weighted` the members' scores by default. run: the keywords of `predictions`.
        """
        if how == "weighted" and weights is None:
            weights = score_weights([member.score for member in self.members])
        return vote(self.predictions(model, inputs, **run), how, weights=weights)

    def export(
        self, model: nn.Module, index: int, path: str | os.PathLike[str], dtype: torch.dtype | None = None
    ) -> None:
        """Write the whole state dict of the member of this rank (0 is the best) as a safetensors file.

        dtype: as in `pm.materialize`: by default float32 for `exact`, the weights' own for `storage`.
        IndexError for a rank that is not there, ThicketError for another base, OSError for a bad path.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not 0 <= index < len(self.members):
            raise IndexError(f"index must be a rank in [0, {len(self.members)}), got {index}")
        member = self.members[index]
        state = _tensors(self.perturbed(model).materialize(member.seed, member.sigma, dtype))
        metadata = {
            "format": "pt",
            "base": self.base,
            "contract": str(self.contract),
            "noise": self.noise,
            "precision": self.precision,
            "seed": str(member.seed),
            "sigma": repr(member.sigma),
            "score": repr(member.score),
        }

        def write(temporary: Path) -> None:
            try:
                save_file(state, temporary, metadata)
            except SafetensorError as error:
                raise OSError(errno.EIO, str(error)) from error

        _replace(path, write)


def _tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, each with its own storage, as safetensors wants (tied parameters share one)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        result[name] = tensor
    return result


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _replace(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, bring it to the disk and put it in the place of `path`."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {str(target)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
