// Hadamard noise: fast transforms in registers in place of rows x columns entries (docs/noise.md, section 5).
// With G the unnormalised Walsh-Hadamard matrix, a row block is eps_b = G D1_b G D2_b G D3 / n.
#include "groups.h"
#include "transform_lines.h"
#include "transform_slots.h"

namespace thickets::cuda {

namespace {

constexpr int THREADS = 128;       // of a block, unless one row needs more
constexpr int MOST_THREADS = 512;  // n = 2^15
constexpr int MOST_HELD = 256;     // where a thread holds 64 sums besides its 64 elements
constexpr int FILL = 3;            // blocks that fill a multiprocessor

// A kernel's arguments, and what the host works out: log2 n, whether memory takes chunks, and whether a block
// makes several row blocks of its products.
template <class Args>
struct Launch {
  Args of;
  int log;
  bool chunks, x_chunks, several;
};

// The signs of a row's diagonals: for its outer and its inner layout; the first row's, if they are the same.
struct Signs {
  uint32_t *outer, *inner;
  bool own;
};

template <bool large>
THICKETS_DEVICE Signs signs_of(const Slot<large>& s, bool as_first) {
  const int index = as_first ? 0 : slot_index(s.log);
  uint32_t* words = words_of(s, index);
  return {words, words + s.span / 32, index == slot_index(s.log)};
}

// Known to all threads from the next barrier on.
template <bool large>
THICKETS_DEVICE void draw(const Slot<large>& s, const Signs& signs, const Parameter& p, int64_t seed,
                          Stream stream, int64_t row_block) {
  if (signs.own)
    draw_diagonal(s, p, seed, stream, row_block, stream == stream_hadamard_2 ? signs.inner : signs.outer);
}

THICKETS_DEVICE float inverse(int log) { return as_float(static_cast<uint32_t>(127 - log) << 23); }  // 1 / n

// ---------------------------------------------------------------- products
// y = base + s (x eps^T) + bias. A slot has a row of x, whose G D3 x serves several row blocks.
template <bool large>
__global__ void __launch_bounds__(large ? MOST_THREADS : FILL * THREADS)
    product_kernel(Launch<ProductArgs> launch) {
  const ProductArgs& a = launch.of;
  const Members& m = a.members;
  const Slot<large> s = slot_of<large>(launch.log);
  const int64_t n = int64_t(1) << launch.log, first = int64_t(blockIdx.x) * slots_of(s.log);
  const int64_t row = min(first + slot_index(s.log), m.total - 1), member = member_of_row(m, row);
  const int64_t seed = m.seeds[member];
  const bool exists = row - first == slot_index(s.log);
  const Signs signs = signs_of(s, member == member_of_row(m, first));
  const Seat* seat = seat_of(s);
  if (s.thread == 0) *seat_of(s) = {row, exists, member, seed};
  int b = static_cast<int>((a.noise.row >> launch.log) + blockIdx.y);
  draw(s, signs, a.noise, seed, stream_hadamard_3, 0);
  draw(s, signs, a.noise, seed, stream_hadamard_2, b);
  float u[EACH];
  take(s, u, line_of(a.x, a.x_shared ? row - member * m.rows : row, a.noise.col),
       exists ? cover_of(a.noise.col, a.in, n) : Cover{0, 0}, launch.x_chunks);
  for (bool products = false;; products = true) {
    flip_outer(s, u, signs.outer);
    transform_inwards(s, u);
    if (!products) {
      if (launch.several) keep(s, u);
    } else {
      put_inner(s, u);
      __syncthreads();
      get(u, outer_chunks(s));
      const Seat at = *seat;
      const int64_t origin = a.noise.row - (int64_t(b) << launch.log);
      finish(s, u, m.sigmas[at.member] * m.scale * inverse(launch.log),
             line_of(a.to.base, a.to.base_shared ? at.row - at.member * m.rows : at.row, origin),
             line_of(a.to.bias, at.member, origin), line_of(a.to.y, at.row, origin),
             at.exists ? cover_of(origin, a.out, n) : Cover{0, 0}, launch.chunks);
      b += gridDim.y;
      if (int64_t(b) << launch.log >= a.noise.row + a.out) return;
      __syncthreads();
      recall(s, u);
    }
    draw(s, signs, a.noise, seat->seed, stream_hadamard_1, b);
    flip_inner(s, u, signs.inner);
    transform_outwards(s, u);
    if (launch.several) draw(s, signs, a.noise, seat->seed, stream_hadamard_2, b + gridDim.y);
  }
}

// ---------------------------------------------------------------- rows of eps
// Row `row` of eps in the outer layout: the transpose applied to a unit vector, exactly. All threads call it.
template <bool large>
THICKETS_DEVICE void noise_row(const Slot<large>& s, const Signs& signs, const Parameter& p, int64_t seed,
                               int64_t row, float (&u)[EACH]) {
  const int64_t b = row >> s.log;
  __syncthreads();  // the signs of an earlier row have been used
  draw(s, signs, p, seed, stream_hadamard_1, b);
  draw(s, signs, p, seed, stream_hadamard_2, b);
  __syncthreads();
  THICKETS_UNROLL(64)
  for (int r = 0; r < EACH; ++r) u[r] = 1.0f;
  flip_outer(s, u, signs.outer);
  flip_hadamard_row(s, u, static_cast<int>(row - (b << s.log)));
  transform_inwards(s, u);
  draw(s, signs, p, seed, stream_hadamard_3, 0);
  flip_inner(s, u, signs.inner);
  transform_outwards(s, u);
  flip_outer(s, u, signs.outer);
  const float scale = inverse(s.log);
  THICKETS_UNROLL(64)
  for (int r = 0; r < EACH; ++r) u[r] *= scale;
}

// A line of W' = fma(s, eps, W), or of eps, for each slot.
template <bool large>
__global__ void __launch_bounds__(MOST_THREADS) rows_kernel(Launch<RowsArgs> launch) {
  const RowsArgs& a = launch.of;
  const Members& m = a.members;
  const Slot<large> s = slot_of<large>(launch.log);
  const int64_t slots = slots_of(s.log), index = slot_index(s.log);
  int64_t first, line, member, first_member, row, first_row;
  if (a.ids) {
    first = blockIdx.x * slots;
    line = min(first + index, m.total - 1);
    member = member_of_row(m, line);
    first_member = member_of_row(m, first);
    row = looked_up(a, a.ids_shared ? line - member * m.rows : line);
    first_row = looked_up(a, a.ids_shared ? first - first_member * m.rows : first);
  } else {  // members that share rows of W follow each other
    const uint32_t count = static_cast<uint32_t>(m.count);
    member = first_member = blockIdx.x % count;
    first = first_row = blockIdx.x / count * slots;
    line = row = min(first + index, a.rows - 1);
  }
  const int64_t of_eps = a.noise.row + row, first_of_eps = a.noise.row + first_row;
  const Signs signs = signs_of(s, member == first_member && of_eps >> s.log == first_of_eps >> s.log);
  float u[EACH];
  noise_row(s, signs, a.noise, m.seeds[member], of_eps, u);
  Line out = line_of(a.out, line, a.noise.col);
  if (!a.ids) out.data += member * a.out_member * size_of(a.out.dtype);
  finish(s, u, a.weight.data ? m.sigmas[member] * m.scale : 1.0f, line_of(a.weight, row, a.noise.col), {},
         out, line - first == index ? cover_of(a.noise.col, a.cols, int64_t(1) << s.log) : Cover{0, 0},
         launch.chunks);
}

// W = round(W + d) for a row of W in each slot, or for one half of it: `held` sums fit a thread's registers.
template <bool large, int held>
__global__ void __launch_bounds__(held == EACH ? MOST_HELD : MOST_THREADS)
    accumulate_kernel(Launch<AccumulateArgs> launch) {
  const AccumulateArgs& a = launch.of;
  const Slot<large> s = slot_of<large>(launch.log);
  const int64_t first = int64_t(blockIdx.x) * slots_of(s.log),
                row = min(first + slot_index(s.log), a.rows - 1);
  const int64_t of_eps = a.noise.row + row;
  const Signs signs = signs_of(s, of_eps >> s.log == (a.noise.row + first) >> s.log);
  const Seat* seat = seat_of(s);
  if (s.thread == 0) *seat_of(s) = {row, row - first == slot_index(s.log), 0, 0};
  float u[EACH], d[held];
  THICKETS_UNROLL(64)
  for (int r = 0; r < held; ++r) d[r] = 0.0f;
  for (int64_t i = 0; i < a.members.count; ++i) {
    noise_row(s, signs, a.noise, a.members.seeds[i], of_eps, u);
    const float c = a.members.sigmas[i] * a.members.scale;
    if (held < EACH && blockIdx.y) THICKETS_UNROLL(64)
    for (int r = 0; r < held; ++r) u[r] = u[(r + held) % EACH];
    THICKETS_UNROLL(64)
    for (int r = 0; r < held; ++r) d[r] = fma(c, u[r], d[r]);
  }
  THICKETS_UNROLL(64)
  for (int r = 0; r < EACH; ++r) u[r] = d[r % held];
  __syncthreads();
  Cover cover = {0, 0};
  if (seat->exists) cover = cover_of(a.noise.col, a.cols, int64_t(1) << s.log);
  if (held < EACH && blockIdx.y == 0) cover.end = min(cover.end, s.span / 2);
  if (held < EACH && blockIdx.y == 1) cover.begin = max(cover.begin, s.span / 2);
  const Line w = line_of(a.weight, seat->row, a.noise.col);
  finish(s, u, 1.0f, w, {}, w, cover, launch.chunks);
}

// ---------------------------------------------------------------- launches
struct Shape {
  int log, threads, slots;
  size_t shared;

  bool large() const { return log >= 12; }
};

// Blocks of several rows where these are short, unless there are too few to fill the device.
Shape shape_of(const Parameter& p, int64_t rows, int device) {
  const int n = static_cast<int>(hadamard_length(p.full_cols)), span = std::max(n, LEAST_SPAN);
  const int each = span / EACH;
  int log = 7, slots = std::max(THREADS / each, 1);
  while (1 << log < n) ++log;
  while (slots * each > 32 && slots > 1 && rows < int64_t(slots) * multiprocessors(device)) slots /= 2;
  return {log, slots * each, slots, slots * slot_bytes(span)};
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
dim3 grid_of(int64_t x, int64_t y) { return dim3(static_cast<uint32_t>(x), static_cast<uint32_t>(y)); }

}  // namespace

int64_t longest_transform(int device) {
  int n = EACH * MOST_THREADS;
  while (n > LEAST_SPAN && slot_bytes(n) > most_shared(device)) n /= 2;
  return n;
}

void hadamard_product(const ProductArgs& a) {
  if (a.members.total == 0 || a.out == 0) return;
  const Shape shape = shape_of(a.noise, a.members.total, a.place.device);
  const int64_t n = int64_t(1) << shape.log, blocks = (a.noise.row % n + a.out - 1) / n + 1;
  const int64_t tiles = ceil_div(a.members.total, shape.slots);
  const auto chunks = [&](const Matrix& m) { return allows_chunks(m, a.noise.row, a.out); };
  // Every share of the row blocks computes G D3 x anew, so there are as many as fill the device. What is kept
  // may not fit.
  const int64_t fill = ceil_div(FILL * multiprocessors(a.place.device), tiles);
  const size_t with_kept = shape.shared + sizeof(float) * EACH * shape.threads;
  const bool several = fill < blocks && with_kept <= most_shared(a.place.device);
  launch(a.place, shape.large() ? product_kernel<true> : product_kernel<false>,
         grid_of(tiles, several ? fill : blocks), shape.threads, several ? with_kept : shape.shared,
         Launch<ProductArgs>{a, shape.log, chunks(a.to.y) && chunks(a.to.base) && chunks(a.to.bias),
                             allows_chunks(a.x, a.noise.col, a.in), several});
}

void hadamard_rows(const RowsArgs& a) {
  const int64_t lines = a.ids ? a.members.total : a.rows, copies = a.ids ? 1 : a.members.count;
  if (lines == 0 || copies == 0 || a.cols == 0) return;
  const Shape shape = shape_of(a.noise, lines * copies, a.place.device);
  const auto chunks = [&](const Matrix& m) { return allows_chunks(m, a.noise.col, a.cols); };
  launch(a.place, shape.large() ? rows_kernel<true> : rows_kernel<false>,
         grid_of(ceil_div(lines, shape.slots) * copies, 1), shape.threads, shape.shared,
         Launch<RowsArgs>{a, shape.log,
                          chunks(a.weight) && chunks(a.out) && (a.ids || a.out_member % CHUNK == 0), false,
                          false});
}

void hadamard_accumulate(const AccumulateArgs& a) {
  if (a.rows == 0 || a.cols == 0) return;
  const Shape shape = shape_of(a.noise, a.rows, a.place.device);
  const bool halves = shape.threads > MOST_HELD;
  const auto kernel = halves          ? accumulate_kernel<true, EACH / 2>
                      : shape.large() ? accumulate_kernel<true, EACH>
                                      : accumulate_kernel<false, EACH>;
  launch(a.place, kernel, grid_of(ceil_div(a.rows, shape.slots), halves ? 2 : 1), shape.threads, shape.shared,
         Launch<AccumulateArgs>{a, shape.log, allows_chunks(a.weight, a.noise.col, a.cols), false, false});
}

}  // namespace thickets::cuda
