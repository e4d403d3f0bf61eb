"""The results of one run in one SQLite file: each score is on disk the moment it exists.

The file is in WAL mode with synchronous=FULL: every chunk of scores is one transaction whose commit waits for
the disk. WAL alone outlives kill -9; FULL also outlives a power cut, for one fsync per chunk (milliseconds
beside the chunk's evaluation). A file belongs to one run: model, noise, data, master seed and sigmas are
written into it, and another run is refused. Several processes may share it, each with its own members; the
first score of a member stays. SQLite's WAL needs a local disk, not a network file system.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

BASE = -1  # the index under which the base model's own score lies
SCHEMA_VERSION = 1
APPLICATION_ID = 0x7468636B  # "thck", in the file's header
BUSY_SECONDS = 30.0

_SCHEMA = (
    "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE asked (n INTEGER NOT NULL)",
    "INSERT INTO asked VALUES (0)",
    """CREATE TABLE members (
        number INTEGER PRIMARY KEY CHECK (number >= -1),
        seed INTEGER NOT NULL,
        sigma REAL NOT NULL,
        score REAL,
        examples BLOB,
        failure TEXT,
        seconds REAL NOT NULL,
        CHECK ((score IS NULL) = (examples IS NULL)),
        CHECK ((score IS NULL) <> (failure IS NULL)))""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class StoreError(RuntimeError):
    """A results file that cannot be read, written or used for this run."""


@dataclass(frozen=True, eq=False)
class Record:
    """One evaluated member: a score with its per-example scores (float32 [B]), or the text of its failure."""

    index: int
    seed: int
    sigma: float
    score: float | None
    examples: Tensor | None
    failure: str | None
    seconds: float

    @property
    def value(self) -> float:
        """The score, where there is one; ValueError for a member that failed."""
        if self.score is None:
            raise ValueError(f"member {self.index} has no score: {self.failure}")
        return self.score


class Store:
    """One run's results; `path` None keeps them in memory only.

    run: what the scores depend on, a flat dict of JSON values. A new file records it, an existing one must
    hold the same or StoreError names what differs. Without `run` the file must exist and is opened for
    reading.
    """

    def __init__(self, path: str | os.PathLike[str] | None, run: dict[str, Any] | None = None) -> None:
        self.path = ":memory:" if path is None else os.fspath(path)
        self._connection: sqlite3.Connection | None = None
        if path is not None:
            _check_file(Path(path), must_exist=run is None)
        try:
            self._connection = self._open(read_only=run is None)
            with self._errors():
                if run is not None:
                    self._begin_run(json.loads(json.dumps(run)))
                else:
                    self._check_schema()
        except BaseException:
            self.close()
            raise

    @property
    def run(self) -> dict[str, Any]:
        """What the file says of its run."""
        with self._errors() as connection:
            return {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM run")}

    @property
    def asked(self) -> int:
        """How many members have been asked for: the largest n of any search on this file."""
        with self._errors() as connection:
            return int(connection.execute("SELECT n FROM asked").fetchone()[0])

    def ask(self, n: int) -> None:
        """Note that members 0 .. n - 1 are wanted."""
        with self._errors() as connection:
            connection.execute("UPDATE asked SET n = max(n, ?)", (n,))

    def add(self, records: Iterable[Record]) -> None:
        """Write records in one transaction, durable on return; a member already scored keeps its score."""
        rows = [
            (r.index, _signed(r.seed), r.sigma, r.score, _pack(r.examples), r.failure, r.seconds)
            for r in records
        ]
        with self._errors() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            # A failure that is tried again and succeeds is replaced; a score never is.
            connection.executemany(
                "INSERT INTO members (number, seed, sigma, score, examples, failure, seconds)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (number) DO UPDATE SET score = excluded.score,"
                " examples = excluded.examples, failure = excluded.failure, seconds = excluded.seconds"
                " WHERE members.score IS NULL",
                rows,
            )

    def indices(self, start: int, stop: int, failed: bool = True) -> set[int]:
        """Indices in [start, stop) that were scored, and those that failed unless failed=False."""
        with self._errors() as connection:
            rows = connection.execute(
                "SELECT number FROM members WHERE number >= ? AND number < ? AND (? OR score IS NOT NULL)",
                (start, stop, failed),
            )
            return {index for (index,) in rows}

    def records(self, start: int, stop: int) -> list[Record]:
        """Records with index in [start, stop), in ascending order."""
        with self._errors() as connection:
            rows = connection.execute(
                "SELECT number, seed, sigma, score, examples, failure, seconds FROM members"
                " WHERE number >= ? AND number < ? ORDER BY number",
                (start, stop),
            )
            return [
                Record(index, _unsigned(seed), sigma, score, _unpack(examples), failure, seconds)
                for index, seed, sigma, score, examples, failure, seconds in rows
            ]

    def base(self) -> Record | None:
        """The base model's record, if it was scored."""
        return next(iter(self.records(BASE, BASE + 1)), None)

    def absorb(self, path: str | os.PathLike[str]) -> None:
        """Add the members of another file of the same run, as from a run split over machines."""
        with Store(path) as other:
            _check_same_run(self.run, other.run, other.path, self.path)
            self.add(other.records(BASE, 2**63 - 1))

    def close(self) -> None:
        """Close the file; the last to close it folds the WAL into it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self, read_only: bool) -> sqlite3.Connection:
        with self._errors():
            target = self.path
            if read_only:
                # Without a WAL and a folder to make one in, SQLite reads the file only as one that nobody
                # writes.
                closed = not os.path.exists(self.path + "-wal") and not _writable(Path(self.path).parent)
                target = Path(self.path).resolve().as_uri() + ("?immutable=1" if closed else "?mode=ro")
            # isolation_level None: transactions are begun here and nowhere else.
            connection = sqlite3.connect(target, timeout=BUSY_SECONDS, isolation_level=None, uri=read_only)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
            return connection

    @contextmanager
    def _errors(self) -> Iterator[Any]:
        try:
            yield self._connection
        except sqlite3.Error as error:
            raise StoreError(f"store {self.path!r}: {error}{_hint(error)}") from error

    def _begin_run(self, run: dict[str, Any]) -> None:
        connection = self._connection
        assert connection is not None
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._check_schema()
        self._set_wal()
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _SCHEMA:
                    connection.execute(statement)
                pairs = [(key, json.dumps(value)) for key, value in run.items()]
                connection.executemany("INSERT INTO run (key, value) VALUES (?, ?)", pairs)
        _check_same_run(run, self.run, self.path, "this run")

    def _set_wal(self) -> None:
        # SQLite does not wait for another process here, so wait ourselves.
        connection = self._connection
        assert connection is not None
        give_up = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def _check_schema(self) -> None:
        connection = self._connection
        assert connection is not None
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise StoreError(
                f"store {self.path!r} is a SQLite file of another application; it was left as it is"
            )
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"store {self.path!r} has layout version {version}, this thickets reads {SCHEMA_VERSION}"
            )


def _check_file(path: Path, must_exist: bool) -> None:
    """Refuse what is not a results file before SQLite touches it."""
    try:
        if not path.exists():
            if must_exist:
                raise StoreError(f"store {str(path)!r} does not exist")
            if not path.parent.is_dir():
                raise StoreError(f"store {str(path)!r}: {str(path.parent)!r} is not a directory")
            return
        if not path.is_file():
            raise StoreError(f"store {str(path)!r} is not a file")
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise StoreError(f"store {str(path)!r} cannot be read: {error.strerror}") from error
    if start != b"SQLite format 3\0" and (start or must_exist):
        raise StoreError(f"store {str(path)!r} is not a SQLite file; it was left as it is")


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _check_same_run(run: dict[str, Any], other: dict[str, Any], file: str, name: str) -> None:
    different = [key for key in [*run, *other.keys() - run.keys()] if run.get(key) != other.get(key)]
    if different:
        list_ = "; ".join(f"{key}: file {other.get(key)!r}, {name} {run.get(key)!r}" for key in different)
        raise StoreError(f"store {file!r} holds another run: {list_}")


def _hint(error: sqlite3.Error) -> str:
    text = str(error)
    if "full" in text:
        return "; free some space and run again, scores stored so far are kept"
    if "readonly" in text or "unable to open" in text:
        return "; the file and its folder must be writable"
    if "locked" in text:
        return f"; another process has been writing for more than {BUSY_SECONDS:.0f} s"
    return ""


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


def _unsigned(seed: int) -> int:
    return seed % 2**64


def _pack(examples: Tensor | None) -> bytes | None:
    return None if examples is None else examples.numpy().astype("<f4").tobytes()


def _unpack(blob: bytes | None) -> Tensor | None:
    return None if blob is None else torch.from_numpy(numpy.frombuffer(blob, "<f4").astype(numpy.float32))
