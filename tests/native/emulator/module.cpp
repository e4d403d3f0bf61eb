// The CUDA kernels as a Python module that runs them on the CPU; tests/emulated.py builds it.
#include "bindings_cuda.h"

PYBIND11_MODULE(emulated, m) { thickets::cuda::bindings::bind(m); }
