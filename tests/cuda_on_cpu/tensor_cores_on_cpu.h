// Stands in for the PTX of csrc/common/tensor_cores.cuh: the same functions, from what
// PTX documents of their layout.
#pragma once

#include <cuda_runtime.h>

#define TFX_HAS_MMA 1

namespace tokenflow {

inline unsigned char* dynamic_shared() { return cuda_on_cpu::block.shared.get(); }

inline void load_matrices(uint32_t (&m)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) std::abort();
  struct Row {
    uint32_t pair[4];
  } mine;  // read here, where the sanitizers watch
  std::memcpy(&mine, row, sizeof mine);
  const auto at = cuda_on_cpu::exchange(0xffffffffu, mine);
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) m[i] = at(8 * i + lane / 4).pair[lane % 4];
}

// In order of the columns of a; the hardware promises no order.
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto at = cuda_on_cpu::exchange(0xffffffffu, mine);
  const unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 16; ++k) {
      const uint32_t left = at(4 * g + k % 8 / 2).a[i / 2 + k / 8 * 2];
      const uint32_t right = at(4 * (2 * t + i % 2) + k % 8 / 2).b[k / 8];
      d[i] += to_float(T{static_cast<uint16_t>(left >> k % 2 * 16)}) *
              to_float(T{static_cast<uint16_t>(right >> k % 2 * 16)});
    }
}

// A copy is made at the last moment, when its thread waits for it: what reads before
// that reads something else.
struct PendingCopy {
  void* to;
  const void* from;
  bool valid;
};
inline std::vector<std::vector<PendingCopy>>& pending_copies() {
  static std::vector<std::vector<std::vector<PendingCopy>>> groups(
      1024, std::vector<std::vector<PendingCopy>>(1));
  return groups[threadIdx.x];
}
inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  if (reinterpret_cast<uintptr_t>(shared) % 16) std::abort();
  if (valid && reinterpret_cast<uintptr_t>(global) % 16) std::abort();
  pending_copies().back().push_back({shared, global, valid});
}
inline void copy_async_commit() { pending_copies().emplace_back(); }
template <int pending>
void copy_async_wait() {
  auto& groups = pending_copies();
  while (groups.size() > pending + 1) {
    for (const PendingCopy& copy : groups.front())
      copy.valid ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
    groups.erase(groups.begin());
  }
}

}  // namespace tokenflow
