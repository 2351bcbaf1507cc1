// Python bindings. No torch here: tensors arrive as addresses, sizes and strides (fastclip/backends/cpu.py owns them),
// so the extension builds without torch and runs with any version of it.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"

namespace py = pybind11;
using fastclip::Objective;
using fastclip::Sums;
using fastclip::Totals;
using fastclip::Weights;
using Address = std::uintptr_t;

namespace {

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// A tile as Python describes it; `wide` tells double from float.
struct AnyTile {
  Address products;
  std::int64_t stride, rows, cols, diagonal;
  Address row_labels, col_labels;
  double scale, bias;
  bool wide;

  template <class T>
  fastclip::Tile<T> as() const {
    return {pointer<const T>(products),
            stride,
            rows,
            cols,
            diagonal,
            pointer<const std::int32_t>(row_labels),
            pointer<const std::int32_t>(col_labels),
            scale,
            bias};
  }
};

void statistics(Objective objective, const AnyTile& tile, const Sums& rows, const Sums& cols, int threads) {
  py::gil_scoped_release unlocked;
  if (tile.wide)
    fastclip::kernels<double>().statistics(objective, tile.as<double>(), rows, cols, threads);
  else
    fastclip::kernels<float>().statistics(objective, tile.as<float>(), rows, cols, threads);
}

py::tuple coefficients(Objective objective, const AnyTile& tile, const Weights& weights, Address out,
                       std::int64_t out_stride, int threads) {
  Totals totals;
  {
    py::gil_scoped_release unlocked;
    totals = tile.wide ? fastclip::kernels<double>().coefficients(objective, tile.as<double>(), weights,
                                                                  pointer<double>(out), out_stride, threads)
                       : fastclip::kernels<float>().coefficients(objective, tile.as<float>(), weights,
                                                                 pointer<float>(out), out_stride, threads);
  }
  return py::make_tuple(totals.coefficient_product, totals.coefficient);
}

template <class T>
void count_as(const AnyTile& tile, Address row, Address col, Address row_count, Address col_count, int threads) {
  const fastclip::Bars<T> bars{pointer<const T>(row), pointer<const T>(col), pointer<std::int64_t>(row_count),
                               pointer<std::int64_t>(col_count)};
  fastclip::kernels<T>().count(tile.as<T>(), bars, threads);
}

void count(const AnyTile& tile, Address row, Address col, Address row_count, Address col_count, int threads) {
  py::gil_scoped_release unlocked;
  (tile.wide ? count_as<double> : count_as<float>)(tile, row, col, row_count, col_count, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastclip's CPU kernels: fused epilogues over tiles of similarities.";

  py::enum_<Objective>(m, "Objective")
      .value("softmax", Objective::Softmax)
      .value("sigmoid", Objective::Sigmoid)
      .value("multi_sigmoid", Objective::MultiSigmoid);

  py::class_<AnyTile>(m, "Tile", "One tile of similarities; addresses are of row-major float or double memory.")
      .def(py::init([](Address products, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                       std::int64_t diagonal, Address row_labels, Address col_labels, double scale, double bias,
                       bool wide) {
             return AnyTile{products, stride, rows, cols, diagonal, row_labels, col_labels, scale, bias, wide};
           }),
           py::kw_only(), py::arg("products"), py::arg("stride"), py::arg("rows"), py::arg("cols"), py::arg("diagonal"),
           py::arg("row_labels"), py::arg("col_labels"), py::arg("scale"), py::arg("bias"), py::arg("wide"));

  py::class_<Sums>(m, "Sums", "Addresses of running (shift, sum) pairs, double; 0 where a side is not wanted.")
      .def(py::init([](Address shift, Address sum) { return Sums{pointer<double>(shift), pointer<double>(sum)}; }),
           py::arg("shift"), py::arg("sum"));

  py::class_<Weights>(m, "Weights", "Addresses of what turns logits into coefficients, double.")
      .def(py::init([](Address row_shift, Address row_factor, Address col_shift, Address col_factor, Address positive) {
             return Weights{pointer<const double>(row_shift), pointer<const double>(row_factor),
                            pointer<const double>(col_shift), pointer<const double>(col_factor),
                            pointer<const double>(positive)};
           }),
           py::kw_only(), py::arg("row_shift"), py::arg("row_factor"), py::arg("col_shift"), py::arg("col_factor"),
           py::arg("positive"));

  m.def("statistics", &statistics, py::arg("objective"), py::arg("tile"), py::arg("rows"), py::arg("cols"),
        py::arg("threads"), "Add a tile's negatives to the running statistics of its rows and columns.");
  m.def("coefficients", &coefficients, py::arg("objective"), py::arg("tile"), py::arg("weights"), py::arg("out"),
        py::arg("out_stride"), py::arg("threads"),
        "Write G = dL/dz of a tile to `out` and return (sum of G * products, sum of G).");
  m.def("count", &count, py::arg("tile"), py::arg("row_bar"), py::arg("col_bar"), py::arg("row_count"),
        py::arg("col_count"), py::arg("threads"),
        "Add to the counts (int64) of rows and columns the entries of a tile that are not below their bars.");
  m.def("isa", &fastclip::isa, "The instruction set in use: baseline, avx2 or avx512.");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
