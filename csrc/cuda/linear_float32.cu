// The dense product in IEEE float32, for arrays of any dtypes: each output is one chain of fused
// multiply-adds over ascending columns from zero, so it has the CPU backend's bits wherever the noise has.
//
// A block multiplies a tile of one member's rows. A thread has all rows of its outputs, one or two: it makes
// their noise in registers, for many rows at the price of one, and reads x by broadcasts.
#include "decode.h"
#include "fours.h"
#include "groups.h"
#include "normal.h"
#include "result.h"

namespace thickets::cuda {

namespace {

constexpr int THREADS = 128;
constexpr int STEP = 32;         // columns that pass through shared memory at a time
constexpr int FOURS = STEP / 4;  // of a line and step

struct KernelArgs {
  LinearArgs of;
  bool x_fours, weight_fours;
};

struct Source {
  const Parameter& p;
  const Key<uint32_t> key;
};

// The noise of one row of the parameter, eight columns at a time. Words move up as they are used: registers
// cannot be indexed by a loop's variable.
template <Family family>
struct RowNoise {
  uint32_t words[4];
  uint32_t bits;  // rademacher: of the step, the next ones lowest

  // The words for columns STEP * step .. + STEP - 1; one call of rademacher serves four steps.
  THICKETS_MEMBER __device__ void draw(const Source& source, uint32_t row, uint32_t step, bool first) {
    if constexpr (family == Family::normal4) {
      call(source, stream_normal4, row, step);
    } else if constexpr (family == Family::rademacher) {
      if (first || step % 4 == 0) call(source, stream_rademacher, row, step / 4);
      for (uint32_t i = first ? step % 4 : 0; i > 0; --i) next_word();
      bits = next_word();
    }
  }

  // Entries of columns 8 c .. 8 c + 7 of the step, in the order of c.
  THICKETS_MEMBER __device__ void next(const Source& source, uint32_t row, uint32_t step, uint32_t c,
                                       float (&eps)[8]) {
    if constexpr (family == Family::normal4) {
      uint32_t pairs[4];
      decode_normal4<Dtype::bfloat16>(next_word(), pairs);
      THICKETS_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        eps[2 * i] = unpack_low<Dtype::bfloat16>(pairs[i]);
        eps[2 * i + 1] = unpack_high<Dtype::bfloat16>(pairs[i]);
      }
    } else if constexpr (family == Family::rademacher) {
      THICKETS_UNROLL(8)
      for (int i = 0; i < 8; ++i) eps[i] = rademacher_entry<float>(bits, i);
      bits >>= 8;
    } else {
      Words<uint32_t> calls[2];
      THICKETS_UNROLL(2)
      for (uint32_t i = 0; i < 2; ++i)
        calls[i] = counter_at(source.p, stream_normal, 8 * step + 2 * c + i, row);
      philox4x32_10(calls, source.key);
      THICKETS_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        const uint32_t* w = calls[i / 2].w + 2 * (i % 2);
        fast_normals(w[0], w[1], eps[2 * i], eps[2 * i + 1]);
      }
    }
  }

 private:
  THICKETS_MEMBER __device__ void call(const Source& source, uint32_t stream, uint32_t row, uint32_t block) {
    Words<uint32_t> call[1] = {counter_at(source.p, stream, block, row)};
    philox4x32_10(call, source.key);
    THICKETS_UNROLL(4)
    for (int i = 0; i < 4; ++i) words[i] = call[0].w[i];
  }
  THICKETS_MEMBER __device__ uint32_t next_word() {
    const uint32_t word = words[0];
    THICKETS_UNROLL(3)
    for (int i = 0; i < 3; ++i) words[i] = words[i + 1];
    return word;
  }
};

// Columns at .. at + STEP - 1 of some lines as float32 into shared memory, zeros past the array's edges:
// line i begins at element start_of(i), and `used` of them are there.
template <int lines, int pitch, class StartOf>
THICKETS_DEVICE void share(const Matrix& m, bool fours, int64_t used, int64_t at, int64_t columns,
                           StartOf start_of, Four (&to)[lines][pitch]) {
  constexpr int APART = THREADS / FOURS;                                      // lines of a thread
  constexpr int BATCH = lines < 4 * APART ? (lines + APART - 1) / APART : 4;  // loads in flight
  const int mine = threadIdx.x % FOURS;
  THICKETS_UNROLL(1)
  for (int first = threadIdx.x / FOURS; first < lines; first += BATCH * APART) {
    uint4 four[BATCH];
    THICKETS_UNROLL(8)
    for (int b = 0; b < BATCH; ++b) {
      const int line = first + b * APART;
      four[b] = load_four(m, fours, start_of(line), at + 4 * mine, line < used ? columns : 0);
    }
    THICKETS_UNROLL(8)
    for (int b = 0; b < BATCH; ++b) to[first + b * APART][mine] = floats_of(four[b], m.dtype);
  }
}

// Eight columns, 8 c .. 8 c + 7, of a line in shared memory.
template <int pitch>
THICKETS_DEVICE void eight(const Four (&line)[pitch], int c, float (&v)[8]) {
  const Four low = line[2 * c], high = line[2 * c + 1];
  THICKETS_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    v[i] = low.v[i];
    v[i + 4] = high.v[i];
  }
}

// weighted: the product with W', else with eps. A thread has `outputs` outputs, THREADS apart.
template <Family family, bool weighted, int outputs, int rows>
__global__ void __launch_bounds__(THREADS, rows > 8 ? 2 : 4) float32_kernel(KernelArgs k) {
  const LinearArgs& a = k.of;
  const Group group = group_of_tile(a.members, blockIdx.x, rows);
  if (group.first >= group.end) return;
  __shared__ Four lines_of_x[rows][FOURS];
  // With one to spare, eight threads that read the same four of their lines meet no bank twice.
  __shared__ Four lines_of_w[weighted ? outputs * THREADS : 1][FOURS + 1];
  const int64_t used = group.end - group.first, shared_row = group.first - group.member * a.members.rows;
  const int64_t first_x = a.x_shared ? shared_row : group.first;
  const int64_t first_out = static_cast<int64_t>(blockIdx.y) * (outputs * THREADS);
  const float s = family == Family::none ? 0.0f : a.members.sigmas[group.member] * a.members.scale;

  const uint64_t seed = family == Family::none ? 0 : static_cast<uint64_t>(a.members.seeds[group.member]);
  const Source source{a.noise, schedule(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32))};
  const uint32_t noise_row = static_cast<uint32_t>(a.noise.row + first_out + threadIdx.x);
  RowNoise<family> noise[outputs] = {};
  float sums[outputs][rows] = {};

  // Steps begin at multiples of STEP of the parameter's columns.
  const int64_t begin = family == Family::none ? 0 : -(a.noise.col % STEP);
  for (int64_t at = begin; at < a.in; at += STEP) {
    __syncthreads();
    share(a.x, k.x_fours, used, at, a.in, [&](int i) { return (first_x + i) * a.x.ld; }, lines_of_x);
    if constexpr (weighted)
      share(
          a.weight, k.weight_fours, a.out - first_out, at, a.in,
          [&](int i) { return group.member * a.weight_member + (first_out + i) * a.weight.ld; }, lines_of_w);
    const uint32_t step = static_cast<uint32_t>((a.noise.col + at) / STEP);
    THICKETS_UNROLL(2)
    for (int j = 0; j < outputs; ++j) noise[j].draw(source, noise_row + j * THREADS, step, at == begin);
    __syncthreads();

    THICKETS_UNROLL(1)
    for (int c = 0; c < STEP / 8; ++c) {
      float w[outputs][8];
      THICKETS_UNROLL(2)
      for (int j = 0; j < outputs; ++j) {
        if constexpr (weighted) eight(lines_of_w[threadIdx.x + j * THREADS], c, w[j]);
        if constexpr (family != Family::none) {
          float eps[8];
          noise[j].next(source, noise_row + j * THREADS, step, c, eps);
          THICKETS_UNROLL(8)
          for (int i = 0; i < 8; ++i) w[j][i] = weighted ? fma(s, eps[i], w[j][i]) : eps[i];
          if (weighted && a.storage) {
            THICKETS_UNROLL(8)
            for (int i = 0; i < 8; ++i) w[j][i] = rounded(w[j][i], a.weight.dtype);
          }
        }
      }
      THICKETS_UNROLL(4)
      for (int top = 0; top < rows; top += 8) {
        if (top >= used) break;
        THICKETS_UNROLL(8)
        for (int r = top; r < top + 8; ++r) {
          float x[8];
          eight(lines_of_x[r], c, x);
          THICKETS_UNROLL(8)
          for (int i = 0; i < 8; ++i) THICKETS_UNROLL(2)
          for (int j = 0; j < outputs; ++j) sums[j][r] = fma(x[i], w[j][i], sums[j][r]);
        }
      }
    }
  }

  THICKETS_UNROLL(2)
  for (int j = 0; j < outputs; ++j) {
    const int64_t o = first_out + j * THREADS + threadIdx.x;
    if (o >= a.out) return;
    THICKETS_UNROLL(32)
    for (int r = 0; r < rows; ++r)
      if (r < used)
        finish(a.to, group.member, group.first + r, shared_row + r, o,
               weighted ? sums[j][r] : s * sums[j][r]);
  }
}

template <Family family, bool weighted>
void launch_float32(const LinearArgs& a) {
  if (a.members.count == 0) return;
  const KernelArgs args{a, in_fours(a.x) && a.noise.col % 4 == 0,
                        in_fours(a.weight, a.weight_member) && a.noise.col % 4 == 0};
  const auto grid = [&](int outputs, int rows) {
    return dim3(static_cast<uint32_t>(tiles(a.members, rows)),
                static_cast<uint32_t>((a.out + outputs * THREADS - 1) / (outputs * THREADS)));
  };
  const int64_t each = a.members.offsets ? a.members.total / a.members.count : a.members.rows;
  // Tall tiles make noise for more rows and read x for two outputs, where they still fill the device.
  const dim3 tall = grid(2, 32);
  if (each > 8 && int64_t{tall.x} * tall.y >= multiprocessors(a.place.device))
    launch(a.place, float32_kernel<family, weighted, 2, 32>, tall, THREADS, 0, args);
  else
    launch(a.place, float32_kernel<family, weighted, 1, 8>, grid(1, 8), THREADS, 0, args);
}

template <Family family>
void with_family(const LinearArgs& a) {
  a.weight.data ? launch_float32<family, true>(a) : launch_float32<family, false>(a);
}

}  // namespace

void linear_float32(const LinearArgs& a) {
  switch (a.noise.family) {
    case Family::none:
      return launch_float32<Family::none, true>(a);
    case Family::normal:
      return with_family<Family::normal>(a);
    case Family::normal4:
      return with_family<Family::normal4>(a);
    default:
      return with_family<Family::rademacher>(a);
  }
}

}  // namespace thickets::cuda
