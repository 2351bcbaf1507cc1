// The CPU kernels against plain double-precision loops over every objective, side, label mode and awkward shape.
// A program of its own, without Python or torch: built with AddressSanitizer and UndefinedBehaviorSanitizer (`make
// sanitize`), every array has exactly the length the kernels may touch. Prints what failed; exits 1 if anything did.
#include "cpu/kernels.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

using namespace fastclip;

namespace {

int failures = 0;

void check(bool good, const char* what, double got, double expected) {
  if (good) return;
  if (++failures <= 20) std::printf("FAILED %s: got %.9g, expected %.9g\n", what, got, expected);
}

void close(double got, double expected, double tolerance, const char* what) {
  check(std::abs(got - expected) <= tolerance * std::max(1.0, std::abs(expected)), what, got, expected);
}

struct Case {
  Objective objective;
  bool labels, columns;
  std::int64_t rows, cols, diagonal, padding;
  double scale;
  int threads;
};

double logistic(double z) { return 1 / (1 + std::exp(-z)); }
double log1pexp(double z) { return z > 0 ? z + std::log1p(std::exp(-z)) : std::log1p(std::exp(z)); }

template <class T>
struct Problem {
  Case c;
  std::vector<T> products;
  std::vector<std::int32_t> row_labels, col_labels;

  Problem(const Case& c, std::mt19937& random) : c(c), row_labels(c.rows), col_labels(c.cols) {
    std::uniform_real_distribution<double> uniform(-1, 1);
    std::uniform_int_distribution<std::int32_t> label(0, 5);
    products.resize((c.rows - 1) * stride() + c.cols);
    for (T& p : products) p = static_cast<T>(uniform(random));
    for (auto* side : {&row_labels, &col_labels})
      for (std::int32_t& id : *side) id = label(random);
  }

  std::int64_t stride() const { return c.cols + c.padding; }
  Tile<T> tile() const {
    return {products.data(),
            stride(),
            c.rows,
            c.cols,
            c.diagonal,
            c.labels ? row_labels.data() : nullptr,
            c.labels ? col_labels.data() : nullptr,
            c.scale,
            0.25};
  }
  double product(std::int64_t i, std::int64_t j) const { return products[i * stride() + j]; }
  double logit(std::int64_t i, std::int64_t j) const { return c.scale * product(i, j) + 0.25; }
  bool on_diagonal(std::int64_t i, std::int64_t j) const { return j == i + c.diagonal; }
  bool shared(std::int64_t i, std::int64_t j) const { return c.labels && row_labels[i] == col_labels[j]; }
  bool negative(std::int64_t i, std::int64_t j) const {
    if (on_diagonal(i, j)) return false;
    return c.objective == Objective::MultiSigmoid || !shared(i, j);
  }
};

template <class T>
void check_statistics(const Problem<T>& p, double tolerance) {
  const Case& c = p.c;
  std::vector<double> row_shift(c.rows, -1e30), row_sum(c.rows, 0), col_shift(c.cols, -1e30), col_sum(c.cols, 0);
  const Sums rows{row_shift.data(), row_sum.data()};
  const Sums cols = c.columns ? Sums{col_shift.data(), col_sum.data()} : Sums{nullptr, nullptr};
  kernels<T>().statistics(c.objective, p.tile(), rows, cols, c.threads);
  std::vector<double> row_expected(c.rows, 0), col_expected(c.cols, 0);
  for (std::int64_t i = 0; i < c.rows; ++i)
    for (std::int64_t j = 0; j < c.cols; ++j) {
      if (!p.negative(i, j)) continue;
      const double z = p.logit(i, j);
      const bool softmax = c.objective == Objective::Softmax, flipped = !softmax && p.shared(i, j);
      row_expected[i] += softmax ? std::exp(z) : log1pexp(flipped ? -z : z);
      col_expected[j] += std::exp(z);
    }
  const auto compare = [&](double shift, double sum, double expected, const char* what) {
    if (c.objective != Objective::Softmax) return close(sum, expected, tolerance, what);
    if (expected == 0) return check(sum == 0, what, sum, 0);
    close(shift + std::log(sum), std::log(expected), tolerance, what);
  };
  for (std::int64_t i = 0; i < c.rows; ++i) compare(row_shift[i], row_sum[i], row_expected[i], "row statistics");
  for (std::int64_t j = 0; c.columns && j < c.cols; ++j)
    compare(col_shift[j], col_sum[j], col_expected[j], "column statistics");
}

template <class T>
void check_coefficients(const Problem<T>& p, double tolerance) {
  const Case& c = p.c;
  const bool softmax = c.objective == Objective::Softmax;
  std::vector<double> row_shift(c.rows, c.scale), row_factor(c.rows, 0.5), col_shift(c.cols, c.scale + 1);
  std::vector<double> col_factor(c.cols, c.columns ? 0.25 : 0.0), positive(c.rows, -0.125);
  const bool has_positive = c.objective != Objective::MultiSigmoid;
  const Weights weights{row_shift.data(), row_factor.data(), col_shift.data(), col_factor.data(),
                        has_positive ? positive.data() : nullptr};
  std::vector<T> out(c.rows * c.cols);
  const Totals totals = kernels<T>().coefficients(c.objective, p.tile(), weights, out.data(), c.cols, c.threads);
  double product_total = 0, total = 0, scale = 0;
  for (std::int64_t i = 0; i < c.rows; ++i)
    for (std::int64_t j = 0; j < c.cols; ++j) {
      const double z = p.logit(i, j);
      double g = 0;
      if (has_positive && p.on_diagonal(i, j))
        g = positive[i];
      else if (p.negative(i, j))
        g = softmax ? row_factor[i] * std::exp(z - row_shift[i]) + col_factor[j] * std::exp(z - col_shift[j])
                    : row_factor[i] * (p.shared(i, j) && !has_positive ? -logistic(-z) : logistic(z));
      close(out[i * c.cols + j], g, tolerance, "coefficient");
      product_total += g * p.product(i, j), total += g, scale += std::abs(g);
    }
  close(totals.coefficient_product, product_total, tolerance * std::max(1.0, scale), "sum of G * P");
  close(totals.coefficient, total, tolerance * std::max(1.0, scale), "sum of G");
}

template <class T>
void check_count(const Problem<T>& p) {
  const Case& c = p.c;
  std::vector<T> row_bar(c.rows, T(0.1)), col_bar(c.cols, T(-0.2));
  std::vector<std::int64_t> row_count(c.rows, 1), col_count(c.cols, 2);
  kernels<T>().count(p.tile(), {row_bar.data(), col_bar.data(), row_count.data(), col_count.data()}, c.threads);
  for (std::int64_t i = 0; i < c.rows; ++i)
    for (std::int64_t j = 0; j < c.cols; ++j) {
      const T value = p.products[i * p.stride() + j];
      row_count[i] -= value < row_bar[i] ? 0 : 1, col_count[j] -= value < col_bar[j] ? 0 : 1;
    }
  for (std::int64_t left : row_count) check(left == 1, "row count", static_cast<double>(left), 1);
  for (std::int64_t left : col_count) check(left == 2, "column count", static_cast<double>(left), 2);
}

template <class T>
void check_all(const Case& c, std::mt19937& random, double tolerance) {
  const Problem<T> problem(c, random);
  check_statistics(problem, tolerance);
  check_coefficients(problem, tolerance);
  check_count(problem);
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const std::int64_t shapes[][2] = {{1, 1}, {1, 7}, {3, 1030}, {33, 9}, {65, 1024}, {40, 2049}};
  int cases = 0;
  for (Objective objective : {Objective::Softmax, Objective::Sigmoid, Objective::MultiSigmoid})
    for (const auto& shape : shapes)
      for (bool labels : {false, true})
        for (bool columns : {false, true})
          for (std::int64_t diagonal : {std::int64_t{0}, std::int64_t{5}, std::int64_t{-2}, -shape[0] - 1})
            for (double scale : {1.0, 60.0})  // one shift for a whole cell, and shifts for every row and column
              for (int threads : {1, 3}) {
                if (objective == Objective::MultiSigmoid && (!labels || diagonal != -shape[0] - 1)) continue;
                if (objective != Objective::Softmax && columns) continue;
                const Case c{objective, labels, columns, shape[0], shape[1], diagonal, threads, scale, threads};
                check_all<float>(c, random, 2e-5);
                check_all<double>(c, random, 1e-12);
                ++cases;
              }
  std::printf("%d cases on %s, %d failures\n", cases, isa(), failures);
  return failures ? 1 : 0;
}
