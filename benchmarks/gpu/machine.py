"""The machine: what nvidia-smi and nvcc say of it, and its two ceilings, measured."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from .processes import ROOT

CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,temperature.gpu"


def no_gpu() -> str | None:
    """Why nothing can be measured here, or None; exits where there is a GPU but no torch."""
    if not find_spec("torch"):
        if shutil.which("nvidia-smi") is None:
            return "this machine has no nvidia-smi"
        sys.exit(f"make gpu: {sys.executable} lacks torch; name another with `make gpu PYTHON=...`")
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} of {sys.executable} sees none"
    return None


def smi(query: str) -> str:
    """What nvidia-smi answers about the first visible GPU, or why it does not."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", gpu]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"


def nvcc() -> str | None:
    """The version of this machine's CUDA compiler, or None."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    path = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(f"{h}/bin" for h in homes if h))
    if path is None:
        return None
    text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", text)
    return found[1] if found else "unknown"


def facts(commit: str | None) -> dict[str, Any]:
    """GPU, versions, commit (of the checkout, unless named): plain values. The package must be importable."""
    import torch

    from thickets import info

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": smi("name,memory.total,driver_version"),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "L2_MB": round(properties.L2_cache_size / 1e6, 1),
        "torch_cuda": torch.version.cuda,
        "nvcc": nvcc(),
        "commit": commit or info.commit(ROOT),
        "info": info.report(),
    }


def seconds(run: Callable[[], Any], repeats: int = 30) -> tuple[float, float, float]:
    """Seconds of one call on the GPU: median, 20 % and 80 % quantile, after warming up."""
    import torch

    from .timing import quantiles

    times = []
    for i in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(start.elapsed_time(end) / 1e3)
    return quantiles(times)


def copy_rate() -> list[float]:
    """GB/s of a device copy, read and written bytes counted: at median, 20 % and 80 % quantile of time."""
    import torch

    size = min(2 << 30, torch.cuda.mem_get_info()[0] // 4)
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = seconds(lambda: target.copy_(source))
    if not torch.equal(source, target):
        raise RuntimeError("the copy differs from its source")
    return [round(2 * size / 1e9 / t, 1) for t in times]


def product_rate(n: int = 8192) -> list[float]:
    """TFLOP/s of the bfloat16 product of two random n x n matrices, at the same quantiles."""
    import torch

    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    times = seconds(lambda: torch.matmul(a, b, out=out))
    exact = a[:64].double() @ b.double()
    error = ((out[:64].double() - exact).norm() / exact.norm()).item()
    if not error < 0.01:
        raise RuntimeError(f"the bfloat16 product is off by {error:.3g}")
    return [round(2 * n**3 / 1e12 / t, 1) for t in times]


def ceilings() -> dict[str, list[float]]:
    """Both ceilings, by their units; GPU memory is given back."""
    import torch

    rates = {"copy_GB_per_s": copy_rate(), "bf16_TFLOP_per_s": product_rate()}
    torch.cuda.empty_cache()
    return rates
