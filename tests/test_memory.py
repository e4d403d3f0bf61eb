"""The promise about memory: one copy of the weights and a chunk's activations, for any number of members."""

import subprocess
import sys

import pytest

SIZE = 2048
SCRIPT = f"""
import pathlib, re, torch, thickets

def peak():  # ru_maxrss would count the process of the tests, from which this one was forked
    return re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]

def network(size):
    return torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.Linear(size, size)).requires_grad_(False)

def search(model, n):
    data = [(torch.randn(4, model[0].in_features), torch.zeros(4))]
    score = lambda predictions, targets: -predictions.square().mean(-1)
    thickets.search(model, data=data, score=score, n=n, sigma=0.01, top_k=1, chunk=8, progress=False)

search(network(16), 8)  # everything is loaded
model = network({SIZE})
before = peak()
search(model, 64)
print(before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_search_needs_one_copy_of_the_weights() -> None:
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = map(int, output.split())
    layer = SIZE * SIZE * 4 / 1024  # kB
    assert after - before < layer / 2, f"peak grew from {before} to {after} kB, a layer has {layer:.0f} kB"
