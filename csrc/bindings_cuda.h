// The ops of the CUDA kernels as Python sees them: the submodule thickets._C.cuda, and the tests' emulated
// module.
#pragma once
#include "bindings.h"
#include "cuda/args.h"

namespace thickets::cuda::bindings {

using namespace thickets::bindings;

// (seeds, sigmas, scale, offsets, count, rows, total)
using MembersTuple = std::tuple<uintptr_t, uintptr_t, float, uintptr_t, int64_t, int64_t, int64_t>;
// (y, base, base_shared, bias)
using ResultTuple = std::tuple<Strided, Strided, bool, Strided>;
// (device, stream)
using PlaceTuple = std::tuple<int, uintptr_t>;

inline int64_t size(int64_t value, const char* name) {
  if (value < 0)
    throw std::invalid_argument(std::string(name) + " must be >= 0, got " + std::to_string(value));
  return value;
}

// A matrix of `elements` entries that must be there.
inline Matrix present(const Strided& m, int64_t elements, const char* name) {
  const auto [address, dtype, ld] = m;
  return {required<void>(address, elements, name), dtype_of(dtype, name), ld};
}

// One that may be absent: (0, 0, 0).
inline Matrix optional(const Strided& m, int64_t elements, const char* name) {
  return m == Strided{} ? Matrix{} : present(m, elements, name);
}

// `drawn`: the op draws noise, so members have seeds; `scaled`: it multiplies noise by their sigmas.
inline Members members(const MembersTuple& m, bool drawn, bool scaled) {
  const auto [seeds, sigmas, scale, offsets, count, rows, total] = m;
  return {required<const int64_t>(seeds, drawn ? count : 0, "seeds"),
          required<const float>(sigmas, scaled ? count : 0, "sigmas"),
          scale,
          pointer<const int64_t>(offsets),
          size(count, "the number of members"),
          size(rows, "rows"),
          size(total, "the rows of all members")};
}

// The same, of an op that reads activations: every one of their rows has a member.
inline Members grouped(const MembersTuple& m, bool drawn, bool scaled) {
  const Members all = members(m, drawn, scaled);
  if (!all.offsets && all.count * all.rows != all.total)
    throw std::invalid_argument(std::to_string(all.count) + " members of " + std::to_string(all.rows) +
                                " rows must have that many rows together, got " + std::to_string(all.total));
  if (all.offsets && all.count == 0 && all.total > 0)
    throw std::invalid_argument(std::to_string(all.total) + " rows belong to no member");
  return all;
}

inline Result result(const ResultTuple& r, int64_t total, int64_t out) {
  const auto& [y, base, base_shared, bias] = r;
  return {present(y, total * out, "y"), optional(base, total * out, "base"), base_shared,
          optional(bias, out, "bias")};
}

inline Place place(const PlaceTuple& p) { return {std::get<0>(p), pointer<void>(std::get<1>(p))}; }

template <void (*op)(const LinearArgs&)>
void linear(const Noise& noise, const MembersTuple& m, const Strided& x, bool x_shared, const Strided& weight,
            int64_t weight_member, const ResultTuple& to, int64_t out, int64_t in, bool storage,
            const PlaceTuple& at) {
  const Parameter p = parameter(noise, in, Family::none, Family::rademacher);
  const bool drawn = p.family != Family::none;
  const Members all = grouped(m, drawn, drawn);
  const LinearArgs args{p,
                        all,
                        present(x, all.total * in, "x"),
                        x_shared,
                        optional(weight, out * in, "weight"),
                        weight_member,
                        result(to, all.total, size(out, "out")),
                        out,
                        size(in, "in"),
                        storage,
                        place(at)};
  py::gil_scoped_release released;
  op(args);
}

inline ProductArgs product(Family family, const Noise& noise, const MembersTuple& m, const Strided& x,
                           bool x_shared, const ResultTuple& to, uintptr_t scratch, int64_t out, int64_t in,
                           const PlaceTuple& at) {
  const Members all = grouped(m, true, true);
  return {parameter(noise, in, family, family),
          all,
          present(x, all.total * in, "x"),
          x_shared,
          result(to, all.total, size(out, "out")),
          pointer<float>(scratch),
          out,
          size(in, "in"),
          place(at)};
}

inline void hadamard_product(const Noise& noise, const MembersTuple& m, const Strided& x, bool x_shared,
                             const ResultTuple& to, int64_t out, int64_t in, const PlaceTuple& at) {
  const ProductArgs args = product(Family::hadamard, noise, m, x, x_shared, to, 0, out, in, at);
  py::gil_scoped_release released;
  cuda::hadamard_product(args);
}

inline int64_t lowrank_scratch(const Noise& noise, const MembersTuple& m, const Strided& x, bool x_shared,
                               const ResultTuple& to, int64_t out, int64_t in, const PlaceTuple& at) {
  return cuda::lowrank_scratch(product(Family::lowrank, noise, m, x, x_shared, to, 0, out, in, at));
}

inline void lowrank_product(const Noise& noise, const MembersTuple& m, const Strided& x, bool x_shared,
                            const ResultTuple& to, uintptr_t scratch, int64_t out, int64_t in,
                            const PlaceTuple& at) {
  const ProductArgs args = product(Family::lowrank, noise, m, x, x_shared, to, scratch, out, in, at);
  required<float>(scratch, cuda::lowrank_scratch(args), "scratch");
  py::gil_scoped_release released;
  cuda::lowrank_product(args);
}

inline void rows(const Noise& noise, const MembersTuple& m, uintptr_t ids, bool ids_shared,
                 const Strided& weight, const Strided& out, int64_t out_member, int64_t rows, int64_t cols,
                 const PlaceTuple& at) {
  const Parameter p = parameter(noise, cols, Family::normal, Family::lowrank);
  const bool scaled = weight != Strided{};
  const Members all = ids ? grouped(m, true, scaled) : members(m, true, scaled);
  const int64_t lines = ids ? all.total : all.count * size(rows, "rows");
  const RowsArgs args{p,
                      all,
                      pointer<const int64_t>(ids),
                      ids_shared,
                      optional(weight, rows * cols, "weight"),
                      present(out, lines * cols, "out"),
                      out_member,
                      rows,
                      cols,
                      place(at)};
  py::gil_scoped_release released;
  cuda::rows(args);
}

inline void accumulate(const Noise& noise, const MembersTuple& m, const Strided& weight, int64_t rows,
                       int64_t cols, const PlaceTuple& at) {
  const AccumulateArgs args{parameter(noise, cols, Family::normal, Family::lowrank),
                            members(m, true, true),
                            present(weight, size(rows, "rows") * cols, "weight"),
                            rows,
                            cols,
                            place(at)};
  py::gil_scoped_release released;
  cuda::accumulate(args);
}

inline void bind(py::module_& m) {
  m.def("linear", &linear<cuda::linear>);
  m.def("linear_float32", &linear<cuda::linear_float32>);
  m.def("hadamard_product", &hadamard_product);
  m.def("lowrank_product", &lowrank_product);
  m.def("lowrank_scratch", &lowrank_scratch);
  m.def("rows", &rows);
  m.def("accumulate", &accumulate);
  m.def("longest_transform", &cuda::longest_transform);
  m.def("why_not", &cuda::why_not);
}

}  // namespace thickets::cuda::bindings
