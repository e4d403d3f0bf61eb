// The module thickets._C: integers and pointers in, nothing else. The only file that is compiled with
// pybind11; none sees torch.
#include "bindings.h"

#include <map>

#ifdef THICKETS_CUDA
#include "bindings_cuda.h"
#endif

using namespace thickets;
using namespace thickets::bindings;

namespace {

// The ops of one instruction set.
struct Kernels {
  void (*linear)(const LinearArgs&);
  void (*hadamard_product)(const NoiseProductArgs&);
  void (*lowrank_product)(const NoiseProductArgs&);
  void (*rows)(const RowsArgs&);
  void (*accumulate)(const AccumulateArgs&);
  bool able;  // this CPU has the instructions
};

#define THICKETS_KERNELS(isa, able) \
  {isa::linear, isa::hadamard_product, isa::lowrank_product, isa::rows, isa::accumulate, able}
// From the plainest to the widest; the widest that is able is the default.
const std::map<std::string, Kernels>& instruction_sets() {
  static const std::map<std::string, Kernels> sets = {
#ifdef THICKETS_X86
      {"avx2", THICKETS_KERNELS(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                          __builtin_cpu_supports("f16c"))},
      {"avx512", THICKETS_KERNELS(
                     avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))},
#endif
      {"portable", THICKETS_KERNELS(portable, true)}};
  return sets;
}

std::string default_isa() {
  for (const char* isa : {"avx512", "avx2"}) {
    const auto found = instruction_sets().find(isa);
    if (found != instruction_sets().end() && found->second.able) return isa;
  }
  return "portable";
}

const Kernels& kernels(const std::string& isa) {
  const auto found = instruction_sets().find(isa);
  if (found == instruction_sets().end())
    throw std::invalid_argument("isa must be one that was built, got " + isa);
  if (!found->second.able) throw std::invalid_argument("this CPU cannot run " + isa);
  return found->second;
}

// (seeds, scales, offsets, count, shared)
using Members = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, bool>;

Groups groups(const Members& m) {
  const auto [seeds, scales, offsets, count, shared] = m;
  return {required<const int64_t>(seeds, count, "seeds"), required<const float>(scales, count, "sigmas"),
          required<const int64_t>(offsets, 1, "offsets"), count, shared};
}

void linear(const std::string& isa, const Noise& noise, const Members& members, uintptr_t x, int64_t ldx,
            const Strided& weight, int64_t member_stride, uintptr_t bias, int64_t bias_stride, uintptr_t y,
            int64_t ldy, int64_t out, int64_t in, bool storage) {
  const LinearArgs args{parameter(noise, in, Family::none, Family::rademacher),
                        groups(members),
                        required<const float>(x, in, "x"),
                        ldx,
                        matrix(weight, "weight"),
                        member_stride,
                        pointer<const float>(bias),
                        bias_stride,
                        required<float>(y, out, "y"),
                        ldy,
                        out,
                        in,
                        storage};
  const Kernels& k = kernels(isa);
  py::gil_scoped_release released;
  k.linear(args);
}

void noise_product(const std::string& isa, const Noise& noise, const Members& members, uintptr_t x,
                   int64_t ldx, uintptr_t y, int64_t ldy, int64_t out, int64_t in) {
  const NoiseProductArgs args{parameter(noise, in, Family::hadamard, Family::lowrank),
                              groups(members),
                              required<const float>(x, in, "x"),
                              ldx,
                              required<float>(y, out, "y"),
                              ldy,
                              out,
                              in};
  const Kernels& k = kernels(isa);
  py::gil_scoped_release released;
  args.noise.family == Family::hadamard ? k.hadamard_product(args) : k.lowrank_product(args);
}

void rows(const std::string& isa, const Noise& noise, uintptr_t seeds, uintptr_t scales, uintptr_t rows,
          int64_t count, int64_t cols, const Strided& weight, const Strided& out) {
  const RowsArgs args{parameter(noise, cols, Family::normal, Family::lowrank),
                      required<const int64_t>(seeds, count, "seeds"),
                      required<const float>(scales, count, "sigmas"),
                      required<const int64_t>(rows, count, "rows"),
                      count,
                      cols,
                      matrix(weight, "weight"),
                      matrix(out, "out")};
  required<void>(std::get<0>(out), count * cols, "out");
  const Kernels& k = kernels(isa);
  py::gil_scoped_release released;
  k.rows(args);
}

void accumulate(const std::string& isa, const Noise& noise, uintptr_t seeds, uintptr_t coefficients,
                int64_t count, int64_t rows, int64_t cols, const Strided& weight) {
  const AccumulateArgs args{parameter(noise, cols, Family::normal, Family::lowrank),
                            required<const int64_t>(seeds, count, "seeds"),
                            required<const float>(coefficients, count, "coefficients"),
                            count,
                            rows,
                            cols,
                            matrix(weight, "weight")};
  required<void>(std::get<0>(weight), rows * cols, "weight");
  const Kernels& k = kernels(isa);
  py::gil_scoped_release released;
  k.accumulate(args);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of thickets; thickets.backends.cpu is their only caller.";
  m.def("isas", [] {
    py::dict able;
    for (const auto& [name, k] : instruction_sets()) able[py::str(name)] = k.able;
    return able;
  });
  m.def("isa", &default_isa);
  m.def("cuda_why", [] { return THICKETS_CUDA_WHY; });
#ifdef THICKETS_CUDA
  py::module_ gpu = m.def_submodule("cuda", "CUDA kernels; thickets.backends.cuda is their only caller.");
  gpu.attr("built") = THICKETS_CUDA;  // "13.0 sm_80 sm_90": the toolkit's version, what the code is for
  cuda::bindings::bind(gpu);
#endif
  m.def("linear", &linear);
  m.def("noise_product", &noise_product);
  m.def("rows", &rows);
  m.def("accumulate", &accumulate);
}
