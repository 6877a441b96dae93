#include "common/cuda_stream.h"

#include <dlfcn.h>

#include <stdexcept>

namespace tokenflow {

void* current_cuda_stream(int32_t device_index) {
  using GetStream = int32_t (*)(int32_t, void**);
  // libtorch_cuda.so is already loaded where CUDA tensors exist; its symbols are not in
  // the global scope, so the handle is asked for explicitly.
  static GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<GetStream>(
                         dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  void* stream = nullptr;
  if (!get_stream || get_stream(device_index, &stream) != 0)
    throw std::runtime_error("tokenflow_ext: torch's CUDA stream cannot be reached");
  return stream;
}

}  // namespace tokenflow
