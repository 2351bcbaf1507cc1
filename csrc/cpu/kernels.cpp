// The epilogues themselves. CMake compiles this file once per instruction set (FASTCLIP_ISA names the namespace);
// nothing here is written for one of them: the loops are plain and `omp simd` asks the compiler to vectorise.
//
// A tile is cut into cells of kRows x kCols logits that stay in the second-level cache while they are swept two or
// three times. A thread owns whole panels (kRows rows), so results never depend on the number of threads.
#include "kernels.h"

#include <algorithm>
#include <vector>

#include "math.h"

namespace fastclip {
namespace FASTCLIP_ISA {
namespace {

constexpr std::int64_t kRows = 32;
constexpr std::int64_t kCols = 1024;
// Stands for an excluded logit: finite, so that no difference of two becomes NaN, and below every real one.
constexpr double kExcluded = -1e30;
// Width of the band of logits (nats) in which one shift serves rows and columns alike: e^-80 is a normal float.
constexpr double kBand = 80.0;
// A factor above it, brought to a cell's one shift, might overflow (an upstream gradient of 1e8 on a row at the lower
// end of the band): two shifts then.
constexpr double kLargestFactor = 1e30;

// The smallest and largest negative of a cell, in nats.
template <class T>
struct Range {
  T low;
  T high;
  // NaN compares false, so a cell with one takes the careful path, which propagates it.
  bool narrow() const { return high - low <= T(kBand); }
};

// What a shared label makes of an entry.
enum class Shared { Ignored, Excluded, Positive };

// Logits of part of a row into `z`, and what they do to the cell's range. Excluded entries are marked; a positive by
// its label is negated, for its loss is softplus(-z).
template <class T, Shared kShared>
void load_row(const T* p, T scale, T bias, std::int32_t label, const std::int32_t* labels, std::int64_t n, T* z,
              Range<T>& range) {
  T low = range.low, high = range.high;
#pragma omp simd reduction(max : high) reduction(min : low)
  for (std::int64_t j = 0; j < n; ++j) {
    T logit = p[j] * scale + bias, floor = logit;
    if constexpr (kShared == Shared::Positive) floor = logit = labels[j] == label ? -logit : logit;
    if constexpr (kShared == Shared::Excluded) {
      floor = labels[j] == label ? T(-kExcluded) : logit;
      logit = labels[j] == label ? T(kExcluded) : logit;
    }
    high = logit > high ? logit : high;
    low = floor < low ? floor : low;
    z[j] = logit;
  }
  range = {low, high};
}

// Logits of one cell into `z` (kCols apart), and their range.
template <class T, Shared kShared>
Range<T> load_cell(const Tile<T>& tile, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                   T* z) {
  constexpr bool labelled = kShared != Shared::Ignored;
  const T scale = static_cast<T>(tile.scale), bias = static_cast<T>(tile.bias);
  Range<T> range{T(-kExcluded), T(kExcluded / 2)};  // of a cell without negatives: a high that no sum can notice
  for (std::int64_t i = row; i < row + rows; ++i, z += kCols) {
    const std::int32_t label = labelled ? tile.row_labels[i] : 0;
    const auto load = [&](std::int64_t begin, std::int64_t end) {
      const std::int32_t* labels = labelled ? tile.col_labels + col + begin : nullptr;
      load_row<T, kShared>(tile.products + i * tile.stride + col + begin, scale, bias, label, labels, end - begin,
                           z + begin, range);
    };
    const std::int64_t positive = i + tile.diagonal - col;
    if (positive < 0 || positive >= cols) {
      load(0, cols);
    } else {
      load(0, positive);
      load(positive + 1, cols);
      z[positive] = T(kExcluded);
    }
  }
  return range;
}

// Bring (other_shift, other_sum) into the running pair at (shift, sum).
inline void merge(double* shift, double* sum, double other_shift, double other_sum) {
  const double top = *shift > other_shift ? *shift : other_shift;
  *sum = *sum * std::exp(*shift - top) + other_sum * std::exp(other_shift - top);
  *shift = top;
}

// Column sums of every panel of a tile, each with its own shift, until they are merged in panel order.
template <class T>
struct ColumnPartials {
  std::int64_t cols;
  std::vector<T> shift, sum;
  ColumnPartials(std::int64_t panels, std::int64_t n) : cols(n), shift(panels * n), sum(panels * n) {}
};

// Sum a cell's exponentials by row and by column.
template <class T, bool kColumns>
void sum_cell(const T* z, Range<T> range, std::int64_t rows, std::int64_t cols, Sums row_sums, T* col_shift,
              T* col_sum) {
  if constexpr (kColumns) std::fill(col_sum, col_sum + cols, T(0));
  if (range.narrow()) {
    const T shift = range.high;
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* logits = z + i * kCols;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = 0; j < cols; ++j) {
        const T e = exponential(logits[j] - shift);
        sum += e;
        if constexpr (kColumns) col_sum[j] += e;
      }
      merge(row_sums.shift + i, row_sums.sum + i, shift, sum);
    }
    if constexpr (kColumns) std::fill(col_shift, col_shift + cols, shift);
    return;
  }
  if constexpr (kColumns) std::fill(col_shift, col_shift + cols, T(kExcluded / 2));
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* logits = z + i * kCols;
    T shift = T(kExcluded / 2), sum = 0;
#pragma omp simd reduction(max : shift)
    for (std::int64_t j = 0; j < cols; ++j) {
      shift = logits[j] > shift ? logits[j] : shift;
      if constexpr (kColumns) col_shift[j] = logits[j] > col_shift[j] ? logits[j] : col_shift[j];
    }
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < cols; ++j) sum += exponential(logits[j] - shift);
    merge(row_sums.shift + i, row_sums.sum + i, shift, sum);
  }
  if constexpr (kColumns) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* logits = z + i * kCols;
#pragma omp simd
      for (std::int64_t j = 0; j < cols; ++j) col_sum[j] += exponential(logits[j] - col_shift[j]);
    }
  }
}

// Bring the panels' column sums [first, last) into the running pairs, always in the same order.
template <class T>
void merge_columns(const ColumnPartials<T>& partials, std::int64_t panels, std::int64_t first, std::int64_t last,
                   Sums cols) {
  T top[kCols], total[kCols];
  const std::int64_t n = last - first;
  std::fill(top, top + n, T(kExcluded));
  std::fill(total, total + n, T(0));
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const T* shift = partials.shift.data() + panel * partials.cols + first;
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) top[j] = shift[j] > top[j] ? shift[j] : top[j];
  }
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const T* shift = partials.shift.data() + panel * partials.cols + first;
    const T* sum = partials.sum.data() + panel * partials.cols + first;
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) total[j] += sum[j] * exponential(shift[j] - top[j]);
  }
  for (std::int64_t j = 0; j < n; ++j) merge(cols.shift + first + j, cols.sum + first + j, top[j], total[j]);
}

template <class T>
std::int64_t panel_count(const Tile<T>& tile) {
  return (tile.rows + kRows - 1) / kRows;
}

template <class T, Shared kShared, bool kColumns>
void softmax_statistics(const Tile<T>& tile, Sums rows, Sums cols, int threads) {
  const std::int64_t panels = panel_count(tile);
  ColumnPartials<T> partials(kColumns ? panels : 0, tile.cols);
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> z(kRows * kCols);
#pragma omp for schedule(static)
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const std::int64_t row = panel * kRows, m = std::min(kRows, tile.rows - row);
      for (std::int64_t col = 0; col < tile.cols; col += kCols) {
        const std::int64_t n = std::min(kCols, tile.cols - col);
        const Range<T> range = load_cell<T, kShared>(tile, row, m, col, n, z.data());
        const std::int64_t at = kColumns ? panel * tile.cols + col : 0;
        sum_cell<T, kColumns>(z.data(), range, m, n, {rows.shift + row, rows.sum + row}, partials.shift.data() + at,
                              partials.sum.data() + at);
      }
    }
    if constexpr (kColumns) {
#pragma omp for schedule(static)
      for (std::int64_t col = 0; col < tile.cols; col += kCols)
        merge_columns(partials, panels, col, std::min(col + kCols, tile.cols), cols);
    }
  }
}

template <class T, Shared kShared>
void sigmoid_statistics(const Tile<T>& tile, Sums rows, int threads) {
  const std::int64_t panels = panel_count(tile);
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> z(kRows * kCols);
#pragma omp for schedule(static)
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const std::int64_t row = panel * kRows, m = std::min(kRows, tile.rows - row);
      for (std::int64_t col = 0; col < tile.cols; col += kCols) {
        const std::int64_t n = std::min(kCols, tile.cols - col);
        load_cell<T, kShared>(tile, row, m, col, n, z.data());
        for (std::int64_t i = 0; i < m; ++i) {
          const T* logits = z.data() + i * kCols;
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (std::int64_t j = 0; j < n; ++j) sum += softplus(logits[j]);
          rows.sum[row + i] += sum;
        }
      }
    }
  }
}

// Softmax coefficients of one row of a cell: e (row + col_j) where one exponential serves both sides.
template <class T>
void coefficients_one_shift(const T* z, const T* p, T shift, T row, const T* col_factor, std::int64_t cols, T* out,
                            T& product, T& total) {
  T sum_product = 0, sum = 0;
#pragma omp simd reduction(+ : sum_product, sum)
  for (std::int64_t j = 0; j < cols; ++j) {
    const T g = exponential(z[j] - shift) * (row + col_factor[j]);
    sum_product += g * p[j];
    sum += g;
    out[j] = g;
  }
  product = sum_product, total = sum;
}

// The same with a shift for the row and one for each column, for cells whose logits span more than kBand.
template <class T>
void coefficients_two_shifts(const T* z, const T* p, T row_shift, T row_factor, const double* col_shift,
                             const double* col_factor, std::int64_t cols, T* out, T& product, T& total) {
  T sum_product = 0, sum = 0;
#pragma omp simd reduction(+ : sum_product, sum)
  for (std::int64_t j = 0; j < cols; ++j) {
    const T by_row = exponential(z[j] - row_shift) * row_factor;
    const T by_col = exponential(z[j] - static_cast<T>(col_shift[j])) * static_cast<T>(col_factor[j]);
    const T g = by_row + by_col;
    sum_product += g * p[j];
    sum += g;
    out[j] = g;
  }
  product = sum_product, total = sum;
}

// Sigmoid coefficients; a positive by its label (whose z was negated) pulls the other way.
template <class T, Shared kShared>
void coefficients_sigmoid(const T* z, const T* p, T row_factor, std::int32_t label, const std::int32_t* labels,
                          std::int64_t cols, T* out, T& product, T& total) {
  T sum_product = 0, sum = 0;
#pragma omp simd reduction(+ : sum_product, sum)
  for (std::int64_t j = 0; j < cols; ++j) {
    T g = sigmoid(z[j]) * row_factor;
    if constexpr (kShared == Shared::Positive) g = labels[j] == label ? -g : g;
    sum_product += g * p[j];
    sum += g;
    out[j] = g;
  }
  product = sum_product, total = sum;
}

template <class T, bool kSoftmax, Shared kShared>
Totals tile_coefficients(const Tile<T>& tile, const Weights& weights, T* out, std::int64_t out_stride, int threads) {
  const std::int64_t panels = panel_count(tile);
  std::vector<Totals> totals(panels, Totals{0, 0});
#pragma omp parallel num_threads(threads)
  {
    std::vector<T> z(kRows * kCols), factor(kCols);
#pragma omp for schedule(static)
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const std::int64_t row = panel * kRows, m = std::min(kRows, tile.rows - row);
      for (std::int64_t col = 0; col < tile.cols; col += kCols) {
        const std::int64_t n = std::min(kCols, tile.cols - col);
        const Range<T> range = load_cell<T, kShared>(tile, row, m, col, n, z.data());
        bool one_shift = kSoftmax && range.narrow();
        if (one_shift) {
          T largest = 0;
#pragma omp simd reduction(max : largest)
          for (std::int64_t j = 0; j < n; ++j) {
            factor[j] = exponential(static_cast<T>(range.high - weights.col_shift[col + j])) *
                        static_cast<T>(weights.col_factor[col + j]);
            const T magnitude = factor[j] < T(0) ? -factor[j] : factor[j];
            largest = magnitude > largest ? magnitude : largest;
          }
          one_shift = largest <= T(kLargestFactor);
        }
        for (std::int64_t i = 0; i < m; ++i) {
          const std::int64_t r = row + i, positive = r + tile.diagonal - col;
          const bool has_positive = weights.positive && positive >= 0 && positive < n;
          const T* p = tile.products + r * tile.stride + col;
          const T* logits = z.data() + i * kCols;
          T* g = out + r * out_stride + col;
          // `out` may be the tile itself, so the positive's product is read before it is overwritten.
          const double positive_product = has_positive ? static_cast<double>(p[positive]) : 0.0;
          T product = 0, total = 0;
          double row_factor = 0;  // at the cell's shift
          if (one_shift) row_factor = weights.row_factor[r] * std::exp(range.high - weights.row_shift[r]);
          if constexpr (!kSoftmax) {
            constexpr bool labelled = kShared == Shared::Positive;
            coefficients_sigmoid<T, kShared>(logits, p, static_cast<T>(weights.row_factor[r]),
                                             labelled ? tile.row_labels[r] : 0,
                                             labelled ? tile.col_labels + col : nullptr, n, g, product, total);
          } else if (one_shift && std::abs(row_factor) <= kLargestFactor) {
            coefficients_one_shift(logits, p, range.high, static_cast<T>(row_factor), factor.data(), n, g, product,
                                   total);
          } else {
            coefficients_two_shifts(logits, p, static_cast<T>(weights.row_shift[r]),
                                    static_cast<T>(weights.row_factor[r]), weights.col_shift + col,
                                    weights.col_factor + col, n, g, product, total);
          }
          totals[panel].coefficient_product += product;
          totals[panel].coefficient += total;
          if (has_positive) {
            g[positive] = static_cast<T>(weights.positive[r]);
            totals[panel].coefficient_product += weights.positive[r] * positive_product;
            totals[panel].coefficient += weights.positive[r];
          }
        }
      }
    }
  }
  Totals sum{0, 0};
  for (const Totals& t : totals) {
    sum.coefficient_product += t.coefficient_product;
    sum.coefficient += t.coefficient;
  }
  return sum;
}

// Add to every row's and column's count the entries that are not below its bar.
template <class T>
void count(const Tile<T>& tile, const Bars<T>& bars, int threads) {
  const std::int64_t panels = panel_count(tile);
  std::vector<std::int32_t> partials(panels * tile.cols, 0);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t row = panel * kRows, end = std::min(row + kRows, tile.rows);
    std::int32_t* by_col = partials.data() + panel * tile.cols;
    for (std::int64_t i = row; i < end; ++i) {
      const T* p = tile.products + i * tile.stride;
      const T bar = bars.row[i];
      std::int32_t by_row = 0;
#pragma omp simd reduction(+ : by_row)
      for (std::int64_t j = 0; j < tile.cols; ++j) {
        by_row += p[j] < bar ? 0 : 1;
        by_col[j] += p[j] < bars.col[j] ? 0 : 1;
      }
      bars.row_count[i] += by_row;
    }
  }
  for (std::int64_t panel = 0; panel < panels; ++panel)
    for (std::int64_t j = 0; j < tile.cols; ++j) bars.col_count[j] += partials[panel * tile.cols + j];
}

// From run-time options to the compile-time ones.
template <class T, Shared kShared>
void statistics_of(Objective objective, const Tile<T>& tile, Sums rows, Sums cols, int threads) {
  if (objective != Objective::Softmax) return sigmoid_statistics<T, kShared>(tile, rows, threads);
  if constexpr (kShared != Shared::Positive) {
    if (cols.sum) return softmax_statistics<T, kShared, true>(tile, rows, cols, threads);
    return softmax_statistics<T, kShared, false>(tile, rows, cols, threads);
  }
}

Shared shared_role(Objective objective, bool labels) {
  if (objective == Objective::MultiSigmoid) return Shared::Positive;
  return labels ? Shared::Excluded : Shared::Ignored;
}

template <class T>
void statistics(Objective objective, const Tile<T>& tile, Sums rows, Sums cols, int threads) {
  switch (shared_role(objective, tile.row_labels)) {
    case Shared::Ignored:
      return statistics_of<T, Shared::Ignored>(objective, tile, rows, cols, threads);
    case Shared::Excluded:
      return statistics_of<T, Shared::Excluded>(objective, tile, rows, cols, threads);
    case Shared::Positive:
      return statistics_of<T, Shared::Positive>(objective, tile, rows, cols, threads);
  }
}

template <class T>
Totals coefficients(Objective objective, const Tile<T>& tile, const Weights& weights, T* out, std::int64_t stride,
                    int threads) {
  const bool softmax = objective == Objective::Softmax;
  switch (shared_role(objective, tile.row_labels)) {
    case Shared::Positive:
      return tile_coefficients<T, false, Shared::Positive>(tile, weights, out, stride, threads);
    case Shared::Excluded:
      return softmax ? tile_coefficients<T, true, Shared::Excluded>(tile, weights, out, stride, threads)
                     : tile_coefficients<T, false, Shared::Excluded>(tile, weights, out, stride, threads);
    case Shared::Ignored:
      break;
  }
  return softmax ? tile_coefficients<T, true, Shared::Ignored>(tile, weights, out, stride, threads)
                 : tile_coefficients<T, false, Shared::Ignored>(tile, weights, out, stride, threads);
}

}  // namespace

template <class T>
Kernels<T> make_kernels() {
  return {statistics<T>, coefficients<T>, count<T>};
}
template Kernels<float> make_kernels<float>();
template Kernels<double> make_kernels<double>();

}  // namespace FASTCLIP_ISA
}  // namespace fastclip
