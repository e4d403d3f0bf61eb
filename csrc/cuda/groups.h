// Whose rows are whose: groups of rows, equal or given by offsets, found on the device.
#pragma once
#include "machine.h"

namespace thickets::cuda {

// Rows first .. end of one member; none where first >= end.
struct Group {
  int64_t member, first, end;
};

// offsets[n] within 0 .. total, so that bad values stay memory-safe.
THICKETS_DEVICE int64_t clamped(const Members& m, int64_t n) {
  const int64_t value = m.offsets[n];
  return value < 0 ? 0 : value < m.total ? value : m.total;
}

// Tile k of member n has number clamped(n) / size + n + k: numbers of different tiles differ, some are
// unused.
THICKETS_DEVICE Group group_of_tile(const Members& m, int64_t tile, int size) {
  if (!m.offsets) {
    const int64_t each = (m.rows + size - 1) / size, n = tile / each;
    if (n >= m.count) return {0, 0, 0};
    const int64_t first = n * m.rows + tile % each * size, end = (n + 1) * m.rows;
    return {n, first, first + size < end ? first + size : end};
  }
  int64_t low = 0, high = m.count - 1;  // the last member whose first number is at most `tile`
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (clamped(m, middle) / size + middle <= tile)
      low = middle;
    else
      high = middle - 1;
  }
  const int64_t begin = clamped(m, low), end = clamped(m, low + 1);
  if (tile < begin / size + low) return {low, 0, 0};
  const int64_t first = begin + (tile - begin / size - low) * size;
  return {low, first, first + size < end ? first + size : end};
}

// The row that a line looks up; one outside of W becomes the nearest, so that bad ids stay memory-safe.
THICKETS_DEVICE int64_t looked_up(const RowsArgs& a, int64_t index) {
  const int64_t id = a.ids[index];
  if (!a.weight.data) return id;
  return id < 0 ? 0 : id < a.rows ? id : a.rows - 1;
}

// The number of tiles of `size` rows that a launch needs.
inline int64_t tiles(const Members& m, int size) {
  return m.offsets ? m.total / size + m.count : m.count * ((m.rows + size - 1) / size);
}

// The member that has a row.
THICKETS_DEVICE int64_t member_of_row(const Members& m, int64_t row) {
  if (!m.offsets) return row / m.rows;
  int64_t low = 0, high = m.count - 1;  // the last member that begins at or before the row
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (clamped(m, middle) <= row)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

}  // namespace thickets::cuda
