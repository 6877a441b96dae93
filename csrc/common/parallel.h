// The thread loop that the glue hands to kernels, so that kernels see no Torch and
// still share torch's own thread pool.
#pragma once

#include <cstdint>
#include <functional>

namespace tokenflow {

struct Parallel {
  // Calls body(begin, end) over pieces of [0, n) of at least `grain` items.
  std::function<void(int64_t n, int64_t grain,
                     const std::function<void(int64_t, int64_t)>& body)>
      run;
  int threads = 1;  // upper bound of pieces that run at once
};

}  // namespace tokenflow
