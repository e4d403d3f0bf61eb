"""The noise contract, bit by bit: known answers, test vectors, slices, each family against its definition."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_sources import FAMILIES, SOURCES, Source, bit_patterns, every_family, every_source, stream
from oracle import assert_same_noise, own_normals
from torch import Tensor

from thickets import noise as contract
from thickets.boxmuller import box_muller, sqrt32
from thickets.noise import Family, Stream, entries, family, fma32, parameter_id, philox4x32_10

SEED = 0x123456789ABCDEF0
NAME = "model.layers.0.mlp.up_proj.weight"


def words(seed: int, name: str, number: int, row: int, block: int) -> list[int]:
    """The four words of one Philox call, by the table of section 2."""
    identity = parameter_id(name)
    c3 = number + 8 * ((identity >> 32) & 0x1FFFFFFF)
    counter = (block, row, identity & 0xFFFFFFFF, c3)
    drawn = philox4x32_10(*(torch.tensor(w) for w in (*counter, seed & 0xFFFFFFFF, seed >> 32)))
    return [int(w) for w in drawn]


def signs(seed: int, name: str, number: int, row: int, count: int) -> Tensor:
    """`count` signs of the bits of consecutive Philox calls, as section 3 and 5 spell them."""
    calls = [words(seed, name, number, row, block) for block in range(-(-count // 128))]
    bits = [calls[i >> 7][(i >> 5) & 3] >> (i & 31) & 1 for i in range(count)]
    return 1.0 - 2.0 * torch.tensor(bits, dtype=torch.float64)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, answer: str) -> None:
    drawn = philox4x32_10(*(torch.tensor(int(w, 16)) for w in (counter + " " + key).split()))
    assert [int(w) for w in drawn] == [int(w, 16) for w in answer.split()]


def test_words_of_the_contract_vector() -> None:
    drawn = words(SEED, NAME, 0, 3, 0) + words(SEED, NAME, 0, 3, 1)
    expected = "57792af8 48a3157d 67b5853d 1b6a29d1 a68b8199 34428d2d 34944239 ae2cfb95"
    assert drawn == [int(w, 16) for w in expected.split()]


# Section 6; nine digits name a float32, so every backend on a CPU gives exactly these.
FIRST = {
    "normal": "-0.308342338 1.4326942 1.05131102 0.837807298 "
    "0.263504297 0.889038742 -0.753782034 -1.61168516",
    "normal4": "-0.3671875 0.21484375 -0.3671875 -2.125 0.3671875 -2.125 0.07080078125 -0.9453125",
    "rademacher": "-1 1 1 1 1 1 1 1 1 -1 -1 -1 -1 1 -1 1",
    "hadamard": "1.9375 -1.5625 -0.9375 0.3125 0.4375 -0.3125 -0.6875 0.6875",
    "lowrank-2": "-0.428341955 1.14771056 0.47258237 0.399755806 1.14045 0.170405403 0.173483178 0.462786585",
}
SECOND = {
    "normal": "-1.31975889 0.00469859224 0.454354495 1.39068449 "
    "0.622897506 -0.0259196162 0.231020212 -0.26816678",
    "normal4": "0.9453125 2.125 -0.53515625 -2.125 -0.3671875 2.125 0.71875 -0.71875",
    "rademacher": "1 1 1 -1 1 1 1 -1",
    "hadamard": "-1.09375 -1.96875 -0.34375 -0.40625 0.46875 0.28125 -0.46875 0.28125",
    "lowrank-5": "0.151943699 0.844490886 1.96045637 1.97606397 "
    "-0.172044203 2.03411579 2.19316959 -0.120452456",
}


@every_source
@pytest.mark.parametrize("noise", FIRST)
def test_first_vectors_of_the_contract(source: Source, noise: str) -> None:
    expected = torch.tensor([float(v) for v in FIRST[noise].split()])
    got = source.noise([SEED], stream(NAME, noise, row=3), 1, len(expected))
    assert_same_noise(got[0, 0], expected, source.backend, noise)
    assert contract.CONTRACT_VERSION == 1  # other vectors, another version


@every_source
@pytest.mark.parametrize("noise", SECOND)
def test_second_vectors_of_the_contract(source: Source, noise: str) -> None:
    expected = torch.tensor([float(v) for v in SECOND[noise].split()])
    got = source.noise([2**64 - 1], stream("weight", noise, row=300, col=126, full_cols=200), 1, 8)
    assert_same_noise(got[0, 0], expected, source.backend, noise)


@pytest.mark.parametrize(("noise", "vector"), [*FIRST.items(), *SECOND.items()])
def test_the_documentation_has_the_vectors(noise: str, vector: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / "noise.md").read_text(encoding="utf-8")
    assert any(noise in line and vector in line for line in text.splitlines())


@every_source
@every_family
def test_every_backend_has_the_bits_of_the_definition(source: Source, noise: str) -> None:
    seeds = [0, 1, SEED, 2**63, 2**64 - 1]
    for rows, cols in [(1, 1), (3, 63), (130, 129), (7, 260)]:
        where = stream("layers.1.weight", noise, row=5, full_cols=300)
        got = source.noise(seeds, where, rows, cols)
        expected = entries(bit_patterns(seeds), where, rows, cols)
        assert_same_noise(got, expected, source.backend, noise, (rows, cols))


@pytest.mark.parametrize("source", [s for s in SOURCES if own_normals(s.backend, "normal")], ids=str)
def test_a_million_normals_of_the_special_function_unit(source: Source) -> None:
    """Section 4's bounds, in the emulator under errors as large as PTX allows."""
    where = stream(NAME, "normal")
    got, expected = source.noise([SEED], where, 512, 2048), entries(bit_patterns([SEED]), where, 512, 2048)
    assert not torch.equal(got, expected), "these are the exact form's bits"
    assert_same_noise(got, expected, source.backend, "normal")


@every_source
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    noise=st.sampled_from(FAMILIES),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 280)),
    base=st.sampled_from([0, 1, 126, 2**31, 2**32 - 20]),
    data=st.data(),
)
def test_a_slice_equals_the_slice_of_the_whole(source: Source, noise: str, shape, base: int, data) -> None:
    rows, cols = shape
    r = data.draw(st.integers(0, rows - 1))
    c = data.draw(st.integers(0, cols - 1))
    height, width = data.draw(st.integers(1, rows - r)), data.draw(st.integers(1, cols - c))
    whole = source.noise([SEED], stream(NAME, noise, row=base, full_cols=cols), rows, cols)
    part = source.noise([SEED], stream(NAME, noise, base + r, c, full_cols=cols), height, width)
    assert torch.equal(part, whole[:, r : r + height, c : c + width])


@every_source
@pytest.mark.parametrize(("noise", "size"), [("normal", 4), ("normal4", 32), ("rademacher", 128)])
def test_a_slice_at_the_last_columns_that_32_bits_can_count(source: Source, noise: str, size: int) -> None:
    end = size << 32
    whole = source.noise([SEED], stream(NAME, noise, col=end - 300), 2, 300)
    part = source.noise([SEED], stream(NAME, noise, row=1, col=end - 131), 1, 131)
    assert torch.equal(part, whole[:, 1:, -131:])


@every_family
def test_members_are_generated_alike_together_and_alone(noise: str) -> None:
    seeds = bit_patterns(range(5))
    where = stream(NAME, noise, row=2, col=3)
    together = entries(seeds, where, 9, 140)
    for n, seed in enumerate(seeds.split(1)):
        assert torch.equal(entries(seed, where, 9, 140)[0], together[n])


@every_family
def test_the_size_of_chunks_leaves_no_trace(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, where = bit_patterns([3, 4]), stream(NAME, noise, row=120, col=5)
    whole = entries(seeds, where, 40, 200)
    monkeypatch.setattr(contract, "_CHUNK", 384)
    assert torch.equal(entries(seeds, where, 40, 200), whole)


@pytest.mark.parametrize(("members", "rows", "cols"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@every_family
def test_empty_slices(noise: str, members: int, rows: int, cols: int) -> None:
    got = entries(torch.zeros(members, dtype=torch.int64), stream(NAME, noise), rows, cols)
    assert got.shape == (members, rows, cols)
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("", "e4a6a0577479b2b4"),
        ("weight", "467271dc3e2ee084"),
        (NAME, "e5f120f4ba655b34"),
        ("blöck.0.wéight", "590042b9d0ce0189"),
    ],
)
def test_parameter_id_is_blake2b_read_little_endian(name: str, digest: str) -> None:
    assert parameter_id(name) == int.from_bytes(bytes.fromhex(digest), "little")  # digests by `b2sum -l 64`
    assert stream(name, "normal").id == parameter_id(name)


@pytest.mark.parametrize("text", FAMILIES)
def test_families_print_as_they_are_parsed(text: str) -> None:
    parsed = family(text)
    assert str(parsed) == text
    assert family(parsed) == parsed
    assert parsed.dense == (text in ("normal", "normal4", "rademacher"))
    assert parsed.for_vector() == (parsed if parsed.dense else Family("normal"))


WRONG_FAMILIES = "Normal gauss lowrank lowrank-0 lowrank--1 lowrank-04 lowrank4 hadamard-2"


@pytest.mark.parametrize(
    "wrong",
    [*WRONG_FAMILIES.split(), "", "lowrank-4 ", 4, None, Family("lowrank"), Family("cauchy")],
)
def test_an_unknown_family_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"noise must be 'normal', .* got "):
        family(wrong)


@pytest.mark.parametrize(
    ("where", "rows", "cols", "message"),
    [
        (stream(NAME, "normal", row=2**32 - 1), 2, 4, r"row \+ rows must be <= 2\*\*32, got 4294967297"),
        (stream(NAME, "normal", col=2**34 - 4), 1, 5, "full_cols must be <= 17179869184 for noise 'normal'"),
        (stream(NAME, "normal4", col=2**37 - 4), 1, 5, "full_cols must be <= 137438953472"),
        (stream(NAME, "rademacher", full_cols=2**39 + 1), 1, 5, "full_cols must be <= 549755813888"),
        (stream(NAME, "hadamard", full_cols=2**39 + 1), 1, 5, "full_cols must be <= 549755813888"),
        (stream(NAME, "lowrank-2", col=2**32), 1, 1, "full_cols must be <= 4294967296"),
        (stream(NAME, "normal", col=6, full_cols=10), 1, 5, r"full_cols must be >= col \+ cols = 11, got 10"),
        (stream(NAME, "normal", row=-1), 1, 1, r"must be >= 0, got -1, 0, 1, 1"),
        (stream(NAME, "normal", col=-1), 1, 1, r"must be >= 0, got 0, -1, 1, 1"),
        (stream(NAME, "normal"), 1, -1, r"must be >= 0, got 0, 0, 1, -1"),
    ],
)
def test_a_slice_outside_of_the_contract_is_refused(
    where: Stream, rows: int, cols: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        entries(torch.zeros(1, dtype=torch.int64), where, rows, cols)


@pytest.mark.parametrize("seeds", [torch.zeros(2), torch.zeros((), dtype=torch.int64)])
def test_seeds_of_another_kind_are_refused(seeds: Tensor) -> None:
    with pytest.raises(ValueError, match=r"seeds must be an int64 tensor \[N\], got"):
        entries(seeds, stream(NAME, "normal"), 1, 1)


@every_source
def test_a_negative_int64_is_the_bit_pattern_of_a_large_seed(source: Source) -> None:
    got = source.noise([2**64 - 1], stream(NAME, "rademacher", row=7), 1, 200)[0, 0]
    assert torch.equal(got.double(), signs(2**64 - 1, NAME, 2, 7, 200))
    got = source.noise([2**63 + 5], stream(NAME, "rademacher", row=7), 1, 200)[0, 0]
    assert torch.equal(got.double(), signs(2**63 + 5, NAME, 2, 7, 200))


@every_source
@every_family
def test_parameters_of_equal_shape_share_no_noise(source: Source, noise: str) -> None:
    one = source.noise([SEED], stream("blocks.0.weight", noise), 64, 128)
    other = source.noise([SEED], stream("blocks.1.weight", noise), 64, 128)
    equal = (one == other).double().mean().item()
    chance = {"rademacher": 1 / 2, "normal4": 1 / 16}.get(noise, 0.08 if noise == "hadamard" else 0.0)
    assert equal <= chance + 0.06  # 8192 entries: ten standard deviations and more


def normal4_levels() -> Tensor:
    positive = torch.tensor(contract.MAGNITUDES, dtype=torch.float64)
    return torch.cat((positive, -positive))


def test_normal4_levels_by_enumeration() -> None:
    levels = normal4_levels()
    assert torch.equal(levels.bfloat16().double(), levels)
    assert levels.mean() == 0
    assert levels.square().mean().item() == pytest.approx(1.000005, abs=5e-7)
    kurtosis = levels.pow(4).mean() / levels.square().mean() ** 2
    assert kurtosis.item() == pytest.approx(3.016, abs=5e-4)


@every_source
def test_normal4_decodes_the_bits_that_the_contract_names(source: Source) -> None:
    got = source.noise([SEED], stream(NAME, "normal4", row=9), 1, 64)[0, 0]
    expected = []
    for word in words(SEED, NAME, 1, 9, 0) + words(SEED, NAME, 1, 9, 1):
        for i in range(8):
            sign_bit = 8 * i + 7 if i < 4 else 8 * (i - 4) + 3
            magnitude = contract.MAGNITUDES[(word >> (4 * i)) & 7]
            expected.append(-magnitude if (word >> sign_bit) & 1 else magnitude)
    assert got.tolist() == expected


def round_to_float32(exact: Fraction) -> float:
    """The float32 nearest to a rational number, ties to even, subnormals included."""
    if exact == 0:
        return 0.0
    exponent = math.frexp(float(exact))[1] - 24
    ulp = Fraction(2) ** max(exponent, -149)
    return float(round(exact / ulp) * ulp)


def test_fma32_rounds_once() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b, c = torch.randn(3, 4000, generator=generator)
    c[1000:2000] = -(a * b)[1000:2000]  # cancels to the rounding error of the product
    c[2000:] *= 2.0 ** torch.randint(-60, 61, (2000,), generator=generator)
    # 2^-24 (1 - 2^-30) on top of 1 + k 2^-23 lies just below the middle of two float32: rounding to float64
    # first makes it the middle itself, which rounds up for odd k.
    beside = (torch.tensor(2.0**-12 * (1 + 2.0**-15)), torch.tensor(2.0**-12 * (1 - 2.0**-15)))
    tiny = (torch.tensor(1e-38), torch.tensor(1e-3))
    a = torch.cat((a, beside[0].expand(8), tiny[0].expand(9)))
    b = torch.cat((b, beside[1].expand(8), tiny[1].expand(9)))
    c = torch.cat((c, 1 + 2.0**-23 * torch.arange(8), torch.linspace(-1e-41, 1e-41, 9)))
    triples = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    exact = [round_to_float32(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in triples]
    assert fma32(a, b, c).tolist() == exact
    twice = (a.double() * b.double() + c.double()).float().tolist()
    assert twice != exact  # the cases reach what the round-to-odd step is for


def test_sqrt32_is_correctly_rounded() -> None:
    x = torch.rand(20000, generator=torch.Generator().manual_seed(6)) * 44
    root = sqrt32(x)
    below, above = (
        ((root.double() + root.nextafter(to).double()) / 2).tolist() for to in torch.tensor([0.0, 9.0])
    )
    for value, low, high in zip(x.tolist(), below, above, strict=True):
        assert Fraction(low) ** 2 < Fraction(value) < Fraction(high) ** 2


def test_fma32_keeps_special_values_and_the_sign_of_zero() -> None:
    inf, nan = math.inf, math.nan
    a, b = torch.tensor([inf, -inf, 1.0, 1.0, nan, inf]), torch.tensor([1.0, 1.0, 2.0, 2.0, 1.0, 0.0])
    got = fma32(a, b, torch.tensor([1.0, 1.0, -inf, nan, 0.0, 1.0]))
    torch.testing.assert_close(
        got, torch.tensor([inf, -inf, -inf, nan, nan, nan]), rtol=0, atol=0, equal_nan=True
    )
    zeros = fma32(
        torch.tensor([-0.0, 0.0, -1.0]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([-0.0, -0.0, 0.0])
    )
    assert torch.signbit(zeros).tolist() == [True, False, False]


def probing_words() -> tuple[Tensor, Tensor]:
    """Word pairs for Box-Muller: random ones, and all pairs of those around powers of two and octants."""
    generator = torch.Generator().manual_seed(11)
    random = torch.randint(0, 2**32, (2, 1 << 17), generator=generator)
    steps = torch.arange(-3, 4)
    powers = (2 ** torch.arange(1, 33))[:, None] + steps
    octants = ((2**29) * torch.arange(0, 9))[:, None] + steps
    special = torch.cat((powers.flatten(), octants.flatten(), torch.tensor([0])))
    special = special[(special >= 0) & (special < 2**32)].unique()
    pairs = torch.cartesian_prod(special, special)
    return torch.cat((random[0], pairs[:, 0])), torch.cat((random[1], pairs[:, 1]))


def test_normals_are_the_box_muller_transform_within_the_stated_bounds() -> None:
    w_a, w_b = probing_words()
    z = torch.stack(box_muller(w_a, w_b)).double()
    odd = (w_a >> 1) | 1
    theta = 2 * math.pi * w_b.double() * 2.0**-32

    def exact(u: Tensor) -> Tensor:
        r = (-2 * u.log()).sqrt()
        return torch.stack((r * theta.cos(), r * theta.sin()))

    rounded_u = exact(odd.float().double() * 2.0**-31)
    error = (z - rounded_u).abs()
    ulp = 2.0 ** (torch.frexp(rounded_u)[1].double() - 24)
    large = rounded_u.abs() > 0.01
    assert (error / ulp)[large].max() <= 6.1
    assert error[~large].max() <= 6.1 * 2.0**-30  # ulps of 0.01
    assert (z - exact(odd.double() * 2.0**-31)).abs().max() <= 2.5e-4
    assert z.abs().max() <= 6.56


def sylvester(n: int) -> Tensor:
    """H by its Kronecker product, entries +-1."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), h)
    return h


@every_source
@pytest.mark.parametrize(
    ("rows", "cols", "n"), [(5, 3, 128), (128, 128, 128), (300, 129, 256), (260, 100, 128)]
)
def test_hadamard_is_the_dense_product_of_its_factors(source: Source, rows: int, cols: int, n: int) -> None:
    h = sylvester(n)
    d3 = torch.diag(signs(SEED, NAME, 7, 0, n))
    blocks = []
    for block in range(-(-rows // n)):
        d1, d2 = (torch.diag(signs(SEED, NAME, number, block, n)) for number in (5, 6))
        blocks.append(h @ d1 @ h @ d2 @ h @ d3 / n)
    expected = torch.cat(blocks)[:rows, :cols]
    assert torch.equal(source.noise([SEED], stream(NAME, "hadamard"), rows, cols)[0].double(), expected)


@every_source
def test_a_full_square_of_hadamard_noise_is_orthogonal(source: Source) -> None:
    eps = source.noise([SEED], stream(NAME, "hadamard", row=256), 256, 256)[0].double()
    assert torch.equal(eps @ eps.T, 256 * torch.eye(256, dtype=torch.float64))


@every_source
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_lowrank_is_a_product_of_two_normal_factors(source: Source, rank: int) -> None:
    rows, cols = 20, 33
    eps = source.noise([SEED], stream(NAME, f"lowrank-{rank}", row=4, col=9), rows, cols)[0]

    def factor(number: int, first: int, count: int) -> Tensor:
        lines = []
        for line in range(first, first + count):
            calls = [words(SEED, NAME, number, line, block) for block in range(-(-rank // 4))]
            pairs = torch.tensor(calls).view(-1, 2)
            lines.append(torch.stack(box_muller(pairs[:, 0], pairs[:, 1]), dim=-1).flatten()[:rank])
        return torch.stack(lines)

    a, b = factor(3, 4, rows), factor(4, 9, cols)
    chain = torch.zeros(rows, cols)
    for k in range(rank):
        chain = fma32(a[:, k, None], b[:, k], chain)
    assert torch.equal(eps, chain * torch.tensor(1 / math.sqrt(rank), dtype=torch.float32))
    torch.testing.assert_close(eps.double(), a.double() @ b.double().T / math.sqrt(rank), rtol=0, atol=2e-6)
    assert torch.linalg.matrix_rank(eps.double(), rtol=1e-5) == rank
