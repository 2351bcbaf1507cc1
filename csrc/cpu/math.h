// Exponential and logarithm written so that compilers vectorise the loops that call them: no branches, no tables,
// no library calls for float. Double goes to the C library: it serves as an oracle, not as a fast path.
// NaN in, NaN out: every result is a product with a value computed from the argument.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastclip {
namespace FASTCLIP_ISA {

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// e^x within 2 ulp. Below -87.3 (where the result would leave the normal range) it is 0, above 88 infinity.
inline float exponential(float x) {
  constexpr float lowest = -87.3f, highest = 88.f;
  constexpr float log2e = 1.44269504088896341f;
  constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // Cody and Waite: n * ln2_high is exact
  constexpr float to_integer = 12582912.f;                             // 1.5 * 2^23: adding it rounds to an integer
  float clamped = x > highest ? highest : x;
  clamped = clamped < lowest ? lowest : clamped;
  const float n = (clamped * log2e + to_integer) - to_integer;
  const float r = (clamped - n * ln2_high) - n * ln2_low;
  float p = 1.9875691500e-4f;  // minimax polynomial of (e^r - 1 - r) / r^2 on |r| <= ln2 / 2 (Cephes expf)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const float value = p * from_bits(static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23);
  const float finite = x < lowest ? 0.f : value;
  return x > highest ? INFINITY : finite;
}

// log(1 + t) for t in [0, 1], within 2 ulp and relative to small t: 2 atanh(t / (2 + t)).
inline float log1p_unit(float t) {
  const float s = t / (2.f + t);
  const float q = s * s;
  float p = 1.f / 15.f;
  p = p * q + 1.f / 13.f;
  p = p * q + 1.f / 11.f;
  p = p * q + 1.f / 9.f;
  p = p * q + 1.f / 7.f;
  p = p * q + 1.f / 5.f;
  p = p * q + 1.f / 3.f;
  return 2.f * s + 2.f * s * q * p;
}

inline double exponential(double x) { return std::exp(x); }
inline double log1p_unit(double t) { return std::log1p(t); }

template <class T>
inline T softplus(T z) {
  const T magnitude = z < T(0) ? -z : z;
  const T positive_part = z < T(0) ? T(0) : z;
  return positive_part + log1p_unit(exponential(-magnitude));
}

template <class T>
inline T sigmoid(T z) {
  const T magnitude = z < T(0) ? -z : z;
  const T e = exponential(-magnitude);
  return (z < T(0) ? e : T(1)) / (T(1) + e);
}

}  // namespace FASTCLIP_ISA
}  // namespace fastclip
