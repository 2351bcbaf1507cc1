// Pick, once per process, the instruction set whose kernels this processor runs best.
// FASTCLIP_ISA=baseline|avx2|avx512 in the environment asks for a lesser one (tests use it; a greater one is refused).
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace fastclip {

#define FASTCLIP_DECLARE(ISA) \
  namespace ISA {             \
  template <class T>          \
  Kernels<T> make_kernels();  \
  }
FASTCLIP_DECLARE(baseline)
#ifdef FASTCLIP_X86
FASTCLIP_DECLARE(avx2)
FASTCLIP_DECLARE(avx512)
#endif
#undef FASTCLIP_DECLARE

namespace {

enum Level { Baseline, Avx2, Avx512 };
const char* const kNames[] = {"baseline", "avx2", "avx512"};

Level best_level() {
#ifdef FASTCLIP_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return Avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Avx2;
#endif
  return Baseline;
}

Level choose_level() {
  const Level best = best_level();
  const char* wish = std::getenv("FASTCLIP_ISA");
  if (!wish || !*wish) return best;
  for (int level = Baseline; level <= best; ++level)
    if (std::string(wish) == kNames[level]) return static_cast<Level>(level);
  throw std::runtime_error("FASTCLIP_ISA=" + std::string(wish) + " cannot be used: this processor runs up to " +
                           kNames[best] + "; unset it or ask for baseline, avx2 or avx512 up to that");
}

Level level() {
  static const Level chosen = choose_level();
  return chosen;
}

template <class T>
Kernels<T> pick() {
#ifdef FASTCLIP_X86
  if (level() == Avx512) return avx512::make_kernels<T>();
  if (level() == Avx2) return avx2::make_kernels<T>();
#endif
  return baseline::make_kernels<T>();
}

}  // namespace

const char* isa() { return kNames[level()]; }

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> chosen = pick<T>();
  return chosen;
}
template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace fastclip
