"""RandOpt: sample N members, score each once, keep the best K (function `search`).

Every score goes to the store the moment it exists, so that a run survives whatever ends it and goes on where
it was.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..noise import CONTRACT_VERSION, Family
from ..perturbed import PerturbedModule, perturb
from ..statistics import Density, solution_density
from .batches import Batch, as_batches, digest
from .chunks import Outcome, run_in_chunks
from .evaluation import BASE_MEMBER, Evaluator, Member, Predict, Score, call, check_chunking
from .progress import Progress
from .report import Report, held_out_report
from .store import Record, Store

if TYPE_CHECKING:
    from ..thicket import Thicket

SEEDS = 2**64
_MIN_SIGMA, _MAX_SIGMA = 2.0**-126, 3.4028234e38  # the normal float32 numbers


def sample_member(master: int, i: int, sigmas: Sequence[float], mirrored: bool = False) -> Member:
    """Member i of a run: a pure function of (master seed, i) and of the run's set of sigmas.

    D = BLAKE2b-16 of the master seed and of j, 8 bytes each, little-endian, with the personalisation
    b"thickets.member"; j = i, or i // 2 if mirrored. The seed is D's first 8 bytes (little-endian), the sigma
    that of index (D's last 8 bytes * count) >> 64 of the ascending sigmas, hence uniform. If mirrored,
    members 2j and 2j + 1 share seed and sigma and the odd one takes -sigma. ValueError for a master seed
    outside [0, 2**64) or a negative i.
    """
    if not 0 <= master < SEEDS:
        raise ValueError(f"seed must be in [0, 2**64), got {master}")
    if not 0 <= i < 2**63:
        raise ValueError(f"i must be in [0, 2**63), got {i}")
    j = i // 2 if mirrored else i
    state = hashlib.blake2b(digest_size=16, person=b"thickets.member")
    state.update(master.to_bytes(8, "little") + j.to_bytes(8, "little"))
    word = state.digest()
    seed = int.from_bytes(word[:8], "little")
    sigma = sorted(sigmas)[int.from_bytes(word[8:], "little") * len(sigmas) >> 64]
    return Member(i, seed, -sigma if mirrored and i % 2 else sigma)


@dataclass(frozen=True)
class SearchResult:
    """What a search found: a record of every evaluated member with index below n, in order of index."""

    run: dict[str, Any]
    n: int
    base: Record
    records: tuple[Record, ...]
    top_k: int | float
    evaluator: Evaluator
    score: Score

    @property
    def scored(self) -> list[Record]:
        """The members with a score, in order of index."""
        return [record for record in self.records if record.score is not None]

    @property
    def scores(self) -> Tensor:
        """Scores of the scored members, float64 [S], in order of index."""
        return torch.tensor([record.value for record in self.scored], dtype=torch.float64)

    @property
    def failures(self) -> dict[int, str]:
        """Index and reason of every member that could not be scored."""
        return {record.index: record.failure for record in self.records if record.failure is not None}

    def top(self, k: int | float | None = None) -> list[Record]:
        """The best k members (default top_k), best first, the lower index first among equals.

        k: a count, or a share of the scored members (a float in (0, 1], at least one member).
        ValueError if k is more than were scored.
        """
        scored = self.scored
        k = check_top_k(self.top_k if k is None else k)
        count = k if isinstance(k, int) else max(1, round(k * len(scored)))
        if count > len(scored):
            raise ValueError(
                f"top_k={count} is more than the {len(scored)} members scored ({len(self.failures)} failed)"
            )
        return sorted(scored, key=lambda record: (-record.value, record.index))[:count]

    def density(self) -> list[Density]:
        """Solution density on the search's data: per sigma, the share of members above the base."""
        return solution_density(
            self.scores.tolist(), [record.sigma for record in self.scored], self.base.value
        )

    def thicket(self, k: int | float | None = None) -> Thicket:
        """The best k members (default top_k) as an artefact that can be saved."""
        from ..thicket import Thicket

        return Thicket.of(self, self.top(k))

    def evaluate(
        self,
        data: Iterable[Batch],
        *,
        how: str = "majority",
        top_k: int | float | None = None,
        correlate: int = 200,
        chunk: int | None = None,
        memory: int | str = "auto",
    ) -> Report:
        """Score base, top-1, mean of the top K and their vote on held-out data, all with the search's own
        score.

        how: a rule of `vote`; the vote goes through `score` as one member does. correlate: how many members,
        the first scored ones, an unbiased sample, give the rank correlation of their scores on both data sets
        (0: none). ValueError if data is that of the search.
        """
        check_chunking(chunk, memory)
        check_integer(correlate, "correlate", 0)
        batches = as_batches(data)
        if digest(batches) == self.run["data"]:
            raise ValueError("data must be held out, got the data of the search itself")
        size = self.evaluator.size([inputs for inputs, _ in batches], chunk, memory)
        sample = self.scored[:correlate]
        return held_out_report(
            self.evaluator, self.score, batches, self.top(top_k), sample, how, size, self.density()
        )


def search(
    model: nn.Module,
    *,
    data: Iterable[Batch],
    score: Score,
    n: int,
    sigma: float | Sequence[float],
    top_k: int | float,
    noise: str | Family = "normal",
    precision: str = "exact",
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    predict: Predict | None = None,
    include: Any = None,
    exclude: Any = None,
    mirrored: bool = False,
    members: range | None = None,
    chunk: int | None = None,
    memory: int | str = "auto",
    fold: bool = True,
    stored: bool = False,
    retry_failures: bool = False,
    progress: bool | Callable[[], str] = True,
    backend: str = "auto",
) -> SearchResult:
    """Score n random members of a model on data and keep the best: the search of RandOpt.

    model: any nn.Module, or what `perturb` returned (its noise, precision and filters then count).
    data: (inputs, targets) batches in fixed order. predict(pm, inputs) returns a tensor [N, B, ...] or N
        lists of B answers (default: pm(inputs); a tuple is positional, a dict keyword arguments).
        score(predictions, targets) returns [N, B], higher is better; the mean is the member's score.
    n, sigma, seed, mirrored: member i is sample_member(seed, i, sigma, mirrored) for i < n, so a larger n
        extends a run.
    members: a range of indices within n to evaluate now (default all); parts of a run may share a store or be
        merged by `Store.absorb`.
    top_k: an int is a count, a float a share of the scored members.
    store: a results file (None: memory only). Members in it are not evaluated again; failed ones only if
        retry_failures.
    chunk: members at once (default: what is fastest within `memory`, bytes or "auto"); no result
        depends on it. fold, stored: as in `pm.members`.
    progress: whether to show a bar on a terminal; a function gives a text for it, such as another rate.
    A member whose evaluation raises or gives NaN is a failure, and the others go on; an error of the base
    model, which is scored first by the same code, is raised. ValueError, TypeError or StoreError names the
    argument at fault.
    """
    sigmas = check_sigmas(sigma)
    check_integer(n, "n", 1)
    check_integer(seed, "seed", 0, SEEDS)
    check_top_k(top_k, n)
    check_chunking(chunk, memory)
    wanted = range(n) if members is None else members
    if not isinstance(wanted, range) or (len(wanted) and not (min(wanted) >= 0 and max(wanted) < n)):
        raise ValueError(f"members must be a range within [0, n={n}), got {members!r}")
    batches = as_batches(data)
    pm = _perturbed(model, noise, precision, include, exclude, backend)
    evaluator = Evaluator(pm, call if predict is None else predict, fold, stored)
    run = {
        "contract": CONTRACT_VERSION,
        "base": pm.fingerprint,
        "noise": str(pm.noise),
        "precision": pm.precision,
        "filters": pm.filters(),
        "seed": seed,
        "sigmas": sigmas,
        "mirrored": mirrored,
        "data": digest(batches),
        "score": _name(score),
        "predict": _name(evaluator.predict),
    }
    with Store(store, run) as file:
        file.ask(n)
        base = file.base() or _score_base(evaluator, batches, score, file)
        known = {record.index: record.score for record in file.records(0, n)}
        todo = [i for i in wanted if i not in known or (retry_failures and known[i] is None)]
        if todo:
            size = evaluator.size([inputs for inputs, _ in batches], chunk, memory)
            best = max((score for score in known.values() if score is not None), default=None)

            def waiting() -> Iterator[Member]:
                # The file is asked for each member in its turn: another process may have scored it by now.
                for i in todo:
                    if not file.indices(i, i + 1, failed=not retry_failures):
                        yield sample_member(seed, i, sigmas, mirrored)

            with Progress(len(wanted), len(wanted) - len(todo), best, show=progress) as bar:
                for outcome in run_in_chunks(
                    waiting(), lambda c: evaluator.examples(c, batches, score), size
                ):
                    records = _records(outcome)
                    file.add(records)
                    bar.add(records)
        found = tuple(file.records(0, n))
    return SearchResult(run, n, base, found, top_k, evaluator, score)


def _records(outcome: Outcome[Member, Tensor]) -> list[Record]:
    """The records of one chunk; a member whose score is not finite has failed."""
    seconds = outcome.seconds / len(outcome.items)
    if outcome.error is not None or outcome.result is None:
        text = f"{type(outcome.error).__name__}: {outcome.error}"[:1000]
        return [Record(m.index, m.seed, m.sigma, None, None, text, seconds) for m in outcome.items]
    records = []
    for m, examples in zip(outcome.items, outcome.result, strict=True):
        # fsum is exact, so that a mean does not depend on how it was summed; it raises on inf - inf.
        values = examples.tolist()
        mean = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
        if math.isfinite(mean):
            records.append(Record(m.index, m.seed, m.sigma, mean, examples.clone(), None, seconds))
        else:
            bad = next(value for value in values if not math.isfinite(value))
            text = f"the score of an example is {bad}"
            records.append(Record(m.index, m.seed, m.sigma, None, None, text, seconds))
    return records


def _score_base(evaluator: Evaluator, batches: list[Batch], score: Score, file: Store) -> Record:
    started = time.perf_counter()
    examples = evaluator.examples([BASE_MEMBER], batches, score)
    outcome = Outcome([BASE_MEMBER], examples, None, time.perf_counter() - started)
    (record,) = _records(outcome)
    if record.failure is not None:
        raise ValueError(f"score must be finite for the base model, but {record.failure}")
    file.add([record])
    return record


def _perturbed(
    model: nn.Module, noise: str | Family, precision: str, include: Any, exclude: Any, backend: str
) -> PerturbedModule:
    if not isinstance(model, PerturbedModule):
        return perturb(
            model, noise=noise, precision=precision, include=include, exclude=exclude, backend=backend
        )
    for name, given, default in (
        ("noise", str(noise), "normal"),
        ("precision", precision, "exact"),
        ("include", include, None),
        ("exclude", exclude, None),
        ("backend", backend, "auto"),
    ):
        if given not in (default, getattr(model, name)):
            raise ValueError(
                f"{name} must be left out for a model already perturbed with {getattr(model, name)!r},"
                f" got {given!r}"
            )
    return model


def check_top_k(k: Any, n: int | None = None) -> int | float:
    """ValueError unless k is a count >= 1, of at most n, or a float share in (0, 1]."""
    if isinstance(k, bool) or not isinstance(k, int | float):
        raise ValueError(f"top_k must be an int (a count) or a float (a share), got {k!r}")
    if isinstance(k, int) and k < 1:
        raise ValueError(f"top_k must be a count >= 1 or a float share in (0, 1], got {k}")
    if isinstance(k, float) and not 0 < k <= 1:
        raise ValueError(f"top_k must be a share in (0, 1] when it is a float, got {k}")
    if isinstance(k, int) and n is not None and k > n:
        raise ValueError(f"top_k must be at most n={n}, got {k}")
    return k


def check_sigmas(sigma: float | Sequence[float]) -> list[float]:
    """The set of sigmas, ascending; ValueError unless each is positive, finite and not lost in float32."""
    given = [sigma] if isinstance(sigma, int | float) else list(sigma)
    if not given:
        raise ValueError("sigma must hold at least one value, got none")
    for value in given:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not _MIN_SIGMA <= value <= _MAX_SIGMA
        ):
            raise ValueError(f"sigma must be positive and finite in float32, got {value!r}")
    sigmas = sorted(float(value) for value in given)
    if len(set(sigmas)) < len(sigmas):
        raise ValueError(f"sigma must not repeat a value, got {given}")
    return sigmas


def check_integer(value: Any, name: str, low: int, stop: int | None = None) -> None:
    """ValueError unless value is an integer in [low, stop)."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (stop is not None and value >= stop)
    ):
        bound = f"in [{low}, {stop})" if stop is not None else f">= {low}"
        raise ValueError(f"{name} must be an integer {bound}, got {value!r}")


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)
