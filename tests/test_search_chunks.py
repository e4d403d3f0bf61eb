"""Chunks of members, their memory, and the batches of data, without any model of ours."""

from pathlib import Path

import pytest
import torch

from thickets.randopt.batches import as_batches, digest
from thickets.randopt.chunks import ChunkSize, free_memory, memory_limit, out_of_memory, run_in_chunks

CPU = torch.device("cpu")


def run(items, evaluate, size):
    results, errors = {}, {}
    for outcome in run_in_chunks(items, evaluate, size):
        if outcome.error is None:
            results.update(zip(outcome.items, outcome.result, strict=True))
        else:
            (item,) = outcome.items
            errors[item] = str(outcome.error)
    return results, errors


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_every_item_once_and_in_order(chunk):
    seen = []

    def evaluate(items):
        seen.extend(items)
        return [i * i for i in items]

    results, errors = run(iter(range(20)), evaluate, ChunkSize(chunk))
    assert seen == list(range(20))
    assert results == {i: i * i for i in range(20)}
    assert not errors


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_one_bad_item_takes_no_other_with_it(chunk):
    def evaluate(items):
        if 5 in items or 6 in items:
            raise ValueError("bad")
        return items

    results, errors = run(range(20), evaluate, ChunkSize(chunk))
    assert sorted(results) == [i for i in range(20) if i not in (5, 6)]
    assert errors == {5: "bad", 6: "bad"}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_running_out_of_memory_halves_the_chunks_to_come(error):
    sizes = []

    def evaluate(items):
        sizes.append(len(items))
        if len(items) > 3:
            raise error
        return items

    results, errors = run(range(20), evaluate, ChunkSize(16))
    assert sorted(results) == list(range(20))
    assert not errors
    assert sizes[:3] == [16, 8, 4]
    assert max(sizes[3:]) <= 4
    assert sizes.count(2) >= 8
    assert len(sizes) < 20


def test_real_allocations_that_fail_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes differ"))


def test_one_item_that_does_not_fit_ends_the_run():
    def evaluate(items):
        raise MemoryError

    with pytest.raises(MemoryError, match="smaller batches"):
        list(run_in_chunks(range(4), evaluate, ChunkSize(4)))


def test_ctrl_c_is_not_swallowed():
    def evaluate(items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_in_chunks(range(4), evaluate, ChunkSize(4)))


def adapted(limit, seconds_per_member, chunks=20):
    """The sizes of a run in which a member takes the given time at each size."""
    size, sizes = ChunkSize(None, limit), []
    for _ in range(chunks):
        sizes.append(size.now)
        size.adapt(size.now, size.now * seconds_per_member(size.now))
    return sizes


def test_the_size_doubles_while_that_pays():
    assert adapted(100, lambda size: 0.01 / size)[:6] == [4, 4, 8, 8, 16, 16]
    assert adapted(100, lambda size: 0.01 / size)[-1] == 64
    assert adapted(100, lambda size: 0.01)[-1] == 4  # no faster, and the scores come later
    assert adapted(100, lambda size: 0.01 * (size if size > 16 else 1 / size))[-1] == 16
    assert max(adapted(100, lambda size: 0.01 * (size if size > 16 else 1 / size))) == 32
    assert adapted(100, lambda size: 4.0 / size)[-1] == 4  # eight would be more than PATIENCE
    assert adapted(3, lambda size: 0.01)[-1] == 3


def test_a_short_last_chunk_says_nothing_of_the_size():
    size = ChunkSize(None, 100)
    for _ in range(5):
        size.adapt(3, 0.001)
    assert size.now == 4


def test_a_fixed_size_only_gives_way_to_memory():
    size = ChunkSize(6)
    size.adapt(6, 100.0)
    size.adapt(6, 0.001)
    assert size.now == 6
    size.shrink(6)
    assert (size.now, size.limit) == (3, 3)


def test_the_memory_of_one_run_is_its_peak():
    weight = torch.randn(64, 1000)

    def run_one():
        x = torch.ones(250, 64) @ weight  # 1 MB, beside operands of 64 kB that are gone before the next line
        y = x.view(-1).view(250, 1000).relu()  # 2 MB with x, which the views share
        del x
        return y.exp()  # 2 MB again

    assert memory_limit(run_one, 100_000_000, CPU) == 50
    assert memory_limit(run_one, 100_000_000, CPU, besides=3_000_000) == 20
    assert memory_limit(run_one, 1, CPU) == 1


def test_free_memory_is_a_sane_number():
    assert 2**20 < free_memory(CPU) < 2**50


@pytest.mark.parametrize(("limit", "free"), [("max", 5000 * 2**10), ("3000", 3000 - 900 + 800)])
def test_files_that_the_system_keeps_in_memory_count_as_free(monkeypatch, limit, free):
    files = {
        "/proc/meminfo": "MemFree: 10 kB\nMemAvailable:    5000 kB\nHugePages_Total: 0\n",
        "/sys/fs/cgroup/memory.max": limit,
        "/sys/fs/cgroup/memory.current": "900\n",
        "/sys/fs/cgroup/memory.stat": "anon 100\ninactive_file 800\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: files[str(path)])
    assert free_memory(CPU) == free


def test_batches_come_as_a_list_and_a_generator_is_read_once():
    pairs = [(torch.zeros(2), 1), [torch.ones(2), 2]]
    assert [y for _, y in as_batches(pairs)] == [1, 2]
    assert [y for _, y in as_batches(pair for pair in pairs)] == [1, 2]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(2, 2), TypeError, "data must be an iterable of .inputs, targets. batches, got Tensor"),
        (3, TypeError, "got int"),
        ((torch.zeros(4, 2), torch.zeros(4)), TypeError, "item 0 is Tensor; a single batch"),
        ([(1, 2, 3)], TypeError, "item 0 is tuple of 3"),
        ([], ValueError, "at least one"),
    ],
)
def test_bad_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        as_batches(data)


def test_the_digest_tells_data_apart():
    x = torch.arange(6.0)
    values = [
        [(x, 1)],
        [(x, 2)],
        [(x.reshape(2, 3), 1)],
        [(x.double(), 1)],
        [(x + 1e-7, 1)],
        [({"x": x}, 1)],
        [({"y": x}, 1)],
        [(x, "1")],
        [(x, None)],
        [(x, b"1")],
        [(x, [1])],
        [(x, 1), (x, 1)],
        [(x.bfloat16(), 1)],
        [(torch.empty(0), 1)],
        [(["a", "bc"], 1)],
        [(["ab", "c"], 1)],
    ]
    digests = [digest(value) for value in values]
    assert len(set(digests)) == len(values)


def test_the_digest_is_of_the_content():
    x = torch.arange(6.0)
    assert digest([(x, 1)]) == digest(((x.clone(), 1),))
    assert digest(x[::2]) == digest(x[::2].contiguous())
    assert digest(x.numpy()) == digest(x)
    assert digest(object()) == digest(object())  # an address is not content
    assert digest([(x, 1)]) == "0c538bfeeb615f72f1c2bcb359e4572e"  # the same on every machine, always
