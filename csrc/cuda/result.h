// What ends a product: base and bias are added in float32, and the sum is rounded once.
#pragma once
#include "machine.h"

namespace thickets::cuda {

// y[row, o] = base + product + bias; shared_row: the row of a base that all members share.
THICKETS_DEVICE void finish(const Result& to, int64_t member, int64_t row, int64_t shared_row, int64_t o,
                            float product) {
  float sum = product;
  if (to.base.data)
    sum = load_float(to.base.data, to.base.dtype, (to.base_shared ? shared_row : row) * to.base.ld + o) + sum;
  if (to.bias.data) sum += load_float(to.bias.data, to.bias.dtype, member * to.bias.ld + o);
  store_float(to.y.data, to.y.dtype, row * to.y.ld + o, sum);
}

}  // namespace thickets::cuda
