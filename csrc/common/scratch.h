// Memory of one thread, aligned for any vector and not initialised.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace tokenflow {

class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(
            ::operator new(static_cast<size_t>(floats) * sizeof(float), kAlign))) {}
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<float, Free> data_;
};

}  // namespace tokenflow
