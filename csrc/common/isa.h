// Which instruction set the CPU kernels use: the best one the machine has, unless
// TOKENFLOW_ISA or tokenflow_ext._C.force_isa names another.
#pragma once

#include <string>
#include <vector>

namespace tokenflow {

enum class Isa { portable, avx2, avx512 };

Isa active_isa();
std::vector<std::string> available_isas();
std::string isa_name(Isa isa);
// Empty name: back to the best. False when this machine or build lacks it.
bool force_isa(const std::string& name);

}  // namespace tokenflow

// Calls function(args...) as compiled for the instruction set in use. A declaration
// macro of the same shape follows, for headers of <op>_simd.cpp files.
#ifdef TFX_HAVE_AVX512
#define TFX_CASE_AVX512(function, ...) \
  case tokenflow::Isa::avx512:         \
    return tokenflow::avx512::function(__VA_ARGS__);
#define TFX_DECLARE_AVX512(...) \
  namespace avx512 {            \
  __VA_ARGS__;                  \
  }
#else
#define TFX_CASE_AVX512(function, ...)
#define TFX_DECLARE_AVX512(...)
#endif
#ifdef TFX_HAVE_AVX2
#define TFX_CASE_AVX2(function, ...) \
  case tokenflow::Isa::avx2:         \
    return tokenflow::avx2::function(__VA_ARGS__);
#define TFX_DECLARE_AVX2(...) \
  namespace avx2 {            \
  __VA_ARGS__;                \
  }
#else
#define TFX_CASE_AVX2(function, ...)
#define TFX_DECLARE_AVX2(...)
#endif

// TFX_DECLARE_SIMD(void f(int x)) inside namespace tokenflow declares every variant.
#define TFX_DECLARE_SIMD(...)     \
  TFX_DECLARE_AVX512(__VA_ARGS__) \
  TFX_DECLARE_AVX2(__VA_ARGS__)   \
  namespace portable {            \
  __VA_ARGS__;                    \
  }

// return TFX_CALL_SIMD(f, x): an expression usable in any function of that return type.
#define TFX_CALL_SIMD(function, ...)                       \
  [&]() {                                                  \
    switch (tokenflow::active_isa()) {                     \
      TFX_CASE_AVX512(function, __VA_ARGS__)               \
      TFX_CASE_AVX2(function, __VA_ARGS__)                 \
      default:                                             \
        return tokenflow::portable::function(__VA_ARGS__); \
    }                                                      \
  }()
