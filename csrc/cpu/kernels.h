// The CPU epilogues: what happens to one tile of similarities after the library's matrix product made it.
//
// A tile holds raw products P (m, n) of packed rows. A logit is z = scale * P + bias. Entry (i, i + diagonal) is the
// positive of row i; entries whose labels agree are no negatives of each other. Both stay out of every sum here: the
// loss treats positives separately (fastclip/objectives.py), which is what keeps it exact once a model fits its batch.
#pragma once

#include <cstdint>

namespace fastclip {

// MultiSigmoid: entries whose labels agree are positives, softplus(-z), and part of the sums.
enum class Objective : int { Softmax = 0, Sigmoid = 1, MultiSigmoid = 2 };

// One tile of the similarity matrix, row-major, `stride` elements from row to row.
template <class T>
struct Tile {
  const T* products;
  std::int64_t stride;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t diagonal;           // the positive of row i is column i + diagonal, where that lies in the tile
  const std::int32_t* row_labels;  // (rows) or null
  const std::int32_t* col_labels;  // (cols) or null
  double scale;
  double bias;
};

// Running sums of one side (rows or columns). Softmax: sum of exp(z - shift). Sigmoid: sum of softplus(z), shift
// unused. Null pointers where the side is not wanted.
struct Sums {
  double* shift;
  double* sum;
};

// What turns logits into coefficients G = dL/dz: softmax e^(z - shift_i) factor_i + e^(z - shift_j) factor_j,
// sigmoid factor_i * sigma(z) (its positives -factor_i * sigma(-z)), and `positive` (rows) on the diagonal's positives.
struct Weights {
  const double* row_shift;
  const double* row_factor;
  const double* col_shift;
  const double* col_factor;
  const double* positive;  // null where rows have no positive
};

// Sum over the tile of G * P (the scale's gradient) and of G (the bias's).
struct Totals {
  double coefficient_product;
  double coefficient;
};

// Bars that entries of a tile are held against, and how many reach theirs: what ranks are made of.
template <class T>
struct Bars {
  const T* row;  // (rows)
  const T* col;  // (cols)
  std::int64_t* row_count;
  std::int64_t* col_count;
};

// One instruction set's implementation; see dispatch.cpp. `threads` only decides who computes a panel, never the
// result.
template <class T>
struct Kernels {
  void (*statistics)(Objective, const Tile<T>&, Sums rows, Sums cols, int threads);
  Totals (*coefficients)(Objective, const Tile<T>&, const Weights&, T* out, std::int64_t out_stride, int threads);
  void (*count)(const Tile<T>&, const Bars<T>&, int threads);  // NaN reaches every bar
};

const char* isa();  // "baseline", "avx2" or "avx512": the best one this processor runs, or what FASTCLIP_ISA asks for
template <class T>
const Kernels<T>& kernels();

}  // namespace fastclip
