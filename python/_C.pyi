# The native module, compiled from csrc/bindings.cpp; thickets.backends.cpu and .cuda are its only callers.

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

CudaMembers = tuple[int, int, float, int, int, int, int]  # seeds, sigmas, scale, offsets, count, rows, total
CudaResult = tuple[Matrix, Matrix, bool, Matrix]  # y, base, whether base is shared, bias
CudaPlace = tuple[int, int]  # device, stream

class CudaKernels:
    """The functions of the submodule `cuda`; csrc/cuda/args.h says what they compute."""

    built: str  # version of the toolkit, then the architectures
    @staticmethod
    def why_not() -> str | None: ...
    @staticmethod
    def linear(
        noise: Noise,
        members: CudaMembers,
        x: Matrix,
        x_shared: bool,
        weight: Matrix,
        weight_member: int,
        to: CudaResult,
        outputs: int,
        inputs: int,
        storage: bool,
        place: CudaPlace,
        /,
    ) -> None: ...
    linear_float32 = linear
    @staticmethod
    def hadamard_product(
        noise: Noise,
        members: CudaMembers,
        x: Matrix,
        x_shared: bool,
        to: CudaResult,
        outputs: int,
        inputs: int,
        place: CudaPlace,
        /,
    ) -> None: ...
    @staticmethod
    def lowrank_scratch(
        noise: Noise,
        members: CudaMembers,
        x: Matrix,
        x_shared: bool,
        to: CudaResult,
        outputs: int,
        inputs: int,
        place: CudaPlace,
        /,
    ) -> int: ...
    @staticmethod
    def lowrank_product(
        noise: Noise,
        members: CudaMembers,
        x: Matrix,
        x_shared: bool,
        to: CudaResult,
        scratch: int,
        outputs: int,
        inputs: int,
        place: CudaPlace,
        /,
    ) -> None: ...
    @staticmethod
    def rows(
        noise: Noise,
        members: CudaMembers,
        ids: int,
        ids_shared: bool,
        weight: Matrix,
        out: Matrix,
        out_member: int,
        rows: int,
        cols: int,
        place: CudaPlace,
        /,
    ) -> None: ...
    @staticmethod
    def accumulate(
        noise: Noise, members: CudaMembers, weight: Matrix, rows: int, cols: int, place: CudaPlace, /
    ) -> None: ...
    @staticmethod
    def longest_transform(device: int, /) -> int: ...

cuda: CudaKernels  # where CUDA was built
