// Stands in for the PTX of csrc/common/tensor_cores.cuh: the same functions, from what
// PTX documents of their layout.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#define TFX_HAS_MMA 1
#define TFX_HAS_WGMMA 1

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

// --- sm_90a ---

// A phase of a barrier ends when nobody is expected any more and every byte has come.
struct Phase {
  uint64_t number : 16, arrivals : 16, missing : 8, bytes : 24;
};
static_assert(sizeof(Phase) == 8);

// Opened at every change of a barrier: who waits looks again.
inline cuda_on_cpu::Barrier barriers_changed;

template <class F>
void change_barrier(uint64_t* barrier, F&& f) {
  const cuda_on_cpu::Unwatched unwatched;
  __tsan_release(barrier);
  Phase phase;
  std::memcpy(&phase, barrier, 8);
  f(phase);
  if (phase.missing == 0 && phase.bytes == 0) {
    ++phase.number;
    phase.missing = phase.arrivals;
  }
  std::memcpy(barrier, &phase, 8);
  ++barriers_changed.opened;
}

inline void barrier_init(uint64_t* barrier, int arrivals) {
  Phase phase{};
  phase.arrivals = phase.missing = arrivals;
  std::memcpy(barrier, &phase, 8);
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint64_t* barrier) {
  change_barrier(barrier, [](Phase& phase) {
    if (phase.missing == 0) std::abort();
    --phase.missing;
  });
}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  change_barrier(barrier, [&](Phase& phase) {
    if (phase.missing == 0) std::abort();
    --phase.missing;
    phase.bytes += bytes;
  });
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  const cuda_on_cpu::Unwatched unwatched;
  for (;;) {
    Phase phase;
    std::memcpy(&phase, barrier, 8);
    if (phase.number % 2 != parity) break;  // the phase of that parity is over
    cuda_on_cpu::let_others_run(barriers_changed, barriers_changed.opened);
  }
  cuda_on_cpu::me().waits = nullptr;
  __tsan_acquire(barrier);
}
inline void bulk_copy(void* shared, const void* global, uint32_t bytes,
                      uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || bytes % 16 ||
      reinterpret_cast<uintptr_t>(global) % 16)
    std::abort();
  std::memcpy(shared, global, bytes);
  change_barrier(barrier, [&](Phase& phase) {
    if (phase.bytes < bytes) std::abort();
    phase.bytes -= bytes;
  });
}

template <int count>
void grow_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256);
}
template <int count>
void shrink_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256);
}

// Shared addresses do not begin at 0, and have 18 bits.
constexpr uint64_t kSharedBase = 1024;

inline uint64_t matrix_descriptor(const void* first, uint32_t leading,
                                  uint32_t stride) {
  const uint64_t address =
      static_cast<const unsigned char*>(first) - dynamic_shared() + kSharedBase;
  if (address % 16 || address >> 18 || leading >> 18 || stride >> 18) std::abort();
  return address >> 4 | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32;
}

// Products are put off until somebody waits for them; what is looked at before is NaN,
// and what shared memory holds by then is what counts.
struct PendingProduct {
  float* d;
  uint32_t a[4];
  uint64_t b;
  bool accumulate;
};
inline std::vector<std::vector<PendingProduct>>& pending_products() {
  static std::vector<std::vector<std::vector<PendingProduct>>> groups(
      1024, std::vector<std::vector<PendingProduct>>(1));
  return groups[threadIdx.x];
}

// Towards zero, as a tensor core may.
inline float cut(double sum) {
  const float rounded = static_cast<float>(sum);
  return std::abs(static_cast<double>(rounded)) > std::abs(sum)
             ? std::nextafter(rounded, 0.0f)
             : rounded;
}

inline void multiply_now(const PendingProduct& p) {
  struct Fragments {
    uint32_t a[4];
  } mine;
  std::memcpy(&mine, p.a, sizeof mine);
  const auto at = cuda_on_cpu::exchange(0xffffffffu, mine);
  const unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const unsigned char* start = dynamic_shared() + ((p.b & 0x3fff) << 4) - kSharedBase;
  const uint64_t leading = (p.b >> 16 & 0x3fff) << 4;
  const uint64_t stride = (p.b >> 32 & 0x3fff) << 4;
  double a[2][16];
  for (unsigned i = 0; i < 2; ++i)
    for (unsigned k = 0; k < 16; ++k) {
      const uint32_t pair = at(4 * g + k % 8 / 2).a[i + k / 8 * 2];
      a[i][k] = to_float(Half{static_cast<uint16_t>(pair >> k % 2 * 16)});
    }
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned column = i / 4 * 8 + 2 * t + i % 2;
    double sum = p.accumulate ? p.d[i] : 0.0;
    for (unsigned k = 0; k < 16; ++k) {
      Half b;
      std::memcpy(
          &b,
          start + k / 8 * leading + column / 8 * stride + column % 8 * 16 + k % 8 * 2,
          2);
      sum += a[i % 4 / 2][k] * static_cast<double>(to_float(b));
    }
    p.d[i] = cut(sum);
  }
}

inline void wgmma_touch(float (&)[64]) {}
inline void wgmma_fence() {}
inline void wgmma_commit() { pending_products().emplace_back(); }
template <int pending>
void wgmma_wait() {
  auto& groups = pending_products();
  while (groups.size() > pending + 1) {
    for (const PendingProduct& p : groups.front()) multiply_now(p);
    groups.erase(groups.begin());
  }
  cuda_on_cpu::warp_barrier(0xffffffffu);  // a warp waits as one
}
inline void wgmma_m64n128k16(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate) {
  if (!accumulate) std::fill(d, d + 64, std::numeric_limits<float>::quiet_NaN());
  pending_products().back().push_back({d, {a[0], a[1], a[2], a[3]}, b, accumulate});
}

}  // namespace tokenflow
