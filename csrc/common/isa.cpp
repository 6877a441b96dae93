#include "common/isa.h"

#include <atomic>
#include <cstdlib>

namespace tokenflow {
namespace {

bool machine_has(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
#ifdef TFX_HAVE_AVX2
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
#endif
#ifdef TFX_HAVE_AVX512
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni") && machine_has(Isa::avx2);
#endif
    default:
      return false;
  }
}

constexpr Isa kBestFirst[] = {Isa::avx512, Isa::avx2, Isa::portable};

Isa best() {
  for (Isa isa : kBestFirst)
    if (machine_has(isa)) return isa;
  return Isa::portable;
}

Isa from_environment() {
  const char* name = std::getenv("TOKENFLOW_ISA");
  for (Isa isa : kBestFirst)
    if (name && isa_name(isa) == name && machine_has(isa)) return isa;
  return best();
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{from_environment()};
  return isa;
}

}  // namespace

Isa active_isa() { return active().load(std::memory_order_relaxed); }

std::string isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : kBestFirst)
    if (machine_has(isa)) names.push_back(isa_name(isa));
  return names;
}

bool force_isa(const std::string& name) {
  if (name.empty()) {
    active() = from_environment();
    return true;
  }
  for (Isa isa : kBestFirst)
    if (isa_name(isa) == name && machine_has(isa)) {
      active() = isa;
      return true;
    }
  return false;
}

}  // namespace tokenflow
