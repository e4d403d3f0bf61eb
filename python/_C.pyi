# The native module, compiled from csrc/bindings.cpp; thickets.backends.cpu is its only caller.

Noise = tuple[int, int, int, int, int, int]  # family, rank, parameter id, row, col, full_cols
Members = tuple[int, int, int, int, bool]  # seeds, scales, offsets, count, shared
Matrix = tuple[int, int, int]  # pointer, dtype, leading dimension

def isas() -> dict[str, bool]: ...
def isa() -> str: ...
def cuda_why() -> str: ...
def linear(
    isa: str,
    noise: Noise,
    members: Members,
    x: int,
    ldx: int,
    weight: Matrix,
    member_stride: int,
    bias: int,
    bias_stride: int,
    y: int,
    ldy: int,
    outputs: int,
    inputs: int,
    storage: bool,
    /,
) -> None: ...
def noise_product(
    isa: str,
    noise: Noise,
    members: Members,
    x: int,
    ldx: int,
    y: int,
    ldy: int,
    outputs: int,
    inputs: int,
    /,
) -> None: ...
def rows(
    isa: str,
    noise: Noise,
    seeds: int,
    scales: int,
    rows: int,
    count: int,
    cols: int,
    weight: Matrix,
    out: Matrix,
    /,
) -> None: ...
def accumulate(
    isa: str,
    noise: Noise,
    seeds: int,
    coefficients: int,
    count: int,
    rows: int,
    cols: int,
    weight: Matrix,
    /,
) -> None: ...
