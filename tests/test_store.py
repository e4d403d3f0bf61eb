"""The results file: durable, owned by one run, never written twice, refused when it is something else."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from thickets.randopt.store import BASE, Record, Store, StoreError

RUN = {"base": "abc", "seed": 7, "sigmas": [0.001, 0.002], "mirrored": False, "filters": {"include": None}}


def record(index: int, score: float | None = 0.5, **change) -> Record:
    examples = None if score is None else torch.tensor([score, score])
    failure = "ValueError: bad" if score is None else None
    return replace(Record(index, 10 + index, 0.001, score, examples, failure, 0.25), **change)


def same(a: Record, b: Record) -> bool:
    others = all(getattr(a, f.name) == getattr(b, f.name) for f in fields(Record) if f.name != "examples")
    return others and (a.examples is b.examples is None or a.examples.equal(b.examples))


def test_records_come_back_as_they_went_in(tmp_path):
    path = tmp_path / "run.sqlite"
    written = [record(0), record(1, None), record(2, seed=2**64 - 1, sigma=-0.002), record(3, seed=2**63)]
    with Store(path, RUN) as store:
        store.add(written)
        store.add([record(BASE, 0.25, seed=0, sigma=0.0)])
    with Store(path, RUN) as store:
        assert all(same(a, b) for a, b in zip(store.records(0, 10), written, strict=True))
        assert store.base().score == 0.25
        assert store.indices(0, 10) == {0, 1, 2, 3}
        assert store.indices(0, 10, failed=False) == {0, 2, 3}
        assert store.indices(1, 3) == {1, 2}
        assert store.run == RUN


def test_a_score_is_never_stored_twice_and_a_failure_gives_way(tmp_path):
    with Store(tmp_path / "run.sqlite", RUN) as store:
        store.add([record(0, 0.5), record(1, None)])
        store.add([record(0, 0.9), record(1, 0.7)])
        store.add([record(0, None), record(1, None)])
        assert [r.score for r in store.records(0, 2)] == [0.5, 0.7]


def test_the_file_is_in_wal_mode_and_commits_wait_for_the_disk(tmp_path):
    with Store(tmp_path / "run.sqlite", RUN) as store:
        pragma = store._connection.execute
        assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
        assert pragma("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_without_a_path_results_stay_in_memory():
    with Store(None, RUN) as store:
        store.add([record(0)])
        assert store.indices(0, 1) == {0}


def test_the_largest_n_is_remembered(tmp_path):
    with Store(tmp_path / "run.sqlite", RUN) as store:
        store.ask(100)
        store.ask(50)
        assert store.asked == 100


@pytest.mark.parametrize("key", ["base", "sigmas", "filters"])
def test_another_run_is_refused_by_the_name_of_what_differs(tmp_path, key):
    path = tmp_path / "run.sqlite"
    Store(path, RUN).close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"holds another run: {key}: file .*, this run 'other'$"):
        Store(path, RUN | {key: "other"})
    assert path.read_bytes() == before


def test_what_is_not_a_results_file_is_left_untouched(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("precious")
    with pytest.raises(StoreError, match="is not a SQLite file"):
        Store(text, RUN)
    assert text.read_text() == "precious"

    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE precious (x)")
    before = foreign.read_bytes()
    with pytest.raises(StoreError, match="another application"):
        Store(foreign, RUN)
    assert foreign.read_bytes() == before

    corrupt = tmp_path / "corrupt.sqlite"
    corrupt.write_bytes(b"SQLite format 3\0" + b"\1" * 5000)
    with pytest.raises(StoreError, match=r"corrupt.sqlite"):
        Store(corrupt, RUN)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["corrupt.sqlite", "foreign.sqlite", "notes.txt"]


def test_another_layout_version_is_refused(tmp_path):
    path = tmp_path / "run.sqlite"
    with Store(path, RUN) as store:
        store._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="layout version 99"):
        Store(path, RUN)


def test_paths_that_cannot_hold_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in [
        (tmp_path, "is not a file"),
        (tmp_path / "nowhere" / "run.sqlite", "is not a directory"),
        (tmp_path / "file" / "run.sqlite", "is not a directory"),
        (
            "/proc/run.sqlite",
            "unable to open|is not a directory",
        ),  # no one, not even root, may make a file there
    ]:
        with pytest.raises(StoreError, match=message):
            Store(path, RUN)


def test_reading_needs_a_file_and_writes_nothing(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        Store(tmp_path / "run.sqlite")
    assert not list(tmp_path.iterdir())
    with Store(tmp_path / "run.sqlite", RUN) as store:
        store.add([record(0)])
        with Store(tmp_path / "run.sqlite") as reader:  # while another writes
            assert reader.indices(0, 1) == {0}
            with pytest.raises(StoreError, match=r"readonly.+must be writable"):
                reader.add([record(1)])
    with pytest.raises(StoreError, match="readonly"):
        Store(tmp_path / "run.sqlite").ask(5)


@contextmanager
def as_nobody():
    """Run as a user whom permissions bind, if we are root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_read_only_folder_can_be_read_but_not_written():
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "run.sqlite"
        with Store(path, RUN) as store:
            store.add([record(0)])
        path.chmod(0o444)
        folder.chmod(0o555)
        try:
            with as_nobody():
                for wanted in (path, folder / "new.sqlite"):
                    with pytest.raises(StoreError, match=r"the file and its folder must be writable"):
                        Store(wanted, RUN)
                with Store(path) as reader:
                    assert reader.indices(0, 10) == {0}
        finally:
            folder.chmod(0o755)
        assert [p.name for p in folder.iterdir()] == ["run.sqlite"]


def test_a_full_database_keeps_what_it_has_and_says_so(tmp_path):
    path = tmp_path / "run.sqlite"
    with Store(path, RUN) as store:
        store.add([record(0)])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"full; free some space"):
            store.add([record(i, examples=torch.zeros(5000)) for i in range(1, 9)])
        assert store.indices(0, 10) == {0}
    with Store(path, RUN) as store:
        assert store.indices(0, 10) == {0}
        store.add([record(1)])


def test_a_disk_that_takes_no_more_bytes(tmp_path):
    """The limit on file sizes makes write() itself fail, as a full disk does."""
    path = tmp_path / "run.sqlite"
    with Store(path, RUN) as store:
        store.add([record(0)])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            with pytest.raises(StoreError, match=r"run\.sqlite"):
                store.add([record(i, examples=torch.zeros(20_000)) for i in range(1, 4)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert store.indices(0, 10) == {0}
        store.add([record(1)])
        assert store.indices(0, 10) == {0, 1}


def test_quotes_in_values_are_values(tmp_path):
    nasty = "'); DROP TABLE members; --"
    with Store(tmp_path / "run.sqlite", RUN | {"score": nasty}) as store:
        store.add([record(0, None, failure=nasty)])
        assert store.records(0, 1)[0].failure == nasty
        assert store.run["score"] == nasty


def test_parts_of_a_run_are_put_together(tmp_path):
    with Store(tmp_path / "a.sqlite", RUN) as a, Store(tmp_path / "b.sqlite", RUN) as b:
        a.add([record(0, 0.1), record(1, 0.2)])
        b.add([record(1, 0.9), record(2, 0.3)])
        a.absorb(tmp_path / "b.sqlite")
        assert [r.score for r in a.records(0, 5)] == [0.1, 0.2, 0.3]
    Store(tmp_path / "c.sqlite", RUN | {"seed": 8}).close()
    with Store(tmp_path / "a.sqlite", RUN) as a, pytest.raises(StoreError, match="another run: seed"):
        a.absorb(tmp_path / "c.sqlite")


def test_a_process_killed_while_it_commits_leaves_whole_chunks(tmp_path):
    path = tmp_path / "run.sqlite"
    code = textwrap.dedent(f"""
        import os, signal
        from thickets.randopt.store import Record, Store
        import torch
        store = Store({os.fspath(path)!r}, {RUN!r})
        def chunk(first):
            return [Record(i, i, 0.1, 0.5, torch.zeros(9000), None, 0.0) for i in range(first, first + 50)]
        store.add(chunk(0))
        store._connection.set_trace_callback(
            lambda sql: os.kill(os.getpid(), signal.SIGKILL) if sql == "COMMIT" else None)
        store.add(chunk(50))
    """)
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with Store(path, RUN) as store:
        assert store.indices(0, 1000) == set(range(50))
        store.add([record(50)])


def test_several_processes_share_a_new_file(tmp_path):
    """Three processes make the file at once and write overlapping members: each is there once, none fails."""
    path = tmp_path / "run.sqlite"
    code = textwrap.dedent(f"""
        import sys
        from thickets.randopt.store import Record, Store
        import torch
        sys.stdin.readline()
        with Store({os.fspath(path)!r}, {RUN!r}) as store:
            for i in range(int(sys.argv[1]), int(sys.argv[1]) + 20):
                store.add([Record(i, i, 0.1, float(sys.argv[1]), torch.zeros(2), None, 0.0)])
    """)
    starts = (0, 10, 20)
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(start)], stdin=subprocess.PIPE) for start in starts
    ]
    for worker in workers:
        worker.stdin.write(b"\n")
        worker.stdin.close()
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    with Store(path, RUN) as store:
        records = store.records(0, 100)
        assert [r.index for r in records] == list(range(40))
        assert all(r.score in starts and r.score <= r.index < r.score + 20 for r in records)
